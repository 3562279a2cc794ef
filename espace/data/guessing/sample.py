"""Rows from all over a source, and what each of its columns holds there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from espace.data.encoding.dates import moments
from espace.data.encoding.vocabulary import one_array
from espace.data.reading.readers import Files
from espace.data.reading.spelling import is_text
from espace.errors import DataError

ROWS = 100_000
_BLOCKS = 50  # runs of neighbouring rows, so that rows shown together stay together
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\dA-Za-z_]+")
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.]+)?$"

Mask = NDArray[np.bool_]


def words_of(name: str) -> list[str]:
    """The words of a name, in lower case: `userId`, `user_id` and `user id` are user, id."""
    return [word.lower() for word in _WORDS.findall(name)]


@dataclass
class Column:
    """One column of the sample."""

    name: str
    values: pa.Array

    @property
    def kind(self) -> pa.DataType:
        """The Arrow type."""
        return self.values.type

    @cached_property
    def words(self) -> list[str]:
        """The words of its name."""
        return words_of(self.name)

    @cached_property
    def nested(self) -> bool:
        """Whether a row may hold several values."""
        return bool(pa.types.is_nested(self.kind))

    @cached_property
    def text(self) -> bool:
        """Whether it holds text."""
        return is_text(self.kind)

    @cached_property
    def numbers(self) -> NDArray[np.float64] | None:
        """(rows,), NaN where missing; None for what is no number and no truth value."""
        types = pa.types
        if not (types.is_integer(self.kind) or types.is_floating(self.kind)) and not (
            types.is_boolean(self.kind) or types.is_decimal(self.kind)
        ):
            return None
        return np.asarray(pc.fill_null(self.values.cast(pa.float64(), safe=False), np.nan), np.float64)

    @cached_property
    def known(self) -> Mask:
        """(rows,): where it has a value."""
        valid = np.asarray(pc.is_valid(self.values))
        return valid if self.numbers is None else valid & ~np.isnan(self.numbers)

    @cached_property
    def codes(self) -> NDArray[np.int64]:
        """(rows,): equal values have equal numbers, from 0 on; what is missing has one of its own."""
        found = self.values.dictionary_encode(null_encoding="encode")
        return np.asarray(found.indices, np.int64)

    @cached_property
    def distinct(self) -> int:
        """How many values there are."""
        if self.nested:
            return len(self.values)
        return int(pc.count_distinct(self.values, mode="only_valid").as_py())

    @cached_property
    def whole(self) -> bool:
        """Whether it holds whole numbers only."""
        if self.numbers is None:
            return False
        x = self.numbers[self.known]
        return bool(np.all(np.isfinite(x) & (x == np.floor(x))))

    @cached_property
    def binary(self) -> bool:
        """Whether it holds 0 and 1, and nothing else that is known."""
        return self.numbers is not None and {*np.unique(self.numbers[self.known]).tolist()} == {0.0, 1.0}

    @cached_property
    def happened(self) -> Mask:
        """(rows,): where it says something: neither missing, nor 0, nor an empty list."""
        if self.numbers is not None:
            return np.asarray(self.known & (self.numbers != 0), np.bool_)
        if pa.types.is_list(self.kind):
            lengths = np.asarray(pc.fill_null(pc.list_value_length(self.values), 0), np.int64)
            return self.known & (lengths > 0)
        return self.known

    @property
    def plain(self) -> bool:
        """Whether its type is one that this room knows."""
        types = pa.types
        tests = (types.is_boolean, types.is_integer, types.is_floating, types.is_decimal, types.is_timestamp)
        more = (types.is_date, types.is_time, types.is_list, types.is_string, types.is_binary, types.is_null)
        return any(test(self.kind) for test in (*tests, *more))

    @cached_property
    def times(self) -> NDArray[np.datetime64] | None:
        """(rows,): on the clock of the column, NaT where missing; None for what is no time."""
        types = pa.types
        if self.text:
            dated = pc.match_substring_regex(pc.drop_null(self.values), _DATE)
            if not len(dated) or not pc.all(dated).as_py():
                return None
        elif not (types.is_timestamp(self.kind) or types.is_date(self.kind)):
            return None
        try:
            found = moments(self.values, None)
        except DataError:
            return None
        found = found if found.type.tz is None else pc.local_timestamp(found)
        return np.asarray(found.cast(pa.timestamp("us"), safe=False)).astype("datetime64[us]")

    def shown(self, row: int) -> Any:
        """A value of it."""
        return self.values[row].as_py()


@dataclass(frozen=True)
class Sample:
    """Columns by name, how many rows were looked at, and how many there are."""

    columns: dict[str, Column]
    rows: int
    of: int

    @property
    def whole(self) -> bool:
        """Whether all rows were looked at."""
        return self.rows == self.of


def sample(reader: Files, rows: int = ROWS) -> Sample:
    """At most about so many rows, in blocks from all over the source. Raises DataError for what cannot be read."""
    of = sum(piece.rows for piece in reader.pieces)
    size = of if of <= rows else rows // _BLOCKS
    starts = [0] if of <= rows else np.linspace(0, of - size, _BLOCKS).astype(int).tolist()
    parts, first = [], 0
    for piece in reader.pieces:
        spans = _overlaps(starts, size, first, piece.rows)
        first += piece.rows
        if spans:
            table = reader.read(piece, reader.schema.names)
            parts += [table.slice(start, length) for start, length in spans]
    table = pa.concat_tables(parts)
    columns = {name: Column(name, one_array(table.column(name))) for name in table.column_names}
    return Sample(columns, table.num_rows, of)


def _overlaps(starts: Sequence[int], size: int, first: int, rows: int) -> list[tuple[int, int]]:
    """(start, length) within a piece of what the blocks cover of it."""
    cut = [(max(start, first), min(start + size, first + rows)) for start in starts]
    return [(low - first, high - low) for low, high in cut if high > low]
