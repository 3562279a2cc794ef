"""What the users and the items of a simulated world are like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from espace.chain.chain import Chain
from espace.data.simulator.arithmetic import Floats, Ints, index, random_of, standardised
from espace.data.simulator.knobs import Knobs

GROUPS = 16


@dataclass(frozen=True)
class Traits:
    """What every user, or every item, is like, for the score of each outcome."""

    group: Ints  # (number,)
    seen: Floats  # (number,) cumulative shares of the impressions, in no order of size
    vectors: Floats  # (scores, number, latent)
    biases: Floats  # (scores, number)

    @classmethod
    def drawn(
        cls, knobs: Knobs, sources: Sequence[int | None], kind: str, number: int, skew: float, bias: float
    ) -> Traits:
        """Of `number` users or items, for a score of each of `sources`: the score of the stage before, from which
        `knobs.transfer` of the vectors comes. skew: Zipf's exponent; bias: the deviation of the biases."""
        share, scores = knobs.group_share, len(sources)
        group = index(random_of(knobs.seed, kind, "group").random(number), GROUPS)
        names = ["click", "own", *(f"own {n}" for n in range(2, scores))][:scores]

        def normal(name: str, columns: int) -> Floats:
            of_group = standardised(random_of(knobs.seed, kind, name, "of group").standard_normal((GROUPS, columns)))
            own = random_of(knobs.seed, kind, name, "own").standard_normal((number, columns))
            mixed: Floats = np.sqrt(share) * of_group[group] + np.sqrt(1 - share) * own
            return mixed

        vectors = _carried(knobs, sources, [normal(name, knobs.latent) for name in names], turned=kind == "item")
        seen = np.cumsum((1.0 + random_of(knobs.seed, kind, "rank").permutation(number)) ** -skew)
        return cls(group, seen / seen[-1], vectors, bias * normal("bias", len(names)).T)


def sources_of(chain: Chain) -> list[int | None]:
    """For every outcome of `chain.heads` the place of the outcome that is the stage before it, None behind the root.

    Before an else stage, which nobody wishes for, is what comes before that; of several ways into a stage the first.
    """
    outcomes = [outcome for t in chain.heads for outcome in t.outcomes]

    def source(stage: str) -> int | None:
        if stage == chain.root:
            return None
        return outcomes.index(stage) if stage in outcomes else source(chain.arrivals(stage)[0].parent)

    return [source(t.parent) for t in chain.heads for _ in t.outcomes]


def _carried(knobs: Knobs, sources: Sequence[int | None], own: list[Floats], *, turned: bool) -> Floats:
    """Vectors of which a share is that of the stage before, (scores, number, latent); where `turned`, through a map."""
    found: list[Floats] = []
    for n, (source, vectors) in enumerate(zip(sources, own, strict=True)):
        if source is not None and knobs.transfer:
            before = found[source] @ _map(knobs, n) if turned else found[source]
            vectors = np.sqrt(knobs.transfer) * before + np.sqrt(1 - knobs.transfer) * vectors
        found.append(vectors)
    return np.stack(found)


def _map(knobs: Knobs, n: int) -> Floats:
    """An orthogonal matrix of trace 0, (latent, latent), so that A . B and A . map B do not correlate: a cycle of the
    axes, in random directions. Of one dimension there is only one form, up to its sign."""
    directions, _ = np.linalg.qr(random_of(knobs.seed, "transfer", n).standard_normal((knobs.latent, knobs.latent)))
    return np.asarray(directions @ np.roll(np.eye(knobs.latent), 1, axis=0) @ directions.T)
