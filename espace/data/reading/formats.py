"""The formats of files: what an open one can tell, and which format a name stands for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from espace.data.reading import cache, convert, sealed
from espace.data.reading.files import Place, reaching
from espace.errors import DataError, did_you_mean

ENDINGS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_DELIMITERS = {".tsv": "\t", ".txt": "\t"}
_COMPRESSED = (".gz", ".zst", ".bz2")
_OPEN_FILES = 8
_TRIES = 3


class Opened(Protocol):
    """An open file: its columns, and its rows in groups that are read one at a time."""

    schema: pa.Schema

    def rows(self) -> list[int]:
        """The number of rows of every group, without reading them."""
        ...

    def read(self, index: int, columns: Sequence[str]) -> pa.Table:
        """The named columns of one group. Raises OSError or ArrowException when the file is damaged."""
        ...


class File(Hashable, Protocol):
    """A file that can be opened, and sent to another process."""

    @property
    def place(self) -> Place:
        """Where the user's file lies."""
        ...

    @property
    def fingerprint(self) -> str:
        """A digest of the content, and of how it is read."""
        ...

    def open(self) -> Opened:
        """Raises DataError when the file is gone, has changed, or is not of its format."""
        ...


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file; its groups are its row groups."""

    place: Place
    fingerprint: str

    def open(self) -> Opened:
        """See File."""
        self.place.check()
        with reaching(self.place.name):
            source = self.place.filesystem.open_input_file(self.place.path)
        return _OpenParquet(source, self.place.name)


@dataclass(frozen=True)
class ArrowFile:
    """An Arrow IPC file ("feather version 2"); its groups are its record batches."""

    place: Place
    fingerprint: str

    def open(self) -> Opened:
        """See File."""
        self.place.check()
        with reaching(self.place.name):
            return _OpenArrow(_mapped(self.place), self.place.name)


@dataclass(frozen=True, eq=False)
class ConvertedFile:
    """A file without groups. `write(path)` makes a Parquet file of it, kept in the cache and made again if removed."""

    place: Place
    kept: cache.Kept
    write: Callable[[Path], None]

    @property
    def fingerprint(self) -> str:
        """See File."""
        return self.kept.key

    def open(self) -> Opened:
        """See File."""
        for _ in range(_TRIES):
            path = self.kept.filled(self._write)
            with contextlib.suppress(OSError):  # somebody has emptied the cache since
                if sealed.is_whole(path, self.kept.key):
                    return _OpenParquet(pa.OSFile(str(path)), f"{self.place.name} (converted: {path})")
                self.kept.forget()
        what = f"what is written there is not what is read, {_TRIES} times"
        raise DataError(f"{self.kept.root}: {what}. Set ESPACE_CACHE to a folder on another disk.")

    def _write(self, path: Path) -> None:
        self.place.check()
        self.write(path)
        sealed.seal_parquet(path, self.kept.key)
        self.place.check()


def recognise(place: Place, format: str, layout: convert.Layout) -> File:
    """The file at `place`, in the format `parquet`, `csv` or `arrow`. Raises DataError when it is out of reach."""
    with reaching(place.name):
        content = cache.fingerprint(place.filesystem, place.path, place.size, place.changed)
        place = replace(place, content=content)
        start = _start(place) if format == "arrow" else b""
    if format == "parquet":
        return ParquetFile(place, content)
    if start.startswith(b"ARROW1"):
        return ArrowFile(place, content)
    if start.startswith(b"FEA1"):
        raise DataError(f"{place.name}: is Feather version 1, which is not read. Write it in version 2.")
    if format == "arrow":
        return _converted(place, content, "stream", partial(convert.stream, place))
    if format != "csv":
        raise DataError(f"{place.name}: no format '{format}'.{did_you_mean(format, set(ENDINGS.values()))}")
    layout = replace(layout, delimiter=layout.delimiter or _DELIMITERS.get(ending(place.name), ","))
    return _converted(place, content, layout, partial(convert.csv, place, layout))


def opened(file: File) -> Opened:
    """The file, open; the few opened last are kept open, in each process its own."""
    return _opened(os.getpid(), file)


def format_of(name: str) -> str | None:
    """The format that a file's ending stands for, or None."""
    return ENDINGS.get(ending(name))


def ending(name: str) -> str:
    """The ending of a name in lower case; of `x.csv.gz` it is `.csv`, of `x.parquet.gz` it is `.gz`."""
    stem, last = os.path.splitext(name.lower())
    inner = os.path.splitext(stem)[1]
    return inner if last in _COMPRESSED and ENDINGS.get(inner) == "csv" else last


def by_ending(name: str) -> str:
    """The format that a file's ending stands for. Raises DataError when it stands for none."""
    known = format_of(name)
    if known is None:
        what = f"the ending '{ending(name)}' says no format. Known: {', '.join(ENDINGS)}"
        raise DataError(f"{name}: {what}. Rename the file, or use the reader parquet, csv or arrow.")
    return known


@lru_cache(maxsize=_OPEN_FILES)
def _opened(process: int, file: File) -> Opened:
    return file.open()


def _start(place: Place) -> bytes:
    with place.filesystem.open_input_stream(place.path, compression=None) as source:
        return bytes(source.read(6))


def _converted(place: Place, content: str, how: object, write: Callable[[Path], None]) -> ConvertedFile:
    return ConvertedFile(place, cache.Kept(cache.digest(content, how, convert.VERSION)), write)


def _mapped(place: Place) -> pa.NativeFile:
    return place.filesystem.open_input_file(place.path) if place.root else pa.memory_map(place.path)


@contextlib.contextmanager
def _opening(name: str, format: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{name}: is not {format} file, or is cut off or damaged: {error}. Write it again.") from error


class _OpenParquet:
    def __init__(self, source: pa.NativeFile, name: str) -> None:
        with _opening(name, "a Parquet"):
            # Of the ways to read, the one whose memory does not grow with the file (apache/arrow#39808).
            self._file = pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
            self.schema = self._file.schema_arrow

    def rows(self) -> list[int]:
        footer = self._file.metadata
        return [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]

    def read(self, index: int, columns: Sequence[str]) -> pa.Table:
        return self._file.read_row_group(index, columns=list(columns), use_threads=False)


class _OpenArrow:
    def __init__(self, source: pa.NativeFile, name: str) -> None:
        self._source, self._name = source, name
        self._readers: dict[tuple[int, ...], pa.ipc.RecordBatchFileReader] = {}
        with _opening(name, "an Arrow"):
            self.schema = pa.ipc.open_file(source).schema

    def rows(self) -> list[int]:
        with _opening(self._name, "an Arrow"):
            reader = self._reader([self._cheapest()])
            return [reader.get_batch(index).num_rows for index in range(reader.num_record_batches)]

    def read(self, index: int, columns: Sequence[str]) -> pa.Table:
        chosen = [self.schema.get_field_index(name) for name in columns] or [self._cheapest()]
        batch = self._reader(chosen).get_batch(index)
        batch.validate(full=True)  # nothing else stands between a flipped bit and a crash (12 GB/s)
        return pa.Table.from_batches([batch]).select(list(columns))

    def _reader(self, fields: list[int]) -> pa.ipc.RecordBatchFileReader:
        """A reader that decompresses these fields only."""
        key = tuple(fields)
        if key not in self._readers:
            options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
            self._readers[key] = pa.ipc.open_file(self._source, options=options)
        return self._readers[key]

    def _cheapest(self) -> int:
        plain = [index for index, kind in enumerate(self.schema.types) if pa.types.is_primitive(kind)]
        return plain[0] if plain else 0
