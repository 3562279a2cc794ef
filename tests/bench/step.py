"""What a step of `espace fit` costs over the same step in a hand-written torch loop on tensors in memory.

    python -m tests.bench.step [--batch 8192] [--rounds 5] [--threads 2]

Same model, same optimiser, same data, interleaved rounds in one process; medians and their ratio are printed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import torch
from torch import nn
from torch.nn import functional as F

from espace.config import Config
from espace.registry.registry import load
from espace.runs.experiment import Experiment
from espace.training.lightning import Training
from espace.training.optim import LazyAdam
from tests.bench.data import SIZES, experiment, write

WARM_UP = 10


class Loop(nn.Module):
    """ESMM as one would write it by hand: one table, two towers, the loss in log space."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 18, sparse=True)
        nn.init.normal_(self.table.weight, std=0.01)
        widths = [18 * len(SIZES), 360, 200, 80]
        self.towers = nn.ModuleList(
            nn.Sequential(
                *(m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())),
                nn.Linear(80, 1),
            )
            for _ in range(2)
        )

    def forward(self, ids: torch.Tensor, click: torch.Tensor, conversion: torch.Tensor) -> torch.Tensor:
        x = self.table(ids).flatten(1)
        a, b = (tower(x).squeeze(1) for tower in self.towers)
        log_both = F.logsigmoid(a) + F.logsigmoid(b)
        log_not = torch.logaddexp(F.logsigmoid(-a), F.logsigmoid(a) + F.logsigmoid(-b))
        ctr = F.binary_cross_entropy_with_logits(a, click)
        return ctr - torch.where(conversion > 0, log_both, log_not).mean()


def by_hand(ids: torch.Tensor, labels: torch.Tensor, rows: int, batch: int, steps: int) -> float:
    """Seconds a step."""
    model = Loop(rows)
    optimizer = LazyAdam(model.parameters(), lr=1e-3)
    order = torch.randperm(len(ids))
    start = 0.0
    for step in range(steps):
        if step == WARM_UP:
            start = time.perf_counter()
        take = order[(step * batch) % (len(ids) - batch) :][:batch]
        optimizer.zero_grad(set_to_none=True)
        model(ids[take], labels[take, 0], labels[take, 1]).backward()
        optimizer.step()
    return (time.perf_counter() - start) / (steps - WARM_UP)


def with_espace(path: Path, batch: int, steps: int, precision: str = "32-true", **more: object) -> float:
    """Seconds a step, reading, logging and progress included; `more` are keys of the YAML."""
    values = experiment(path, batch_size=batch, split={"share": 0.01})
    values |= {"trainer": {"max_steps": steps, "val_check_interval": steps, "precision": precision}, **more}
    registry = load()
    times: list[float] = []
    ended = Training.on_train_batch_start

    def note(self: Training, *args: Any) -> None:
        times.append(time.perf_counter())
        ended(self, *args)

    Training.on_train_batch_start = note  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            Experiment(Config.from_dict(values, registry), registry).fit(Path(folder) / "run")
    finally:
        Training.on_train_batch_start = ended  # type: ignore[method-assign]
    return (times[-1] - times[WARM_UP]) / (len(times) - 1 - WARM_UP)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "espace-bench")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = write(options.folder / f"ali-{options.rows}.parquet", options.rows)
    table = pq.read_table(path)
    offsets = torch.tensor([0, *SIZES[:-1]]).cumsum(0)
    ids = torch.stack([torch.tensor(table[f"f{i}"].to_numpy()) for i in range(len(SIZES))], dim=1) + offsets
    labels = torch.stack([torch.tensor(table[c].to_numpy()).float() for c in ("click", "conversion")], dim=1)
    results: list[tuple[float, float]] = []
    for number in range(options.rounds):
        others = psutil.cpu_percent(interval=1.0)
        pair = (
            with_espace(path, options.batch, options.steps),
            by_hand(ids.int(), labels, sum(SIZES), options.batch, options.steps),
        )
        results.append(pair)
        print(
            f"round {number}: espace {pair[0] * 1e3:.1f} ms, by hand {pair[1] * 1e3:.1f} ms, others before {others:.0f} %"
        )
    ratio = statistics.median(a / b for a, b in results)
    mine, hand = (statistics.median(column) for column in zip(*results, strict=True))
    print(
        f"batch {options.batch}, {options.threads} threads:"
        f" {mine * 1e3:.1f} ms against {hand * 1e3:.1f} ms, ratio {ratio:.3f}"
    )


if __name__ == "__main__":
    main()
