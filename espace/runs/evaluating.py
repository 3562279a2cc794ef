"""A trained run judged on a part of some data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from espace.chain.probability import Probabilities
from espace.config import Config
from espace.contracts import Objective
from espace.data.auditing.scan import scan_other
from espace.data.batch import Batch
from espace.data.reading.split import Part
from espace.data.stream.stream import Stream
from espace.errors import ConfigError, did_you_mean
from espace.registry.blame import parts_told
from espace.registry.registry import Registry
from espace.runs.build import build_objective, chain_of, spaces_of
from espace.runs.inputs import build_encoder
from espace.runs.metrics import build_metrics
from espace.runs.opening import PARTS, Prepared, judge_scans, open_parts, task_of
from espace.runs.report import Report
from espace.runs.run import (
    Run,
)
from espace.training.judging import Judge, TermMeans

See = Callable[[Probabilities, Batch], object]


class Predictor(Protocol):
    """What is judged: a `Run`, or what stands in its place."""

    @property
    def registry(self) -> Registry:
        """The parts that its configuration names."""
        ...

    @property
    def model(self) -> nn.Module:
        """What is moved to the device."""
        ...

    @property
    def weighting(self) -> nn.Module:
        """What makes one loss of the terms."""
        ...

    def forward(self, batch: Batch) -> Probabilities:
        """Every probability of a batch."""
        ...


@dataclass
class Evaluated:
    """Metrics by name without a prefix, and the calibration curve of each space."""

    metrics: dict[str, float]
    curves: dict[str, dict[str, list[float]]]


def evaluate(
    config: Config, run: Predictor, stream: Stream, device: str | torch.device = "cpu", see: See | None = None
) -> Evaluated:
    """Judge a run on a stream, by the metrics of `config`; `see` is shown every batch with its probabilities.

    Raises NonFiniteError for a prediction that is not finite.
    """
    objective = build_objective(config, run.registry)
    judge = build_judge(config, run.registry, objective, run.weighting.to(device)).to(device)
    run.model.to(device).eval()
    for batch in stream:
        batch = batch.to(device)
        p = run.forward(batch)
        judge.update(p, batch, objective)
        if see is not None:
            see(p, batch)
    return Evaluated(judge.compute(), judge.curves())


def build_judge(config: Config, registry: Registry, objective: Objective, weighting: nn.Module) -> Judge:
    """All metrics of all spaces. `weighting` stays the module of whoever trains it."""
    terms = TermMeans(list(objective.terms), weighting.forward)
    return Judge(chain_of(config), spaces_of(config), build_metrics(config, registry), terms)


def evaluate_run(
    run: Run, config: Config, name: str, report: Report | None = None, see: See | None = None
) -> Evaluated:
    """Evaluate a trained run on the part `name` of `config`'s data, `see` as in `evaluate`.

    Raises ConfigError when the model would be another.
    """
    for section in ("chain", "features", "embedding", "sharing", "link", "tower", "towers", "stages"):
        if getattr(config, section) != getattr(run.config, section):
            raise ConfigError(f"{section}: the run was trained with another one. Override data.* and metrics.* only.")
    report = report or Report(quiet=True)
    parts = {name: _open_part(config, run.registry, name)}
    tables, numbers = run.encoder.tables, run.encoder.numbers
    task = task_of(config, run.registry)
    encoder = build_encoder(config, tables, numbers, task.limits, run.encoder.kinds)
    scans = {name: scan_other(task, parts[name], encoder, report.progress)}
    judge_scans(config, parts, scans, report, task.limits)
    with parts_told(run.registry):
        found = evaluate(config, run, Prepared(parts, scans, encoder).stream(config, name), see=see)
    report.results(config, name, found.metrics)
    return found


def _open_part(config: Config, registry: Registry, name: str) -> Part:
    if name not in PARTS:
        raise ConfigError(f"split: there is no part '{name}' of the data.{did_you_mean(name, PARTS)}")
    split = config.data.split
    made = (
        [] if split is None else ["validation"] * (config.data.validation is None) + ["test"] * bool(split.test_until)
    )
    inside = name in made
    parts = open_parts(config, registry, ["train" if inside else name], [name])
    if name not in parts:
        raise ConfigError(f"data.{name}: no file is named there. Add data.{name}=FILE.")
    return parts[name]
