"""How fast this machine trains ESMM at best: a loop by hand over tensors in memory, without vocabularies, logs, checkpoints.

    python -m tests.bench.limit --train train.parquet --test test.parquet [--batch 8192] [--threads 2]
        [--precision fp32] [--update numba] [--table-rows 10000000]

One table for all fields, two towers, the loss in log space, and the named update: `numba` is Adam on the rows looked up, in one
pass compiled here, and torch's fused Adam for the rest; `torch-fused-dense` is the fused one for the table too; `default` is
`torch.optim.Adam` as most people call it. By default autocast to bf16 where the processor has matrix units for it, since
without them it is slower. It prints the line of the peers' runners.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow.parquet as pq
import torch
from numba import njit, prange
from torch import Tensor, nn
from torch.nn import functional as F

from tests.bench.data import SIZES
from tests.bench.peers.common import DIM, FIELDS, HIDDEN, LABELS, LR, Bench, areas

PRECISIONS = ("bf16", "fp32")
BEST = "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"
UPDATES = ("numba", "torch-fused-dense", "default")
BETAS, EPS = (0.9, 0.999), 1e-8


class Loop(nn.Module):
    """The model."""

    def __init__(self, rows: int, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, DIM, sparse=sparse, _weight=torch.empty(rows, DIM).normal_(std=0.01))
        self.towers = nn.ModuleList(_tower() for _ in range(2))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Both logits of `ids`, (batch, fields): (batch,) each, float32."""
        x = self.table(ids).flatten(1)
        click, given = (tower(x).squeeze(1).float() for tower in self.towers)
        return click, given

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Of click and of both; `labels` are (batch, 2) float32."""
        a, b = self(ids)
        log_both = F.logsigmoid(a) + F.logsigmoid(b)
        log_not = torch.logaddexp(F.logsigmoid(-a), F.logsigmoid(a) + F.logsigmoid(-b))
        ctr = F.binary_cross_entropy_with_logits(a, labels[:, 0])
        return ctr - torch.where(labels[:, 1] > 0, log_both, log_not).mean()


def _tower() -> nn.Sequential:
    widths, layers = [DIM * len(FIELDS), *HIDDEN], []
    for a, b in zip(widths, HIDDEN, strict=False):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(HIDDEN[-1], 1))


class RowAdam:
    """Adam on the rows of `table` that a batch has looked up, by the kernel below."""

    def __init__(self, table: Tensor, batch: int) -> None:
        threads = torch.get_num_threads()
        numba.set_num_threads(threads)
        self.parameter, self.steps = table, 0
        self.arrays = [a.detach().numpy() for a in (table, torch.zeros_like(table), torch.zeros_like(table))]
        self.room = np.zeros(len(table), np.int32), np.empty((threads, batch), np.int32)
        self.sums = np.empty((threads, batch, DIM), np.float32)
        nothing = np.empty((0, len(FIELDS)), np.int32), np.empty((0, len(FIELDS), DIM), np.float32)
        self._run(*nothing, *np.ones(2, np.float32))  # compiled by now
        torch.set_num_threads(threads)  # when numba starts its threads, torch's take their number

    def step(self, ids: Tensor) -> None:
        """`ids`, (batch, fields) int32, are those of the gradient."""
        assert self.parameter.grad is not None
        grads = self.parameter.grad._values().view(*ids.shape, DIM).numpy()
        self.parameter.grad, self.steps = None, self.steps + 1
        first, second = (1 - beta**self.steps for beta in BETAS)
        size, root = np.float32(LR / first), np.float32(second**-0.5)
        self._run(ids.numpy(), grads, size, root)

    def _run(self, *given: Any) -> None:
        arguments: Any = *self.arrays, *self.room, self.sums, *given
        _update(*arguments)


@njit(parallel=True, fastmath=True, error_model="numpy", cache=True)
def _update(
    table: Any,
    mean: Any,
    square: Any,
    place: Any,
    found: Any,
    sums: Any,
    ids: Any,
    grads: Any,
    size: Any,
    root: Any,
) -> None:
    """Fields have ids of their own, so a thread takes every second one, say, and shares no row with another."""
    beta1, beta2, eps, one = np.float32(BETAS[0]), np.float32(BETAS[1]), np.float32(EPS), np.float32(1)
    for thread in prange(len(found)):
        for field in range(thread, ids.shape[1], len(found)):
            count = 0
            for i in range(len(ids)):
                row = ids[i, field]
                at = place[row] - 1
                if at < 0:
                    at, count = count, count + 1
                    place[row], found[thread, at] = count, row
                    for k in range(DIM):
                        sums[thread, at, k] = grads[i, field, k]
                else:
                    for k in range(DIM):
                        sums[thread, at, k] += grads[i, field, k]
            for at in range(count):
                row = found[thread, at]
                place[row] = 0
                for k in range(DIM):
                    g = sums[thread, at, k]
                    mean[row, k] = beta1 * mean[row, k] + (one - beta1) * g
                    square[row, k] = beta2 * square[row, k] + (one - beta2) * g * g
                    table[row, k] -= size * mean[row, k] / (np.sqrt(square[row, k]) * root + eps)


class Fit:
    """A model with its optimisers.

    Args:
        batch: rows of a step.
        precision, update: of PRECISIONS and UPDATES.
        table_rows: at least so many rows has the table; the ids are spread over it.
    """

    def __init__(self, batch: int, precision: str, update: str, table_rows: int = 0) -> None:
        self.batch, self.half = batch, precision == "bf16"
        self.spread = max(table_rows // sum(SIZES), 1)
        self.model = Loop(sum(SIZES) * self.spread, sparse=update == "numba")
        self.rows = RowAdam(self.model.table.weight, batch) if update == "numba" else None
        dense = self.model.parameters() if self.rows is None else self.model.towers.parameters()
        self.adam = torch.optim.Adam(dense, lr=LR, fused=None if update == "default" else True)

    def epoch(self, ids: Tensor, labels: Tensor) -> float:
        """Train on all rows once, in random order; returns seconds a step."""
        start, order = time.perf_counter(), torch.randperm(len(ids))
        batches = torch.split(order, self.batch)
        for take in batches:
            rows = ids.index_select(0, take)
            self.adam.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
                loss = self.model.loss(rows, labels.index_select(0, take).float())
            torch.autograd.backward(loss)
            self.adam.step()
            if self.rows is not None:
                self.rows.step(rows)
        return (time.perf_counter() - start) / len(batches)

    @torch.inference_mode()
    def predict(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """P(click) and P(conversion) of all rows, (rows,) each."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            click, given = map(torch.cat, zip(*map(self.model, torch.split(ids, self.batch)), strict=True))
        return click.sigmoid(), click.sigmoid() * given.sigmoid()


