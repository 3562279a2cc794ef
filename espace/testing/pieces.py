"""Laws of pieces of chain."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from espace.chain.pieces import ChainPiece
from espace.testing.law import law


class PieceTests:
    """Laws of a piece of chain. Set `piece`, `options`, and `chain`, the lines of a chain to which it can be added."""

    piece: ClassVar[Callable[..., ChainPiece]]
    options: ClassVar[Mapping[str, object]] = {}
    chain: ClassVar[Sequence[str]] = ("impression -> click -> conversion",)

    def build(self) -> ChainPiece:
        """The piece with the options."""
        return type(self).piece(**self.options)

    def test_brings_at_least_one_stage(self) -> None:
        piece = self.build()
        assert isinstance(piece, ChainPiece), "it is an espace.ChainPiece"
        with law("its lines are of the chain's grammar"):
            brought = piece.brings
        assert brought, "it brings at least one stage"

    def test_can_be_added_to_a_chain(self) -> None:
        with law("its lines behind those of `chain` are a chain, and what it says is about its own stages"):
            self.build().added_to(self.chain)

    def test_holds_plain_values(self) -> None:
        piece = self.build()
        values = [list(piece.lines), dict(piece.labels), {name: dict(said) for name, said in piece.stages.items()}]
        with law("what it says about labels and stages can stand in a YAML"):
            assert json.loads(json.dumps(values)) == values, "lists and text keys only"

    def test_is_the_same_each_time(self) -> None:
        assert self.build() == self.build(), "the same options give the same piece"
