"""How rows are held out: by the time of a row where there is one, else a share of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espace.data.guessing.sample import Column

_TRAIN = 0.85  # of the rows, about
_EXACT = {"day", "date", "timestamp", "ts", "time", "datetime"}
_BEFORE = {
    "birth",
    "birthday",
    "born",
    "signed",
    "signup",
    "registered",
    "registration",
    "created",
    "published",
    "joined",
}


@dataclass(frozen=True)
class Split:
    """`share`, or `by` a column and where training ends; and why."""

    why: str
    share: float | None = None
    by: str | None = None
    until: str | int | float | None = None


def time_of(columns: Sequence[Column]) -> Column | None:
    """The column that says when a row was: of dates and times the best named one, else a number called like one."""
    dated = [c for c in columns if c.times is not None and not {*c.words} & _BEFORE and c.distinct > 2]
    dated = [c for c in dated if c.known.all()]
    if dated:
        return max(dated, key=lambda c: (bool({*c.words} & _EXACT), c.distinct))
    for column in columns:
        if column.numbers is None or not column.known.all() or column.distinct < 3:
            continue
        if column.name.lower() in _EXACT and np.isfinite(column.numbers).all():
            return column
    return None


def split_of(time: Column | None, labels: Sequence[NDArray[np.int8]]) -> Split:
    """By time if both sides then have rows in which every stage happened."""
    share = 0.1 if len(labels[0]) >= 500 else 0.3
    if time is None:
        return Split("there is no column of times", share=share)
    until: str | int | float | None
    low = np.zeros(len(time.values), bool)
    if time.times is not None:
        until = _moment(time)
        low = low if until is None else time.times < np.datetime64(until)
    else:
        assert time.numbers is not None, "a time is a date or a number"
        bound = float(np.sort(time.numbers)[int(_TRAIN * len(time.numbers))])
        until, low = int(bound) if time.whole else bound, time.numbers < bound
    both = all((y[low] == 1).sum() >= 5 and (y[~low] == 1).any() for y in labels)
    if until is None or not both or not 0.4 < low.mean() < 0.98:
        return Split(f"{time.name} leaves a part without rows or without a stage", share=share)
    return Split(f"the last {1 - low.mean():.0%} of the rows by {time.name}", by=time.name, until=until)


def _moment(column: Column) -> str | None:
    """Where training ends, as it is written: midnight where there are days enough."""
    assert column.times is not None, "a time"
    times = np.sort(column.times[~np.isnat(column.times)])
    at = times[int(_TRAIN * len(times))]
    midnight = at.astype("datetime64[D]")
    share = float(np.mean(times < midnight))
    if 0.6 < share < 0.97 or (column.distinct <= 366 and at == midnight.astype(at.dtype)):
        return str(midnight)
    second = at.astype("datetime64[s]")
    return str(second) if times[0] < second else None
