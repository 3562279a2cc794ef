"""The lines of a chain, read one by one: transitions and values as they are written, not checked together.

impression -> click -> conversion          a line may have any number of arrows
click -> cart | wish else browse           one transition: exactly one of the three happens after a click
cart -> buy                                a stage may be reached from several stages that exclude each other
buy => revenue                             a value: an amount that is measured where its parent happened; it ends a line
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from espace.errors import ChainError

_NAME = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True)
class Transition:
    """One choice made at `parent`: one of `outcomes`, or `otherwise` (a stage, or None for "nothing happens")."""

    parent: str
    outcomes: tuple[str, ...]
    otherwise: str | None = None

    @property
    def name(self) -> str:
        """`click_to_cart_or_wish`; the else stage is not part of the name."""
        return f"{self.parent}_to_{'_or_'.join(self.outcomes)}"

    @property
    def classes(self) -> tuple[str | None, ...]:
        """The outcomes, then the last class: the else stage, or None for "nothing"."""
        return (*self.outcomes, self.otherwise)

    @property
    def children(self) -> tuple[str, ...]:
        """The stages that this transition can lead to."""
        return tuple(c for c in self.classes if c is not None)

    def __str__(self) -> str:
        text = f"{self.parent} -> {' | '.join(self.outcomes)}"
        return f"{text} else {self.otherwise}" if self.otherwise else text


class Value(Transition):
    """An amount measured where `parent` happened, such as the revenue of a conversion. Nothing follows it."""

    @property
    def amount(self) -> str:
        """What is measured: `revenue`."""
        return self.outcomes[0]

    def __str__(self) -> str:
        return f"{self.parent} => {self.amount}"


def read_lines(lines: str | Sequence[str]) -> list[Transition]:
    """Transitions and values as they are written, not checked together. Raises ChainError for what it cannot read."""
    texts = [t for t in lines.splitlines() if t.strip()] if isinstance(lines, str) else list(lines)
    return [t for number, text in enumerate(texts, 1) for t in _parse_line(text, f"chain, line {number}")]


def _parse_line(text: object, where: str) -> list[Transition]:
    if not isinstance(text, str):
        raise ChainError(f"{where}: {text!r} is not text. Write it as impression -> click, in quotes if need be.")
    stages, *amounts = text.split("=>")
    if len(amounts) > 1 or any("->" in a for a in amounts):
        raise ChainError(f"{where}: '{text.strip()}' goes on after a value, which nothing follows. End the line there.")
    segments = [_parse_outcomes(part, where, text) for part in stages.split("->")]
    if len(segments) + len(amounts) < 2:
        raise ChainError(f"{where}: '{text.strip()}' has no arrow. Write parent -> child, as in impression -> click.")
    for outcomes, otherwise in segments if amounts else segments[:-1]:
        if len(outcomes) > 1 or otherwise:
            names = [*outcomes, *([otherwise] if otherwise else [])]
            raise ChainError(
                f"{where}: '{text.strip()}' goes on after a choice of {' and '.join(names)}, so it is not clear"
                f" which of them goes on. End the line there and start a new one for each, as in {names[0]} -> ..."
            )
    steps = [
        Transition(before[0][0], outcomes, otherwise) for before, (outcomes, otherwise) in itertools.pairwise(segments)
    ]
    return [*steps, *(_parse_value(segments[-1][0][0], amount, where, text) for amount in amounts)]


def _parse_value(parent: str, amount: str, where: str, line: str) -> Value:
    names, otherwise = _parse_outcomes(amount, where, line)
    if len(names) > 1 or otherwise:
        raise ChainError(f"{where}: '{line.strip()}' has more than one value. Write a line for each.")
    return Value(parent, names)


def _parse_outcomes(part: str, where: str, line: str) -> tuple[tuple[str, ...], str | None]:
    named, *rest = re.split(r"\belse\b", part)
    names = [n.strip() for n in named.split("|")]
    otherwise = rest[0].strip() if rest else None
    for name in [*names, *([] if otherwise is None else [otherwise])]:
        if not _NAME.fullmatch(name):
            raise ChainError(
                f"{where}: '{name}' in '{line.strip()}' is not a name of a stage. Names are letters, digits and"
                " underscores, and the line reads parent -> a | b else c."
            )
    if len(rest) > 1:
        raise ChainError(f"{where}: '{line.strip()}' has two 'else'. One stage takes all that is left.")
    return tuple(names), otherwise
