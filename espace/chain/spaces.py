"""What is judged where: every probability and expectation of a chain by name, with the rows that it is judged on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from espace.chain.chain import Chain


class Space(NamedTuple):
    """A probability of `stage`, or the expectation of a value, and its rows.

    given: the stage that has happened in its rows; None for all rows.
    potential: the column that is taken for the label, on all rows where it is known; None for the label itself.
    without: whether only rows count in which `given` is known not to have happened, so that no log has their label.
    """

    stage: str
    given: str | None = None
    potential: str | None = None
    without: bool = False

    @property
    def rows(self) -> str:
        """The rows in words: `click = 1`."""
        if self.potential is None:
            return f"{self.given} = 1" if self.given else "all rows"
        return f"{f'{self.given} = 0' if self.without else 'all rows'}, potential outcome"


def spaces(chain: Chain, potential: Mapping[str, str]) -> dict[str, Space]:
    """Every probability on its own space, those with potential outcomes on others too, then the expectations of values.

    potential: `{probability: column of potential outcomes}`, all of them probabilities of the chain.
    """
    found = {name: Space(stage, given) for name, (stage, given) in chain.addresses.items()}
    for name, column in potential.items():
        found |= of_potential(chain, name, column)
    return found | {name: Space(amount, given) for name, (amount, given) in chain.expectations.items()}


def of_potential(chain: Chain, name: str, column: str) -> dict[str, Space]:
    """Where a probability is judged by its potential outcomes: everywhere, and where its parent did not happen."""
    stage, given = chain.addresses[name]
    found = {f"{name}_entire_space": Space(stage, given, column)}
    if given is not None:
        found[f"{name}_without_{given}"] = Space(stage, given, column, without=True)
    return found
