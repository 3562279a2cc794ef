"""Tables from other libraries in the plain types that everything behind reads: no dictionaries, no views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pyarrow as pa

from espace.data.reading.schemas import plain
from espace.errors import DataError


def as_table(table: object) -> pa.Table:
    """Whatever has columns, such as a data frame or a dict of lists, as a table of plain types. Raises DataError."""
    try:
        return _decoded_table(_converted(table), "the table")
    except (pa.ArrowException, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"the table: a {type(table).__name__} cannot be read as columns: {error}"
        raise DataError(f"{what}. Give a pyarrow Table, a data frame, or a dict of lists of one length.") from error


def _converted(table: object) -> pa.Table:
    if isinstance(table, pa.Table):
        return table
    if isinstance(table, pa.RecordBatch):
        return pa.Table.from_batches([table])
    if isinstance(table, Mapping):
        return pa.table(dict(table))
    if hasattr(table, "__arrow_c_stream__"):
        return pa.table(table)
    return pa.Table.from_pandas(table, preserve_index=False)


@contextmanager
def to_parquet(where: str) -> Iterator[None]:
    """Turns what Parquet cannot hold, such as a date beyond its range, into a DataError."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        what = f"{where}: a column cannot be written as Parquet: {error}"
        raise DataError(f"{what}. Name the columns to keep, without it, by --keep.") from error


def _decoded_table(table: pa.Table, where: str) -> pa.Table:
    """The table with its categories, enums and views as the ordinary text, lists and numbers that they stand for.

    Raises DataError for a column that has no such type.
    """
    for number, field in enumerate(plain(table.schema)):
        column = table.column(number)
        if column.type == field.type:
            continue
        try:
            chunks = [_decoded(chunk).cast(field.type) for chunk in column.chunks]
        except pa.ArrowException as error:
            what = f"{where}: column '{field.name}' is of type {column.type}, which cannot be read: {error}"
            raise DataError(f"{what}. Write it as {field.type}.") from error
        table = table.set_column(number, field, pa.chunked_array(chunks, field.type))
    return table


def _decoded(values: pa.Array) -> pa.Array:
    """A dictionary as its values. Arrow cannot pick among views, so they become ordinary ones before."""
    if isinstance(values, pa.ExtensionArray):
        return _decoded(values.storage)
    if not isinstance(values, pa.DictionaryArray):
        return values
    plainer = plain(pa.schema([("values", values.dictionary.type)])).field(0).type
    return _decoded(values.dictionary).cast(plainer).take(values.indices)
