"""The rate falls when the validation loss does not."""

from __future__ import annotations

import math
from typing import Any

import espace
from espace.parts.schedules import Part, Share, Steps, rise


class Plateau:
    """Multiplied by `factor` after more than `patience` validations in a row without a better loss, down to `least`."""

    def __init__(
        self,
        steps: int | None,
        *,
        factor: Part = 0.1,
        patience: Steps = 2,
        threshold: Share = 1e-4,
        least: Share = 0.0,
        warmup_steps: Steps = 0,
    ) -> None:
        self.factor, self.patience, self.threshold, self.least = factor, patience, threshold, least
        self.warmup_steps = warmup_steps
        self.now, self.best, self.waited = 1.0, math.inf, 0

    def __call__(self, step: int) -> float:
        """The factor, which changes with validations only."""
        return rise(step, self.warmup_steps) * self.now

    def judged(self, loss: float) -> None:
        """A validation found this loss; it is better when it is lower by the share `threshold`, and NaN never is."""
        if loss < self.best * (1 - self.threshold):
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        if self.waited > self.patience:
            self.now, self.waited = max(self.now * self.factor, self.least), 0

    def state_dict(self) -> dict[str, float]:
        """The factor, the best loss, and the validations since."""
        return {"now": self.now, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self.now, self.best, self.waited = state_dict["now"], state_dict["best"], state_dict["waited"]


@espace.hookimpl
def register_schedules(register: espace.Register[espace.Schedule]) -> None:
    """Bring `plateau`."""
    register("plateau", Plateau)
