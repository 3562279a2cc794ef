"""Columns that stand in the names of folders, `day=2024-01-31/part-0.parquet`, as Hive and Spark write them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa

from espace.data.reading import cache
from espace.data.reading.files import Place
from espace.data.reading.formats import File, Opened

_NULL = "__HIVE_DEFAULT_PARTITION__"
_INT32 = range(-(2**31), 2**31)

Told = tuple[tuple[str, str | None], ...]  # a column and its value, the outermost folder first


def told_by(name: str) -> Told:
    """The columns that the folders of a file's name tell, as it was written in the YAML or lies below that."""
    found: dict[str, str | None] = {}
    for folder in name.split("/")[:-1]:
        key, equals, value = folder.partition("=")
        if key and equals:
            found.setdefault(unquote(key), None if value == _NULL else unquote(value))
    return tuple(found.items())


def with_folders(files: Sequence[File], text: Collection[str] = ()) -> list[File]:
    """The same files, where folders tell something with these columns: int32 if all values are, text otherwise.

    A column that a file has itself is read from the file. text: columns that are text in any case.
    """
    told = [told_by(file.place.name) for file in files]
    values: dict[str, list[str | None]] = {}
    for name, value in (pair for pairs in told for pair in pairs):
        values.setdefault(name, []).append(value)
    kinds = {name: pa.string() if name in text else _kind(found) for name, found in values.items()}
    return [
        InFolders(file, pairs, tuple(kinds[name] for name, _ in pairs)) if pairs else file
        for file, pairs in zip(files, told, strict=True)
    ]


@dataclass(frozen=True)
class InFolders:
    """A file with the columns that its folders tell."""

    file: File
    told: Told
    kinds: tuple[pa.DataType, ...]

    @property
    def place(self) -> Place:
        """See File."""
        return self.file.place

    @property
    def fingerprint(self) -> str:
        """See File; what the folders tell is content."""
        return cache.digest(self.file.fingerprint, self.told, *self.kinds)

    def open(self) -> Opened:
        """See File."""
        inner = self.file.open()
        pairs = zip(self.told, self.kinds, strict=True)
        return _OpenInFolders(inner, {n: pa.scalar(v).cast(k) for (n, v), k in pairs if n not in inner.schema.names})


class _OpenInFolders:
    def __init__(self, inner: Opened, values: dict[str, pa.Scalar]) -> None:
        self._inner, self._values = inner, values
        self.schema = pa.schema([*inner.schema, *((name, value.type) for name, value in values.items())])
        self.schema = self.schema.with_metadata(inner.schema.metadata)

    def rows(self) -> list[int]:
        return self._inner.rows()

    def read(self, index: int, columns: Sequence[str]) -> pa.Table:
        table = self._inner.read(index, [name for name in columns if name not in self._values])
        for name in columns:
            if name in self._values:
                table = table.append_column(name, pa.repeat(self._values[name], table.num_rows))
        return table.select(list(columns))


def _kind(values: Sequence[str | None]) -> pa.DataType:
    """As pyarrow's partitioning infers it."""
    known = [value for value in values if value is not None]
    whole = known and all(re.fullmatch(r"-?[0-9]{1,10}", value) and int(value) in _INT32 for value in known)
    return pa.int32() if whole else pa.string()
