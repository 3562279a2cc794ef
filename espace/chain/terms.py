"""Terms of a loss: how one is described to people, and those that values of a chain bring to any objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from espace.chain.chain import Chain
from espace.chain.grammar import Value
from espace.chain.labels import Labels
from espace.chain.probability import Probabilities


@dataclass(frozen=True)
class Term:
    """What a loss term is, for people: printed by `espace show` and in the audit.

    stages: whose `stages.<name>.weight` it takes; given: the stage that has to have happened in its rows, None for all
    rows; loss: of one row; rows: on which it is judged; divisor: by the number of which rows it is divided.
    """

    stages: tuple[str, ...]
    given: str | None
    loss: str
    rows: str
    divisor: str


class ValueTerms:
    """The loss terms of the values of a chain, for an objective to add to its own: -log p(amount given parent).

    Args:
        chain: the chain.
        divide_by: "rows", those in which the parent happened and the amount is known, or "impressions", all rows.

    Attributes: `terms`, `{name: Term}`, none for a chain without values.
    """

    def __init__(self, chain: Chain, divide_by: Literal["rows", "impressions"] = "rows") -> None:
        self.divide_by = divide_by
        self._values = {f"{v.amount}_given_{v.parent}" if v.parent != chain.root else v.amount: v for v in chain.values}
        self.terms = {name: self._describe(v, v.parent == chain.root) for name, v in self._values.items()}

    def _describe(self, value: Value, start: bool) -> Term:
        return Term(
            stages=(value.amount,),
            given=None if start else value.parent,
            loss=f"-log p({value.amount} given {value.parent})",
            rows=f"{'all impressions' if start else f'rows with {value.parent} = 1'}, {value.amount} known",
            divisor="the same rows" if self.divide_by == "rows" else "all impressions",
        )

    def __call__(self, p: Probabilities, labels: Labels) -> dict[str, tuple[Tensor, Tensor]]:
        """{term: (loss of each row (batch,), how much the row counts in the divisor (batch,))}."""
        found = {}
        for name, value in self._values.items():
            observed = labels.amount(value.amount, given=value.parent)
            known = labels.known(value.amount, value.parent)
            rows = known if self.divide_by == "rows" else torch.ones_like(known)
            found[name] = (-p.log_density(value.amount, observed) * known, rows)
        return found
