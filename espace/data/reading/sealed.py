"""Files of the cache that vouch for themselves: any byte that is not as it was written makes them as good as
missing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

_ALIGNED = 64  # bytes
_DIGEST = 16  # bytes of xxh3_128, which reads some 10 GB/s
_BLOCK = 2**24  # bytes hashed at a time
_whole: dict[Path, tuple[int, ...]] = {}  # Parquet files that this process has checked, and what they were then


class DamagedError(ValueError):
    """A file of the cache that is not as it was written; whoever wanted it makes it again."""


def write(path: Path, key: str, values: object, arrays: Sequence[np.ndarray[Any, Any]] = ()) -> None:
    """A line of JSON with `key` and `values`, every array as its bytes from a multiple of 64 on, a digest of it all."""
    kinds = [[str(array.dtype), list(array.shape)] for array in arrays]
    head = json.dumps({"key": key, "values": values, "arrays": kinds}).encode()
    hashed = xxhash.xxh3_128()
    with path.open("wb") as file:

        def put(piece: bytes) -> None:
            hashed.update(piece)
            file.write(piece)

        put(head + b" " * (-(len(head) + 1) % _ALIGNED) + b"\n")
        for array in arrays:
            put(array.tobytes())
            put(bytes(-array.nbytes % _ALIGNED))
        file.write(hashed.digest())


def read(path: Path, key: str) -> tuple[Any, list[np.ndarray[Any, Any]]]:
    """The values and the arrays, mapped into memory, that `write` wrote under `key`.

    Raises DamagedError for any other file, OSError for none.
    """
    try:
        with path.open("rb") as file:
            data = mmap(file.fileno(), 0, access=ACCESS_COPY)
    except ValueError as error:
        raise DamagedError(f"{path}: is empty") from error
    end = len(data) - _DIGEST
    if end < 0 or xxhash.xxh3_128_digest(memoryview(data)[:end]) != data[end:]:
        raise DamagedError(f"{path}: is not as it was written")
    start = data.find(b"\n") + 1
    head = json.loads(data[:start])
    if head["key"] != key:
        raise DamagedError(f"{path}: was written for {head['key']}")
    return head["values"], _arrays(data, start, head["arrays"])


def _arrays(data: mmap, start: int, kinds: Sequence[tuple[str, list[int]]]) -> list[np.ndarray[Any, Any]]:
    arrays = []
    for kind, shape in kinds:
        count = math.prod(shape)
        flat = np.frombuffer(data, kind, count, start) if count else np.empty(0, kind)
        arrays.append(flat.reshape(shape))
        start += -(-flat.nbytes // _ALIGNED) * _ALIGNED
    return arrays


def seal_parquet(path: Path, key: str) -> None:
    """Put a digest of a Parquet file and of `key` in front of its footer, where readers do not look."""
    with path.open("rb+") as file:
        digest, at = _hashed(file.fileno(), 0, key), _footer(file.fileno())
        file.seek(at)
        footer = file.read()
        file.seek(at)
        file.write(digest + footer)


def is_whole(path: Path, key: str) -> bool:
    """Whether a Parquet file is as `seal_parquet` left it under `key`; looked at once in a process, as long as nobody
    writes to it.

    Raises FileNotFoundError.
    """
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        now = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if _whole.get(path) != now:
            at = _footer(file.fileno()) - _DIGEST
            if at < 0 or os.pread(file.fileno(), _DIGEST, at) != _hashed(file.fileno(), at, key):
                return False
            _whole[path] = now
    return True


def _footer(file: int) -> int:
    """Where the footer of a Parquet file begins; less than 0 in what is none."""
    size = os.fstat(file).st_size
    return size - 8 - int.from_bytes(os.pread(file, 4, max(size - 8, 0)), "little")


def _hashed(file: int, gap: int, key: str) -> bytes:
    """Of all bytes, but for those of a digest at `gap`, where that is not 0, and of the key."""
    hashed, at = xxhash.xxh3_128(), 0
    while block := os.pread(file, min(_BLOCK, gap - at) if at < gap else _BLOCK, at):
        hashed.update(block)
        at += len(block)
        at += _DIGEST if at == gap else 0
    hashed.update(key.encode())
    return hashed.digest()
