"""Train and judge the variants of a comparison: choose on validation, read the test rows once, say what differs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from statistics import fmean

import numpy as np

from espace.compare.comparison import Comparison
from espace.compare.judged import Judged, Values, Wanted, is_judged, judge, numbers, product, put
from espace.compare.outcome import Compared, Outcome
from espace.compare.planned import Planned
from espace.compare.statistics import Difference, Ranked, difference, holm
from espace.compare.workers import Task, run
from espace.data.reading.naming import file_name
from espace.errors import EspaceError, RunError
from espace.runs.experiment import Experiment
from espace.runs.report import Report
from espace.runs.run import writing

_FIT = "finished.json"


class Comparing:
    """The work of a comparison in a folder. What is done there is not done again."""

    def __init__(self, comparison: Comparison, folder: Path, workers: int, report: Report) -> None:
        self.comparison, self.folder, self.workers, self.report = comparison, folder, workers, report
        self.outcome = Outcome(comparison, comparison.runs())
        self.runs = folder / "runs"

    def run(self) -> Outcome:
        """Train, choose, judge, compare, write. Failed runs are in the outcome."""
        self._train()
        self.outcome.chosen = list(self._choose())
        judged = self._judge()
        for condition, share in self.comparison.groups:
            self._compare(condition, share, _Rows(self.comparison, self.runs, judged))
        self.outcome.chosen = [p for p in self.outcome.chosen if p in self.outcome.test]
        self.outcome.write(self.folder, self.report)
        return self.outcome

    def _train(self) -> None:
        """Helpers, then what may use them."""
        helpers = _first(self.outcome.helpers)
        fits = _first(p for p in self.outcome.planned if not p.columns)
        self._train_all("helpers", helpers)
        for digest, planned in list(fits.items()):
            behind = [helpers[d] for d in (digest, *(d for _, d in planned.uses)) if d in helpers]
            failed = next((helper for helper in behind if not self._is_trained(helper)), None)
            if failed is not None and not self._is_trained(planned):
                del fits[digest]
                why = "the same run as" if failed.digest == digest else "not trained, since it uses"
                self.outcome.failed[str(planned)] = (
                    f"it is {why} the {failed}, which failed: {self.outcome.failed[str(failed)]}"
                )
                self.report.warn(f"{planned}: {self.outcome.failed[str(planned)]}")
        self._train_all("runs", fits)
        for digest in (d for d, planned in fits.items() if self._is_trained(planned)):
            results = json.loads((self.runs / digest / "results.json").read_text())
            self.outcome.validation[digest] = numbers(results, "val/")

    def _train_all(self, kind: str, fits: Mapping[str, Planned]) -> None:
        undone = {
            p: partial(_fit, self.comparison.base, self.runs, p) for p in fits.values() if not self._is_trained(p)
        }
        if fits:
            self._do("train", f"{len(fits)} {kind}", len(fits), undone)

    def _is_trained(self, planned: Planned) -> bool:
        return (self.runs / planned.digest / _FIT).exists()

    def _judge(self) -> set[str]:
        """Read the test rows of what was chosen, and of helpers that are in products: what was judged."""
        products = self.comparison.products
        own = Wanted(tuple(self.comparison.spaces), tuple(dict.fromkeys(p.conditional for p in products.values())))
        todo = {p.judged: (p, own) for p in self.outcome.chosen}
        for helper in (h for h in self.outcome.helpers if self._is_trained(h)):
            parents = tuple(
                self.comparison.steps[p.conditional][1] for p in products.values() if p.parent == helper.name
            )
            planned, wanted = todo.get(helper.judged, (helper, Wanted()))
            if parents:
                todo[helper.judged] = planned, wanted | Wanted((), parents)
        stems = {judged: self.runs / judged for judged in todo}
        undone = {
            planned: partial(judge, self.comparison.base, wanted, self.runs, planned)
            for judged, (planned, wanted) in todo.items()
            if not is_judged(stems[judged], wanted)
        }
        self._do("test", f"{len(todo)} runs", len(todo), undone)
        return {judged for judged, (_, wanted) in todo.items() if is_judged(stems[judged], wanted)}

    def _do(self, what: str, told: str, all_runs: int, undone: Mapping[Planned, Callable[[], object]]) -> None:
        """Do one thing with runs, in processes; tell each that ends."""
        before, runs = all_runs - len(undone), list(undone)
        self.report.tell(f"{what}: {told}, {before} done before, {self.workers} at a time")
        tasks = [Task(work, self._log(p), p.share) for p, work in undone.items()]
        for count, done in enumerate(run(tasks, self.workers), before + 1):
            planned = runs[done.number]
            if done.failed is not None:
                self.outcome.failed[str(planned)] = done.failed
                self.report.warn(f"{planned}: {what} failed. {done.failed} (log: {self._log(planned)})")
            left = f"; about {_duration(done.left)} left" if done.left else ""
            self.report.tell(f"{what} {count}/{all_runs}: {planned}, {_duration(done.seconds)}{left}")

    def _log(self, planned: Planned) -> Path:
        return (self.runs / planned.digest).with_suffix(".log")

    def _choose(self) -> Iterator[Planned]:
        """Of each variant, condition and share the finished runs of the setting that is best on validation, on average
        over seeds, and all of those that are not trained.

        A setting of which a run failed is not chosen where there is another.
        """
        by, values = self.comparison.keys.choose_by, self.outcome.validation
        for _, group in groupby(self.outcome.planned, lambda p: p.name):
            runs = list(group)
            for here in self.comparison.groups:
                settings: dict[tuple[str, ...], list[Planned]] = {}
                for planned in (p for p in runs if p.group == here):
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
                yield from (p for p in settings[best] if p.columns or p.digest in values)

    def _compare(self, condition: str, share: float, rows: _Rows) -> None:
        """Read what was kept of the runs of one condition and share, and tell the variants apart."""
        keys, against = self.comparison.keys, self.comparison.against
        runs = [p for p in self.outcome.chosen if p.group == (condition, share) and p.judged in rows.judged]
        for planned in runs:
            try:
                self.outcome.test[planned] = rows.values(planned)
            except EspaceError as error:
                self.outcome.failed[str(planned)] = str(error)
                self.report.warn(f"{planned}: {error}")
        for metric in keys.report:
            differences = {}
            for variant in (v for v in keys.variants if v != against):
                if pairs := self._pairs(runs, variant, metric):
                    differences[variant] = (self._difference(pairs, metric, rows), len(pairs))
            told = {variant: one.p for variant, (one, _) in differences.items() if not math.isnan(one.p)}
            ps = dict(zip(told, holm(list(told.values())), strict=True))
            for variant, (one, seeds) in differences.items():
                self.outcome.differences[condition, share, metric, variant] = Compared(
                    one, ps.get(variant, math.nan), seeds
                )

    def _pairs(self, runs: Sequence[Planned], variant: str, metric: str) -> list[tuple[Planned, Planned]]:
        """Runs of a variant and of `against` with the same seed that have the metric; each two values once."""
        of = {(p.name, p.seed): p for p in runs if metric in self.outcome.test.get(p, {})}
        space = metric.rpartition("/")[0]
        found = {}
        for seed in self.comparison.keys.seeds:
            a, b = (of.get((name, seed)) for name in (variant, self.comparison.against))
            if a is not None and b is not None:
                found[a.behind(space), b.behind(space)] = a, b
        return list(found.values())

    def _difference(self, pairs: Sequence[tuple[Planned, Planned]], metric: str, rows: _Rows) -> Difference:
        """Of the mean over the seeds."""
        test = self.outcome.test
        by_seed = np.array([test[a][metric] - test[b][metric] for a, b in pairs])
        space, _, name = metric.rpartition("/")
        return difference(by_seed, rows.variance(pairs, space) if name == "auc" else None)


class _Rows:
    """The test rows of what was judged.

    judged: what there is, see `Planned.judged`.
    """

    def __init__(self, comparison: Comparison, runs: Path, judged: set[str]) -> None:
        self.comparison, self.runs, self.judged = comparison, runs, judged
        self._ranked = lru_cache(2 * len(comparison.keys.seeds))(self._rank)  # `against` stands beside every variant

    def values(self, planned: Planned) -> Values:
        """The metrics of a run; its AUCs are exact, without the bins of the metric.

        Raises DataError where a product is of different rows.
        """
        found = dict(Judged(self.runs / planned.judged).metrics)
        for space in self.comparison.spaces:
            found[f"{space}/auc"] = self._ranked(planned, space).auc
        for name in (name for name, parent in planned.parents if parent in self.judged):
            values, ranked = self._product(planned, name)
            found |= {f"{name}/{metric}": value for metric, value in values.items()} | {f"{name}/auc": ranked.auc}
        return found

    def variance(self, pairs: Sequence[tuple[Planned, Planned]], space: str) -> float | None:
        """Of the mean difference of the AUCs of pairs, over draws of the test rows; None where these differ."""
        same, total = None, np.zeros(1)
        for pair in pairs:
            for planned, sign in zip(pair, (1, -1), strict=True):
                ranked = self._ranked(planned, space)
                same = ranked.rows if same is None else same
                if ranked.rows != same:
                    return None
                total = total + sign * ranked.influence
        return float(np.square(total / len(pairs)).sum())

    def _rank(self, planned: Planned, space: str) -> Ranked:
        """The rows of a probability, or of a product."""
        if space in self.comparison.products:
            return self._product(planned, space)[1]
        return Judged(self.runs / planned.judged).ranked(space)

    def _product(self, planned: Planned, name: str) -> tuple[Values, Ranked]:
        conditional, parent = self.comparison.products[name].conditional, dict(planned.parents)[name]
        runs = Judged(self.runs / planned.judged), Judged(self.runs / parent)
        return product(*runs, conditional, self.comparison.steps[conditional])


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
    folder = Path(out) if out is not None else Path("compare") / file_name(comparison.name)
    with writing(folder, "--out"):
        (folder / "runs").mkdir(parents=True, exist_ok=True)
    return Comparing(comparison, folder.resolve(), max(1, workers), report or Report(quiet=True)).run()


def _fit(base: Path, runs: Path, planned: Planned) -> None:
    """Train a run without sight of the test rows, from where an earlier try was cut off; in a process of its own."""
    place, overrides = runs / planned.digest, planned.overrides_in(runs)
    experiment = Experiment.from_yaml(base, [*overrides, "data.test=null"])
    quiet = Report(quiet=True)
    done = False
    if (place / "checkpoints" / "last.ckpt").exists():
        with suppress(RunError):  # damaged: begin anew
            done = experiment.fit(resume=place, report=quiet) is not None
    if not done:
        shutil.rmtree(place, ignore_errors=True)
        experiment.fit(place, report=quiet)
    put(place / _FIT, json.dumps({"run": str(planned), "overrides": overrides}, indent=2))


def _first(runs: Iterable[Planned]) -> dict[str, Planned]:
    """By digest, of those with the same one the first."""
    found: dict[str, Planned] = {}
    for planned in runs:
        found.setdefault(planned.digest, planned)
    return found


def _mean(values: Iterator[float | None]) -> float:
    """NaN where one is missing."""
    return fmean(math.nan if v is None else v for v in values)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min" if whole < 6000 else f"{whole / 3600:.1f} h"
