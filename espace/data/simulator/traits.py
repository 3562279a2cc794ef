"""What the users and the items of a simulated world are like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    def drawn(cls, knobs: Knobs, scores: int, kind: str, number: int, skew: float, bias: float) -> Traits:
        """Of `number` users or items, for so many scores. skew: Zipf's exponent; bias: the deviation of the biases."""
        share = knobs.group_share
        group = index(random_of(knobs.seed, kind, "group").random(number), GROUPS)
        names = ["click", "own", *(f"own {n}" for n in range(2, scores))][:scores]

        def normal(name: str, columns: int) -> Floats:
            of_group = standardised(random_of(knobs.seed, kind, name, "of group").standard_normal((GROUPS, columns)))
            own = random_of(knobs.seed, kind, name, "own").standard_normal((number, columns))
            mixed: Floats = np.sqrt(share) * of_group[group] + np.sqrt(1 - share) * own
            return mixed

        vectors = np.stack([normal(name, knobs.latent) for name in names])
        seen = np.cumsum((1.0 + random_of(knobs.seed, kind, "rank").permutation(number)) ** -skew)
        return cls(group, seen / seen[-1], vectors, bias * normal("bias", len(names)).T)
