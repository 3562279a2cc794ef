"""The rate stays as it is, behind a rise if wanted."""

from __future__ import annotations

import espace
from espace.parts.schedules import Steps, rise


def constant(steps: int | None, *, warmup_steps: Steps = 0) -> espace.Schedule:
    """1, behind a rise over `warmup_steps`."""
    return lambda step: rise(step, warmup_steps)


@espace.hookimpl
def register_schedules(register: espace.Register[espace.Schedule]) -> None:
    """Bring `constant`."""
    register("constant", constant)
