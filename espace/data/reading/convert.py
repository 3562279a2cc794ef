"""From files without row groups, CSV and Arrow streams, to Parquet: once, as a stream, with memory that stays flat."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from espace.data.reading import schemas
from espace.data.reading.files import Place, reaching
from espace.errors import DataError, did_you_mean

VERSION = 2  # part of the cache key: raise it when the same input gives another output
GROUP_ROWS = 65_536
_LEFT_OUT = "espace.left_out"  # in the metadata of what is written
_BLOCK = 4 << 20  # bytes; the first block decides the types
_NULLS = ["", "\\N", "NULL", "null", "NaN", "nan"]  # not "NA", which is a country
_DRIFT = re.compile(r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to .*?: invalid value '(.*)'", re.S)
_WIDTH = re.compile(r"(?:Row #(\d+): )?Expected (\d+) columns, got (\d+)(?:: (.*))?", re.S)
_ALIASES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")
_MORE_ALIASES = ("string", "date32", "timestamp[s]", "timestamp[ms]", "timestamp[us]", "timestamp[ns]")


@dataclass(frozen=True)
class Layout:
    """How a CSV file is written. Its text is part of the cache key.

    delimiter: one character, None when the ending decides; names: the columns of a file without a header;
    types: columns whose type is not inferred; text: columns that are read as text unless `types` has them; nulls: what
    stands for a missing value besides the usual marks.
    """

    delimiter: str | None
    names: tuple[str, ...] | None
    types: tuple[tuple[str, str], ...]
    text: tuple[str, ...] = ()
    nulls: tuple[str, ...] = ()

    @property
    def kinds(self) -> dict[str, pa.DataType]:
        """The given types. Raises DataError for a type that is not known."""
        return {name: _kind(name, alias) for name, alias in self.types}


def csv(place: Place, layout: Layout, target: Path) -> None:
    """Write the CSV file as Parquet. A column whose later values do not fit its type is read again in a wider one.

    Raises DataError naming file and line for a line of the wrong width and for a value that is not of a given type.
    """
    kinds = _first_kinds(place, layout)
    while True:
        try:
            return _save(_rows(place, layout, kinds), pa.schema(list(kinds.items())), target, place.name)
        except _DriftError as drift:
            name = list(kinds)[drift.column]
            if name in layout.kinds:
                raise DataError(drift.message(place.name, name, kinds[name])) from None
            kinds[name] = _wider(kinds[name], drift.value)


def stream(place: Place, target: Path) -> None:
    """Write an Arrow stream as Parquet, less the columns that this cannot hold, see `left_out`.

    Raises DataError when it is not one, or is cut off.
    """
    with _streaming(place) as reader:
        schema = reader.schema
    _save(_stream_rows(place), schema, target, place.name)


class _DriftError(Exception):
    """A value does not fit the type of its column."""

    def __init__(self, column: int, row: str, value: str) -> None:
        self.column, self.row, self.value = column, row, value

    def message(self, file: str, name: str, kind: pa.DataType) -> str:
        what = f"column '{name}' has {self.value!r}, which is not {kind}"
        return f"{file}, line {self.row}: {what}. Mend column_types or the file, or add it to null_values."


def _first_kinds(place: Place, layout: Layout) -> dict[str, pa.DataType]:
    """The type of every column: as given, else as pyarrow infers it from the first block."""
    with _parsing(place), _reading(place, layout, {}) as reader:
        batch: pa.RecordBatch | None = next(iter(reader), None)
        names = reader.schema.names
        _check_header(place, layout, names)
        kinds = dict(zip(names, reader.schema.types, strict=True))
    as_text = {name: pa.string() for name in names if name in layout.text} | layout.kinds
    if batch is None:
        return kinds | as_text
    for name in names:
        if pa.types.is_binary(kinds[name]):
            raise DataError(_NOT_UTF8.format(place.name, f"column '{name}'"))
        if pa.types.is_float64(kinds[name]) and _is_rounded_id(batch.column(name)):
            kinds[name] = pa.string()
    return kinds | as_text


_NOT_UTF8 = "{}: {} is not UTF-8 text. Convert the file: iconv -f latin1 -t utf-8."


def _check_header(place: Place, layout: Layout, names: list[str]) -> None:
    schemas.refuse_repeats(names, place.name, "If its first line is not a header, set column_names.")
    unknown = [name for name in layout.kinds if name not in names]
    if unknown:
        hint = did_you_mean(unknown[0], names)
        raise DataError(f"{place.name}: column_types names '{unknown[0]}', which is no column.{hint}")
    other = next((mark for mark in "\t,;|" if len(names) == 1 and mark in names[0]), None)
    if other:
        what = f"split at {layout.delimiter!r}, its first line is one column"
        raise DataError(f"{place.name}: {what}: {names[0][:80]!r}. Set delimiter: {other!r}.")


@contextlib.contextmanager
def _reading(place: Place, layout: Layout, kinds: dict[str, pa.DataType]) -> Iterator[pa.csv.CSVStreamingReader]:
    read = pa.csv.ReadOptions(
        use_threads=False, block_size=_BLOCK, column_names=layout.names
    )  # threads lose line numbers
    parse = pa.csv.ParseOptions(delimiter=layout.delimiter or ",", newlines_in_values=True)
    nulls = [*_NULLS, *layout.nulls]
    fit = pa.csv.ConvertOptions(column_types=kinds, null_values=nulls, strings_can_be_null=True)
    with reaching(place.name):
        source = place.filesystem.open_input_stream(place.path)
    with source, pa.csv.open_csv(source, read_options=read, parse_options=parse, convert_options=fit) as reader:
        yield reader


def _rows(place: Place, layout: Layout, kinds: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    with _parsing(place), _reading(place, layout, kinds) as reader:
        yield from reader


@contextlib.contextmanager
def _parsing(place: Place) -> Iterator[None]:
    """Turns what pyarrow says of a CSV file into a DataError, or a value that does not fit into a drift."""
    try:
        yield
    except UnicodeDecodeError as error:  # in the names of the columns
        raise DataError(_NOT_UTF8.format(place.name, "the first line")) from error
    except (OSError, pa.ArrowInvalid) as error:
        if drift := _DRIFT.search(str(error)):
            raise _DriftError(int(drift[1]), drift[2] or "?", drift[3]) from None
        raise DataError(_explain(place, str(error))) from error


@contextlib.contextmanager
def _streaming(place: Place) -> Iterator[pa.ipc.RecordBatchStreamReader]:
    with reaching(place.name):
        source = place.filesystem.open_input_stream(place.path, compression=None)
    try:
        with source, pa.ipc.open_stream(source) as reader:
            yield reader
    except (OSError, pa.ArrowException) as error:
        what = "is not an Arrow file or stream, or is cut off"
        raise DataError(f"{place.name}: {what}: {error}. Write it again.") from error


def _stream_rows(place: Place) -> Iterator[pa.RecordBatch]:
    with _streaming(place) as reader:
        yield from reader


def _explain(place: Place, text: str) -> str:
    if width := _WIDTH.search(text):
        row, expected, got, line = width.groups()
        what = f"{got} values where {expected} are expected: {(line or '')[:80]!r}"
        way_out = "Mend the line, or set delimiter or column_names"
        return f"{place.name}, line {row or '?'} (blank lines not counted): {what}. {way_out}."
    if "straddling" in text:
        return f"{place.name}: a line is longer than {_BLOCK >> 20} MiB. Most often a quote is opened and never closed."
    if "UTF8" in text:
        return _NOT_UTF8.format(place.name, "the file")
    if "mpty CSV" in text:
        return f"{place.name}: is empty: no header and no rows. Write it again, or take it out of the source."
    return f"{place.name}: cannot be read as CSV: {text}. Mend the file, or write it again."


def _wider(kind: pa.DataType, value: str) -> pa.DataType:
    """The type to read a column in, when `value` did not fit `kind`. An integer beyond int64 is text, never rounded."""
    steps = [pa.int64(), pa.float64()] if pa.types.is_null(kind) else [pa.float64()] if pa.types.is_int64(kind) else []
    if re.fullmatch(r"\s*[+-]?\d+\s*", value):
        steps = [step for step in steps if pa.types.is_int64(step)]
    return next((step for step in steps if _parses(value, step)), pa.string())


def _parses(value: str, kind: pa.DataType) -> bool:
    try:
        pa.scalar(value).cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _is_rounded_id(column: pa.Array) -> bool:
    """Whether these are whole numbers too large for float64: pyarrow infers ids above int64 as float64, rounded."""
    values = column.drop_null()
    largest = pc.max(pc.abs(values)).as_py()
    return largest is not None and 2.0**53 <= largest < 2.0**65 and pc.all(pc.equal(pc.floor(values), values)).as_py()


def _kind(name: str, alias: str) -> pa.DataType:
    try:
        return pa.type_for_alias(alias)
    except ValueError:
        known = _ALIASES + _MORE_ALIASES
        raise DataError(f"column_types.{name}: no type '{alias}'.{did_you_mean(alias, known)}") from None


def _save(batches: Iterable[pa.RecordBatch], schema: pa.Schema, target: Path, name: str) -> None:
    kept = [field for field in schemas.plain(schema) if held(field)]
    gone = {field.name: str(field.type) for field in schema if field.name not in {field.name for field in kept}}
    plain = pa.schema(kept, {_LEFT_OUT: json.dumps(gone)})
    try:
        with pq.ParquetWriter(target, plain, write_page_checksum=True) as writer:
            for table in _groups(batches):
                writer.write_table(schemas.fit(table, plain, name), row_group_size=GROUP_ROWS)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise DataError(f"{name}: a column cannot be kept: {error}. Write it with a plainer type.") from error


def held(field: pa.Field) -> bool:
    """Whether Parquet can hold a column; pyarrow tells when it is asked to."""
    schema = pa.schema([field])
    try:
        pq.write_table(schema.empty_table(), pa.BufferOutputStream())
    except pa.ArrowException:
        return False
    return True


def left_out(schema: pa.Schema) -> dict[str, str]:
    """`{column that the file had and Parquet cannot hold: its type}`, of the schema of what was written here."""
    found: dict[str, str] = json.loads((schema.metadata or {}).get(_LEFT_OUT.encode(), b"{}"))
    return found


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows of all batches in tables of a multiple of GROUP_ROWS rows; the last may be shorter."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= GROUP_ROWS:
            table, rows = pa.Table.from_batches(waiting), rows % GROUP_ROWS
            yield table.slice(0, table.num_rows - rows)
            waiting = table.slice(table.num_rows - rows).to_batches()
    if rows:
        yield pa.Table.from_batches(waiting)
