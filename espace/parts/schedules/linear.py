"""The rate falls by the same in every step."""

from __future__ import annotations

import espace
from espace.parts.schedules import Share, Steps, gone, known, rise


def linear(steps: int | None, *, warmup_steps: Steps = 0, final: Share = 0.0) -> espace.Schedule:
    """From 1 in a straight line to `final` at the end of the run, behind a rise over `warmup_steps`."""
    total = known(steps, warmup_steps)
    return lambda step: rise(step, warmup_steps) * (1 - (1 - final) * gone(step, warmup_steps, total))


@espace.hookimpl
def register_schedules(register: espace.Register[espace.Schedule]) -> None:
    """Bring `linear`."""
    register("linear", linear)
