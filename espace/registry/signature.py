"""The signature is the schema: a factory's keyword-only parameters are its options."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass

from espace.errors import PluginError


@dataclass(frozen=True)
class Option:
    """One option. `annotation` is resolved, with its constraints; `default` means nothing where one is `required`."""

    name: str
    annotation: object
    default: object
    required: bool


def options_of(factory: Callable[..., object], what: str) -> list[Option]:
    """The options of a factory; `what` names it in errors.

    Raises PluginError, with the file and line, for an option without a type, or with one that cannot be resolved.
    """
    function = _function_of(factory)
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError as error:
        raise PluginError(f"{what}: its signature cannot be read. Wrap it in a function.") from error
    return [
        Option(p.name, _resolve(p, function, what), _default(p, factory), p.default is inspect.Parameter.empty)
        for p in parameters
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    ]


def given_of(factory: Callable[..., object]) -> list[str]:
    """The names of the positional parameters, which come from espace and cannot be written in the YAML."""
    parameters = inspect.signature(factory).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]


def accepts(factory: Callable[..., object], count: int) -> bool:
    """Whether so many positional arguments can be given."""
    try:
        inspect.signature(factory).bind_partial(*range(count))
    except TypeError:
        return False
    return True


def place_of(factory: Callable[..., object]) -> str:
    """`file.py:12: `, or nothing where the place is not known."""
    code = getattr(_function_of(factory), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}: " if code else ""


def _function_of(factory: Callable[..., object]) -> Callable[..., object]:
    """The function that takes the options."""
    if isinstance(factory, functools.partial):
        return _function_of(factory.func)
    function = factory if inspect.isroutine(factory) else type(factory).__call__
    unwrapped: Callable[..., object] = inspect.unwrap(factory.__init__ if inspect.isclass(factory) else function)
    return unwrapped


def _resolve(parameter: inspect.Parameter, function: Callable[..., object], what: str) -> object:
    name = parameter.name
    if parameter.annotation is inspect.Parameter.empty:
        raise PluginError(
            f"{place_of(function)}{what}: the option '{name}' has no type. Write {name}: int, or what it is."
        )
    holder = types.SimpleNamespace(__annotations__={name: parameter.annotation})
    try:
        return typing.get_type_hints(holder, getattr(function, "__globals__", {}), include_extras=True)[name]
    except (NameError, SyntaxError, TypeError, AttributeError) as error:
        raise PluginError(
            f"{place_of(function)}{what}: the type of the option '{name}', {parameter.annotation}, cannot be resolved"
            f" ({error}). Import its names at the top of the module, outside TYPE_CHECKING."
        ) from error


def _default(parameter: inspect.Parameter, factory: Callable[..., object]) -> object:
    """The default; that of a dataclass field may come from a factory of its own."""
    fields = dataclasses.fields(factory) if dataclasses.is_dataclass(factory) else ()
    made = next((f.default_factory for f in fields if f.name == parameter.name), dataclasses.MISSING)
    return parameter.default if isinstance(made, dataclasses._MISSING_TYPE) else made()
