"""Which files a source means, local or on an object store, and whether they are still what they were."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

import pyarrow as pa
import pyarrow.fs

from espace.data.reading import cache
from espace.errors import DataError, did_you_mean

_WILDCARD = re.compile(r"[*?\[]")
_URI_WILDCARD = re.compile(r"[*\[]")  # in a URI, `?` opens the query
_SHOWN = 20  # names listed in a message
_START_AGAIN = "Leave the data alone during a run, and start again."


@dataclass(frozen=True)
class Place:
    """One file: the name that messages show, the URI of its file system ("" = local), its path there, what it was.

    ctime: when a local file was last written to or renamed, or had its rights changed, ns; inode: tells it from one
    that takes its place; content: a digest of it.
    """

    name: str
    root: str
    path: str
    size: int  # bytes
    mtime: int | str | None  # ns; or whatever the file system has instead
    ctime: int = 0
    inode: int = 0
    content: str = ""

    @property
    def filesystem(self) -> pa.fs.FileSystem:
        """The pyarrow file system on which the file lies."""
        return _filesystem(self.root)[0]

    @property
    def changed(self) -> str:
        """Changes when the file does."""
        return f"{self.mtime}/{self.ctime}"

    def check(self) -> None:
        """Raises DataError when the file is gone, or its size or time of change is not what it was at the start.

        A local file whose times were set back, or that was only renamed or linked, is told by its content.
        """
        with reaching(self.name):
            info = self.filesystem.get_file_info(self.path)
            if info.type != pa.fs.FileType.File:
                raise FileNotFoundError
            if (info.size, _changed(self.filesystem, info)) != (self.size, self.mtime):
                changed = f"the file changed since the start ({self.size:,} bytes then, {info.size:,} now)"
                raise DataError(f"{self.name}: {changed}. {_START_AGAIN}")
            ctime = 0 if self.root else os.stat(self.path).st_ctime_ns
            if ctime != self.ctime and not _has_its_content(self, ctime):
                raise DataError(f"{self.name}: the file changed since the start. {_START_AGAIN}")

    def watch(self) -> None:
        """As `check`, of a file that is open or was copied: a local one may be removed or replaced."""
        if self.root or (os.path.exists(self.path) and os.stat(self.path).st_ino == self.inode):
            self.check()


@dataclass(frozen=True)
class _Entry:
    """One entry of a source, cut before the first part with a wildcard."""

    shown: str  # the part without wildcards, as the user wrote it
    root: str
    path: str
    wildcards: tuple[str, ...]


def find(source: str | Sequence[str], split: str, is_data: Callable[[str], bool]) -> list[Place]:
    """Every file that `source` (a file, folder, glob, or a list of these) means; folders and globs in sorted order.

    is_data: which files of a folder to take, by name. Raises DataError for what is missing, empty or named twice.
    """
    entries = [source] if isinstance(source, (str, os.PathLike)) else source
    if not isinstance(entries, Sequence) or not entries or not all(isinstance(e, (str, os.PathLike)) for e in entries):
        raise DataError(f"{split}: {source!r} names no files. Give a file, a folder, a glob, or a list of these.")
    places = [place for entry in entries for place in _expand(os.fspath(entry), split, is_data)]
    _refuse_repeats(places, split)
    return places


@contextlib.contextmanager
def reaching(name: str) -> Iterator[None]:
    """Turns what file systems raise into a DataError that begins with `name`."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{name}: the file is gone. Put it back, or take it out of the source.") from error
    except PermissionError as error:
        raise DataError(f"{name}: permission denied. Give this user the right to read it.") from error
    except ImportError as error:
        raise DataError(f"{name}: a package is missing: {error}. Install it with pip.") from error
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise DataError(f"{name}: cannot be reached: {error}. Check the address and the credentials.") from error


@lru_cache
def _has_its_content(place: Place, ctime: int) -> bool:
    """Whether a local file is what it was, though it was touched at `ctime`."""
    return cache.content_digest(place.path) == place.content


def _filesystem(uri: str) -> tuple[pa.fs.FileSystem, str]:
    return _opened(os.getpid(), uri)  # clients of object stores do not survive a fork


@lru_cache(maxsize=64)
def _opened(process: int, uri: str) -> tuple[pa.fs.FileSystem, str]:
    if not uri:
        return pa.fs.LocalFileSystem(), ""
    try:
        filesystem, path = pa.fs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem" not in str(error):
            raise
        from fsspec.core import url_to_fs

        inner, path = url_to_fs(uri)
        filesystem = pa.fs.PyFileSystem(pa.fs.FSSpecHandler(inner))
    return filesystem, path


def _changed(filesystem: pa.fs.FileSystem, info: pa.fs.FileInfo) -> int | str | None:
    if info.mtime_ns is None and isinstance(filesystem, pa.fs.PyFileSystem):
        return str(filesystem.handler.fs.ukey(info.path))  # fsspec's digest of all it knows about the file
    return None if info.mtime_ns is None else int(info.mtime_ns)


def _expand(entry: str, split: str, is_data: Callable[[str], bool]) -> list[Place]:
    with reaching(_without_secrets(entry)):
        parsed = _parse(entry)
        filesystem = _filesystem(parsed.root)[0]
        start = filesystem.get_file_info(parsed.path)
        if start.type == pa.fs.FileType.NotFound:
            raise DataError(f"{split}: '{parsed.shown}' does not exist.{_nearby(filesystem, parsed.path)}")
        matches = _match(filesystem, start, parsed.wildcards)
        found = {info.path: info for match in matches for info in _within(filesystem, match, is_data)}
        if not found:
            raise DataError(f"{split}: {_nothing(filesystem, start, _without_secrets(entry), bool(parsed.wildcards))}")
        return [_place(parsed, filesystem, found[path]) for path in sorted(found)]


