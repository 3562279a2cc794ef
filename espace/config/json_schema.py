"""The JSON schema of the YAML, for editors: they complete keys, names of parts and options, and mark what is wrong."""

from __future__ import annotations

from typing import Any

from espace.config.parts import entries_of
from espace.config.schema import DATA_KEYS, DEFAULTS, EMPTY, NAMED_PARTS, OPTIMIZER_KEYS, PARTS, Fields
from espace.config.validate import options_model
from espace.data.reading.sorts import SORTS
from espace.registry.registry import Entry, Registry

Json = dict[str, Any]
_SAID = ("title", "default", "description")  # beside a type


def json_schema(registry: Registry) -> Json:
    """The schema, with the options of every part that `registry` has."""
    schema = Fields.model_json_schema()
    shared: Json = schema["$defs"]
    kinds = dict.fromkeys([*PARTS.values(), *NAMED_PARTS.values(), "stages", "pieces", "schedules"])
    shared |= {kind: {"oneOf": _choices(kind, registry, shared)} for kind in kinds}
    properties = schema["properties"]
    properties |= {key: _of(kind) for key, kind in PARTS.items()}
    properties |= {key: _by_name(kind, removable=key in DEFAULTS) for key, kind in NAMED_PARTS.items()}
    properties["features"]["patternProperties"] = {"[*?]": _of_columns()}
    properties["pieces"] = {"type": "array", "items": _of("pieces")}
    properties["chain"] = {"anyOf": [{"type": "string"}, properties["chain"]], "title": "Chain"}
    shared["Data"] = {"oneOf": [_data(shared["Data"], e, shared) for e in entries_of("readers", registry).values()]}
    shared["Optimizer"] = _optimizer(shared["Optimizer"], registry, shared)
    shared["Stage"]["properties"]["kind"] = _of("stages")
    properties["stages"] = {"type": "object", "additionalProperties": _or_null(_of("Stage"))}
    required = ["chain", "data", "features"]
    properties |= {key: _or_null(found) for key, found in properties.items() if key not in required}
    del shared["Component"], shared["Sharing"], shared["Metric"]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "An experiment of espace"}
    return {**schema, **head, "required": required}


def _of(kind: str) -> Json:
    return {"$ref": f"#/$defs/{kind}"}


def _or_null(schema: Json) -> Json:
    """The same, or null, which is as if nothing were written."""
    null = {"type": "null"}
    found = schema.get("anyOf", [{key: value for key, value in schema.items() if key not in _SAID}])
    said = {key: value for key, value in schema.items() if key in _SAID}
    return {"anyOf": found if null in found else [*found, null], **said}


def _by_name(kind: str, removable: bool) -> Json:
    return {
        "type": "object",
        "additionalProperties": {"anyOf": [_of(kind), {"type": "null"}]} if removable else _of(kind),
    }


def _of_columns() -> Json:
    """What a pattern of features makes of columns: a feature, one for each sort of column, or nothing."""
    part = {"anyOf": [_of("features"), {"type": "null"}]}
    sorts = {"type": "object", "properties": dict.fromkeys(SORTS, part), "additionalProperties": False}
    return {"anyOf": [_of("features"), {**sorts, "minProperties": 1}, {"type": "null"}]}


def _choices(kind: str, registry: Registry, shared: Json) -> list[Json]:
    """The bare names of the parts that need no option, then each part as a mapping."""
    entries = entries_of(kind, registry).values()
    bare = [entry.name for entry in entries if not any(o.required for o in entry.options)]
    return [{"type": "string", "enum": bare}, *(_mapping(entry, shared) for entry in entries)]


def _mapping(entry: Entry, shared: Json) -> Json:
    options = _options(entry, shared)
    properties = {"type": {"const": entry.name}, **options.get("properties", {})}
    properties |= {"expert": _of("towers")} if entry.has_expert else {}
    properties |= {"of": {"type": "array", "items": {"type": "string"}, "minItems": 1}} if "of" in entry.beside else {}
    text = {"description": entry.summary} if entry.summary else {}
    required = ["type", *options.get("required", [])]
    return {"type": "object", **text, "properties": properties, "required": required, "additionalProperties": False}


def _options(entry: Entry, shared: Json) -> Json:
    """The schema of the options alone; types that they name go to the shared ones."""
    schema = options_model(entry).model_json_schema()
    shared |= schema.pop("$defs", {})
    return schema


def _optimizer(closed: Json, registry: Registry, shared: Json) -> Json:
    """`optimizer` with the options of all of them: where two have one of a name, the first one's type is told."""
    entries = entries_of("optimizers", registry)
    own = {key: closed["properties"][key] for key in OPTIMIZER_KEYS}
    for entry in entries.values():
        own = {**_options(entry, shared).get("properties", {}), **own}
    own |= {"type": {"enum": [*entries], "default": "adam", "title": "Type"}, "schedule": _of("schedules")}
    own |= {key: _or_null(own[key]) for key in OPTIMIZER_KEYS}
    return {**closed, "properties": own}


def _data(closed: Json, entry: Entry, shared: Json) -> Json:
    """`data` for one reader: its options stand beside the other keys; `type` may be left out for files."""
    options = _options(entry, shared)
    own = {key: closed["properties"][key] for key in DATA_KEYS}
    default = own["type"]["default"]
    required = ["train", *options.get("required", []), *([] if entry.name == default else ["type"])]
    own |= {key: _or_null(own[key]) for key in EMPTY}
    properties = {**own, **options.get("properties", {}), "type": {"const": entry.name}}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
