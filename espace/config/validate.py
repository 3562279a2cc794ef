"""Plain values against types, by pydantic: every problem at once, each in words that need no knowledge of pydantic."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar

import annotated_types
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticSerializationError

from espace.config.yamlfile import Key, Problem, scalar, show
from espace.errors import PluginError, did_you_mean
from espace.registry.registry import Entry, one
from espace.registry.signature import given_of


class Section(BaseModel):
    """Part of the configuration: unknown keys and conversions between types are refused, and nothing changes later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Model = TypeVar("Model", bound=BaseModel)

_WORDS: Mapping[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    Any: "a value",
}
_PLURALS: Mapping[object, str] = {int: "whole numbers", float: "numbers", str: "texts"}
_LIMITS = {
    annotated_types.Gt: ("gt", "above"),
    annotated_types.Ge: ("ge", "of at least"),
    annotated_types.Lt: ("lt", "below"),
    annotated_types.Le: ("le", "of at most"),
    annotated_types.MinLen: ("min_length", "with a length of at least"),
    annotated_types.MaxLen: ("max_length", "with a length of at most"),
}
_OF_ANY_PART = {"type", "options"}
_BOOLEAN_WORDS = frozenset({"on", "off", "yes", "no"})


def check(
    model: type[Model],
    tree: Mapping[str, Any],
    key: Key,
    entry: Entry | None = None,
    also: Collection[str] = (),
    whole: type[BaseModel] | None = None,
) -> tuple[Model | None, list[Problem]]:
    """The values as a model, or every reason why not.

    key: where they stand; also: more names to suggest; whole: the model in whose parts an unknown key may be at home,
    `model` by default.
    """
    try:
        return model.model_validate_json(json.dumps(tree)), []
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        return None, [_problem(detail, model, whole or model, tree, key, entry, also) for detail in details]


@lru_cache(maxsize=512)
def options_model(entry: Entry) -> type[BaseModel]:
    """A model made from the signature: a field for each option. Raises PluginError for a type that YAML cannot hold.

    The fields are called otherwise than the options, since a model has names of its own that an option may want.
    """
    fields: dict[str, Any] = {
        f"option_{o.name}": (o.annotation, Field(... if o.required else o.default, alias=o.name)) for o in entry.options
    }
    try:
        return create_model(entry.name, __config__=Section.model_config, **fields)
    except PydanticSchemaGenerationError as error:
        what = str(error).splitlines()[0]
        raise PluginError(f"{one(entry.kind)} '{entry.name}' has an option that YAML cannot hold: {what}") from error


def bind(
    entry: Entry,
    options: Mapping[str, Any],
    key: Key,
    also: Collection[str] = (),
    whole: type[BaseModel] | None = None,
) -> tuple[dict[str, Any], list[Problem]]:
    """The options with every default written out, as plain values; with problems, those that are right so far."""
    model, problems = check(options_model(entry), options, key, None if also else entry, also or entry.beside, whole)
    if model is None:
        wrong = {p.key[len(key)] for p in problems}
        return {name: value for name, value in options.items() if name not in wrong}, problems
    try:
        return model.model_dump(mode="json", by_alias=True, warnings=False), []
    except PydanticSerializationError as error:
        raise PluginError(f"{one(entry.kind)} '{entry.name}' has a default that YAML cannot hold: {error}") from error


def typed(entry: Entry, options: Mapping[str, Any]) -> dict[str, Any]:
    """Plain options that were bound before, in the types of the signature: a tuple where it says tuple."""
    model = options_model(entry).model_validate_json(json.dumps(options))
    return {o.name: getattr(model, f"option_{o.name}") for o in entry.options}


def hints_of(model: type[BaseModel]) -> dict[str, Any]:
    """`{name in the YAML: type with its constraints}`."""
    hints = typing.get_type_hints(model, include_extras=True)
    return {field.alias or name: hints[name] for name, field in model.model_fields.items()}


def did_you_mean_or_home(name: str, known: Iterable[str], model: type[BaseModel]) -> str:
    """` Did you mean 'x'?` when something close is known; else ` It belongs to optimizer.` where a part of `model` has
    that key; else the list of what is known."""
    hint = did_you_mean(name, known)
    parts = {key: _bare(annotation) for key, annotation in hints_of(model).items()}
    keys = {key: hints_of(part) for key, part in parts.items() if isinstance(part, type) and issubclass(part, Section)}
    homes = ["the top level"] * (name in parts) + [
        key for key in keys if name in keys[key] and name not in _OF_ANY_PART
    ]
    return f" It belongs to {homes[0]}." if homes and not hint.startswith(" Did") else hint


def describe(annotation: Any) -> str:
    """A type in words: `a whole number above 0`, `one of 'last', 'first'`, `a list of numbers or null`."""
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return " ".join([describe(args[0]), " and ".join(_limits(args[1:]))]).strip()
    if origin is Literal:
        return f"one of {', '.join(show(a) for a in args)}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(", ".join(describe(a) for a in args).rsplit(", ", 1))
    return _describe_container(origin or annotation, args)


def _describe_container(origin: Any, args: tuple[Any, ...]) -> str:
    if origin is tuple and args and args[-1] is not ...:
        return f"a list of {len(args)}: {', '.join(describe(a) for a in args)}"
    if isinstance(origin, type) and issubclass(origin, BaseModel | Mapping):
        return "a mapping"
    if isinstance(origin, type) and issubclass(origin, Collection):
        items = _plural(args[0]) if args else ""
        return f"a list of {items}" if items else "a list"
    return getattr(origin, "__name__", str(origin))