def _nothing(filesystem: pa.fs.FileSystem, start: pa.fs.FileInfo, entry: str, is_glob: bool) -> str:
    there = _listed(info.base_name for info in (_children(filesystem, start) if _is_folder(start) else []))
    if is_glob:
        return f"no file matches '{entry}'. '{start.path}' has: {there}. Change the pattern."
    what = "has no data files (names that start with _ or . are ignored)"
    return f"the folder '{entry}' {what}; it has: {there}. Write data there."


def _parse(entry: str) -> _Entry:
    if "://" in entry:
        return _parse_uri(entry)
    path = os.path.abspath(os.path.expanduser(entry))
    if os.path.exists(path) or not _WILDCARD.search(entry):
        return _Entry(entry, "", path, ())
    shown, wildcards = _cut(entry, _WILDCARD)
    return _Entry(shown or ".", "", os.path.abspath(os.path.expanduser(shown)), wildcards)


def _parse_uri(entry: str) -> _Entry:
    address, question, query = entry.partition("?")
    start, wildcards = _cut(address, _URI_WILDCARD)
    root = start + question + query
    filesystem, path = _filesystem(root)
    if isinstance(filesystem, pa.fs.LocalFileSystem):
        return _Entry(path, "", path, wildcards)
    shown = path if "://" in path else f"{entry.partition('://')[0]}://{path.lstrip('/')}"
    return _Entry(_without_secrets(shown), root, path, wildcards)


def _without_secrets(entry: str) -> str:
    """A URI less its user, password and query; a local path as it is."""
    return re.sub(r"//[^/@]*@", "//", entry).partition("?")[0] if "://" in entry else entry


def _cut(entry: str, wildcard: re.Pattern[str]) -> tuple[str, tuple[str, ...]]:
    """The folder before the first part that has a wildcard, and the parts from there on."""
    found = wildcard.search(entry)
    if not found:
        return entry, ()
    end = entry.rfind("/", 0, found.start()) + 1
    return entry[:end], tuple(part for part in entry[end:].split("/") if part)


def _match(filesystem: pa.fs.FileSystem, start: pa.fs.FileInfo, parts: Sequence[str]) -> list[pa.fs.FileInfo]:
    """The files and folders below `start` that match, part by part; `**` stands for any number of folders."""
    if not parts:
        return [start]
    if not _is_folder(start):
        return []
    head, rest = parts[0], parts[1:]
    if head == "**":
        below = [info for info in _children(filesystem, start, recursive=True) if _is_folder(info)]
        return [match for folder in [start, *below] for match in _match(filesystem, folder, rest)]
    chosen = [info for info in _children(filesystem, start, head[0] in "._") if fnmatchcase(info.base_name, head)]
    return [match for info in chosen for match in _match(filesystem, info, rest)]


def _within(
    filesystem: pa.fs.FileSystem, match: pa.fs.FileInfo, is_data: Callable[[str], bool]
) -> list[pa.fs.FileInfo]:
    """A file is itself; a folder is all data files in it and below."""
    if not _is_folder(match):
        return [match]
    below = _children(filesystem, match, recursive=True)
    return [info for info in below if not _is_folder(info) and is_data(info.base_name)]


def _children(
    filesystem: pa.fs.FileSystem, folder: pa.fs.FileInfo, hidden: bool = False, *, recursive: bool = False
) -> list[pa.fs.FileInfo]:
    """What lies in a folder, without what starts with _ or . on the way, unless `hidden`."""
    infos = filesystem.get_file_info(pa.fs.FileSelector(folder.path, recursive=recursive))
    start = len(folder.path.rstrip("/")) + 1
    return [info for info in infos if hidden or not re.search(r"(^|/)[._]", info.path[start:])]


def _is_folder(info: pa.fs.FileInfo) -> bool:
    return bool(info.type == pa.fs.FileType.Directory)


def _place(entry: _Entry, filesystem: pa.fs.FileSystem, info: pa.fs.FileInfo) -> Place:
    below = info.path[len(entry.path.rstrip("/")) :].lstrip("/")
    name = os.path.join(entry.shown, below) if below else entry.shown
    stat = None if entry.root else os.stat(info.path)
    more = (0, 0) if stat is None else (stat.st_ctime_ns, stat.st_ino)
    return Place(name, entry.root, info.path, info.size, _changed(filesystem, info), *more)


def _refuse_repeats(places: Sequence[Place], split: str) -> None:
    seen: set[str] = set()
    for place in places:
        key = place.name if place.root else place.path
        if key in seen:
            raise DataError(f"{split}: '{place.name}' is named twice. Take it out of the list once.")
        seen.add(key)


def _nearby(filesystem: pa.fs.FileSystem, path: str) -> str:
    """A hint for the first part of `path` that does not exist, from what lies beside it."""
    folder, _, name = path.rstrip("/").rpartition("/")
    info = filesystem.get_file_info(folder or "/")
    if not _is_folder(info):
        return _nearby(filesystem, folder) if folder else " Check the path."
    names = [child.base_name for child in _children(filesystem, info)]
    hint = did_you_mean(name, names)
    where = f" In '{folder}' there is no '{name}'."
    return where + (hint if len(names) <= _SHOWN or hint.startswith(" Did") else " Check the path.")


def _listed(names: Iterator[str]) -> str:
    known = sorted(names)
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return (", ".join(known[:_SHOWN]) or "nothing") + more
