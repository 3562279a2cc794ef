"""From values to rows of a table. Row 0 is padding, 1 unknown, 2 null, 3 and up the known values, most frequent first.

A look-up is total: a value never seen, negative, of another type or missing gets a valid row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from espace.data.reading.cache import digest
from espace.data.reading.spelling import canonical, whole

PADDING, UNKNOWN, NULL, FIRST = 0, 1, 2, 3
_NO_NUMBER = -(2**63)  # the key of null
VocabularyState = Mapping[str, NDArray[np.int64] | NDArray[np.uint8]]  # a plain dict of plain arrays


def hash_rows(values: pa.Array, salt: str, buckets: int) -> NDArray[np.int32]:
    """Rows of a hashed feature, `3 + xxh64(utf8(salt) + 0x00 + utf8(value), seed 0) mod buckets`; null is row 2."""
    encoded = values.cast(pa.string()).dictionary_encode()
    prefix = salt.encode() + b"\0"
    hashes = [xxhash.xxh64_intdigest(prefix + v.encode()) % buckets + FIRST for v in encoded.dictionary.to_pylist()]
    return _spread(np.array(hashes, np.int32), encoded.indices)


def key_of(values: pa.Array) -> NDArray[np.int64]:
    """A 64-bit key per value for grouping rows; a whole number is its own key, null is one group."""
    values = canonical(values)
    if values.type == pa.int64():
        return np.asarray(pc.fill_null(values, _NO_NUMBER).to_numpy(zero_copy_only=False), np.int64)
    encoded = values.dictionary_encode()
    known, keys = whole(encoded.dictionary)
    texts = [v.encode() for v in encoded.dictionary.to_pylist()]
    hashed = np.array([0 if k else xxhash.xxh64_intdigest(t) for t, k in zip(texts, known, strict=True)], np.uint64)
    out = np.append(np.where(known, keys, hashed.view(np.int64)), _NO_NUMBER)
    found: NDArray[np.int64] = out[pc.fill_null(encoded.indices, len(texts)).to_numpy(zero_copy_only=False)]
    return found


def _spread(rows: NDArray[np.int32], indices: pa.Array) -> NDArray[np.int32]:
    """`rows[indices]`, with row NULL where the index is null."""
    with_null = np.append(rows, np.int32(NULL))
    out: NDArray[np.int32] = with_null[pc.fill_null(indices, len(rows)).to_numpy(zero_copy_only=False)]
    return out


class Vocabulary:
    """The known values of one table, most frequent first, with their counts.

    Args:
        values: int64 or string, without nulls or duplicates.
        counts: int64, how often each was seen in training.
    """

    def __init__(self, values: pa.Array, counts: pa.Array) -> None:
        self.values = values
        self.counts = counts

    @property
    def rows(self) -> int:
        """Rows of the table: the known values and the three reserved ones."""
        return FIRST + len(self.values)

    def encode(self, values: pa.Array) -> NDArray[np.int32]:
        """Table rows of canonical `values`: (len(values),) int32. Never fails."""
        if self.values.type == pa.int64():
            return self._encode_whole(values) if values.type == pa.int64() else self._encode_digits(values)
        encoded = values.cast(pa.string()).dictionary_encode()
        known = self._row_of_text
        return _spread(
            np.array([known.get(v, UNKNOWN) for v in encoded.dictionary.to_pylist()], np.int32), encoded.indices
        )

    @cached_property
    def _row_of_text(self) -> dict[str, int]:
        return {v: row for row, v in enumerate(self.values.to_pylist(), FIRST)}

    def _encode_whole(self, values: pa.Array) -> NDArray[np.int32]:
        numbers = np.asarray(pc.fill_null(values, 0).to_numpy(zero_copy_only=False))
        rows = self._look_up(numbers)
        if values.null_count:
            rows[pc.is_null(values).to_numpy(zero_copy_only=False)] = NULL
        return rows

    def _encode_digits(self, texts: pa.Array) -> NDArray[np.int32]:
        known, numbers = whole(texts)
        rows = np.where(known, self._look_up(numbers), np.int32(UNKNOWN))
        rows[pc.is_null(texts).to_numpy(zero_copy_only=False)] = NULL
        return rows

    def _look_up(self, numbers: NDArray[np.int64]) -> NDArray[np.int32]:
        low, high, dense, ordered, order = self._index
        if dense is not None:
            return dense.take(numbers.clip(low, high) - low)
        place = np.minimum(np.searchsorted(ordered, numbers), max(len(ordered) - 1, 0))
        return np.where(ordered[place] == numbers, order[place], UNKNOWN).astype(np.int32)

    @cached_property
    def _index(self) -> tuple[int, int, NDArray[np.int32] | None, NDArray[np.int64], NDArray[np.int32]]:
        """A dense table over the range of the values and a number on either side of it, where that is small, else the
        values in order."""
        numbers = self.values.to_numpy() if len(self.values) else np.zeros(1, np.int64)
        rows = np.arange(FIRST, FIRST + len(numbers), dtype=np.int32) if len(self.values) else np.ones(1, np.int32)
        low, high, whole = int(numbers.min()) - 1, int(numbers.max()) + 1, np.iinfo(np.int64)
        if high - low < max(8 * len(numbers), 1 << 20) and whole.min <= low and high <= whole.max:
            dense = np.full(high - low + 1, UNKNOWN, np.int32)
            dense[numbers - low] = rows
            return low, high, dense, numbers[:0], rows[:0]
        order = np.argsort(numbers)
        return low, high, None, numbers[order], rows[order]

    @cached_property
    def identity(self) -> str:
        """Changes when a value, or the order of the values, does."""
        state = self.state()
        parts = [state[name] for name in ("numbers", "text", "ends") if name in state]
        return digest(*(hashlib.blake2b(np.ascontiguousarray(part).data).hexdigest() for part in parts))

    def save(self, path: Path) -> None:
        """Write a two-column Parquet file, value and count, that a person can open."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"value": self.values, "count": self.counts}), path)

    def state(self) -> VocabularyState:
        """The vocabulary as plain numpy arrays, for a checkpoint."""
        counts = self.counts.to_numpy()
        if self.values.type == pa.int64():
            return {"numbers": self.values.to_numpy(), "counts": counts}
        texts = [v.encode() for v in self.values.to_pylist()]
        ends = np.cumsum([len(t) for t in texts], dtype=np.int64)
        return {"text": np.frombuffer(b"".join(texts), np.uint8), "ends": ends, "counts": counts}

    @classmethod
    def from_state(cls, state: VocabularyState) -> Vocabulary:
        """The vocabulary of `state()`."""
        counts = pa.array(np.asarray(state["counts"]), pa.int64())
        if "numbers" in state:
            return cls(pa.array(np.asarray(state["numbers"]), pa.int64()), counts)
        text, ends = np.asarray(state["text"]).tobytes(), np.asarray(state["ends"]).tolist()
        return cls(pa.array([text[a:b].decode() for a, b in pairwise([0, *ends])], pa.string()), counts)


