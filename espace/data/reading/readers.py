"""Where rows come from: files in Parquet, CSV and Arrow, local or on an object store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

import espace
from espace.data.reading import cache, files, formats, hive, schemas
from espace.data.reading.convert import Layout, left_out
from espace.errors import DataError

if TYPE_CHECKING:
    from espace.contracts import Reader


@dataclass(frozen=True)
class Piece:
    """The unit of reading, shuffling and sharding: one row group of one file."""

    source: str
    index: int
    rows: int

    def __str__(self) -> str:
        return f"{self.source}, row group {self.index}"


class Files:
    """The rows of files, one row group at a time: memory is bounded by the largest row group, whatever the file.

    source: a file, folder, glob (`*`, `?`, `[..]`, `**`), or a list of these; local, or a URI that pyarrow.fs or fsspec
    knows. A folder means all data files in it and below, sorted, without names that start with _ or `.`; a list keeps
    its order. All files need the columns that are read; types may differ as far as one type holds both (int32 and
    int64). What the folders of a file say, `day=3`, is a column, unless the file has one of that name.
    format: by each file's ending when not given. The other options are for CSV. delimiter: by the ending if not given;
    column_names: for files without a header; column_types: Arrow names of types that are not to be inferred;
    null_values: what stands for a missing value besides the empty cell, `NULL`, `null`, `NaN`, `nan` and backslash-N.
    text: columns of categories and of lists: a CSV has no types, so there they are text, every value as it is written;
    where files differ in the type of one, it is the text of its values. CSV and Arrow streams are turned once into
    Parquet, in the cache folder.

    Attributes: apart, `{column that not all files have, or not in one type, or in one that cannot be kept: why it
    cannot be read}`; such columns are not in the schema.

    Raises DataError when files are missing, unreadable, damaged, or all empty.
    """

    schema: pa.Schema
    apart: Mapping[str, str]
    pieces: Sequence[Piece]
    fingerprint: str

    def __init__(
        self,
        source: str | Sequence[str],
        split: str,
        text: Sequence[str] = (),
        *,
        format: Literal["parquet", "csv", "arrow"] | None = None,
        delimiter: str | None = None,
        column_names: Sequence[str] | None = None,
        column_types: Mapping[str, str] | None = None,
        null_values: Sequence[str] = (),
    ) -> None:
        layout = _layout(split, delimiter, column_names, column_types, text, null_values)
        places = files.find(source, split, _is_data(format))
        found = [formats.recognise(place, format or formats.by_ending(place.name), layout) for place in places]
        found = hive.with_folders(found, text)
        self._files = {file.place.name: file for file in found}
        (self.schema, self.apart), self.pieces = _survey(found, split, text)
        self.fingerprint = cache.digest(*(file.fingerprint for file in found))

    def read(self, piece: Piece, columns: Sequence[str]) -> pa.Table:
        """The named columns of one piece, in their order in the schema, whatever the order of `columns`.

        Raises DataError for a column that is not there, and for a file that is gone, has changed or is damaged.
        """
        if refused := [self.apart[name] for name in dict.fromkeys(columns) if name in self.apart]:
            raise DataError("\n".join(refused))
        wanted = schemas.pick(self.schema, columns, piece.source)
        if not piece.rows:
            return wanted.empty_table()
        table = schemas.fit(_read(self._files[piece.source], piece, wanted.names), wanted, str(piece))
        self.check(piece)
        return table

    def check(self, piece: Piece | None = None) -> None:
        """Raise DataError when a file was altered since the start: that of `piece` if it is local, or any."""
        places = [file.place for file in self._files.values()] if piece is None else [self._files[piece.source].place]
        for place in places:
            if piece is None or not place.root:
                place.watch()


def parquet(source: str | Sequence[str], split: str, text: Sequence[str] = ()) -> Files:
    """`Files` in Parquet, whatever their endings."""
    return Files(source, split, text, format="parquet")


def csv(
    source: str | Sequence[str],
    split: str,
    text: Sequence[str] = (),
    *,
    delimiter: str | None = None,
    column_names: Sequence[str] | None = None,
    column_types: Mapping[str, str] | None = None,
    null_values: Sequence[str] = (),
) -> Files:
    """`Files` in CSV, whatever their endings; compressed where they end in .gz, .zst or .bz2."""
    return Files(
        source,
        split,
        text,
        format="csv",
        delimiter=delimiter,
        column_names=column_names,
        column_types=column_types,
        null_values=null_values,
    )


def arrow(source: str | Sequence[str], split: str, text: Sequence[str] = ()) -> Files:
    """`Files` in the Arrow IPC file or stream format, whatever their endings."""
    return Files(source, split, text, format="arrow")


@espace.hookimpl
def register_readers(register: espace.Register[espace.Reader]) -> None:
    """The built-in readers; `files` is the default."""
    register("files", Files)
    register("parquet", parquet)
    register("csv", csv)
    register("arrow", arrow)


def _layout(
    split: str,
    delimiter: str | None,
    names: Sequence[str] | None,
    types: Mapping[str, str] | None,
    text: Sequence[str],
    nulls: Sequence[str],
) -> Layout:
    if delimiter is not None and len(delimiter) != 1:
        raise DataError(f"{split}: delimiter is {delimiter!r}. Give one character, such as ';' or \"\\t\".")
    schemas.refuse_repeats(names or (), f"{split}: column_names", "Give every column a name of its own.")
    kinds = tuple(sorted((types or {}).items()))
    return Layout(delimiter, tuple(names) if names else None, kinds, tuple(sorted(text)), tuple(nulls))


def _is_data(format: str | None) -> Callable[[str], bool]:
    return lambda name: format is not None or formats.format_of(name) is not None


def _survey(found: Sequence[formats.File], split: str, text: Sequence[str]) -> tuple[schemas.Agreed, tuple[Piece, ...]]:
    """The common columns and all pieces. Files without rows have no say in the columns.

    Where no file has rows, there is nothing to train on or to judge; what is to be predicted has one empty piece.
    """
    columns: list[schemas.Named] = []
    empty: list[schemas.Named] = []
    pieces: list[Piece] = []
    gone: dict[str, str] = {}
    for file in found:
        name, opened = file.place.name, formats.opened(file)
        schemas.refuse_repeats(opened.schema.names, name, "Give every column a name of its own.")
        for column, kind in left_out(opened.schema).items():
            gone[column] = f"{name}: column '{column}' is of type {kind}, which cannot be kept. Write a plainer type."
        mine = [Piece(name, index, rows) for index, rows in enumerate(opened.rows()) if rows]
        (columns if mine else empty).append((name, opened.schema))
        pieces += mine
    if not pieces and split == "predict":
        return _without(schemas.agree(empty, text), gone), (Piece(found[0].place.name, 0, 0),)
    if not pieces:
        more = f" and {len(found) - 1:,} other files are" if len(found) > 1 else " is"
        raise DataError(f"{split}: no rows: {found[0].place.name}{more} empty. Write rows into it.")
    return _without(schemas.agree(columns, text), gone), tuple(pieces)


def _without(agreed: schemas.Agreed, gone: Mapping[str, str]) -> schemas.Agreed:
    """Less the columns that a file lost when it was converted."""
    schema, apart = agreed
    return pa.schema([field for field in schema if field.name not in gone]), {**apart, **gone}


def apart(reader: Reader) -> Mapping[str, str]:
    """`{column that some files have and the reader does not give: why}`."""
    return reader.apart if isinstance(reader, Files) else {}


def _read(file: formats.File, piece: Piece, columns: Sequence[str]) -> pa.Table:
    try:
        table = formats.opened(file).read(piece.index, columns)
    except pa.ArrowMemoryError:
        raise
    except (OSError, ValueError, IndexError, pa.ArrowException) as error:
        way_out = "The file changed since the start or is damaged; write it again"
        raise DataError(f"{piece}: cannot be read: {error}. {way_out}.") from error
    if table.num_rows != piece.rows:
        raise DataError(f"{piece}: has {table.num_rows:,} rows, at the start it had {piece.rows:,}. Start again.")
    return table
