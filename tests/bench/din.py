"""Rows a second of DIN in `espace fit`, beside a loop that pads histories, as one writes it by hand.

    python -m tests.bench.din [--batch 8192] [--rounds 5] [--threads 2]

ESMM with two DIN towers (36; 200-80; Dice), 23 id features of 1.01 million ids, dim 18, a history of 20 events on average and at
most 50. The loop has its tensors in memory, histories padded to 50, the same optimiser; espace reads, logs and shows progress.
Rounds are interleaved in one process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espace.training.optim import LazyAdam
from tests.bench.data import LONGEST, SIZES, write
from tests.bench.step import WARM_UP, with_espace
from tests.bench.towers import features_of


class Dice(nn.Module):
    """By batch norm, over padding too."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(units, eps=1e-8, affine=False)
        self.alpha = nn.Parameter(torch.zeros(units))

    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.norm(x.flatten(0, -2)).view_as(x))
        return p * x + (1 - p) * self.alpha * x


class Tower(nn.Module):
    """[batch, 50] attention with a mask, then an MLP."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.unit = nn.Sequential(nn.Linear(4 * dim, 36), Dice(36), nn.Linear(36, 1))
        self.mlp = nn.Sequential(nn.Linear(width + dim, 200), Dice(200), nn.Linear(200, 80), Dice(80), nn.Linear(80, 1))

    def forward(self, flat: Tensor, target: Tensor, events: Tensor, mask: Tensor) -> Tensor:
        target = target[:, None].expand_as(events)
        weights = self.unit(torch.cat([events, target, events - target, events * target], dim=2)) * mask[..., None]
        return self.mlp(torch.cat([flat, (weights * events).sum(1)], dim=1)).squeeze(1)


class Loop(nn.Module):
    """One table, two towers, the loss in log space."""

    def __init__(self, rows: int, target: int, dim: int = 18) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, dim, sparse=True)
        nn.init.normal_(self.table.weight, std=0.01)
        self.target = target
        self.towers = nn.ModuleList(Tower(dim * len(SIZES), dim) for _ in range(2))

    def forward(self, ids: Tensor, history: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        x, events = self.table(ids), self.table(history)
        mask = (torch.arange(LONGEST) < lengths[:, None]).float()
        a, b = (tower(x.flatten(1), x[:, self.target], events, mask) for tower in self.towers)
        log_both = F.logsigmoid(a) + F.logsigmoid(b)
        log_not = torch.logaddexp(F.logsigmoid(-a), F.logsigmoid(a) + F.logsigmoid(-b))
        ctr = F.binary_cross_entropy_with_logits(a, labels[:, 0])
        return ctr - torch.where(labels[:, 1] > 0, log_both, log_not).mean()


def tensors(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids with offsets, histories padded to 50, their lengths, labels."""
    table = pq.read_table(path)
    offsets = torch.tensor([0, *SIZES[:-1]]).cumsum(0)
    ids = torch.stack([torch.tensor(table[f"f{i}"].to_numpy()) for i in range(len(SIZES))], dim=1) + offsets
    lengths = torch.tensor(pc.list_value_length(table["history"]).to_numpy())
    mask = torch.arange(LONGEST) < lengths[:, None]
    values = torch.tensor(pc.list_flatten(table["history"]).to_numpy())
    history = torch.zeros(mask.shape, dtype=torch.int32).masked_scatter(mask, values) + int(offsets[1])
    labels = torch.stack([torch.tensor(table[c].to_numpy()).float() for c in ("click", "conversion")], dim=1)
    return ids.int(), history.int(), lengths, labels


def by_hand(data: tuple[Tensor, ...], batch: int, steps: int) -> float:
    """Seconds a step."""
    model = Loop(sum(SIZES), target=1)
    optimizer = LazyAdam(model.parameters(), lr=1e-3)
    order, start = torch.randperm(len(data[0])), 0.0
    for step in range(steps):
        if step == WARM_UP:
            start = time.perf_counter()
        take = order[(step * batch) % (len(order) - batch) :][:batch]
        optimizer.zero_grad(set_to_none=True)
        model(*(t[take] for t in data)).backward()
        optimizer.step()
    return (time.perf_counter() - start) / (steps - WARM_UP)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "espace-bench")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = write(options.folder / f"towers-{options.rows}.parquet", options.rows)
    data, pairs = tensors(path), []
    for number in range(options.rounds):
        others = psutil.cpu_percent(interval=1.0)
        mine = with_espace(path, options.batch, options.steps, tower="din", features=features_of("din"))
        pairs.append((mine, by_hand(data, options.batch, options.steps)))
        rates = [f"{options.batch / seconds:,.0f}" for seconds in pairs[-1]]
        print(
            f"round {number}: espace {rates[0]} rows/s, padded {rates[1]} rows/s, others before {others:.0f} %",
            flush=True,
        )
    mine, hand = (options.batch / statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(
        f"batch {options.batch}, {options.threads} threads: {mine:,.0f} against {hand:,.0f} rows/s, ratio {ratio:.2f}"
    )


if __name__ == "__main__":
    main()