def tensors(path: Path, spread: int = 1, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows of the one table, (rows, fields) int32, every `spread`-th of them used; labels, (rows, 2) int8."""
    table = pq.read_table(path, columns=FIELDS + LABELS).slice(0, rows)
    offsets = np.cumsum([0, *SIZES[:-1]])
    ids = [(table[f].to_numpy() + first) * spread for f, first in zip(FIELDS, offsets, strict=True)]
    labels = [table[name].to_numpy() for name in LABELS]
    return torch.from_numpy(np.stack(ids, 1).astype(np.int32)), torch.from_numpy(np.stack(labels, 1))


def measure(train: Path, test: Path, **options: Any) -> tuple[float, dict[str, float]]:
    """Train one epoch with the options of Fit: seconds a step, and areas under the curve on the test rows by name."""
    fit = Fit(**options)
    seconds = fit.epoch(*tensors(train, fit.spread))
    ids, labels = tensors(test, fit.spread)
    return seconds, areas(*fit.predict(ids), *labels.T)


def main() -> None:
    """Train, predict, print."""
    more: dict[str, dict[str, Any]] = {"--precision": {"choices": PRECISIONS, "default": BEST}}
    more |= {"--update": {"choices": UPDATES, "default": "numba"}, "--table-rows": {"type": int, "default": 0}}
    bench = Bench("limit", ["torch", "numba"], more)
    options = bench.options
    torch.set_num_threads(options.threads)
    with bench.phase("prepare", bench.file_rows + bench.test_rows):
        fit = Fit(options.batch, options.precision, options.update, options.table_rows)
        data, (test, _) = tensors(options.train, fit.spread, bench.rows), tensors(options.test, fit.spread)
    with bench.phase("train", bench.rows):
        fit.epoch(*data)
    with bench.phase("predict", bench.test_rows):
        p = fit.predict(test)
    bench.finish(*p)


if __name__ == "__main__":
    main()
