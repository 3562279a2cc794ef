"""How many rows, and how many positives, the other metrics stand on."""

from __future__ import annotations

import torch
import torchmetrics
from torch import Tensor

import espace


class Count(torchmetrics.Metric):
    """Rows of non-zero weight, each counted once whatever its weight."""

    is_differentiable = False
    full_state_update = False

    rows: Tensor
    positives: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("rows", "positives"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scored: espace.Scored) -> None:
        """Add rows."""
        counted = scored.weights != 0
        self.rows += counted.sum()
        self.positives += (counted & (scored.labels > 0)).sum()

    def compute(self) -> dict[str, Tensor]:
        """`{"rows", "positives"}`."""
        return {"rows": self.rows, "positives": self.positives}


@espace.hookimpl
def register_metrics(register: espace.Register[espace.Metric | espace.ValueMetric]) -> None:
    """Bring `count`."""
    register("count", Count)
