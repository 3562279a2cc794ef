"""Pieces as they look when encoded, kept in the cache: the next epoch, or the next run, maps them into memory."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from espace.batch import Batch, Ragged
from espace.data import cache
from espace.data.encode import Encoder
from espace.data.split import Part
from espace.errors import DataError

_VERSION = 2
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
        if kept.path.exists():
            with contextlib.suppress(RuntimeError, OSError, EOFError, KeyError):  # cut off: encode again
                return _read(kept.path)
            kept.path.unlink(missing_ok=True)
        batch = self._encode(number)
        with contextlib.suppress(DataError):  # a cache that cannot be written costs time, not the run
            kept.filled(lambda path: torch.save(_plain(batch), path))
        return batch

    def _encode(self, number: int) -> Batch:
        table, _ = self.part.read(number, self.encoder.columns(self.labels))
        return self.encoder.encode(table, self.part.where(number), self.labels)


def _plain(batch: Batch) -> dict[str, Any]:
    lists = {name: [r.values, r.offsets, r.weights] for name, r in batch.lists.items()}
    return {**vars(batch), "lists": lists, "extras": dict(batch.extras)}


def _read(path: Path) -> Batch:
    found = torch.load(path, mmap=True, weights_only=True)
    return Batch(**{**found, "lists": {name: Ragged(*parts) for name, parts in found["lists"].items()}})
