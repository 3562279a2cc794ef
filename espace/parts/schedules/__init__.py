"""Schedules: by what the learning rate is multiplied in a step. Here stands what they share: a rise at the start."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from annotated_types import Ge, Gt, Le, Lt

import espace

Steps: TypeAlias = Annotated[int, Ge(0)]
Share: TypeAlias = Annotated[float, Ge(0), Le(1)]
Part: TypeAlias = Annotated[float, Gt(0), Lt(1)]


def rise(step: int, warmup_steps: int) -> float:
    """1/n, 2/n, ... 1 over the first n steps, and 1 after them."""
    return min((step + 1) / warmup_steps, 1.0) if warmup_steps else 1.0


def gone(step: int, warmup_steps: int, steps: int) -> float:
    """How much of the steps behind the rise is over, from 0 to 1."""
    return min(max(step - warmup_steps, 0) / (steps - warmup_steps), 1.0)


def known(steps: int | None, warmup_steps: int = 0) -> int:
    """The number of steps. Raises EspaceError where it is not known, or the rise leaves none."""
    if steps is None:
        what = "its end is not known, since only time ends the run. Set trainer.max_steps or trainer.max_epochs."
        raise espace.errors.ConfigError(f"optimizer.schedule: {what}")
    if warmup_steps >= steps:
        what = f"warmup_steps {warmup_steps} leaves nothing of the run's {steps} steps. Set fewer."
        raise espace.errors.ConfigError(f"optimizer.schedule: {what}")
    return steps
