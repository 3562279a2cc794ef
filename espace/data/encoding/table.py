"""The columns of one table, read as what is wanted, with errors that say where."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from espace.data.encoding import dates
from espace.data.encoding.columns import Bag, DatePart, Hash, Id, Number, Sequence, column_of, is_day
from espace.data.encoding.kinds import Kind, family_of, kind_of
from espace.data.encoding.labels import read_amount, read_label
from espace.data.encoding.vocabulary import key_of, one_array
from espace.data.reading.lists import first_text, null_hint, remaining, split
from espace.data.reading.spelling import canonical, is_text
from espace.errors import DataError

Extra = Literal["key", "value", "probability"]

T = TypeVar("T")
R = TypeVar("R")

LARGEST = float(np.finfo(np.float32).max)


def as_numbers(values: pa.Array) -> NDArray[np.float64]:
    """A column of numbers, booleans or text as float64; null, blanks, and what no float32 can hold, become NaN.

    Raises pa.ArrowInvalid for text that is no number, pa.ArrowNotImplementedError for times, whose unit is that of a
    file.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_temporal(values.type):
        raise pa.ArrowNotImplementedError(f"{values.type} is no number")
    if is_text(values.type):
        texts = pc.utf8_trim_whitespace(values.cast(pa.string()))
        values = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    numbers = np.array(pc.fill_null(values.cast(pa.float64(), safe=False), np.nan), np.float64)
    numbers[~(np.abs(numbers) <= LARGEST)] = np.nan
    return numbers


def release_memory() -> None:
    """Give back to the system what was read and is no longer needed; Arrow would keep it for its next columns."""
    pa.default_memory_pool().release_unused()


def on_all_cores(work: Callable[[T], R], things: Iterable[T]) -> list[Callable[[], R]]:
    """Do `work` on each thing, on as many threads as torch has, since Arrow and numpy let go of Python's lock. Of each,
    in order, what tells its result, or raises."""
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return [threads.submit(work, thing).result for thing in things]


