"""What sort of values a column has, by its type alone: what the YAML calls numbers, text, lists and so on."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from espace.data.reading.spelling import is_bytes, is_text

SORTS = ("integers", "floats", "numbers", "text", "booleans", "dates", "lists")  # numbers: integers and floats


def sorts_of(schema: pa.Schema) -> Mapping[str, tuple[str, ...]]:
    """`{column: the sorts that it is of}`; nothing for other types, such as structs, times of day and durations."""
    return {field.name: _sorts(_decoded(field.type)) for field in schema}


def _decoded(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _decoded(kind.storage_type)
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _sorts(kind: pa.DataType) -> tuple[str, ...]:
    types = pa.types
    if types.is_integer(kind):
        return ("integers", "numbers")
    if types.is_floating(kind) or types.is_decimal(kind):
        return ("floats", "numbers")
    if types.is_timestamp(kind) or types.is_date(kind):
        return ("dates",)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return ("lists",)
    if types.is_boolean(kind):
        return ("booleans",)
    return ("text",) if is_text(kind) or is_bytes(kind) else ()
