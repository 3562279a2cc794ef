"""What decides how far a step goes: the optimiser, the rates of its groups, and the schedule that multiplies them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from espace.contracts import Schedule
from espace.model.embedding import Table


@dataclass
class Rates:
    """An optimiser to be made, and its rates.

    Args:
        make: `make(groups, tables)`, the optimiser.
        tables: `exact`, `lazy` or `dense`.
        lr: the rate; tables_lr: that of embedding tables, None for the same.
        schedule: by what they are multiplied.
    """

    make: Callable[[list[dict[str, Any]], str], torch.optim.Optimizer]
    tables: str
    lr: float
    tables_lr: float | None
    schedule: Schedule

    def optimizer_of(self, module: nn.Module) -> torch.optim.Optimizer:
        """A new optimiser of all parameters."""
        return self.make(self._groups(module), self.tables)

    def _groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Parameters in their order: whoever reads a checkpoint counts them. So a group is a run of one rate."""
        tables = {id(p) for m in module.modules() if isinstance(m, Table) for p in m.parameters()}
        parameters = [*module.parameters()]
        if self.tables_lr is None:
            return [{"params": parameters, "lr": self.lr}]
        runs = itertools.groupby(parameters, lambda p: id(p) in tables)
        return [{"params": [*ps], "lr": self.tables_lr if table else self.lr} for table, ps in runs]

    def set(self, optimizer: torch.optim.Optimizer, base: Sequence[float], step: int) -> None:
        """Give every group its rate of a step, counted from 0."""
        factor = self.schedule(step)
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * factor

    def judged(self, loss: float) -> None:
        """Tell the schedule of a validation, if it wants to know."""
        tell = getattr(self.schedule, "judged", None)
        if tell is not None:
            tell(loss)

    def state(self) -> dict[str, Any]:
        """What the schedule remembers."""
        found: dict[str, Any] = self.schedule.state_dict() if hasattr(self.schedule, "state_dict") else {}
        return found

    def load(self, state: dict[str, Any]) -> None:
        """Take it back."""
        if state and hasattr(self.schedule, "load_state_dict"):
            self.schedule.load_state_dict(state)
