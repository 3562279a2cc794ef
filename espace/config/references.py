"""How long a text becomes when its references are resolved, before anything resolves them."""

from __future__ import annotations

import re

MAX_TEXT = 10_000  # characters that a text, or values that a list or a mapping, may become
MAX_REFERENCES = 50  # in one text, and from one to the next
_REFERENCE = re.compile(r"\$\{([^${}:]+)\}")


def bounded(tree: object, text: str) -> None:
    """Raise ValueError, which says why, for a text that would grow without measure: each `${x}` twice the one before.

    References of other forms (`${oc.env:NAME}`, relative ones) are as long as they stand.
    """
    if (count := text.count("${")) > MAX_REFERENCES:
        raise ValueError(f"It is too much: {count:,} references, more than {MAX_REFERENCES}")
    if _length(tree, text, {}, ()) > MAX_TEXT:
        raise ValueError(f"It is too much: resolved it has more than {MAX_TEXT:,} characters")


def _length(tree: object, value: object, known: dict[str, int], trail: tuple[str, ...]) -> int:
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return sum(_length(tree, i, known, trail) if isinstance(i, dict | list) or "${" in str(i) else 1 for i in items)
    if not isinstance(value, str):
        return 1
    return len(value) + sum(_of_reference(tree, path, known, trail) for path in _REFERENCE.findall(value))


def _of_reference(tree: object, path: str, known: dict[str, int], trail: tuple[str, ...]) -> int:
    if path in trail:
        return 0  # it leads to itself, which is told when it is resolved
    if len(trail) > MAX_REFERENCES:
        raise ValueError(f"It is too much: it leads through more than {MAX_REFERENCES} others")
    if path not in known:
        known[path] = _length(tree, _found(tree, path), known, (*trail, path))
    return known[path]


def _found(tree: object, path: str) -> object:
    """What a reference leads to; None where there is nothing."""
    for step in path.replace("[", ".").replace("]", "").split("."):
        if isinstance(tree, dict):
            tree = tree.get(step)
        elif isinstance(tree, list) and step.isdecimal() and int(step) < len(tree):
            tree = tree[int(step)]
        else:
            return None
    return tree
