"""Up to the rate and far below it (Smith and Topin, 2019), as in torch, by cosines."""

from __future__ import annotations

import math

import espace
from espace.parts.schedules import Part, known


def one_cycle(steps: int | None, *, peak_at: Part = 0.3, start: Part = 0.04, final: Part = 4e-6) -> espace.Schedule:
    """From `start` to 1 at the share `peak_at` of the run, then to `final` at its last step."""
    total = known(steps)
    peak, last = float(peak_at * total) - 1, total - 1

    def factor(step: int) -> float:
        if peak > 0 and step <= peak:
            return _between(start, 1.0, step / peak)
        return _between(1.0, final, min((step - peak) / (last - peak), 1.0))

    return factor


def _between(low: float, high: float, share: float) -> float:
    """From `low` to `high` by half a cosine."""
    return high + (low - high) / 2 * (1 + math.cos(math.pi * share))


@espace.hookimpl
def register_schedules(register: espace.Register[espace.Schedule]) -> None:
    """Bring `one_cycle`."""
    register("one_cycle", one_cycle)
