"""Parts of dates and times as numbers: the hour, the day of the week, an age in days."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from espace.data.encoding.columns import DatePart
from espace.data.reading.lists import null_hint
from espace.data.reading.spelling import canonical, is_text
from espace.errors import DataError

_DAY = 24 * 3600 * 1e6  # microseconds
_FORMS = [pa.timestamp(unit, zone) for unit in ("us", "ns") for zone in (None, "UTC")]
_PARTS: Mapping[DatePart, Callable[[pa.Array], pa.Array]] = {
    "hour": pc.hour,
    "weekday": pc.day_of_week,  # Monday is 0
    "day": pc.day,
    "month": pc.month,
}


def moments(values: pa.Array, zone: str | None) -> pa.Array:
    """Dates, timestamps, or text as ISO 8601 writes it, as timestamps; those with a zone in `zone` if it is given.

    Text with an offset is in UTC. Raises DataError for what is none of these.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if is_text(values.type):
        values = _parsed(canonical(values))
    elif pa.types.is_date(values.type) or pa.types.is_null(values.type):
        values = values.cast(pa.timestamp("s"))
    elif not pa.types.is_timestamp(values.type):
        raise DataError(
            f"it is of type {values.type}, which has no parts of a date. Write timestamps, dates, or text such as"
            " 2024-01-31 08:30:00."
        )
    return values if zone is None or values.type.tz is None else values.cast(pa.timestamp(values.type.unit, zone))


def part(values: pa.Array, name: DatePart) -> NDArray[np.float64]:
    """A part of timestamps in their zone: (rows,) float64, NaN where missing. Hours from 0, weekdays from Monday, 0;
    days of the month and months from 1."""
    return np.array(pc.fill_null(_PARTS[name](values).cast(pa.float64()), np.nan), np.float64)


def age(values: pa.Array, at: pa.Array) -> NDArray[np.float64]:
    """Days from each timestamp to `at`: (rows,) float64, NaN where one is missing, below 0 where it lies behind.

    Raises DataError when one has a zone and the other has none.
    """
    if (values.type.tz is None) != (at.type.tz is None):
        raise DataError(
            f"its age is counted from {values.type} to {at.type}, of which one has a time zone. Write both with one, or"
            " both without."
        )
    return (_microseconds(at) - _microseconds(values)) / _DAY


def midnight(day: str, zone: str | None) -> pa.Array:
    """The start of a day, such as 2024-01-31, in `zone`: (1,)."""
    start = pa.array([day]).cast(pa.timestamp("us"))
    return start if zone is None else pc.assume_timezone(start, zone, ambiguous="earliest", nonexistent="latest")


def _microseconds(values: pa.Array) -> NDArray[np.float64]:
    whole = values.cast(pa.timestamp("us", values.type.tz), safe=False).cast(pa.int64())
    return np.array(pc.fill_null(whole.cast(pa.float64(), safe=False), np.nan), np.float64)


def _parsed(texts: pa.Array) -> pa.Array:
    texts = texts.cast(pa.string())
    for form in _FORMS:
        try:
            return texts.cast(form)
        except pa.ArrowInvalid:
            continue
    wrong = next((text for text in texts.to_pylist() if text is not None and not _is_moment(text)), None)
    what = "some of it has a time zone, and some none" if wrong is None else f"{wrong!r} is no date or time"
    mend = f"Write timestamps, dates, or text such as 2024-01-31 08:30:00.{null_hint(wrong or '')}"
    raise DataError(f"it is text, and {what}. {mend}")


def _is_moment(text: str) -> bool:
    for form in _FORMS:
        try:
            pa.array([text]).cast(form)
        except pa.ArrowInvalid:
            continue
        return True
    return False
