"""The rate falls by half a cosine (SGDR, Loshchilov and Hutter, ICLR 2017, eq. 5, without restarts)."""

from __future__ import annotations

import math

import espace
from espace.parts.schedules import Share, Steps, gone, known, rise


def cosine(steps: int | None, *, warmup_steps: Steps = 0, final: Share = 0.0) -> espace.Schedule:
    """From 1 by half a cosine to `final` at the end of the run, behind a rise over `warmup_steps`."""
    total = known(steps, warmup_steps)

    def factor(step: int) -> float:
        fallen = (1 - math.cos(math.pi * gone(step, warmup_steps, total))) / 2
        return rise(step, warmup_steps) * (1 - (1 - final) * fallen)

    return factor


@espace.hookimpl
def register_schedules(register: espace.Register[espace.Schedule]) -> None:
    """Bring `cosine`."""
    register("cosine", cosine)