class Problems:
    """DataErrors met on the way, to be raised as one."""

    def __init__(self) -> None:
        self._found: list[str] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keep a DataError instead of raising it."""
        try:
            yield
        except DataError as error:
            self.note(error)

    def note(self, error: DataError) -> None:
        """Keep it."""
        self._found.append(str(error))

    def refuse(self) -> None:
        """Raise one DataError with all of them; nothing where there is none."""
        if self._found:
            raise DataError("\n".join(dict.fromkeys(self._found)))


def _other_than_number(kind: pa.DataType, column: str) -> str:
    """The way out where a column of a type was declared as a number."""
    if pa.types.is_duration(kind) or pa.types.is_time(kind):
        return "Write it as a number, such as seconds, or declare the feature as an id."
    if pa.types.is_temporal(kind):
        part = f"{column}_hour: {{type: number, column: {column}, part: hour}}"
        return f"Take a part of it, as in {part}; parts are hour, weekday, day, month and age."
    other = "a sequence, a bag or a vector" if pa.types.is_nested(kind) else "an id"
    return f"Declare the feature as {other}, or mend the column."


@dataclass(frozen=True)
class Events:
    """The values of a list feature, (events,), end to end; the length of each row, (rows,); their weights, (events,)
    float32, if they have some; and what kind the values are."""

    values: pa.Array
    lengths: NDArray[np.int64]
    weights: NDArray[np.float32] | None
    kind: Kind


class Columns:
    """The columns of `table`; `where` names file and row group in errors. Every method raises DataError.

    rows: the numbers of the table's rows in `where`, if they are not 0, 1, 2 ...
    """

    def __init__(self, table: pa.Table, where: str, rows: NDArray[np.int64] | None = None) -> None:
        self.table = table
        self.where = where
        self.rows = rows

    def array(self, column: str) -> pa.Array:
        """A column as one Arrow array."""
        return one_array(self.table.column(column))

    def category_of(self, feature: Id | Hash, seen: Kind | None = None) -> tuple[pa.Array, Kind]:
        """A category column as whole numbers or text, null where missing; and what kind it is.

        seen: what training saw; other values are converted exactly or refused.
        """
        column = column_of(feature)
        if isinstance(feature, Id) and feature.part is not None:
            numbers, kind = self.part_of(feature, feature.part, seen)
            missing = np.isnan(numbers)
            return pa.array(np.floor(np.where(missing, 0, numbers)).astype(np.int64), mask=missing), kind
        values = self.array(column)
        if pa.types.is_nested(values.type):
            raise DataError(
                f"{self.where}: '{column}' is of type {values.type}, but an id is one value a row. Declare the feature"
                " as a sequence or a bag."
            )
        found = self._canonical(values, column)
        return found, self._kind(column, kind_of(values.type, found, seen), seen)

    def number_of(self, feature: Number, seen: Kind | None = None) -> tuple[NDArray[np.float64], Kind | None]:
        """A number column, (rows,) float64, NaN where missing or not finite; and what kind it is, if it is of dates."""
        if feature.part is None:
            return self.numbers(column_of(feature)), None
        return self.part_of(feature, feature.part, seen)

    def part_of(self, feature: Id | Number, part: DatePart, seen: Kind | None) -> tuple[NDArray[np.float64], Kind]:
        """A part of a column of dates or times, (rows,) float64, NaN where missing; and what kind the column is."""
        column = column_of(feature)
        with self._of(column):
            raw = self.array(column)
            values = dates.moments(raw, seen.zone if seen else None)
            family = "" if pa.types.is_null(raw.type) else family_of(values.type)
            kind = Kind(str(raw.type), family, frozenset([family] if family else []), values.type.tz)
            self._kind(column, kind, seen)
            if part != "age":
                return dates.part(values, part), kind
            return dates.age(values, self._at(feature.at or "", values.type.tz)), kind

    def _at(self, at: str, zone: str | None) -> pa.Array:
        """The moments at which an age is counted: one for each row, or one for all."""
        return dates.midnight(at, zone) if is_day(at) else dates.moments(self.array(at), zone)

    def _kind(self, column: str, found: Kind, seen: Kind | None) -> Kind:
        """Raise DataError where the values are not of the kind that training saw."""
        if seen is not None and (why := seen.refusal(found)):
            raise DataError(f"{self.where}, column '{column}': {why}")
        return found

    @contextmanager
    def _of(self, column: str) -> Iterator[None]:
        """Says where what is wrong with a column is."""
        try:
            yield
        except DataError as error:
            place = f"{self.where}, column '{column}': "
            raise DataError(f"{place}{str(error).removeprefix(place)}") from error

    def stratum(self, column: str) -> pa.Array:
        """A column of `data.known_by` as text, (rows,); null where missing."""
        values = self.array(column)
        if pa.types.is_nested(values.type):
            raise DataError(f"{self.where}: '{column}' is of type {values.type}, but data.known_by is one value a row.")
        return self._canonical(values, column).cast(pa.string())

    def numbers(self, column: str, mend: str = "") -> NDArray[np.float64]:
        """A number column as float64, NaN where missing or not finite. `mend` is the way out of what is no number."""
        values = self.array(column)
        return self._as_numbers(values, column, mend or _other_than_number(values.type, column), self.rows)

    def list(self, column: str, separator: str) -> tuple[pa.Array, NDArray[np.int64]]:
        """Values end to end and the length of each row."""
        return split(self.array(column), separator, f"{self.where}, column '{column}'", self.rows)

    def events_of(self, feature: Sequence | Bag, seen: Kind | None = None) -> Events:
        """The values of all rows as whole numbers or text, end to end. A value that is missing is none. `seen` as in
        `category_of`."""
        column = column_of(feature)
        raw, lengths = self.list(column, feature.separator)
        values = self._canonical(raw, column)
        kind = self._kind(column, kind_of(raw.type, values, seen), seen)
        weights = None
        if isinstance(feature, Bag) and feature.weights:
            weights = self._list_weights(feature.weights, feature.separator, lengths, column)
        if values.null_count:
            stay = pc.is_valid(values).to_numpy(zero_copy_only=False)
            values, lengths = values.drop_null(), remaining(lengths, stay)
            weights = None if weights is None else weights[stay]
        return Events(values, lengths, weights, kind)

    def _list_weights(self, column: str, separator: str, lengths: NDArray[np.int64], of: str) -> NDArray[np.float32]:
        """The weights of the values of a bag: (values,) float32."""
        values, own = self.list(column, separator)
        if (own != lengths).any():
            row = int((own != lengths).argmax())
            raise DataError(
                f"{self.row(row)}: '{column}' has {own[row]} weights for {lengths[row]} values of '{of}'. Give one"
                " weight for each value."
            )
        weights = self._as_numbers(values, column, "Write lists of numbers.", self._rows_of(lengths))
        if not (weights >= 0).all():
            raise DataError(f"{self.where}: '{column}' has weights that are negative or missing. They have to be >= 0.")
        return weights.astype(np.float32)

    def vector(self, column: str, size: int) -> NDArray[np.float32]:
        """Rows of `size` numbers: (rows, size) float32, zeros where missing."""
        values, lengths = self.list(column, "|")
        wrong = (lengths != size) & (lengths != 0)
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"{self.row(row)}: '{column}' has {lengths[row]} numbers, but the feature has size: {size}. Mend the"
                " size or the column."
            )
        out = np.zeros((len(lengths), size), np.float32)
        mend = "Write lists of numbers, or declare the feature as a bag."
        numbers = self._as_numbers(values, column, mend, self._rows_of(lengths))
        out[lengths == size] = np.nan_to_num(numbers).reshape(-1, size)
        return out

    def label(self, column: str) -> NDArray[np.int8]:
        """A label column: (rows,) int8, -1 for unknown."""
        return read_label(self.array(column), self.where, column, self.rows)

    def amount(self, column: str) -> NDArray[np.float64]:
        """The column of a value: (rows,) float64, NaN for unknown."""
        return read_amount(self.array(column), self.where, column, self.rows)

    def weights(self, column: str) -> NDArray[np.float32]:
        """Row weights: (rows,) float32, all >= 0."""
        mend = "Mend the column, or change data.weight."
        values = self.numbers(column, mend)
        if not (values >= 0).all():
            row = int((~(values >= 0)).argmax())
            value = self.array(column)[row]
            raise DataError(f"{self.row(row)}: the weight {column} = {value} is not a number >= 0. {mend}")
        return values.astype(np.float32)

    def extra(self, column: str, kind: Extra) -> NDArray[np.int64] | NDArray[np.float64]:
        """A column for a metric: int64 group keys, or float64 values or probabilities, NaN where missing."""
        if kind == "probability":
            return self._probabilities(column)
        if kind == "value":
            return self.numbers(column, "Mend the column, or change data.potential.")
        return np.array(key_of(self._canonical(self.array(column), column)))

    def _probabilities(self, column: str) -> NDArray[np.float64]:
        """Numbers from 0 to 1: (rows,) float64, NaN where missing."""
        mend = "Mend the column, or let the metric name another one."
        values = self.numbers(column, mend)
        wrong = (values < 0) | (values > 1)
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(f"{self.row(row)}: {column} = {values[row]:g} is no probability from 0 to 1. {mend}")
        return values

    def row(self, row: int) -> str:
        """The place of a row of the table, for a message."""
        return f"{self.where}, row {row if self.rows is None else self.rows[row]}"

    def _rows_of(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of every value of a list column."""
        return np.repeat(np.arange(len(lengths)) if self.rows is None else self.rows, lengths)

    def _canonical(self, values: pa.Array, column: str) -> pa.Array:
        with self._of(column):
            return canonical(values)

    def _as_numbers(
        self, values: pa.Array, column: str, mend: str, rows: NDArray[np.int64] | None
    ) -> NDArray[np.float64]:
        try:
            return as_numbers(values)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            text = first_text(values, rows)
            what = f"'{column}' is of type {values.type} and is no number{text}"
            raise DataError(f"{self.where}: {what}. {mend}{null_hint(text)}") from error
