"""Numbers far from all that training saw: a model says something of them all the same, so they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict
from warnings import warn

import numpy as np
from numpy.typing import NDArray

from espace.data.encoding.columns import Number
from espace.data.encoding.encode import Encoder, NumberStats, transformed
from espace.data.encoding.table import Columns

_FAR = 10.0  # deviations beyond the range of the training rows; without a deviation, widths of that range
_CONSTANT = 1e-6  # of its size: by how much a number that never varied may differ


@dataclass
class Stray:
    """The numbers of a column that lie far outside: how many, the one seen first and where; and the range, as read."""

    rows: int
    first: float
    where: str
    low: float
    high: float

    def told(self, feature: str, of: int | None = None) -> str:
        """In words; `of`: the rows looked at."""
        how_many = "" if of is None else f" in {self.rows:,} of {of:,} rows"
        was = f"always {self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"
        return (
            f"'{feature}' is far from all that training saw{how_many}: {self.first:g} ({self.where}), where it was"
            f" {was}. Probabilities there are guesses; compare the units of the column, or clip it."
        )


class PlainStray(TypedDict):
    """A `Stray` as plain values."""

    rows: int
    first: float
    where: str
    low: float
    high: float


class Strays:
    """Looks for them in one piece after the other, and tells of each column once."""

    def __init__(self, encoder: Encoder, tell: Callable[[str], None] = warn) -> None:
        ranges = encoder.numbers.items()
        known = {name: stats for name, stats in ranges if np.isfinite([stats.low, stats.high]).all()}
        self._features = [(f, known[f.name]) for f in encoder.features if isinstance(f, Number) and f.name in known]
        self._kinds = encoder.kinds
        self.found: dict[str, Stray] = {}
        self.tell = tell

    def add(self, table: Columns) -> None:
        """Look at a piece. Raises DataError for what is no number."""
        for feature, stats in self._features:
            self._add(feature, stats, table)

    def _add(self, feature: Number, stats: NumberStats, table: Columns) -> None:
        read, _ = table.number_of(feature, self._kinds.get(feature.name))
        scaled = feature.standardise and feature.buckets is None
        rows = np.flatnonzero(_are_far(transformed(read, feature.log1p), stats, scaled))
        if not len(rows):
            return
        if known := self.found.get(feature.name):
            known.rows += len(rows)
            return
        low, high = _as_read([stats.low, stats.high], feature.log1p)
        stray = Stray(len(rows), float(read[rows[0]]), table.row(int(rows[0])), low, high)
        self.found[feature.name] = stray
        self.tell(stray.told(feature.name))


def _are_far(values: NDArray[np.float64], stats: NumberStats, has_deviation: bool) -> NDArray[np.bool_]:
    """(rows,), false where missing."""
    width, size = stats.high - stats.low, max(abs(stats.low), abs(stats.high))
    reach = _CONSTANT * size if width <= _CONSTANT * size else _FAR * (stats.deviation if has_deviation else width)
    far: NDArray[np.bool_] = (values < stats.low - reach) | (values > stats.high + reach)
    return far


def _as_read(values: Sequence[float], log1p: bool) -> list[float]:
    """What `transformed` made these of."""
    made = np.asarray(values)
    return [float(v) for v in (np.sign(made) * np.expm1(np.abs(made)) if log1p else made)]
