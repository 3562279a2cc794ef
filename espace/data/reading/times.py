"""The times of rows, and bounds among them: text is read as times, never compared as text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import TypeAlias, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from espace.data.reading.lists import null_hint
from espace.errors import DataError

Moment: TypeAlias = str | int | float
Read: TypeAlias = tuple[int, int | None]  # microseconds since 1970 on the clock of its zone; that zone's offset, if any
Compare: TypeAlias = Callable[[pa.Array, pa.Scalar], pa.Array]

_ISO = re.compile(
    r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?|(\d{2})(\d{2}))?"
    r"(?:[T ](\d{2})(?::?(\d{2})(?::?(\d{2})(?:[.,](\d+))?)?)?(Z|[+-]\d{2}(?::?\d{2})?)?)?",
    re.ASCII,
)
_WHOLE, _NUMBER = r"^-?[0-9]{1,18}$", r"^-?[0-9]+(\.[0-9]+)?$"
_EPOCH, _MICRO = datetime(1970, 1, 1), timedelta(microseconds=1)
_WALL = pa.timestamp("us")


@dataclass(frozen=True)
class Span:
    """From the first to the last time of some rows. type: of the column; low and high: numbers in their order, of times
    microseconds since 1970 (UTC); first and last: as they stand in the data."""

    type: str
    low: int | float
    high: int | float
    first: str
    last: str


class PlainSpan(TypedDict):
    """A `Span` as plain values."""

    type: str
    low: int | float
    high: int | float
    first: str
    last: str


def joined(one: Span | None, other: Span | None) -> Span | None:
    """The span of both, of times of one column."""
    if one is None or other is None:
        return one or other
    least, most = min(one, other, key=lambda s: s.low), max(one, other, key=lambda s: s.high)
    return Span(one.type, least.low, most.high, least.first, most.last)


def overlaps(by: str, spans: Mapping[str, Span]) -> list[str]:
    """Of every two parts, in their order, of which the later does not begin after the earlier one has ended."""
    return [
        f"{late}: its times of '{by}' begin at {spans[late].first}, not after those of {early}, which end at"
        f" {spans[early].last}: {late} is not later than {early}."
        for early, late in itertools.combinations(spans, 2)
        if spans[late].low <= spans[early].high
    ]


@dataclass(frozen=True)
class Clock:
    """Reads the column `by`. Text is read as `format` says (as of `datetime.strptime`), by default as ISO 8601.

    numbers: whether text that is all numbers is read as these, as where the bounds are numbers and the column is an id
    too, which a CSV keeps as text.
    """

    by: str
    format: str | None = None
    numbers: bool = False

    def compared(self, values: pa.ChunkedArray, bound: Moment, compare: Compare, where: str) -> pa.Array:
        """`compare(values, bound)`, (rows,), null where the time is. A bound without a zone is one of the zone of the
        values.

        Raises DataError for text that is no time, and for a bound that the values cannot be compared with.
        """
        values = self._as_numbers(values)
        kind = values.type
        if is_text(kind):
            return self._compared_text(values, bound, compare, where)
        if self.format is not None:
            raise DataError(
                f"{where}: data.split.format says how text is read, but '{self.by}' is of type {kind}. Remove it; a"
                f" CSV column stays text with column_types: {{{self.by}: string}}."
            )
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            times = values.cast(_WALL) if pa.types.is_date(kind) else values
            return compare(times, self._instant(bound, kind, where))
        try:
            return compare(values, pa.scalar(bound).cast(kind))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise self._refused(kind, bound, where, f" {error}") from error

    def span(self, values: pa.ChunkedArray, where: str) -> Span | None:
        """The first and the last of the values; None where there is none, or they have no order."""
        kind = values.type
        keys = self._keys(values, where)
        bounds = None if keys is None else pc.min_max(keys)
        if keys is None or bounds is None or not bounds["min"].is_valid:
            return None
        ends = [keys.index(bounds[end]).as_py() for end in ("min", "max")]
        low, high = (bounds[end].as_py() for end in ("min", "max"))
        return Span(str(kind), low, high, *(_shown(values[end]) for end in ends))

    def _as_numbers(self, values: pa.ChunkedArray) -> pa.ChunkedArray:
        """Text that is all numbers as these, where that is wanted; all else as it is."""
        if not (self.numbers and is_text(values.type)):
            return values
        texts = values.cast(pa.string())
        whole, any_ = (pc.all(pc.match_substring_regex(texts, number)).as_py() for number in (_WHOLE, _NUMBER))
        return texts.cast(pa.int64() if whole else pa.float64()) if any_ else values

    def _keys(self, values: pa.ChunkedArray, where: str) -> pa.ChunkedArray | None:
        values = self._as_numbers(values)
        kind = values.type
        if is_text(kind):
            walls, offsets = self._texts(values, where)
            return pc.subtract(walls.cast(pa.int64()), pc.fill_null(offsets, 0))
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return values.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False).cast(pa.int64())
        if pa.types.is_floating(kind):
            return pc.if_else(pc.is_finite(values), values, None).cast(pa.float64())
        return values if pa.types.is_integer(kind) else None

    def _compared_text(self, values: pa.ChunkedArray, bound: Moment, compare: Compare, where: str) -> pa.Array:
        walls, offsets = self._texts(values, where)
        read = self._read(str(bound)) or _read(str(bound), None)
        if read is None:
            raise self._refused(values.type, bound, where, "")
        wall, offset = read
        if offset is None:
            return compare(walls, _moment(wall))
        if pc.any(pc.and_(pc.is_valid(walls), pc.is_null(offsets))).as_py():
            raise DataError(
                f"{where}: data.split compares '{self.by}' with {bound!r}, which has a zone, but not all times of"
                " the column have one. Write the bound without."
            )
        return compare(pc.subtract(walls.cast(pa.int64()), offsets), pa.scalar(wall - offset))

    def _texts(self, values: pa.ChunkedArray, where: str) -> tuple[pa.Array, pa.Array]:
        """Times on the clocks of their zones, and the offsets of these in microseconds, null without a zone."""
        texts = pa.chunked_array([values]) if isinstance(values, pa.Array) else values
        encoded = texts.combine_chunks().dictionary_encode()
        if self.format is None and (plain := _plain(encoded.dictionary)) is not None:
            return plain.take(encoded.indices), pa.nulls(len(values), pa.int64())
        found = [self._read(text) if text else None for text in encoded.dictionary.to_pylist()]
        for text, read in zip(encoded.dictionary.to_pylist(), found, strict=True):
            if text and read is None:
                raise self._no_time(text, values.index(pa.scalar(text, values.type)).as_py(), where)
        walls = pa.array([read and read[0] for read in found], pa.int64()).cast(_WALL)
        offsets = pa.array([read and read[1] for read in found], pa.int64())
        return walls.take(encoded.indices), offsets.take(encoded.indices)

    def _read(self, text: str) -> Read | None:
        return _read(text, self.format)

    def _instant(self, bound: Moment, kind: pa.DataType, where: str) -> pa.Scalar:
        """The bound on the clock of the column, to microseconds."""
        read = _read(bound, None) if isinstance(bound, str) else None
        zone = getattr(kind, "tz", None)
        if read is None or (zone is None and read[1] is not None):
            raise self._refused(kind, bound, where, " Text in ISO 8601 is such a value, as in 2024-01-31.")
        wall, offset = _moment(read[0]), read[1]
        if zone is None:
            return wall
        if offset is not None:
            return pa.scalar(read[0] - offset, pa.timestamp("us", zone))
        return pc.assume_timezone(wall, zone, ambiguous="earliest", nonexistent="earliest")

    def _refused(self, kind: pa.DataType, bound: Moment, where: str, more: str) -> DataError:
        return DataError(
            f"{where}: data.split compares '{self.by}', which is of type {kind}, with {bound!r}. Write the bound as a"
            f" value of that type{'' if not is_text(kind) else f', {self._written()}'}.{more}"
        )

    def _no_time(self, text: str, row: int, where: str) -> DataError:
        mend = "Say how it is written, as in data.split.format: '%d/%m/%Y'."
        if self.format is not None:
            mend = "Mend the column, or data.split.format."
        what = f"'{self.by}' is text and has {text!r}, which is no time {self._written()}"
        return DataError(f"{where}, row {row}: {what}. {mend}{null_hint(text)}")

    def _written(self) -> str:
        return "in ISO 8601, such as 2024-01-31" if self.format is None else f"of the form {self.format!r}"


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of that type holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _plain(texts: pa.Array) -> pa.Array | None:
    """Text in ISO 8601 down to days or seconds, without zones, as pyarrow reads it: fast. None for any other."""
    try:
        return texts.cast(_WALL)
    except pa.ArrowInvalid:
        return None


@lru_cache(maxsize=2**17)
def _read(text: str, format: str | None) -> Read | None:
    """A text as a time, None when it is none."""
    try:
        found = _iso(text) if format is None else datetime.strptime(text, format)
    except (ValueError, OverflowError):
        return None
    if found is None:
        return None
    wall, offset = found.replace(tzinfo=None), found.utcoffset()
    return (wall - _EPOCH) // _MICRO, None if offset is None else offset // _MICRO


def _iso(text: str) -> datetime | None:
    """A day, month or year too; Python 3.10 reads less of ISO 8601. Raises ValueError for a time that there is not."""
    match = _ISO.fullmatch(text)
    if match is None:
        return None
    year, month, day, month_too, day_too, hour, minute, second, rest, zone = match.groups()
    date = (int(year), int(month or month_too or 1), int(day or day_too or 1))
    clock = (int(hour or 0), int(minute or 0), int(second or 0), int((rest or "0")[:6].ljust(6, "0")))
    return datetime(*date, *clock, tzinfo=_zone(zone))


def _zone(text: str | None) -> timezone | None:
    if text is None or text == "Z":
        return None if text is None else timezone.utc
    digits = text[1:].replace(":", "").ljust(4, "0")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-offset if text[0] == "-" else offset)


def _moment(microseconds: int) -> pa.Scalar:
    return pa.scalar(microseconds, _WALL)


def _shown(value: pa.Scalar) -> str:
    """A value as a person writes it; a time on the clock of its zone, less zeros at its end."""
    zone = getattr(value.type, "tz", None)
    if not pa.types.is_timestamp(value.type):
        return str(value.as_py())
    text = str((value if zone is None else pc.local_timestamp(value)).cast(pa.string()).as_py())
    return re.sub(r"( 00:00:00)?(\.0+)?$", "", text) + (f" {zone}" if zone else "")
