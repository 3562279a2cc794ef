"""`a.b.c=value`, in the order in which they were given: each changes the tree as an edit of the file would.

The value is a scalar just as it stands (`x=00123` and `x=on` are text, `x=1e-3` is a number, `x=true` is a boolean), or
a list, mapping or quoted text if it begins with [ { " or '. An empty one is null. In the path, a number picks an item
of a list. `tower=din` replaces a part with all its options, `tower.dropout=0.1` changes one of them, and
`features.url=null` removes one of several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from espace.config.patterns import has_patterns, is_pattern
from espace.config.schema import DEFAULTS, EXPERT, NAMED_PARTS, PARTS
from espace.config.yamlfile import Key, Place, Problem, Source, dotted, parse_value, show
from espace.errors import ConfigError, did_you_mean

_NAMED: tuple[Key, ...] = (*((name,) for name in NAMED_PARTS), ("scores",), ("labels",), ("data", "potential"))


def apply(source: Source, overrides: Sequence[str]) -> None:
    """Change the tree. A part that it does not name has its default before one of its options is set."""
    for number, text in enumerate(overrides, 1):
        place = Place(number, text=f"override '{text.encode(errors='backslashreplace').decode()}'")
        try:
            _apply(source, text, place)
        except ConfigError as error:
            source.places[("", number)] = place
            source.problems.append(Problem(("", number), str(error), about=()))


def _apply(source: Source, text: str, place: Place) -> None:
    steps, value = _parsed(text)
    node: Any = source.tree
    key: Key = ()
    defaults: Any = DEFAULTS
    for step in steps[:-1]:
        slot = _slot(node, step, key)
        key = (*key, slot)
        defaults = defaults.get(step) if isinstance(defaults, Mapping) else None
        if key == ("sharing", "expert"):
            defaults = EXPERT
        if isinstance(node, dict) and node.get(step) is None:
            source.move(key, place)
            node[step] = {} if defaults is None else deepcopy(defaults)
        if isinstance(node[slot], str) and (
            key[0] in (*PARTS, *NAMED_PARTS, "pieces")
            or (key[0], key[-1]) in (("stages", "kind"), ("optimizer", "schedule"))
        ):
            node[slot] = {"type": node[slot]}
        node = node[slot]
    slot = _slot(node, steps[-1], key)
    if value is None and key in _NAMED:
        _remove(node, steps[-1], DEFAULTS.get(str(key[0]), {}), stays=key == ("features",) and has_patterns(node))
    else:
        node[slot] = value
        source.move((*key, slot), place)


def _remove(parts: dict[str, Any], name: str, defaults: Mapping[str, Any], stays: bool) -> None:
    """Take one of several parts away; a null stays where it takes a default away, or a column from patterns."""
    if stays and not is_pattern(name, parts.get(name)):
        parts[name] = None
        return
    if name not in parts and name not in defaults:
        raise ConfigError(f"there is no '{name}' to remove.{did_you_mean(name, {**parts, **defaults})}")
    parts.pop(name, None)
    if name in defaults:
        parts[name] = None


def _parsed(text: str) -> tuple[list[str], Any]:
    path, equals, value = text.partition("=")
    steps = path.strip().split(".")
    if not equals or not all(steps):
        raise ConfigError("it is not of the form a.b=value. Write, say, seed=1.")
    try:
        text.encode()
        return steps, parse_value(value.strip())
    except UnicodeEncodeError as error:
        raise ConfigError("it is not UTF-8. Write it in UTF-8.") from error
    except ConfigError as error:
        what = str(error).partition(": ")[2]
        raise ConfigError(f"{what} Close what was opened, or put all of it in quotes.") from error


def _slot(node: Any, step: str, key: Key) -> str | int:
    """How `step` is looked up in a mapping or a list. Raises ConfigError where it cannot be."""
    if isinstance(node, dict):
        return step
    if isinstance(node, list) and step.isdecimal() and int(step) < len(node):
        return int(step)
    what = f"is a list of {len(node)}, counted from 0," if isinstance(node, list) else f"is {show(node)}"
    raise ConfigError(f"{dotted(key)} {what} and has no '{step}'. Set {dotted(key)} itself.")