class ValueCounts:
    """Counts of the values of one table, over pieces, with memory of the distinct values only. Features that share the
    table may add at the same time."""

    _SLACK = 200_000  # values counted in several pieces that may wait to be added up, beside as many as are known

    def __init__(self) -> None:
        self._parts: list[pa.Table] = []
        self._pending = 0
        self._known = 0
        self._lock = Lock()

    def add(self, values: pa.Array) -> None:
        """Count canonical `values`, nulls left out."""
        counted = pc.value_counts(values.drop_null())
        part = pa.table({"value": counted.field("values"), "count": counted.field("counts")})
        with self._lock:
            self._parts.append(part)
            self._pending += len(part)
            if self._pending > self._known + self._SLACK:
                self._parts = [self._merged()]
                self._known, self._pending = len(self._parts[0]), 0

    def _merged(self) -> pa.Table:
        parts = self._parts
        if len({p.schema.field("value").type for p in parts}) > 1:
            parts = [p.set_column(0, "value", p["value"].cast(pa.string())) for p in parts]
        table = pa.concat_tables(parts)
        return table.group_by("value").aggregate([("count", "sum")]).rename_columns(["value", "count"])

    def vocabulary(self, min_count: int, max_size: int | None) -> Vocabulary:
        """The values seen at least `min_count` times, the `max_size` most frequent of them."""
        if not self._parts:
            return Vocabulary(pa.array([], pa.int64()), pa.array([], pa.int64()))
        table = _as_numbers(self._merged())
        table = table.filter(pc.greater_equal(table["count"], min_count))
        table = table.sort_by([("count", "descending"), ("value", "ascending")]).slice(0, max_size)
        return Vocabulary(one_array(table["value"]), one_array(table["count"]).cast(pa.int64()))


def _as_numbers(table: pa.Table) -> pa.Table:
    """The counted values as int64 where all are the digits of one, so that it does not matter where they stood."""
    if table["value"].type == pa.int64():
        return table
    known, numbers = whole(one_array(table["value"]))
    return table.set_column(0, "value", pa.array(numbers)) if known.all() else table


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A chunked column as one array."""
    chunks: Sequence[pa.Array] = column.chunks
    return pa.concat_arrays(chunks) if chunks else pa.array([], column.type)
