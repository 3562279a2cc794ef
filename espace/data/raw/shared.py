"""What many impressions share, on disk as Arrow files that are mapped, and found again by its key."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_MAPPED = 8  # files at once

Ints = NDArray[np.int64]


class Shared:
    """The rows of Arrow files of one batch each, at least one row. Only keys and sizes are held in memory.

    The last of several rows with one key counts; `repeated` is how many others there are.
    """

    def __init__(self, files: Sequence[Path], columns: pa.Schema) -> None:
        self.files = files
        self.columns = pa.schema([field for field in columns if field.name not in ("key", "size")])
        parts = [(np.array(_plain(batch["key"])), np.array(batch["size"])) for batch in map(_opened, files)]
        keys = np.concatenate([key for key, _ in parts])
        self.starts = np.cumsum([0, *(len(key) for key, _ in parts)])
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self._sizes = np.concatenate([size for _, size in parts])
        self.repeated = int((self._keys[1:] == self._keys[:-1]).sum())

    def rows(self, keys: pa.Array) -> Ints:
        """(keys,) Which row has each key, -1 for none."""
        wanted = _plain(keys)
        place = np.searchsorted(self._keys, wanted, side="right") - 1  # -1 is then the largest key, another one
        return np.where(self._keys[place] == wanted, self._order[place], -1)

    def sizes(self, rows: Ints) -> Ints:
        """(rows,) How many list values hang on each; something for row -1."""
        return self._sizes[rows]

    def take(self, rows: Ints) -> pa.Table:
        """The columns of these rows, null for row -1; each row is read once, file after file."""
        unique, place = np.unique(rows[rows >= 0], return_inverse=True)
        file = np.searchsorted(self.starts, unique, side="right") - 1
        parts = [_opened(self.files[f]).take(pa.array(unique[file == f] - self.starts[f])) for f in np.unique(file)]
        table = pa.Table.from_batches([part.select(self.columns.names) for part in parts], self.columns)
        index = np.full(len(rows), -1)
        index[rows >= 0] = place
        return table.combine_chunks().take(pa.array(index, mask=index < 0))

    @staticmethod
    def close() -> None:
        """Let go of the files."""
        _opened.cache_clear()


@lru_cache(maxsize=_MAPPED)
def _opened(path: Path) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def _plain(keys: pa.Array) -> NDArray[np.generic]:
    """Keys as numbers or as bytes of one width, which numpy can sort."""
    values: NDArray[np.generic] = keys.to_numpy(zero_copy_only=False)
    return values.astype(np.bytes_) if values.dtype == object else values
