"""List columns of Arrow as values and lengths."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from espace.errors import DataError

Lengths = NDArray[np.int64]


def split(column: pa.Array, separator: str, where: str) -> tuple[pa.Array, Lengths]:
    """Values end to end and the length of each row; a null row is empty. Text is split at `separator`.

    Raises DataError when the column is neither a list nor text. A column without any value, of type null, is all empty.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.split_pattern(pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column), separator)
    if pa.types.is_null(column.type):
        column = column.cast(pa.list_(pa.string()))
    if pa.types.is_fixed_size_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise DataError(
            f"{where}: it is of type {column.type}, but several values a row need a list column or text. Declare"
            " the feature as an id or a number, or write lists."
        )
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False), np.int64)
    return column.flatten(), lengths


def first_text(values: pa.Array, rows: NDArray[np.int64] | None = None) -> str:
    """`; row 3 has 'abc'` for the first text that is no number; nothing where that is not what is wrong."""
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return ""
    wrong = next(((row, v) for row, v in enumerate(values.to_pylist()) if v is not None and not _is_number(v)), None)
    if wrong is None:
        return ""
    return f"; row {wrong[0] if rows is None else rows[wrong[0]]} has {wrong[1]!r}"


def _is_number(text: str) -> bool:
    try:
        pa.scalar(text).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def offsets_of(lengths: Lengths) -> Lengths:
    """Where each row starts, and where the last one ends: (rows + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def truncated(lengths: Lengths, longest: int, keep: Literal["last", "first"]) -> tuple[NDArray[np.int64], Lengths]:
    """Positions of the values that stay when no row has more than `longest`, and the new lengths."""
    kept = np.minimum(lengths, longest)
    ends = np.cumsum(lengths)
    starts = ends - kept if keep == "last" else ends - lengths
    within = np.arange(kept.sum()) - np.repeat(offsets_of(kept)[:-1], kept)
    return np.repeat(starts, kept) + within, kept
