"""Features in text, `field \\x02 id \\x03 weight` with \\x01 between them, as columns: no Python loop over lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from espace.data.raw.lines import Lines, Tally

_FEATURE = "[0-9_]+\x02[0-9]{1,18}\x03-?[0-9]+(?:[.][0-9]+)?(?:[eE]-?[0-9]{1,2})?"
FEATURES = f"(?:{_FEATURE}(?:\x01{_FEATURE})*)?"
_FIRST_OF_VALUES = ord("-")  # commas, newlines and separators are below, everything in a name or a number is not
_NAMED = 20  # unknown fields that are told apart

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Field:
    """A field of the raw data and the columns that it becomes.

    kind: `one` id of weight 1; `weighted`, one id with a weight; `many` ids, each with a weight.
    """

    name: str
    kind: Literal["one", "weighted", "many"] = "one"

    @property
    def columns(self) -> list[pa.Field]:
        """`f<name>`, and what holds the weights."""
        name = f"f{self.name}"
        if self.kind == "many":
            return [pa.field(name, pa.list_(pa.int64())), pa.field(f"{name}_weights", pa.list_(pa.float32()))]
        weight = [pa.field(f"{name}_weight", pa.float32())] if self.kind == "weighted" else []
        return [pa.field(name, pa.int64()), *weight]


@dataclass(frozen=True)
class Found:
    """The features of one field in the order of the lines: the line, the id and the weight of each, (features,)."""

    lines: Ints
    ids: Ints
    weights: NDArray[np.float32]


def read(lines: Lines, columns: int, fields: Sequence[Field], tally: Tally) -> tuple[list[pa.Array], list[pa.Array]]:
    """The plain columns before the features, as text, and the columns of all fields.

    lines: each `columns` texts, the last of them the number of features, and FEATURES, with a comma after each text.
    """
    tokens, first, ends = _tokens(lines)
    last = np.append(first[1:], ends) - 1
    plain = [tokens.take(pa.array(2 * (first + column))) for column in range(columns)]
    counts = (last - first + 1 - columns) // 3
    told = plain[-1].cast(pa.string()).cast(pa.int64()).to_numpy()
    tally.note("another number of features than stated", lines, told != counts)
    line = np.repeat(np.arange(len(lines)), counts)
    before = np.cumsum(counts) - counts
    start = np.repeat(first + columns - 3 * before, counts) + 3 * np.arange(len(line))
    names, ids, weights = (tokens.take(pa.array(2 * (start + part))) for part in range(3))
    found = Found(line, _numbers(ids, pa.int64()).to_numpy(), _numbers(weights, pa.float32()).to_numpy())
    return plain, [
        c for f, part in _by_field(names, found, fields, lines, tally) for c in _columns(f, part, len(lines))
    ]


def _tokens(lines: Lines) -> tuple[pa.Array, Ints, int]:
    """Every text between two separators at the even places of an array, the first of each line, and their number."""
    offsets, data = lines.offsets, np.frombuffer(lines.data, np.uint8)
    separators = np.flatnonzero(data < _FIRST_OF_VALUES)
    cuts = np.zeros(2 * len(separators) + 1, np.int32)
    cuts[1::2], cuts[2::2] = separators, separators + 1
    buffers = [None, pa.py_buffer(cuts), lines.data]
    array = pa.Array.from_buffers(pa.binary(), len(cuts) - 1, buffers)
    return array, np.searchsorted(separators, offsets[:-1]), len(separators)


def _numbers(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    return texts.cast(pa.string()).cast(kind)


def _by_field(
    names: pa.Array, found: Found, fields: Sequence[Field], lines: Lines, tally: Tally
) -> Iterator[tuple[Field, Found]]:
    """The features field by field; those of other fields are only noted."""
    known = pa.array([field.name.encode() for field in fields], pa.binary())
    code = pc.fill_null(pc.index_in(names, known), len(fields)).to_numpy()
    order = np.argsort(code.astype(np.uint8), kind="stable")
    bounds = np.searchsorted(code[order], np.arange(len(fields) + 2))
    for field, start, stop in zip([*fields, None], bounds[:-1], bounds[1:], strict=True):
        chosen = order[start:stop]
        if field is not None:
            part = Found(found.lines[chosen], found.ids[chosen], found.weights[chosen])
            _note(field, part, lines, tally)
            yield field, part
        elif len(chosen):
            _note_unknown(names.take(pa.array(chosen)), found.lines[chosen], lines, tally)


def _note(field: Field, found: Found, lines: Lines, tally: Tally) -> None:
    if field.kind != "many":
        repeated = found.lines[1:][found.lines[1:] == found.lines[:-1]]
        tally.note(f"field {field.name} more than once, the last is kept", lines, _mask(repeated, lines))
    if field.kind == "one":
        odd = found.lines[found.weights != 1]
        tally.note(f"field {field.name} with a weight other than 1, which is left out", lines, _mask(odd, lines))


def _note_unknown(names: pa.Array, line: Ints, lines: Lines, tally: Tally) -> None:
    unique = pc.unique(names)
    for name in unique[:_NAMED]:
        mask = _mask(line[np.asarray(pc.equal(names, name))], lines)
        tally.note(f"field {name.as_py().decode()}, which is none of this file, left out", lines, mask)
    others = np.asarray(pc.is_in(names, unique[_NAMED:]))
    tally.note("more fields which are none of this file, left out", lines, _mask(line[others], lines))


def _mask(chosen: Ints, lines: Lines) -> NDArray[np.bool_]:
    mask = np.zeros(len(lines), np.bool_)
    mask[chosen] = True
    return mask


def _columns(field: Field, found: Found, lines: int) -> list[pa.Array]:
    """The columns of a field, (lines,) each; null, or an empty list, where a line lacks it."""
    values = [pa.array(found.ids), pa.array(found.weights)]
    if field.kind == "many":
        lengths = np.bincount(found.lines, minlength=lines)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        return [pa.ListArray.from_arrays(offsets, part) for part in values]
    last = np.full(lines, -1)
    last[found.lines] = np.arange(len(found.lines))
    place = pa.array(last, mask=last < 0)
    return [part.take(place) for part in values[: len(field.columns)]]
