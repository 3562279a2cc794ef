"""What a comparison found, and the tables and figures that tell it."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from espace.compare.comparison import Comparison
from espace.compare.judged import Values
from espace.compare.planned import Planned
from espace.compare.statistics import LEVEL, Difference, quantile
from espace.data.reading.naming import file_name
from espace.runs.figures import Interval
from espace.runs.report import Report
from espace.runs.run import writing


@dataclass(frozen=True)
class Summary:
    """Of the seeds that there are: mean, deviation, half the width of the interval of the mean (NaN with one seed)."""

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
    def interval(self) -> Interval:
        """Mean, low and high."""
        return self.difference.mean, self.difference.low, self.difference.high

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

    runs: all, helpers first; chosen: those judged on test rows; validation: metrics by digest; test: metrics by run;
    failed: `{run: why}`; differences: by (condition, share, metric, variant).
    """

    comparison: Comparison
    runs: list[Planned]
    chosen: list[Planned] = field(default_factory=list)
    validation: dict[str, Values] = field(default_factory=dict)
    test: dict[Planned, Values] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    differences: dict[tuple[str, float, str, str], Compared] = field(default_factory=dict)

    @property
    def helpers(self) -> list[Planned]:
        """The runs of helpers."""
        return [p for p in self.runs if p.helper]

    @property
    def planned(self) -> list[Planned]:
        """The runs of variants."""
        return [p for p in self.runs if not p.helper]

    def summary(self, variant: str, condition: str, share: float, metric: str) -> Summary:
        """On test rows, over the seeds; what is the same for all of them counts once."""
        runs = [p for p in self.chosen if (p.name, p.condition, p.share) == (variant, condition, share)]
        runs, space = [p for p in runs if metric in self.test[p]], metric.rpartition("/")[0]
        found = list({p.behind(space): self.test[p][metric] for p in runs}.values())
        if len(found) < 2:
            return Summary(found[0] if found else math.nan, math.nan, math.nan, len(runs))
        deviation = stdev(found)
        half = quantile(len(found) - 1) * deviation / math.sqrt(len(found))
        return Summary(fmean(found), deviation, half, len(runs))

    def write(self, folder: Path, report: Report) -> None:
        """Write results.csv, table.md and the figures, and print the tables. Raises RunError when it cannot."""
        with writing(folder, "--out"):
            self._write_results(folder / "results.csv")
            (folder / "table.md").write_text(self.markdown())
            for metric in self.comparison.keys.report:
                self._draw(metric, folder / "figures" / f"{file_name(metric.replace('/', '_'))}.png", report)
        report.tell(self.markdown())
        report.tell(f"Written to {folder}: table.md, results.csv, figures, runs")

    def _draw(self, metric: str, target: Path, report: Report) -> None:
        """Differences where there are conditions, else the metric over the shares."""
        keys, against = self.comparison.keys, self.comparison.against
        if not keys.conditions:
            lines = {v: [self.summary(v, "", share, metric) for share in keys.shares] for v in keys.variants}
            points = {v: [(one.mean, one.half) for one in line] for v, line in lines.items()}
            report.shares(target, metric, keys.shares, points)
            return
        intervals: dict[str, dict[str, list[Interval | None]]] = {_share(share): {} for share in keys.shares}
        for share, variant in itertools.product(keys.shares, (v for v in keys.variants if v != against)):
            found = [self.differences.get((c, share, metric, variant)) for c in keys.conditions]
            intervals[_share(share)][variant] = [None if one is None else one.interval for one in found]
        report.conditions(target, f"{metric}, difference from {against}", list(keys.conditions), intervals)

    def _write_results(self, path: Path) -> None:
        """A row for each run and metric, on validation and, where it was chosen, on test."""
        by, chosen = self.comparison.keys.choose_by, set(self.chosen)
        metrics = dict.fromkeys([*self.comparison.keys.report, *([by.metric] if by else [])])
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["variant", "setting", "condition", "share", "seed", "part", "metric", "value", "run"])
            for p in self.planned:
                parts = {"validation": self.validation.get(p.digest, {})}
                parts |= {"test": self.test[p]} if p in chosen else {}
                for part, values in parts.items():
                    for metric in (m for m in metrics if m in values):
                        place = [p.name, " ".join(p.setting), p.condition, p.share, p.seed, part, metric]
                        table.writerow([*place, repr(values[metric]), p.digest])

    def markdown(self) -> str:
        """All tables."""
        seeds = len(self.comparison.keys.seeds)
        over = f"; mean ± deviation over {seeds} seeds" if seeds > 1 else ""
        lines = [f"# {self.comparison.name}", "", f"Judged on test rows{over}.", ""]
        for metric in self.comparison.keys.report:
            lines += [f"## {metric}", "", *self._means(metric), *self._differences(metric), ""]
        lines += self._choices()
        failed = [f"* {p}: {' '.join(self.failed[str(p)].split())}" for p in self.runs if str(p) in self.failed]
        return "\n".join([*lines, *(["## Failed", "", *failed, ""] if failed else [])])

    def _means(self, metric: str) -> Iterator[str]:
        keys, groups = self.comparison.keys, self.comparison.groups
        yield f"| variant | {' | '.join(self._column(*group) for group in groups)} |"
        yield f"|{'---|' * (len(groups) + 1)}"
        for variant in keys.variants:
            cells = [_cell(self.summary(variant, *group, metric), len(keys.seeds)) for group in groups]
            yield f"| {variant} | {' | '.join(cells)} |"

    def _column(self, condition: str, share: float) -> str:
        """The name of a condition and, where there are several, of a share."""
        shown = _share(share) if not condition or len(self.comparison.keys.shares) > 1 else ""
        return ", ".join(part for part in (condition, shown) if part)

    def _differences(self, metric: str) -> Iterator[str]:
        found = {(c, share, name): one for (c, share, m, name), one in self.differences.items() if m == metric}
        if not found:
            return
        condition = ["condition"] if self.comparison.keys.conditions else []
        yield from ("", f"Differences from {self.comparison.against}:", "")
        names = ["variant", *condition, "trained on", "difference", f"{LEVEL:.0%} interval", "p", "p (Holm)", ""]
        yield f"| {' | '.join(names)}|"
        yield f"|{'---|' * len(names)}"
        for (where, share, name), one in found.items():
            told = one.difference
            interval = "-" if math.isnan(told.p) else f"{told.low:+.4f} to {told.high:+.4f}"
            place = [name, *([where] if condition else []), _share(share)]
            cells = [*place, f"{told.mean:+.4f}", interval, _p(told.p), _p(one.p), one.verdict]
            yield f"| {' | '.join(cells)} |"

    def _choices(self) -> list[str]:
        """The settings that were chosen, where there was a choice."""
        by, chosen = self.comparison.keys.choose_by, {(p.name, p.group): p.setting for p in self.chosen if p.setting}
        if by is None or not chosen:
            return []
        lines = ["## Chosen on validation", "", f"By the {by.mode} of {by.metric}, mean over the seeds.", ""]
        told = (f"* {name}, {self._column(*group)}: {' '.join(setting)}" for (name, group), setting in chosen.items())
        return [*lines, *told, ""]


def _share(share: float) -> str:
    return "all rows" if share == 1 else f"{100 * share:.4g} % of the rows"


def _cell(found: Summary, seeds: int) -> str:
    if not found.seeds:
        return "failed"
    deviation = "" if math.isnan(found.deviation) else f" ± {found.deviation:.4f}"
    return f"{found.mean:.4f}{deviation}{f' ({found.seeds} of {seeds} seeds)' if found.seeds < seeds else ''}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "< 0.0001" if value < 0.0001 else f"{value:.4f}"
