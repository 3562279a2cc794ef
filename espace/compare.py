"""Train and judge the variants of a comparison: choose on validation, read the test rows once, say which differences are real."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import espace.config as configuration
from espace.batch import Batch, Labels
from espace.build import spaces_of
from espace.comparison import Comparison, Planned
from espace.errors import RunError
from espace.evaluation import scored
from espace.experiment import Experiment, evaluate_run
from espace.outcome import Compared, Outcome, Values
from espace.probability import Probabilities
from espace.report import Report
from espace.runs import load, writing
from espace.statistics import Difference, Ranked, difference, holm, replicates
from espace.workers import Task, run

_FIT, _TEST, _ROWS = "finished.json", "test.json", "test.npz"


class Comparing:
    """The work of a comparison in a folder. What is done there is not done again."""

    def __init__(self, comparison: Comparison, folder: Path, workers: int, report: Report) -> None:
        self.comparison, self.folder, self.workers, self.report = comparison, folder, workers, report
        self.planned = comparison.runs()
        self.outcome = Outcome(comparison, self.planned)

    def place(self, planned: Planned) -> Path:
        """The run folder."""
        return self.folder / "runs" / planned.digest

    def run(self) -> Outcome:
        """Train, choose, judge, compare, write. Failed runs are in the outcome."""
        fits, base = {p.digest: p for p in self.planned}, self.comparison.base
        self._do("train", [p for p in fits.values() if not (self.place(p) / _FIT).exists()], partial(_fit, base))
        for digest, planned in fits.items():
            if (self.place(planned) / _FIT).exists():
                results = json.loads((self.place(planned) / "results.json").read_text())
                self.outcome.validation[digest] = _numbers(results, "val/")
        self.outcome.chosen = list(self._choose())
        tests, spaces = {p.digest: p for p in self.outcome.chosen}, tuple(self.comparison.spaces)
        undone = [p for p in tests.values() if not _is_judged(self.place(p), p, spaces)]
        self._do("test", undone, partial(_test, base, spaces))
        rows = {d: self._read(p) for d, p in tests.items() if _is_judged(self.place(p), p, spaces)}
        self.outcome.chosen = [p for p in self.outcome.chosen if p.digest in rows]
        self._compare(rows)
        self.outcome.write(self.folder, self.report)
        return self.outcome

    def _do(self, what: str, undone: Sequence[Planned], work: Callable[[Path, Planned], object]) -> None:
        """Do one thing with runs, in processes; tell each that ends."""
        all_runs = len({p.digest for p in (self.planned if what == "train" else self.outcome.chosen)})
        before = all_runs - len(undone)
        self.report.tell(f"{what}: {all_runs} runs, {before} done before, {self.workers} at a time")
        tasks = [Task(partial(work, self.place(p), p), self._log(p), p.share) for p in undone]
        for count, done in enumerate(run(tasks, self.workers), before + 1):
            planned = undone[done.number]
            if done.failed is not None:
                self.outcome.failed[str(planned)] = done.failed
                self.report.warn(f"{planned}: {what} failed. {done.failed} (log: {self._log(planned)})")
            left = f"; about {_duration(done.left)} left" if done.left else ""
            self.report.tell(f"{what} {count}/{all_runs}: {planned}, {_duration(done.seconds)}{left}")

    def _log(self, planned: Planned) -> Path:
        return self.place(planned).with_suffix(".log")

    def _choose(self) -> Iterator[Planned]:
        """Of each variant and share the finished runs of the setting that is best on validation, on average over seeds.

        A setting of which a run failed is not chosen where there is another.
        """
        by, values = self.comparison.keys.choose_by, self.outcome.validation
        for _, group in groupby(self.planned, lambda p: p.variant):
            runs = list(group)
            for share in self.comparison.keys.shares:
                settings: dict[tuple[str, ...], list[Planned]] = {}
                for planned in (p for p in runs if p.share == share):
                    settings.setdefault(planned.setting, []).append(planned)
                best = next(iter(settings))
                if by is not None and len(settings) > 1:
                    scores = {
                        s: _mean(values.get(p.digest, {}).get(by.metric) for p in ps) for s, ps in settings.items()
                    }
                    whole = {s: v for s, v in scores.items() if not math.isnan(v)}
                    if not whole:
                        continue
                    best = (max if by.mode == "max" else min)(whole, key=whole.__getitem__)
                yield from (p for p in settings[best] if p.digest in values)

    def _read(self, planned: Planned) -> dict[str, Ranked]:
        """The test rows of a run, ranked; its AUCs are those of them, without the bins of the metric."""
        self.outcome.test[planned.digest] = _numbers(json.loads((self.place(planned) / _TEST).read_text())["metrics"])
        with np.load(self.place(planned) / _ROWS) as kept:
            ranked = {
                space: Ranked.of(kept[f"{space}/log_odds"], kept[f"{space}/labels"], kept[f"{space}/weights"])
                for space in self.comparison.spaces
            }
        self.outcome.test[planned.digest] |= {f"{space}/auc": one.auc() for space, one in ranked.items()}
        return ranked

    def _compare(self, rows: Mapping[str, Mapping[str, Ranked]]) -> None:
        keys, against = self.comparison.keys, self.comparison.against
        found = {(p.variant, p.share, p.seed): p.digest for p in self.outcome.chosen}
        for share, metric in itertools.product(keys.shares, keys.report):
            differences = {}
            for variant in (v for v in keys.variants if v != against):
                sides = [[found.get((v, share, seed)) for seed in keys.seeds] for v in (variant, against)]
                pairs = [(a, b) for a, b in zip(*sides, strict=True) if a is not None and b is not None]
                if pairs:
                    differences[variant] = (self._difference(pairs, metric, rows), len(pairs))
            told = {variant: one.p for variant, (one, _) in differences.items() if not math.isnan(one.p)}
            ps = dict(zip(told, holm(list(told.values())), strict=True))
            for variant, (one, seeds) in differences.items():
                self.outcome.differences[share, metric, variant] = Compared(one, ps.get(variant, math.nan), seeds)

    def _difference(
        self, pairs: Sequence[tuple[str, str]], metric: str, rows: Mapping[str, Mapping[str, Ranked]]
    ) -> Difference:
        """Of the mean over the seeds. Test rows are drawn anew where all runs were judged on the same ones."""
        nan, test = math.nan, self.outcome.test
        by_seed = np.array([test[a].get(metric, nan) - test[b].get(metric, nan) for a, b in pairs])
        space, _, name = metric.rpartition("/")
        ranked = [rows[d][space] for pair in pairs for d in pair] if name == "auc" else []
        if not ranked or not all(_same_rows(ranked[0], one) for one in ranked[1:]):
            return difference(by_seed)
        found = replicates(ranked)
        return difference(by_seed, (found[::2] - found[1::2]).mean(0))


def compare(
    path: str | Path,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    workers: int = 1,
    report: Report | None = None,
) -> Outcome:
    """Run the comparison of a YAML file, with overrides of its base, in `out` (compare/<name>).

    Raises ConfigError with all that is wrong before anything is run; RunError when the folder cannot be written.
    """
    comparison = Comparison(path, overrides)
    folder = Path(out) if out is not None else Path("compare") / comparison.name
    with writing(folder, "--out"):
        (folder / "runs").mkdir(parents=True, exist_ok=True)
    return Comparing(comparison, folder.resolve(), max(1, workers), report or Report(quiet=True)).run()


# -- in a process of its own


def _fit(base: Path, place: Path, planned: Planned) -> None:
    """Train a run without sight of the test rows, from where an earlier try was cut off."""
    experiment = Experiment.from_yaml(base, [*planned.overrides, "data.test=null"])
    quiet = Report(quiet=True)
    done = False
    if (place / "checkpoints" / "last.ckpt").exists():
        with suppress(RunError):  # damaged: begin anew
            done = experiment.fit(resume=place, report=quiet) is not None
    if not done:
        shutil.rmtree(place, ignore_errors=True)
        experiment.fit(place, report=quiet)
    _put(place / _FIT, json.dumps({"run": str(planned), "overrides": planned.overrides}, indent=2))


def _test(base: Path, spaces: Sequence[str], place: Path, planned: Planned) -> None:
    """Judge a run on the test rows, and keep what its AUCs come from."""
    trained = load(place)
    config = configuration.load(base, planned.overrides, trained.registry)
    kept = _Kept({name: spaces_of(config)[name] for name in spaces})
    found = evaluate_run(trained, config, "test", Report(quiet=True), kept.see)
    partial_file = place / f".{_ROWS}.partial.npz"
    np.savez_compressed(partial_file, **kept.columns())  # type: ignore[arg-type]
    os.replace(partial_file, place / _ROWS)
    metrics = {name: value if math.isfinite(value) else None for name, value in found.metrics.items()}
    _put(place / _TEST, json.dumps({"data": planned.data, "spaces": list(spaces), "metrics": metrics}, indent=2))


class _Kept:
    """Log-odds, labels and weights of the rows of some spaces."""

    def __init__(self, spaces: Mapping[str, tuple[str, str | None, str | None]]) -> None:
        self.spaces = spaces
        self._found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in spaces}

    def see(self, p: Probabilities, batch: Batch) -> None:
        """Add the rows of a batch."""
        labels = Labels(p.chain, batch.labels, batch.amounts)
        for name, address in self.spaces.items():
            rows = scored(p, batch, labels, *address)
            odds = rows.log_prob.double() - rows.log_not_prob.double()
            self._found[name].append((odds.float(), rows.labels.to(torch.int8), rows.weights))

    def columns(self) -> dict[str, NDArray[Any]]:
        """`{<space>/log_odds, <space>/labels, <space>/weights: (rows,)}`."""
        return {
            f"{space}/{name}": torch.cat(column).numpy()
            for space, found in self._found.items()
            for name, column in zip(("log_odds", "labels", "weights"), zip(*found, strict=True), strict=True)
        }


def _put(path: Path, text: str) -> None:
    """Write a file at once: while it is not there, the work that it tells of is not done."""
    partial_file = path.with_suffix(".partial")
    partial_file.write_text(text + "\n")
    partial_file.replace(path)


def _is_judged(place: Path, planned: Planned, spaces: Sequence[str]) -> bool:
    if not (place / _TEST).exists():
        return False
    found = json.loads((place / _TEST).read_text())
    return found["data"] == planned.data and set(spaces) <= set(found["spaces"])


def _same_rows(one: Ranked, other: Ranked) -> bool:
    """Whether labels and weights are the same, row by row."""
    same = np.array_equal(one.positives, other.positives) and np.array_equal(one.weights, other.weights)
    return same and len(one.negatives) == len(other.negatives)


def _numbers(values: Mapping[str, float | None], prefix: str = "") -> Values:
    found = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    return {name: math.nan if value is None else value for name, value in found.items()}


def _mean(values: Iterator[float | None]) -> float:
    """NaN where one is missing."""
    return fmean(math.nan if v is None else v for v in values)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min" if whole < 6000 else f"{whole / 3600:.1f} h"
