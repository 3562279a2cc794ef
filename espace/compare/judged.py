"""Test rows of a comparison: runs are judged on them once, and what AUCs and products come from is kept."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import espace.config as configuration
from espace.chain.labels import Labels
from espace.chain.probability import Probabilities
from espace.chain.spaces import Space
from espace.compare.from_columns import judge_columns
from espace.compare.planned import Planned
from espace.compare.statistics import Ranked
from espace.data.batch import Batch
from espace.errors import DataError
from espace.runs.build import spaces_of
from espace.runs.evaluating import evaluate_run
from espace.runs.report import Report
from espace.runs.run import load
from espace.training.judging import scored

Values = dict[str, float]
Column = NDArray[np.float32 | np.int8]
Step = tuple[str, str]  # a stage and its parent
_VERSION = 2  # of both files
_LEAST_REST = math.log(1e-7)  # what a P above 1 leaves: one of its factors may be a ratio of two heads


@dataclass(frozen=True)
class Wanted:
    """What is to be kept: spaces, of which there are AUCs, and probabilities on all rows, for products."""

    spaces: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()

    def __or__(self, other: Wanted) -> Wanted:
        return Wanted(_both(self.spaces, other.spaces), _both(self.whole, other.whole))


def _both(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*ours, *theirs]))


def judge(base: Path, wanted: Wanted, runs: Path, planned: Planned) -> None:
    """Judge a run, or columns, on the test rows. `runs` is the folder of all runs."""
    stem, quiet = runs / planned.judged, Report(quiet=True)
    stem.parent.mkdir(parents=True, exist_ok=True)
    if planned.columns:
        config, registry = configuration.load_with_plugins(base, planned.overrides)
        kept = _Kept({name: spaces_of(config)[name] for name in wanted.spaces}, wanted.whole)
        found = judge_columns(config, registry, dict(planned.columns), kept.see)
    else:
        config, _ = configuration.load_with_plugins(base, planned.overrides_in(runs))
        trained = load(stem.parent, plugins=config.plugins)
        kept = _Kept({name: spaces_of(config)[name] for name in wanted.spaces}, wanted.whole)
        found = evaluate_run(trained, config, "test", quiet, kept.see)
    partial_file = stem.with_suffix(".partial.npz")
    np.savez_compressed(partial_file, **kept.columns())  # type: ignore[arg-type]
    os.replace(partial_file, stem.with_suffix(".npz"))
    metrics = {name: value if math.isfinite(value) else None for name, value in found.metrics.items()}
    facts = {"version": _VERSION, "spaces": wanted.spaces, "whole": wanted.whole, "metrics": metrics}
    put(stem.with_suffix(".json"), json.dumps(facts, indent=2))


def is_judged(stem: Path, wanted: Wanted) -> bool:
    """Whether `judge` has kept all of it."""
    path = stem.with_suffix(".json")
    if not path.exists():
        return False
    facts = json.loads(path.read_text())
    if facts["version"] != _VERSION:
        return False
    return {*wanted.spaces} <= {*facts["spaces"]} and {*wanted.whole} <= {*facts["whole"]}


class Judged:
    """What was kept of a run."""

    def __init__(self, stem: Path) -> None:
        self.stem = stem

    @cached_property
    def metrics(self) -> Values:
        """By name, without a prefix."""
        return numbers(json.loads(self.stem.with_suffix(".json").read_text())["metrics"])

    def columns(self, names: Sequence[str]) -> list[Column]:
        """(rows,) each, see `_Kept.columns`."""
        with np.load(self.stem.with_suffix(".npz")) as kept:
            return [kept[name] for name in names]

    def ranked(self, space: str) -> Ranked:
        """The rows of a space by their log-odds."""
        return Ranked.of(*self.columns([f"{space}/{name}" for name in ("log_odds", "labels", "weights")]))


def product(run: Judged, helper: Judged, conditional: str, step: Step) -> tuple[Values, Ranked]:
    """P(parent) of the helper times `conditional` of the run, against the label of its stage on all rows.

    Returns metrics, and the rows ranked.
    Raises DataError where the two were judged on different rows.
    """
    stage, parent = step
    names = [f"labels/{stage}", f"labels/{parent}", "weights", conditional]
    labels, parents, weights, given = run.columns([f"all rows/{name}" for name in names])
    theirs, before = helper.columns([f"all rows/labels/{parent}", f"all rows/{parent}"])
    if not np.array_equal(parents, theirs):
        of = [f"{len(found):,} rows, {int((found == 1).sum()):,} with {parent}" for found in (parents, theirs)]
        raise DataError(
            f"its test rows ({of[0]}) are not those of the helper ({of[1]}), so there is no product. Give both the same"
            " data.test, labels and data.violations."
        )
    rows = (labels >= 0) & (weights > 0)
    log_p, y, w = (before.astype(np.float64) + given)[rows], labels[rows], weights[rows].astype(np.float64)
    return _metrics(log_p, y, w), Ranked.of(log_p, y, w)


def _metrics(log_p: NDArray[np.float64], y: Column, w: NDArray[np.float64]) -> Values:
    """As the metrics of those names, docs/metrics.md: (rows,) each."""
    with np.errstate(divide="ignore"):
        log_rest = np.log(-np.expm1(np.minimum(log_p, 0))).clip(min=_LEAST_REST)
    likelihood = np.where(y > 0, np.minimum(log_p, 0), log_rest)
    observed = float(w @ y)
    ratio = float(w @ np.exp(log_p)) / observed if observed else math.nan
    return {
        "log_loss": -float(w @ likelihood) / float(w.sum()) if len(w) else math.nan,
        "predicted_over_observed": ratio,
    }


class _Kept:
    """Log-odds, labels and weights of the rows of some spaces, and some log P of all rows."""

    def __init__(self, spaces: Mapping[str, Space], whole: Sequence[str]) -> None:
        self.spaces, self.whole = spaces, whole
        self._found: list[dict[str, Tensor]] = []

    def see(self, p: Probabilities, batch: Batch) -> None:
        """Add the rows of a batch."""
        labels = Labels(p.chain, batch.labels, batch.amounts, batch.counts)
        found: dict[str, Tensor] = {}
        for name, space in self.spaces.items():
            rows = scored(p, batch, labels, *space)
            odds = rows.log_prob.double() - rows.log_not_prob.double()
            columns = {"log_odds": odds.float(), "labels": rows.labels.to(torch.int8), "weights": rows.weights}
            found |= {f"{name}/{column}": values for column, values in columns.items()}
        for name in self.whole:
            stage, given = p.chain.addresses[name]
            found[f"all rows/{name}"] = p.log_prob(stage, given).float()
            found |= {f"all rows/labels/{s}": labels.of(s) for s in (stage, given) if s is not None}
            found["all rows/weights"] = batch.weights * labels.known(stage)
        self._found.append(found)

    def columns(self) -> dict[str, Column]:
        """`{name: (rows,)}`. Of the rows of a space: `<space>/log_odds`, `<space>/labels`, `<space>/weights`.

        Of all rows, in the order of the file: the logarithm `all rows/<probability>`, `all rows/labels/<stage>`, -1 for
        unknown, `all rows/weights`.
        """
        return {name: torch.cat([found[name] for found in self._found]).numpy() for name in self._found[0]}


def numbers(values: Mapping[str, float | None], prefix: str = "") -> Values:
    """Those whose name begins with `prefix`, without it; null is NaN."""
    found = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    return {name: math.nan if value is None else value for name, value in found.items()}


def put(path: Path, text: str) -> None:
    """Write a file at once: while it is not there, the work that it tells of is not done."""
    partial_file = path.with_suffix(".partial")
    partial_file.write_text(text + "\n")
    partial_file.replace(path)