def _plural(annotation: Any) -> str:
    """Several of a type in words; nothing where there are none for it."""
    args = typing.get_args(annotation)
    if typing.get_origin(annotation) is Annotated and (items := _plural(args[0])):
        return " ".join([items, " and ".join(_limits(args[1:]))]).strip()
    return _PLURALS.get(annotation, "") if isinstance(annotation, type) else ""


def _limits(metadata: Iterable[Any]) -> list[str]:
    found: list[str] = []
    for item in metadata:
        if isinstance(item, FieldInfo):
            found += _limits(item.metadata)
        elif type(item) in _LIMITS:
            attribute, words = _LIMITS[type(item)]
            limit = getattr(item, attribute)
            found.append(f"{words} {limit:,}" if isinstance(limit, int) else f"{words} {limit:g}")
        elif isinstance(item, annotated_types.GroupedMetadata):
            found += _limits(item)
    return found


def _problem(
    detail: ErrorDetails,
    model: type[BaseModel],
    whole: type[BaseModel],
    tree: object,
    key: Key,
    entry: Entry | None,
    also: Collection[str],
) -> Problem:
    """One of pydantic's errors in our words."""
    too_short = detail["type"] == "missing" and isinstance(detail["loc"][-1], int)
    location = detail["loc"][:-1] if too_short else detail["loc"]
    at, annotation = _locate(model, location)
    if detail["type"] == "extra_forbidden":
        return _unknown((*key, *location), [*hints_of(_inside(annotation)), *also], entry, whole)
    if detail["type"] == "missing" and not too_short:
        return _missing((*key, *at), describe(annotation), entry)
    value, wanted = _value(tree, at), describe(annotation)
    if detail["type"] in ("value_error", "assertion_error", "string_pattern_mismatch"):
        return Problem((*key, *at), f"{show(value)} is refused: {detail['msg'].partition(', ')[2] or detail['msg']}.")
    return Problem((*key, *at), f"{show(value)} is not {wanted}.{_mend(value, wanted, annotation)}")


def _unknown(key: Key, known: Sequence[str], entry: Entry | None, model: type[BaseModel]) -> Problem:
    name = str(key[-1])
    if entry is None:
        return Problem(key, f"there is no such key.{did_you_mean_or_home(name, known, model)}")
    hint = did_you_mean(name, known)
    if name in given_of(entry.factory):
        hint = f" Its author has to put the parameter '{name}' behind the * of the signature."
    if (entry.kind, name) == ("sharing", "expert"):
        hint = " It has no experts. Remove the line, or choose another sharing, such as mmoe."
    return Problem(key, f"{entry.name} has no option '{name}'.{hint}", about=key[:-1])


def _missing(key: Key, wanted: str, entry: Entry | None) -> Problem:
    if entry is None:
        return Problem(key, f"this is missing. It has to be {wanted}.")
    return Problem(key, f"{entry.name} needs the option '{key[-1]}', {wanted}.", about=key[:-1])


def _mend(value: object, wanted: str, annotation: Any) -> str:
    if isinstance(value, str) and value.lower() in _BOOLEAN_WORDS and "true" in wanted:
        return " Only true and false are booleans."
    if isinstance(value, str) and "number" in wanted and isinstance(scalar(value), int | float):
        return " Remove its quotes; for text from the environment write ${oc.decode:${oc.env:NAME}}."
    if isinstance(value, bool | int | float) and "text" in wanted:
        return f" Put it in quotes: '{show(value)}'."
    literals = typing.get_args(_bare(annotation)) if typing.get_origin(_bare(annotation)) is Literal else ()
    hint = did_you_mean(str(value), literals)
    return hint if hint.startswith(" Did") else ""


def _locate(model: type[BaseModel], location: Sequence[str | int]) -> tuple[Key, Any]:
    """As far as `location` can be followed through types: not into the members of a union, which is one thing here."""
    at: Key = ()
    annotation: Any = model
    for step in location:
        inner = _step(_bare(annotation), step)
        if inner is None:
            break
        at, annotation = (*at, step), inner
    return at, annotation


def _step(annotation: Any, step: str | int) -> Any:
    """The type of one item or key of a type, None where it has no such thing."""
    origin, args = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if not isinstance(origin, type):
        return None
    if issubclass(origin, BaseModel):
        return hints_of(origin).get(str(step))
    if isinstance(step, int) and issubclass(origin, Sequence) and args:
        return (args[step] if step < len(args) else None) if origin is tuple and args[-1] is not ... else args[0]
    return args[1] if isinstance(step, str) and issubclass(origin, Mapping) and args else None


def _bare(annotation: Any) -> Any:
    """Without constraints, and without "or null"."""
    if typing.get_origin(annotation) is Annotated:
        return _bare(typing.get_args(annotation)[0])
    members = [a for a in typing.get_args(annotation) if a is not type(None)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType) and len(members) == 1:
        return _bare(members[0])
    return annotation


def _inside(annotation: Any) -> type[BaseModel]:
    bare: type[BaseModel] = _bare(annotation)
    return bare


def _value(tree: Any, key: Key) -> Any:
    for step in key:
        tree = tree[step]
    return tree
