"""What a comparison found, and the tables and figures that tell it."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from espace.comparison import Comparison, Planned
from espace.report import Report
from espace.runs import writing
from espace.statistics import LEVEL, Difference, quantile

Values = dict[str, float]


@dataclass(frozen=True)
class Summary:
    """Of the seeds that there are: mean, deviation, half the width of the interval of the mean (both NaN with one seed)."""

    mean: float
    deviation: float
    half: float
    seeds: int


@dataclass(frozen=True)
class Compared:
    """A difference from the variant that others are compared with: p corrected by Holm, and over how many seeds."""

    difference: Difference
    p: float
    seeds: int

    @property
    def verdict(self) -> str:
        """In words."""
        if math.isnan(self.p):
            return "one seed does not tell"
        found = "not told apart" if self.p >= 1 - LEVEL else "higher" if self.difference.mean > 0 else "lower"
        return f"{found}, of one seed" if self.seeds == 1 else found


@dataclass
class Outcome:
    """What a comparison found.

    planned: all runs; chosen: those judged on test rows; validation, test: metrics of runs by digest; failed: `{run: why}`;
    differences: by (share, metric, variant).
    """

    comparison: Comparison
    planned: list[Planned]
    chosen: list[Planned] = field(default_factory=list)
    validation: dict[str, Values] = field(default_factory=dict)
    test: dict[str, Values] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    differences: dict[tuple[float, str, str], Compared] = field(default_factory=dict)

    def summary(self, variant: str, share: float, metric: str) -> Summary:
        """On test rows, over the seeds."""
        runs = [p for p in self.chosen if (p.variant, p.share) == (variant, share)]
        found = [self.test[p.digest].get(metric, math.nan) for p in runs]
        if len(found) < 2:
            return Summary(found[0] if found else math.nan, math.nan, math.nan, len(found))
        deviation = stdev(found)
        half = quantile(len(found) - 1) * deviation / math.sqrt(len(found))
        return Summary(fmean(found), deviation, half, len(found))

    def write(self, folder: Path, report: Report) -> None:
        """Write results.csv, table.md and the figures, and print the tables. Raises RunError when it cannot."""
        keys = self.comparison.keys
        with writing(folder, "--out"):
            self._write_results(folder / "results.csv")
            (folder / "table.md").write_text(self.markdown())
            for metric in keys.report:
                lines = {v: [self.summary(v, share, metric) for share in keys.shares] for v in keys.variants}
                points = {v: [(one.mean, one.half) for one in line] for v, line in lines.items()}
                report.shares(folder / "figures" / f"{metric.replace('/', '_')}.png", metric, keys.shares, points)
        report.tell(self.markdown())
        report.tell(f"Written to {folder}: table.md, results.csv, figures, runs")

    def _write_results(self, path: Path) -> None:
        """A row for each run and metric, on validation and, where it was chosen, on test."""
        by, chosen = self.comparison.keys.choose_by, set(self.chosen)
        metrics = dict.fromkeys([*self.comparison.keys.report, *([by.metric] if by else [])])
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["variant", "setting", "share", "seed", "part", "metric", "value", "run"])
            for p in self.planned:
                parts = {"validation": self.validation.get(p.digest, {})}
                parts |= {"test": self.test[p.digest]} if p in chosen else {}
                for part, values in parts.items():
                    for metric in (m for m in metrics if m in values):
                        place = [p.variant, " ".join(p.setting), p.share, p.seed, part, metric]
                        table.writerow([*place, repr(values[metric]), p.digest])

    def markdown(self) -> str:
        """All tables."""
        seeds = len(self.comparison.keys.seeds)
        over = f"; mean ± deviation over {seeds} seeds" if seeds > 1 else ""
        lines = [f"# {self.comparison.name}", "", f"Judged on test rows{over}.", ""]
        for metric in self.comparison.keys.report:
            lines += [f"## {metric}", "", *self._means(metric), *self._differences(metric), ""]
        lines += self._choices()
        failed = [f"* {p}: {' '.join(self.failed[str(p)].split())}" for p in self.planned if str(p) in self.failed]
        return "\n".join([*lines, *(["## Failed", "", *failed, ""] if failed else [])])

    def _means(self, metric: str) -> Iterator[str]:
        keys = self.comparison.keys
        yield f"| variant | {' | '.join(_share(share) for share in keys.shares)} |"
        yield f"|{'---|' * (len(keys.shares) + 1)}"
        for variant in keys.variants:
            cells = [_cell(self.summary(variant, share, metric), len(keys.seeds)) for share in keys.shares]
            yield f"| {variant} | {' | '.join(cells)} |"

    def _differences(self, metric: str) -> Iterator[str]:
        found = {(share, name): one for (share, m, name), one in self.differences.items() if m == metric}
        if not found:
            return
        yield from ("", f"Differences from {self.comparison.against}:", "")
        yield f"| variant | trained on | difference | {LEVEL:.0%} interval | p | p (Holm) | |"
        yield "|---|---|---|---|---|---|---|"
        for (share, name), one in found.items():
            told = one.difference
            interval = "-" if math.isnan(told.p) else f"{told.low:+.4f} to {told.high:+.4f}"
            cells = [name, _share(share), f"{told.mean:+.4f}", interval, _p(told.p), _p(one.p), one.verdict]
            yield f"| {' | '.join(cells)} |"

    def _choices(self) -> list[str]:
        """The settings that were chosen, where there was a choice."""
        by, chosen = self.comparison.keys.choose_by, {(p.variant, p.share): p.setting for p in self.chosen if p.setting}
        if by is None or not chosen:
            return []
        lines = ["## Chosen on validation", "", f"By the {by.mode} of {by.metric}, mean over the seeds.", ""]
        return [*lines, *(f"* {name}, {_share(s)}: {' '.join(setting)}" for (name, s), setting in chosen.items()), ""]


def _share(share: float) -> str:
    return "all rows" if share == 1 else f"{100 * share:.4g} % of the rows"


def _cell(found: Summary, seeds: int) -> str:
    if not found.seeds:
        return "failed"
    deviation = "" if math.isnan(found.deviation) else f" ± {found.deviation:.4f}"
    return f"{found.mean:.4f}{deviation}{f' ({found.seeds} of {seeds} seeds)' if found.seeds < seeds else ''}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "< 0.0001" if value < 0.0001 else f"{value:.4f}"
