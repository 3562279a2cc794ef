"""How the cost of a training step grows: with the table, the stages, the history, the features, the batch, the threads.

    python -m tests.bench.growth [--what table stages ...] [--rounds 3] [--steps 30] [--threads 2]

Random encoded batches in memory, so that no file is read; a step of Lightning's trainer against one of a loop by hand with
the same optimiser and precision, interleaved. One line a point: rows/s of both, medians over rounds, and their ratio.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espace.config import Config
from espace.data.batch import Batch, Ragged
from espace.data.encoding.vocabulary import FIRST
from espace.registry.registry import load
from espace.runs.build import build_model, build_objective, build_weighting
from espace.runs.evaluating import build_judge
from espace.runs.inputs import layout_without_data
from espace.runs.optimising import build_rates
from espace.training.lightning import Training
from espace.training.optim import LazyAdam
from espace.training.precision import autocast, default_precision
from espace.training.trainer import make_trainer

DIM, HIDDEN, WARM_UP, DISTINCT = 18, [360, 200, 80], 8, 6


@dataclass(frozen=True)
class Point:
    """What is trained: features with `rows` ids together, a history of `history` events of the first (0 for none)."""

    rows: int = 1_000_000
    stages: int = 2
    history: int = 0
    features: int = 23
    batch: int = 8_192
    threads: int = 0  # 0 for those asked for

    @property
    def buckets(self) -> int:
        return self.rows // self.features

    def config(self) -> Config:
        features: dict[str, Any] = {f"f{i}": {"type": "hash", "buckets": self.buckets} for i in range(self.features)}
        if self.history:
            features["history"] = {"type": "sequence", "share": "f0", "max_length": 2 * self.history}
        values = {
            "name": "growth",
            "chain": [" -> ".join(["impression", *(f"s{i}" for i in range(self.stages))])],
            "data": {"train": "none.parquet"},
            "features": features,
            "tower": {"type": "mlp", "hidden_units": HIDDEN},
            "optimizer": {"tables": "lazy"},  # as in the loop by hand
        }
        return Config.from_dict(values, load())

    def batches(self) -> list[Batch]:
        """Small ids come often; each stage happens after a quarter of the one before."""
        torch.manual_seed(0)
        return [self._batch() for _ in range(DISTINCT)]

    def _batch(self) -> Batch:
        first = torch.arange(self.features) * (self.buckets + FIRST) + FIRST
        ids = first + (torch.rand(self.batch, self.features, dtype=torch.float64) ** 3 * self.buckets).long()
        labels = (torch.rand(self.batch, self.stages) < 0.25).long().cumprod(1)
        lists = {}
        if self.history:
            lengths = torch.randint(2 * self.history + 1, (self.batch,))
            offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
            events = (torch.rand(int(offsets[-1]), dtype=torch.float64) ** 3 * self.buckets).long() + FIRST
            lists = {"history": Ragged(events.int(), offsets)}
        return Batch(ids.int(), lists, torch.empty(self.batch, 0), labels.to(torch.int8), torch.ones(self.batch), {})


POINTS = {
    "table": [Point(rows=n) for n in (100_000, 1_000_000, 10_000_000, 50_000_000)],
    "table, batch 1024": [Point(rows=n, batch=1_024) for n in (100_000, 1_000_000, 10_000_000)],
    "stages": [Point(stages=n) for n in (2, 4, 8)],
    "history": [Point(history=n, batch=2_048) for n in (10, 50, 200)],
    "features": [Point(features=n, batch=2_048) for n in (10, 50, 200)],
    "batch": [Point(batch=n) for n in (1_024, 8_192, 32_768)],
    "threads": [Point(threads=n) for n in (1, 2)],
}


class Batches:
    """`steps` batches, as a stream."""

    def __init__(self, batches: list[Batch], steps: int) -> None:
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return itertools.islice(itertools.cycle(self.batches), self.steps)


class Timed(Training):
    """Notes when each step begins."""

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.__dict__.setdefault("times", []).append(time.perf_counter())
        super().on_train_batch_start(batch, batch_idx)


def with_espace(point: Point, batches: list[Batch], steps: int) -> float:
    """Seconds a step of Lightning's trainer, losses logged."""
    config, registry = point.config(), load()
    objective = build_objective(config, registry)
    weighting = build_weighting(config, registry, objective)
    judge = build_judge(config, registry, objective, weighting)
    model = build_model(config, registry, layout_without_data(config))
    module: Any = Timed(model, objective, weighting, judge, build_rates(config, registry, len(batches)), 0, {})
    options = {"max_steps": steps, "limit_val_batches": 0, "precision": default_precision("cpu"), "accelerator": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(options, [], Path(folder)).fit(module, Batches(batches, steps))
    return float(module.times[-1] - module.times[WARM_UP]) / (len(module.times) - 1 - WARM_UP)


class Loop(nn.Module):
    """A chain as one would write it by hand: one table, a tower for each stage, losses on log P(stage) and log(1 - P)."""

    def __init__(self, point: Point) -> None:
        super().__init__()
        rows = point.features * (point.buckets + FIRST)
        self.table = nn.Embedding(rows, DIM, sparse=True, _weight=torch.empty(rows, DIM).normal_(std=0.01))
        widths = [DIM * (point.features + bool(point.history)), *HIDDEN]
        self.towers = nn.ModuleList(self._tower(widths) for _ in range(point.stages))

    @staticmethod
    def _tower(widths: list[int]) -> nn.Sequential:
        layers = (m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU()))
        return nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, batch: Batch) -> Tensor:
        """The loss, ()."""
        x = self.table(batch.ids).flatten(1)
        if batch.lists:
            history = batch.lists["history"]
            start = history.offsets[:-1].int()
            x = torch.cat([x, F.embedding_bag(history.values, self.table.weight, start, sparse=True)], dim=1)
        reach = miss = loss = torch.zeros(())
        for i, tower in enumerate(self.towers):
            z = tower(x).squeeze(1).float()
            yes, no = F.logsigmoid(z), F.logsigmoid(-z)
            miss = torch.logaddexp(miss, reach + no) if i else no
            reach = reach + yes
            loss = loss - torch.where(batch.labels[:, i] > 0, reach, miss).mean()
        return loss


