"""Laws of schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from espace.testing.law import law
from espace.testing.states import reread


class ScheduleTests:
    """Laws of a schedule. Set `schedule` and `options`."""

    schedule: ClassVar[Callable[..., Any]]
    options: ClassVar[Mapping[str, object]] = {}
    lengths: ClassVar[tuple[int, ...]] = (2, 3, 10, 1000)

    def build(self, steps: int) -> Any:
        """A new one with the options."""
        return type(self).schedule(steps, **self.options)

    def test_is_finite_and_not_negative(self) -> None:
        for steps in self.lengths:
            with law(f"it gives a number for each of {steps} steps"):
                found = [float(self.build(steps)(step)) for step in range(steps + 2)]
            assert all(math.isfinite(f) and f >= 0 for f in found), "a factor is finite and not negative"

    def test_goes_by_the_step_only(self) -> None:
        one, other = self.build(100), self.build(100)
        forth = [one(step) for step in range(100)]
        assert forth == [other(step) for step in reversed(range(100))][::-1], "a resumed run begins anywhere"

    def test_goes_on_from_its_state(self) -> None:
        whole, part = self.build(100), self.build(100)
        if not hasattr(whole, "judged"):
            return
        for loss in (3.0, 2.0, 2.5, math.nan, 2.6, 2.7, 2.8, 1.0, *(1.5,) * 50):
            with law("its state is plain values and tensors, and it takes it back"):
                state, part = reread(part.state_dict()), self.build(100)
                part.load_state_dict(state)
            whole.judged(loss)
            part.judged(loss)
            assert whole(50) == part(50), "all that it remembers is in its state_dict"
