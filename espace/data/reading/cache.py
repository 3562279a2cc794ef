"""What is made once from the user's files and kept between runs: content digests, and tables turned into Parquet."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex
from typing import TypeVar
from weakref import WeakSet

import pyarrow.fs

from espace.data.reading import sealed
from espace.errors import DataError

_GIB = 1024**3
_DEFAULT_GIB = 20.0
_REMEMBERED = 10_000  # digests kept in fingerprints.json, the newest
_BLOCK = 2**24  # bytes hashed at a time: after each, Python's lock is waited for
_STALE_SECONDS = 24 * 3600  # a temporary file this old belongs to a process that was killed

Found = TypeVar("Found")


def folder() -> Path:
    """The cache folder: $ESPACE_CACHE, else $XDG_CACHE_HOME/espace, else ~/.cache/espace. It is made when missing.

    Raises DataError when it cannot be made.
    """
    path = _chosen()
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def fingerprint(filesystem: pyarrow.fs.FileSystem, path: str, size: int, mtime: int | str | None) -> str:
    """A digest of a file: of its content when local, else of (uri, size in bytes, mtime).

    The digest of a local file is remembered under (real path, size, mtime in ns), so that it is computed once.
    """
    if not isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return digest(f"{filesystem.type_name}://{path}", size, mtime)
    key, known = f"sha256|{os.path.realpath(path)}|{size}|{mtime}", _remembered()
    if key not in known:
        known[key] = content_digest(path)
        _remember(known)
    return known[key]


def content_digest(path: str | Path) -> str:
    """SHA-256 of a file's content, as 64 hex digits."""
    hashed, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(block):
            hashed.update(block[:size])
    return hashed.hexdigest()


def digest(*parts: object) -> str:
    """blake2b over the texts of `parts`, as 32 hex digits."""
    return hashlib.blake2b("\x00".join(map(str, parts)).encode(), digest_size=16).hexdigest()


class Kept:
    """A place for one file in the cache. While this object lives, its process never removes the file."""

    def __init__(self, key: str, root: Path | None = None, suffix: str = ".parquet") -> None:
        self.key, self.root = key, root or folder()
        self.path = self.root / "tables" / f"{key}{suffix}"
        _held.add(self)

    def __reduce__(self) -> tuple[type[Kept], tuple[str, Path, str]]:
        return Kept, (self.key, self.root, self.path.suffix)

    def found(self, read: Callable[[Path], Found]) -> Found | None:
        """What `read` makes of the file; None where there is none, or it is not as it was written and is removed."""
        try:
            found = read(self.path)
        except FileNotFoundError:
            return None
        except (OSError, sealed.DamagedError):
            self.forget()
            return None
        with contextlib.suppress(OSError):  # the cache may belong to someone else
            os.utime(self.path)
        return found

    def forget(self) -> None:
        """Remove the file, if that can be done."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def filled(self, write: Callable[[Path], None]) -> Path:
        """The path of the file; `write(temporary path)` makes it first when it is not there, all of it or nothing.

        Raises DataError when the cache cannot be written, and whatever `write` raises.
        """
        with _writing(self.root):
            there = self.path.exists()
        if there:
            with contextlib.suppress(OSError):  # the cache may belong to someone else
                os.utime(self.path)
        else:
            self._make(write)
            with contextlib.suppress(OSError):  # it may have been emptied meanwhile
                _shrink(self.path.parent)
        return self.path

    def _make(self, write: Callable[[Path], None]) -> None:
        with _writing(self.root):
            try:
                self._put(write)
            except FileNotFoundError:  # somebody has emptied the cache meanwhile
                self._put(write)

    def _put(self, write: Callable[[Path], None]) -> None:
        temporary = self.path.with_name(f".{self.key}.{token_hex(8)}.tmp")  # no two hosts may share it
        with _removed(temporary):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            _flush(temporary)
            os.replace(temporary, self.path)


_held: WeakSet[Kept] = WeakSet()


def _chosen() -> Path:
    if named := os.environ.get("ESPACE_CACHE"):
        return Path(named).expanduser().absolute()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).absolute() / "espace"
    try:
        return Path.home() / ".cache" / "espace"
    except RuntimeError:
        raise DataError("~/.cache/espace: there is no home folder. Set ESPACE_CACHE to a folder.") from None


@contextlib.contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"{root}: the cache folder cannot be written: {error.strerror or error}."
        raise DataError(f"{message} Set ESPACE_CACHE to a folder with room to write.") from error


@contextlib.contextmanager
def _removed(temporary: Path) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _remembered() -> dict[str, str]:
    try:
        seal, text = (folder() / "fingerprints.json").read_text().split("\n", 1)
    except (OSError, ValueError, DataError):  # missing, cut off, or no cache folder: compute again
        return {}
    known: dict[str, str] = json.loads(text) if seal == digest(text) else {}
    return known


def _remember(known: dict[str, str]) -> None:
    text = json.dumps(dict(list(known.items())[-_REMEMBERED:]), indent=0)
    with contextlib.suppress(OSError, DataError):  # a cache that cannot be written costs time, not the run
        temporary = folder() / f".fingerprints.{token_hex(8)}.tmp"
        with _removed(temporary):
            temporary.write_text(f"{digest(text)}\n{text}")
            _flush(temporary)
            os.replace(temporary, folder() / "fingerprints.json")


def limit() -> float:
    """Bytes that the kept files may take together: $ESPACE_CACHE_GIB, else 20 GiB. Raises DataError for no number."""
    text = os.environ.get("ESPACE_CACHE_GIB", str(_DEFAULT_GIB))
    try:
        return float(text) * _GIB
    except ValueError:
        raise DataError(f"ESPACE_CACHE_GIB: '{text}' is not a number. Set it to a size in GiB, such as 20.") from None


def _shrink(tables: Path) -> None:
    """Remove the tables used longest ago until the rest fits the bound, and what killed processes left behind."""
    held = {kept.path for kept in _held}
    files = sorted(_files(tables), key=lambda found: found[1].st_mtime)
    excess = sum(stat.st_size for _, stat in files) - limit()
    for path, stat in files:
        stale = path.suffix == ".tmp" and time.time() - stat.st_mtime > _STALE_SECONDS
        if stale or (excess > 0 and path.suffix != ".tmp" and path not in held):
            path.unlink(missing_ok=True)
            excess -= stat.st_size


def _files(tables: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in tables.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process may remove it at the same time
            yield path, path.stat()
