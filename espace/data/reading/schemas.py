"""The columns that all files of a source have in common, in a few plain types."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.types import is_nested

from espace.data.reading.spelling import canonical
from espace.errors import DataError, did_you_mean

Named = tuple[str, pa.Schema]  # a file's name and its columns
Agreed = tuple[pa.Schema, dict[str, str]]


def plain(schema: pa.Schema) -> pa.Schema:
    """The schema with dictionaries and runs decoded, large and view types ordinary, no metadata, all nullable."""
    return pa.schema([(field.name, _plain(field.type)) for field in schema])


def agree(schemas: Sequence[Named], text: Sequence[str] = ()) -> Agreed:
    """The columns that all files have, in the order of the first, each in a type that holds what every file has.

    text: columns that are the text of their values where types differ so that none holds both.

    With them `{column that a file lacks, or that has types with none in common: why, naming both files}`.
    """
    first, common = schemas[0][0], plain(schemas[0][1])
    kinds = dict(zip(common.names, common.types, strict=True))
    origin = dict.fromkeys(common.names, first)  # the file that gave a column its type
    apart: dict[str, str] = {}
    for name, other in ((name, plain(schema)) for name, schema in schemas[1:]):
        found = {**_missing(name, other, first, common), **_merge(kinds, origin, name, other, text)}
        apart = {**found, **apart}
    return pa.schema([field for field in kinds.items() if field[0] not in apart]), apart


def pick(schema: pa.Schema, columns: Iterable[str], where: str) -> pa.Schema:
    """The named columns in the order of the schema. Raises DataError for names that it does not have."""
    wanted = list(dict.fromkeys(columns))
    unknown = [name for name in wanted if name not in schema.names]
    if unknown:
        raise DataError("\n".join(f"{where}: has no column '{n}'.{did_you_mean(n, schema.names)}" for n in unknown))
    return pa.schema([field for field in schema if field.name in wanted])


def fit(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """The table in the columns and types of `schema`. Raises DataError when a value does not fit."""
    if not schema.names:
        return table.select([])  # from_arrays would lose the number of rows
    columns = [_cast(table.column(field.name), field, where) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def refuse_repeats(names: Sequence[str], where: str, way_out: str) -> None:
    """Raises DataError when two columns have one name."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        quoted = ", ".join(f"'{name}'" for name in repeated)
        raise DataError(f"{where}: has more than one column named {quoted}. {way_out}")


def _plain(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _plain(kind.value_type)
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    if _is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([(field.name, _plain(field.type)) for field in kind])
    return kind


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    views = types.is_list_view(kind) or types.is_large_list_view(kind)
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or views)


def _missing(name: str, other: pa.Schema, first: str, common: pa.Schema) -> dict[str, str]:
    pairs = [(name, other, first, common), (first, common, name, other)]
    return {
        field.name: f"{here}: has no column '{field.name}' ({field.type}), which {there} has."
        f"{did_you_mean(field.name, has.names)} All files of a source need the columns that are read."
        for here, has, there, wants in pairs
        for field in wants
        if field.name not in has.names
    }


def _merge(
    kinds: dict[str, pa.DataType], origin: dict[str, str], name: str, other: pa.Schema, text: Sequence[str]
) -> dict[str, str]:
    problems = {}
    for field in other:
        known = kinds.get(field.name, field.type)
        merged = _common(known, field.type)
        if merged is None and field.name in text and not (is_nested(known) or is_nested(field.type)):
            merged = pa.string()
        if merged is None:
            both = f"is {field.type}, but {known} in {origin[field.name]}"
            way_out = f"Write both with one type; for CSV, set column_types: {{{field.name}: string}}."
            problems[field.name] = f"{name}: column '{field.name}' {both}. {way_out}"
        elif field.name in kinds and merged != known:
            kinds[field.name], origin[field.name] = merged, name
    return problems


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if one == other:
        return one
    schemas = [pa.schema([("x", one)]), pa.schema([("x", other)])]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return None


def _is_spelt(kind: pa.DataType) -> bool:
    """Whether values of this type become text by the one spelling of a category; text does not change."""
    return not (_plain(kind) == pa.string() or pa.types.is_null(kind))


def _cast(column: pa.ChunkedArray, field: pa.Field, where: str) -> pa.ChunkedArray:
    if column.type == field.type:
        return column
    try:
        if pa.types.is_run_end_encoded(column.type):
            column = pc.run_end_decode(column)
        if pa.types.is_string(field.type) and _is_spelt(column.type):
            chunks = [canonical(chunk).cast(field.type) for chunk in column.chunks]
            return pa.chunked_array(chunks, field.type)
        return column.cast(field.type)
    except DataError as error:
        raise DataError(f"{where}, column '{field.name}': {error}") from error
    except pa.ArrowException as error:
        kinds = f"column '{field.name}' is {column.type} and cannot be read as {field.type}"
        raise DataError(f"{where}: {kinds}: {error}. Write all files of the source with one type.") from error
