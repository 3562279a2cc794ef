"""Pieces of chain: stages that a plugin brings, with what the YAML would say of them, added to a chain by one word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from espace.chain.chain import Chain
from espace.chain.grammar import read_lines
from espace.errors import ChainError, did_you_mean


@dataclass(frozen=True)
class ChainPiece:
    """Lines of the chain's grammar, and defaults for `labels` and `stages` of the stages that they bring.

    lines: `["conversion -> refund else keep"]`. labels: `{"refund": "returned"}`.
    stages: `{"refund": {"weight": 2.0}}`, as the YAML has it.
    """

    lines: Sequence[str]
    labels: Mapping[str, str] = field(default_factory=dict)
    stages: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @cached_property
    def brings(self) -> tuple[str, ...]:
        """The stages and values that it adds. Raises ChainError for a line that cannot be read."""
        return tuple(dict.fromkeys(child for t in read_lines(self.lines) for child in t.children))

    @cached_property
    def follows(self) -> tuple[str, ...]:
        """The stages that have to be there already. Raises ChainError for a line that cannot be read."""
        return tuple(dict.fromkeys(t.parent for t in read_lines(self.lines) if t.parent not in self.brings))

    def added_to(self, lines: Sequence[str]) -> list[str]:
        """The lines of a chain with those of the piece behind them.

        Raises ChainError where a line cannot be read, the chain lacks what the piece follows or has what it brings, the
        chain would contradict itself, and for labels or options of stages that are not of the piece.
        """
        chain = Chain.parse(lines)
        for stage in self.follows:
            if stage not in chain.stages:
                hint = did_you_mean(stage, chain.stages)
                raise ChainError(f"it follows '{stage}', which the chain lacks. Add a line that leads to it.{hint}")
        for stage in self.brings:
            if stage in (*chain.stages, *chain.expectations):
                raise ChainError(
                    f"it brings '{stage}', which is there already. Rename that one, or leave one of them out."
                )
        for stage in (*self.labels, *self.stages):
            if stage not in self.brings:
                raise ChainError(f"it has defaults for '{stage}', which it does not bring. Its author has to mend it.")
        Chain.parse([*lines, *self.lines])
        return [*lines, *self.lines]
