"""Checkpoint files: written whole or not at all, checked against a digest, read without running code from them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import torch

from espace.data.reading.cache import content_digest
from espace.errors import RunError

if TYPE_CHECKING:
    from torch.serialization import MAP_LOCATION

_MARK = b"espace sha256 "
_TAIL = len(_MARK) + 64  # bytes of the digest at the end
_END = 22  # bytes of the last record of an archive without a comment
_BLOCK = 2**24  # bytes hashed at a time
_ANOTHER = "Use another checkpoint."


def write_checkpoint(content: Mapping[str, object], path: Path) -> None:
    """Write `content` and a digest of it beside `path`, to the disk, then put it in place at once.

    Wherever this is cut off, `path` is the file before or the new one, and either is readable. Raises RunError naming
    the path and the space left when it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(_partial(path), content)
        _put(_partial(path), path)
        _sidecar(path).unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of what a full disk says
        raise RunError(
            f"{path}: the checkpoint could not be written: {error}. {_free(path):,.0f} MiB were free there."
            " The one before is as it was. Make room, or choose another --run-dir."
        ) from error
    finally:
        with suppress(OSError):
            _partial(path).unlink(missing_ok=True)


def read_checkpoint(path: Path, map_location: MAP_LOCATION = "cpu", *, only_whole: bool = False) -> dict[str, Any]:
    """Plain tensors and values. Raises RunError when the file is missing, damaged, or holds anything else.

    only_whole: also when it has no digest, neither inside nor beside it.
    """
    if not path.exists():
        raise RunError(f"{path}: there is no such checkpoint. Was the run stopped before its first one?")
    try:
        _check(path, only_whole)
        found = torch.load(path, map_location=map_location, weights_only=True)
        _check_tensors(found)
    except RunError:
        raise
    except Exception as error:
        raise RunError(f"{path}: it cannot be read as a checkpoint of espace: {error}. {_ANOTHER}") from error
    if not isinstance(found, dict):
        raise RunError(f"{path}: it holds a {type(found).__name__}, so it is no checkpoint of espace. {_ANOTHER}")
    return found


def _check_tensors(found: object) -> None:
    """Raise ValueError for a tensor that is not an array of numbers, such as a sparse one, or one without content."""
    if isinstance(found, Mapping):
        for value in found.values():
            _check_tensors(value)
    elif isinstance(found, list | tuple):
        for value in found:
            _check_tensors(value)
    elif isinstance(found, torch.Tensor) and (found.layout != torch.strided or found.is_meta or found.is_complex()):
        raise ValueError(
            f"a tensor in it is {found.layout} of {found.dtype} on {found.device}, and no array of numbers"
        )


def _check(path: Path, only_whole: bool) -> None:
    """Raise RunError unless the file is what its digest says; ValueError for one that has none and is no whole
    archive."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - _TAIL - _END, 0))
        end = file.read()
    if end[-_TAIL:].startswith(_MARK):
        if _digest(path, size - _TAIL) != end[-_TAIL:][len(_MARK) :]:
            raise RunError(f"{path}: the file is damaged, its SHA-256 is not the one at its end. {_ANOTHER}")
    elif _sidecar(path).exists():  # espace 0.1.0 wrote the digest there
        if content_digest(path) not in _sidecar(path).read_text(errors="replace").split()[::2]:
            told = f"its SHA-256 is not the one in {_sidecar(path).name}"
            raise RunError(f"{path}: the file is damaged, {told}. {_ANOTHER}")
    elif only_whole:
        told = "nothing tells whether it is whole: it has no digest at its end"
        raise RunError(f"{path}: {told}, as those that espace fit writes have. {_ANOTHER}")
    elif end and not (end[-_END:].startswith(b"PK\5\6") and end.endswith(b"\0\0")):
        if _begins(path, b"PK"):
            raise RunError(f"{path}: the file is damaged, it was cut off. {_ANOTHER}")
        raise ValueError("it is no archive of torch")
    elif broken := ZipFile(path).testzip():
        raise RunError(f"{path}: the file is damaged, {broken} in it is not as it was written. {_ANOTHER}")


def _begins(path: Path, sign: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(sign)) == sign


def _write(path: Path, content: Mapping[str, object]) -> None:
    """An archive of torch whose comment is its digest, on the disk when this returns."""
    with path.open("wb+") as file:
        torch.save(content, file)
        file.seek(-2, os.SEEK_END)
        file.write(_TAIL.to_bytes(2, "little"))  # the length of the comment
        file.flush()
        file.write(_MARK + _digest(path, file.tell()))
        file.flush()
        os.fsync(file.fileno())


def _digest(path: Path, size: int) -> bytes:
    """SHA-256 of the first `size` bytes, as 64 hex digits."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while size and (block := file.read(min(size, _BLOCK))):
            hashed.update(block)
            size -= len(block)
    return hashed.hexdigest().encode()


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _put(partial: Path, path: Path) -> None:
    """Give a file its name, at once and for good."""
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _free(path: Path) -> float:
    """MiB left where `path` is or would be."""
    there = next(p for p in path.absolute().parents if p.exists())
    return shutil.disk_usage(there).free / 2**20
