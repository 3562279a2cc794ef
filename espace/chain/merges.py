"""The merge that a chain lacks when rows say that a stage also happens without its parent."""

from __future__ import annotations

from collections.abc import Collection

from espace.chain.chain import Chain
from espace.chain.grammar import Transition
from espace.errors import ChainError


def merge_without(chain: Chain, stage: str) -> list[str]:
    """The lines to change and to add so that `stage` may follow the negation of its parents too; none if none do.

    `impression -> click -> conversion`: `impression -> click else no_click` and `no_click -> conversion`.
    """
    found = _turning(chain, chain.parents(stage))
    if found is None:
        return []
    turning, parents = found
    other = turning.otherwise if turning.otherwise not in (None, *parents) else _new_name(chain, turning)
    way = chain.arrivals(stage)[0]
    changed = [] if turning.otherwise else [str(Transition(turning.parent, turning.outcomes, other))]
    added = [str(type(way)(other or "", way.outcomes, way.otherwise))]
    kept = [line for line in chain.lines() if turning.otherwise or line != str(turning)]
    try:
        Chain.parse([*kept, *changed, *added])
    except ChainError:
        return []
    return changed + added


def _turning(chain: Chain, parents: Collection[str]) -> tuple[Transition, Collection[str]] | None:
    """The choice at which rows with and without these parents part, and the parents as its outcomes."""
    arrivals = {t for parent in parents for t in chain.arrivals(parent)}
    if len(arrivals) != 1:
        return None
    turning = arrivals.pop()
    if turning.otherwise in parents:  # whatever comes of that choice is a parent, so they part above it
        return _turning(chain, [turning.parent])
    return turning, parents


def _new_name(chain: Chain, turning: Transition) -> str:
    name = f"no_{turning.outcomes[0]}" if len(turning.outcomes) == 1 else "neither"
    while name in chain.stages:
        name += "_"
    return name
