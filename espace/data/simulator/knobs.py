"""What a simulated world is made of: the options of the simulator."""

# Annotations stay objects here: the options of `Knobs` are read by the signature of a class in another module.
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from espace.chain.chain import Chain
from espace.chain.grammar import Transition

Count = Annotated[int, Ge(1)]


Rate = Annotated[float, Gt(0), Lt(1)]


Spread = Annotated[float, Ge(0), Le(5)]


Skew = Annotated[float, Ge(0), Le(5)]


@dataclass(kw_only=True, unsafe_hash=True)
class Knobs:
    """What a world is made of."""

    seed: Annotated[int, Ge(0)] = 0  # of the world and of the rows
    chain: str | tuple[str, ...] = "impression -> click -> conversion"
    users: Count = 5_000
    items: Count = 2_000
    rho: Annotated[float, Ge(-1), Le(1)] = 0.5  # correlation of the wish for the first stage and that for any other
    kappa: Spread = 1.2  # deviation of the logits of what follows the root: how far those rows differ from all rows
    tau: Spread = 1.2  # deviation of all other logits
    transfer: Annotated[float, Ge(0), Le(1)] = 0.0  # of a trait vector's variance, from the stage before
    gamma: Annotated[float, Ge(0), Le(3)] = 0.0  # a hidden common cause of all stages
    delta: Annotated[float, Ge(-3), Le(3)] = 0.0  # a rule of the other stages that holds only for items seldom clicked
    click_rate: Rate = 0.1  # of what follows the root, over logged impressions
    conversion_rate: Rate = 0.15  # of all other stages, over those among them that reached the parent
    value_mean: Annotated[float, Gt(0)] = 20.0  # of the amounts of values, were everyone to reach their parents
    value_spread: Spread = 0.5  # deviation of the logarithm of E[amount] over the features
    value_noise: Spread = 0.5  # deviation of the logarithm of amounts at the same features
    rates: Mapping[str, Rate] | None = field(default=None, hash=False)  # other rates, as in buy_given_cart: 0.3
    user_skew: Skew = 0.6  # exponent of Zipf's law by which users are seen; 0 is uniform
    item_skew: Skew = 0.8
    latent: Count = 4  # dimensions of the interaction of users and items
    group_share: Annotated[float, Ge(0), Le(1)] = 0.5  # of a trait's variance, from user_group or item_category

    def rate(self, chain: Chain, transition: Transition, outcome: str) -> float:
        """P(outcome given parent) that is asked for."""
        after_root = transition.parent == chain.root
        name = outcome if after_root else f"{outcome}_given_{transition.parent}"
        return (self.rates or {}).get(name, self.click_rate if after_root else self.conversion_rate)
