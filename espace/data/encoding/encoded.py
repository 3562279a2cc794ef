"""Pieces as they look when encoded, kept in the cache: the next epoch, or the next run, maps them into memory."""

from __future__ import annotations

import contextlib
import json
import math
from mmap import ACCESS_COPY, mmap
from pathlib import Path

import torch
from torch import Tensor

from espace.data.batch import Batch, Ragged
from espace.data.encoding.encode import Encoder
from espace.data.reading import cache
from espace.data.reading.split import Part
from espace.errors import DataError

_VERSION = 4
_ALIGNED = 64  # bytes
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
            with contextlib.suppress(ValueError, OSError, KeyError):  # cut off: encode again
                return _read(kept.path)
            kept.path.unlink(missing_ok=True)
        batch = self._encode(number)
        with contextlib.suppress(DataError):  # a cache that cannot be written costs time, not the run
            kept.filled(lambda path: _write(batch, path))
        return batch

    def _encode(self, number: int) -> Batch:
        table, _ = self.part.read(number, self.encoder.columns(self.labels))
        return self.encoder.encode(table, self.part.where(number), self.labels)


def _write(batch: Batch, path: Path) -> None:
    """A line of JSON that says what there is, and every tensor as its bytes, each from a multiple of 64 on."""
    tensors = batch.tensors()
    kinds = [[str(tensor.numpy().dtype), list(tensor.shape)] for tensor in tensors]
    lists = {name: ragged.weights is not None for name, ragged in batch.lists.items()}
    head = json.dumps({"tensors": kinds, "lists": lists, "extras": list(batch.extras)}).encode()
    with path.open("wb") as file:
        file.write(head + b" " * (-(len(head) + 1) % _ALIGNED) + b"\n")
        for tensor in tensors:
            file.write(tensor.numpy().tobytes())
            file.write(bytes(-file.tell() % _ALIGNED))


def _read(path: Path) -> Batch:
    """What `_write` wrote, mapped into memory. Raises ValueError for a file that was cut off."""
    with path.open("rb") as file:
        head = json.loads(file.readline())
        start, data = file.tell(), mmap(file.fileno(), 0, access=ACCESS_COPY)
    tensors: list[Tensor] = []
    for kind, shape in head["tensors"]:
        dtype, count = getattr(torch, kind), math.prod(shape)
        flat = torch.frombuffer(data, dtype=dtype, count=count, offset=start) if count else torch.empty(0, dtype=dtype)
        tensors.append(flat.view(shape))
        start += -(-flat.nbytes // _ALIGNED) * _ALIGNED
    if start != len(data):
        raise ValueError(f"{path}: {len(data)} bytes instead of {start}")
    each, blank = iter(tensors), torch.empty(0)
    lists = {name: Ragged(blank, blank, blank if weights else None) for name, weights in head["lists"].items()}
    batch = Batch(blank, lists, blank, blank, blank, dict.fromkeys(head["extras"], blank), blank, blank)
    return batch.mapped(lambda _: next(each))
