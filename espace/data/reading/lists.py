"""List columns of Arrow as values and lengths."""

from __future__ import annotations

import json
import re
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from espace.data.reading.spelling import is_text
from espace.errors import DataError

Lengths = NDArray[np.int64]

_BETWEEN = "\x1f"  # ASCII's own separator of units
_BRACKET = r"^(\[|\(|\{|set\(|frozenset\(|array\()"
_OTHER_LIST = re.compile(r"\(\)|\(.*,.*\)|\{.*\}|(set|frozenset|array)\(.*\)", re.S)  # as Python writes others
_ITEM = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|([^\s,"'\[\]]+))\s*(?:,|$)""", re.S)
_ESCAPE = re.compile(r"\\(.)", re.S)
_NUMPY = re.compile(r"^np\.\w+\((.*)\)$")  # np.int64(1), as Python writes a list of numpy's numbers
_NO_VALUE = ("null", "None", "nan", "NaN", "NaT", "<NA>")


def split(
    column: pa.Array, separator: str, where: str, rows: NDArray[np.int64] | None = None
) -> tuple[pa.Array, Lengths]:
    """Values end to end and the length of each row; a null row is empty.

    Text is split at `separator`, or is a list as JSON and Python write it, such as `[1, 2]`; blanks around a value go,
    and so does a value that is nothing else. A column without any value, of type null, is all empty.

    rows: the numbers of its rows in `where`, if they are not 0, 1, 2 ...

    Raises DataError when the column is neither a list nor text, and for text that begins like a list but is none.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if is_text(column.type):
        return _split_text(column.cast(pa.string()), separator, where, rows)
    if pa.types.is_null(column.type):
        column = column.cast(pa.list_(pa.string()))
    if pa.types.is_fixed_size_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise DataError(
            f"{where}: it is of type {column.type}, but several values a row need a list column or text. Declare"
            " the feature as an id or a number, or write lists."
        )
    return column.flatten(), _lengths(column)


def _split_text(
    texts: pa.Array, separator: str, where: str, rows: NDArray[np.int64] | None
) -> tuple[pa.Array, Lengths]:
    encoded = pc.utf8_trim_whitespace(texts).dictionary_encode()
    joined = pc.replace_substring(encoded.dictionary, separator, _BETWEEN)
    if pc.any(pc.match_substring_regex(encoded.dictionary, _BRACKET)).as_py():
        lists = [_events(text, separator) for text in encoded.dictionary.to_pylist()]
        if None in lists:
            row = pc.index(encoded.indices, lists.index(None)).as_py()
            raise DataError(_refusal(where, row if rows is None else rows[row], texts[row].as_py(), separator))
        joined = pa.array([_BETWEEN.join(events or ()) for events in lists], pa.string())
    parts = pc.split_pattern(joined, _BETWEEN).take(encoded.indices)
    return _without_empties(pc.utf8_trim_whitespace(parts.flatten()), _lengths(parts))


def _lengths(lists: pa.Array) -> Lengths:
    return np.asarray(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False), np.int64)


def _without_empties(values: pa.Array, lengths: Lengths) -> tuple[pa.Array, Lengths]:
    there = pc.not_equal(values, "")
    return values.filter(there), remaining(lengths, there.to_numpy(zero_copy_only=False))


def remaining(lengths: Lengths, stay: NDArray[np.bool_]) -> Lengths:
    """The length of each row when only the values that `stay`, (values,), are left."""
    return np.diff(offsets_of(stay.astype(np.int64))[offsets_of(lengths)])


def _events(text: str, separator: str) -> list[str] | None:
    """The values of one row; None for what begins like a list, but is none."""
    if text.startswith("["):
        return _listed(text[1:-1].strip()) if text.endswith("]") else None
    if separator not in text and _OTHER_LIST.fullmatch(text):
        return None
    return text.split(separator)


def _listed(inner: str) -> list[str] | None:
    """What stands between the brackets of a list, null left out; None where it is not values between commas."""
    found, place = [], 0
    while place < len(inner):
        item = _ITEM.match(inner, place)
        if item is None:
            return None
        place = item.end()
        double, single, bare = item.groups()
        if bare is None:
            found.append(_unescaped(double) if single is None else _ESCAPE.sub(r"\1", single))
        elif bare not in _NO_VALUE:
            found.append(_NUMPY.sub(r"\1", bare))
    return found


def _unescaped(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:
        return _ESCAPE.sub(r"\1", text)


def _refusal(where: str, row: int, text: str, separator: str) -> str:
    shown = text if len(text) <= 60 else f"{text[:60]}..."
    way_out = f'Write [1, 2] or ["a", "b"], a list column, or the values with the separator {separator!r} between them'
    return f"{where}: row {row} has {shown!r}, which begins like a list but cannot be read as one. {way_out}."


def first_text(values: pa.Array, rows: NDArray[np.int64] | None = None) -> str:
    """`; row 3 has 'abc'` for the first text that is no number; nothing where that is not what is wrong."""
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return ""
    wrong = next(((row, v) for row, v in enumerate(values.to_pylist()) if v is not None and not _is_number(v)), None)
    if wrong is None:
        return ""
    return f"; row {wrong[0] if rows is None else rows[wrong[0]]} has {wrong[1]!r}"


def null_hint(text: str) -> str:
    """The way out where `first_text` found one that may be a mark of a missing value."""
    return " If in CSV that stands for a missing value, list it in data.null_values." if text else ""


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
