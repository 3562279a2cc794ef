"""What version 1 of the contracts promises, as plain values. `python -m tests.promised` prints what is there now.

tests/api_1.json was written so before the modules moved into rooms; `tests/test_promises.py` compares.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable

import typer

import espace
from espace.cli import app


def parameters(function: Callable[..., object]) -> dict[str, str]:
    """`{name: kind, and the default if there is one}`, without types, which may become more exact."""
    found = inspect.signature(function).parameters.values()
    default = inspect.Parameter.empty
    return {p.name: f"{p.kind.name}{'' if p.default is default else f' = {p.default!r}'}" for p in found}


def of_name(thing: object) -> object:
    """The parameters of a function; those of a class and of its public methods; else nothing."""
    if inspect.isclass(thing) and not getattr(thing, "_is_protocol", False):
        own = [n for n in dir(thing) if not n.startswith("_") and inspect.isfunction(getattr(thing, n))]
        here = [n for n in own if getattr(thing, n).__module__.startswith("espace")]
        return {"": parameters(thing), **{n: parameters(getattr(thing, n)) for n in here}}
    return parameters(thing) if inspect.isfunction(thing) else {}


def promised() -> dict[str, object]:
    """Public names, the JSON schema of the YAML with all parts in it, the options of the command line."""
    names = {n: of_name(getattr(espace, n)) for n in espace.__all__}
    names |= {f"errors.{n}": {} for n, e in vars(espace.errors).items() if inspect.isclass(e)}
    names |= {f"testing.{n}": {} for n in espace.testing.__all__}
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {n: sorted(o for p in c.params for o in p.opts) for n, c in commands.items()}
    return {"names": names, "schema": schema(), "commands": options}


def schema() -> object:
    """Of the built-in parts and of those that this repository's plugins bring."""
    from espace.config import json_schema

    try:
        from espace.registry.registry import load
    except ImportError:  # as it was called before the move
        from espace.plugins import load  # type: ignore[no-redef]
    return json_schema(load())


if __name__ == "__main__":
    print(json.dumps(promised(), indent=1, sort_keys=True, default=str))
