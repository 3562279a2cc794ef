"""The columns of one table, read as what is wanted, with errors that say where."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from espace.data.encoding.labels import read_amount, read_label
from espace.data.encoding.vocabulary import canonical, key_of, one_array
from espace.data.reading.lists import first_text, split
from espace.errors import DataError

Extra = Literal["key", "value", "probability"]

T = TypeVar("T")
R = TypeVar("R")

LARGEST = float(np.finfo(np.float32).max)


def as_numbers(values: pa.Array) -> NDArray[np.float64]:
    """A column of numbers, booleans, times or text as float64; null, and what no float32 can hold, become NaN.

    Raises pa.ArrowInvalid for text that is no number.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_temporal(values.type):
        values = values.cast(pa.int32() if values.type.bit_width == 32 else pa.int64())
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

    def categories(self, column: str) -> pa.Array:
        """A category column as whole numbers or text; null where missing."""
        values = self.array(column)
        if pa.types.is_nested(values.type):
            raise DataError(
                f"{self.where}: '{column}' is of type {values.type}, but an id is one value a row. Declare the feature"
                " as a sequence or a bag."
            )
        return self._canonical(values, column)

    def numbers(self, column: str, mend: str = "") -> NDArray[np.float64]:
        """A number column as float64, NaN where missing or not finite. `mend` is the way out of what is no number."""
        values = self.array(column)
        kind = "a sequence, a bag or a vector" if pa.types.is_nested(values.type) else "an id"
        return self._as_numbers(
            values, column, mend or f"Declare the feature as {kind}, or mend the column.", self.rows
        )

    def list(self, column: str, separator: str) -> tuple[pa.Array, NDArray[np.int64]]:
        """Values end to end and the length of each row."""
        return split(self.array(column), separator, f"{self.where}, column '{column}'")

    def list_categories(self, column: str, separator: str) -> tuple[pa.Array, NDArray[np.int64]]:
        """The values of all rows as whole numbers or text, end to end, and the length of each row."""
        values, lengths = self.list(column, separator)
        return self._canonical(values, column), lengths

    def list_weights(self, column: str, separator: str, lengths: NDArray[np.int64], of: str) -> NDArray[np.float32]:
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
        try:
            return canonical(values)
        except DataError as error:
            raise DataError(f"{self.where}, column '{column}': {error}") from error

    def _as_numbers(
        self, values: pa.Array, column: str, mend: str, rows: NDArray[np.int64] | None
    ) -> NDArray[np.float64]:
        try:
            return as_numbers(values)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            what = f"'{column}' is of type {values.type} and is no number{first_text(values, rows)}"
            raise DataError(f"{self.where}: {what}. {mend}") from error
