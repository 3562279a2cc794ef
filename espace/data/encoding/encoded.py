"""Pieces as they look when encoded, kept in the cache: the next epoch, or the next run, maps them into memory."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Collection, Mapping
from pathlib import Path
from secrets import token_hex

import torch

from espace.data.batch import Batch, Ragged
from espace.data.encoding.encode import Encoder
from espace.data.reading import cache, sealed
from espace.data.reading.split import Part
from espace.errors import DataError

_VERSION = 4
_ROW_BYTES = 16  # of a row besides its ids, about


class Encoded:
    """The pieces of a part, encoded.

    Args:
        part: the rows.
        encoder: what encodes them.
        labels: whether labels, weights and extras are wanted.
        keep: whether pieces are kept in the cache: not if the part would take more than half of what may be there.
    """

    def __init__(self, part: Part, encoder: Encoder, labels: bool, keep: bool) -> None:
        self.part, self.encoder, self.labels = part, encoder, labels
        rows = sum(piece.rows for piece in part.reader.pieces)
        small = rows * (4 * len(encoder.ids) + _ROW_BYTES) < cache.limit() / 2
        self._key = cache.digest(_VERSION, part.identity, encoder.identity, labels) if keep and small else None

    def piece(self, number: int) -> Batch:
        """The rows of one piece. Raises DataError for what cannot be read or encoded."""
        if self._key is None:
            return self._encode(number)
        kept = cache.Kept(f"{self._key}-{number}", suffix=".batch")
        if (found := kept.found(lambda path: _read(path, kept.key))) is not None:
            return found
        batch = self._encode(number)
        with contextlib.suppress(DataError):  # a cache that cannot be written costs time, not the run
            kept.filled(lambda path: _write(batch, path, kept.key))
        return batch

    @property
    def keeps(self) -> bool:
        """Whether pieces are kept in the cache."""
        return self._key is not None

    def _encode(self, number: int) -> Batch:
        table, _ = self.part.read(number, self.encoder.columns(self.labels))
        batch = self.encoder.encode(table, self.part.where(number), self.labels)
        self.part.check(number)
        return batch


class Spool:
    """Encoded pieces that are needed several times: from the cache, and those not kept there from temporary files.

    Nothing is left of these when the process ends, however it does.
    """

    def __init__(self, encoded: Encoded) -> None:
        self.encoded = encoded
        self._files: dict[int, int] = {}  # descriptors
        weakref.finalize(self, _close, self._files)

    def piece(self, number: int) -> Batch:
        """The rows of one piece. Raises DataError for what cannot be read or encoded."""
        if self.encoded.keeps:
            return self.encoded.piece(number)
        if number in self._files:
            return _read(Path(f"/dev/fd/{self._files[number]}"), "")
        batch = self.encoded.piece(number)
        with contextlib.suppress(DataError, OSError):  # no room: encode again
            self._files[number] = _without_name(batch)
        return batch

    def only(self, pieces: Collection[int]) -> None:
        """Forget all others."""
        _close({n: self._files.pop(n) for n in [*self._files] if n not in pieces})


def _close(files: Mapping[int, int]) -> None:
    for file in files.values():
        os.close(file)


def _without_name(batch: Batch) -> int:
    """The descriptor of a file with a batch, which is gone when it is closed."""
    path = cache.folder() / "tables" / f".{token_hex(8)}.tmp"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(batch, path, "")
        return os.open(path, os.O_RDONLY)
    finally:
        path.unlink(missing_ok=True)


def _write(batch: Batch, path: Path, key: str) -> None:
    lists = {name: ragged.weights is not None for name, ragged in batch.lists.items()}
    values = {"lists": lists, "extras": list(batch.extras)}
    sealed.write(path, key, values, [tensor.numpy() for tensor in batch.tensors()])


def _read(path: Path, key: str) -> Batch:
    """What `_write` wrote, mapped into memory. Raises sealed.DamagedError for anything else."""
    head, arrays = sealed.read(path, key)
    each, blank = map(torch.from_numpy, arrays), torch.empty(0)
    lists = {name: Ragged(blank, blank, blank if weights else None) for name, weights in head["lists"].items()}
    batch = Batch(blank, lists, blank, blank, blank, dict.fromkeys(head["extras"], blank), blank, blank)
    return batch.mapped(lambda _: next(each))