def by_hand(point: Point, batches: list[Batch], steps: int) -> float:
    """Seconds a step."""
    model = Loop(point)
    optimizer, precision, start = LazyAdam(model.parameters()), default_precision("cpu"), 0.0
    for step, batch in enumerate(Batches(batches, steps)):
        if step == WARM_UP:
            start = time.perf_counter()
        optimizer.zero_grad()
        with autocast(precision, "cpu"):
            loss = model(batch)
        torch.autograd.backward(loss)
        optimizer.step()
    return (time.perf_counter() - start) / (steps - WARM_UP)


def _alone(run: Callable[[Point, list[Batch], int], float], point: Point, batches: list[Batch], steps: int) -> float:
    """Seconds a step; the tables of the run before are gone."""
    gc.collect()
    return run(point, batches, steps)


def measured(point: Point, rounds: int, steps: int) -> tuple[float, float, float]:
    """Rows/s of espace and of the loop by hand, and their ratio: medians."""
    batches = point.batches()
    pairs = [
        [point.batch / _alone(run, point, batches, steps) for run in (with_espace, by_hand)] for _ in range(rounds)
    ]
    mine, hand = zip(*pairs, strict=True)
    return statistics.median(mine), statistics.median(hand), statistics.median(a / b for a, b in pairs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--what", nargs="+", choices=list(POINTS), default=list(POINTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for what in options.what:
        for point in POINTS[what]:
            torch.set_num_threads(point.threads or options.threads)
            mine, hand, ratio = measured(point, options.rounds, options.steps)
            print(f"{what}: {point} espace {mine:,.0f} rows/s, by hand {hand:,.0f}, ratio {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
