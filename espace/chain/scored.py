"""What a metric judges: predictions of one probability, or of one value, beside what was observed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Scored:
    """Predictions of one probability beside its labels, on the rows of one space only: what a metric judges.

    log_prob, log_not_prob: (rows,) float; labels: (rows,) float32, 0 or 1; weights: (rows,) float32. Where a ratio of
    two heads exceeds 1, log_prob is above 0, and log_not_prob log(1e-7), the least that a ratio leaves.
    extras: other columns of those rows by name, (rows,), such as group keys (int64); made: what one metric has made of
    them and another can use.
    """

    log_prob: Tensor
    log_not_prob: Tensor
    labels: Tensor
    weights: Tensor
    extras: Mapping[str, Tensor]
    made: dict[object, object] = field(default_factory=dict, init=False, repr=False, compare=False)


@dataclass(frozen=True)
class ScoredValue:
    """Expectations of one value beside its amounts, on the rows of one space only: what a metric of values judges.

    predicted: (rows,) float; labels: (rows,) float32, the amounts; weights and extras: as in `Scored`.
    """

    predicted: Tensor
    labels: Tensor
    weights: Tensor
    extras: Mapping[str, Tensor]
