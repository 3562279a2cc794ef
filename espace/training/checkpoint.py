"""Checkpoint files: written whole or not at all, checked against a digest, read without running code from them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from espace.data.reading.cache import content_digest
from espace.errors import RunError

if TYPE_CHECKING:
    from torch.serialization import MAP_LOCATION


def write_checkpoint(content: Mapping[str, object], path: Path) -> None:
    """Write `content` beside `path`, to the disk, then put it in place at once; its digest stands in `<path>.sha256`.

    Wherever this is cut off, `path` is the file before or the new one, and either is readable. Raises RunError naming
    the path and the space left when it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, content)
    except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of what a full disk says
        raise RunError(
            f"{path}: the checkpoint could not be written: {error}. {_free(path):,.0f} MiB were free there."
            " The one before is as it was. Make room, or choose another --run-dir."
        ) from error
    finally:
        for partial in (_partial(path), _partial(_sidecar(path))):
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def _replace(path: Path, content: Mapping[str, object]) -> None:
    _write(_partial(path), lambda file: torch.save(content, file))
    new, old = content_digest(_partial(path)), _noted(path) or ([content_digest(path)] if path.exists() else [])
    _note(path, [new, *old])  # until the new file is in place, the one before is right as well
    _put(_partial(path), path)
    _note(path, [new])


def read_checkpoint(path: Path, map_location: MAP_LOCATION = "cpu") -> dict[str, Any]:
    """Plain tensors and values. Raises RunError when the file is missing, damaged, or holds anything else."""
    if not path.exists():
        raise RunError(f"{path}: there is no such checkpoint. Was the run stopped before its first one?")
    if (noted := _noted(path)) and content_digest(path) not in noted:
        raise RunError(
            f"{path}: the file is damaged, its SHA-256 is not the one in {_sidecar(path).name}. Use another checkpoint."
        )
    try:
        found: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        raise RunError(f"{path}: it cannot be read as a checkpoint of espace: {error}.") from error
    return found


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _noted(path: Path) -> list[str]:
    """The digests of which the file has one; none where nobody wrote any."""
    sidecar = _sidecar(path)
    return sidecar.read_text(errors="replace").split()[::2] if sidecar.exists() else []


def _note(path: Path, digests: list[str]) -> None:
    """Write the digests as `sha256sum --check` reads them."""
    sidecar = _sidecar(path)
    text = "".join(f"{digest}  {path.name}\n" for digest in digests)
    _write(_partial(sidecar), lambda file: file.write(text.encode()))
    _put(_partial(sidecar), sidecar)


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """A file that is on the disk when this returns."""
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


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
