"""A simulated world whose truth is known: users and items, what they wish, and what follows in any chain.

    s_0 = A_u . B_i / sqrt(latent) + a_u + b_i + context          the wish for the first stage
    s_n = the same with traits of its own                         what the n-th outcome of the chain has besides
    w_0 = z_0,   w_n = rho z_0 + sqrt(1 - rho^2) z_n + delta 1[b_i < 0] A_u1 B'_i1

and at every transition, with h ~ N(0, 1) hidden, for which there is no column,

    P(outcome n | parent) = softmax( deviation w_n + gamma h + c_n for every outcome, 0 for else or nothing )

which for one outcome is a sigmoid. z_0 is s_0 standardised over logged impressions; z_n is s_n made uncorrelated with z_0, and
standardised. The deviation is kappa for what follows the root and tau for the rest. c_n are solved so that the mean of
P(outcome | parent) over logged impressions, each counted by its P(parent), is the rate asked for.

Two estimands are called "conversion rate". With means over the hidden h at given features,

    P(v given u)      E[ P(u) P(v | u) ] / E[ P(u) ]     among those who reach u: what a chain learns from logs
    P(v given do u)   E[ P(v | u) ]                      if everyone were made to

and gamma = 0 makes them one. A value has a wish w like every other outcome, and its amount, where its parent happened, is

    x = E[x] exp( noise e - noise^2 / 2 ),   E[x] = mean exp( spread w - spread^2 / 2 ),   e ~ N(0, 1)
"""

# Annotations stay objects here: the options of `Knobs` are read by the signature of a class in another module.
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, TypeVar

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Gt, Le, Lt
from numpy.typing import NDArray

from espace.chain.chain import Chain
from espace.chain.grammar import Transition
from espace.data.lists import offsets_of

Bits = NDArray[np.int8]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Step = tuple[str, str]  # a stage and its parent
Name = TypeVar("Name")
Count = Annotated[int, Ge(1)]
Rate = Annotated[float, Gt(0), Lt(1)]
Spread = Annotated[float, Ge(0), Le(5)]
Skew = Annotated[float, Ge(0), Le(5)]

GROUPS, CONTEXTS = 16, 8
USER_BIAS, ITEM_BIAS, CONTEXT_BIAS = 0.7, 1.0, 0.5  # deviations; the interaction has 1
CALIBRATION_ROWS = 2**17
NODES = 15  # of Gauss-Hermite quadrature over h, for each unit of gamma: P(v given u) is exact to 1e-4 or better
PAST, LONGEST = 128, 50  # impressions of every user before the log begins; first stages among them that a history keeps
USERS_AT_ONCE = 4_096


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


@dataclass(frozen=True)
class Traits:
    """What every user, or every item, is like, for the score of each outcome."""

    group: Ints  # (number,)
    seen: Floats  # (number,) cumulative shares of the impressions, in no order of size
    vectors: Floats  # (scores, number, latent)
    biases: Floats  # (scores, number)


class World:
    """Users, items and contexts, how they wish and how easily they act on it."""

    def __init__(self, knobs: Knobs) -> None:
        self.knobs, self.chain = knobs, Chain.parse(knobs.chain)
        self.outcomes = [(t, outcome) for t in self.chain.heads for outcome in t.outcomes]
        self.users = self._traits("user", knobs.users, knobs.user_skew, USER_BIAS)
        self.items = self._traits("item", knobs.items, knobs.item_skew, ITEM_BIAS)
        of_context = _standardised(self.random("context").standard_normal((CONTEXTS, len(self.outcomes))))
        self.contexts = CONTEXT_BIAS * of_context.T  # (scores, contexts)
        self.scales: list[
            tuple[float, float, float]
        ] = []  # of each score: mean, slope against z_0, deviation of the rest
        self.intercepts: dict[Transition, Floats] = {}  # (outcomes, 1)
        self._calibrate(Impressions(self, ("calibration",), CALIBRATION_ROWS))

    def random(self, *path: object) -> np.random.Generator:
        """Random numbers that belong to this path and to no other."""
        return np.random.Generator(np.random.Philox(number_of(self.knobs.seed, *path)))

    def _traits(self, kind: str, number: int, skew: float, bias: float) -> Traits:
        share, latent = self.knobs.group_share, self.knobs.latent
        group = _index(self.random(kind, "group").random(number), GROUPS)
        names = ["click", "own", *(f"own {n}" for n in range(2, len(self.outcomes)))][: len(self.outcomes)]

        def normal(name: str, columns: int) -> Floats:
            of_group = _standardised(self.random(kind, name, "of group").standard_normal((GROUPS, columns)))
            own = self.random(kind, name, "own").standard_normal((number, columns))
            mixed: Floats = np.sqrt(share) * of_group[group] + np.sqrt(1 - share) * own
            return mixed

        vectors = np.stack([normal(name, latent) for name in names])
        seen = np.cumsum((1.0 + self.random(kind, "rank").permutation(number)) ** -skew)
        return Traits(group, seen / seen[-1], vectors, bias * normal("bias", len(names)).T)

    def score(self, n: int, user: Ints, item: Ints, context: Ints) -> Floats:
        """s_n, (rows,)."""
        users, items = self.users, self.items
        score: Floats = np.einsum("nk,nk->n", users.vectors[n][user], items.vectors[n][item])
        score /= np.sqrt(self.knobs.latent)
        score += users.biases[n][user] + items.biases[n][item] + self.contexts[n][context]
        return score

    def rule(self, n: int, user: Ints, item: Ints) -> Floats:
        """1[b_i < 0] A_u1 B'_i1, (rows,)."""
        product: Floats = self.users.vectors[0][user, 0] * self.items.vectors[n][item, 0]
        return np.where(self.items.biases[0][item] < 0, product, 0.0)

    @cached_property
    def histories(self) -> tuple[Ints, Ints]:
        """Items of which users did the first stage before the log, user after user, (events,), and where each user's begin,
        (users + 1,)."""
        number = len(self.users.seen)
        parts = [_Past(self, first, min(USERS_AT_ONCE, number - first)) for first in range(0, number, USERS_AT_ONCE)]
        items, lengths = zip(*(part.kept() for part in parts), strict=True)
        return np.concatenate(items), offsets_of(np.concatenate(lengths))

    def _calibrate(self, rows: "Impressions") -> None:
        """Set what the scores are standardised by, then the intercepts, parents first."""
        for n in range(len(self.outcomes)):
            score = rows.score(n)
            slope = float(np.mean(rows.standardised(0) * score)) if n else 0.0
            rest = score - slope * rows.standardised(0) if n else score
            self.scales.append((float(score.mean()), slope, float(rest.std())))

        def solve(transition: Transition, reached: Floats) -> Floats:
            rates = [self.knobs.rate(self.chain, transition, outcome) for outcome in transition.outcomes]
            logits = rows.wished(transition) + self.knobs.gamma * rows.hidden
            self.intercepts[transition] = _solve(logits, reached, np.array(rates))[:, None]
            return rows.shares(transition, rows.hidden)

        _forward(self.chain, rows.rows, solve)


class Impressions:
    """Some impressions and what comes of them; every column is computed when it is first asked for, (rows,)."""

    def __init__(
        self, world: World, path: tuple[object, ...], rows: int, start: int = 0, *, uniform: bool = False
    ) -> None:
        self.world, self.knobs, self.chain, self.uniform = world, world.knobs, world.chain, uniform
        self.path, self.rows, self.start = path, rows, start
        self._chosen: dict[Transition, Ints] = {}
        self._wished: dict[Transition, Floats] = {}
        self._happened: dict[str, Bits] = {self.chain.root: np.ones(rows, np.int8)}

    def _random(self, name: str) -> Floats:
        """In [0, 1). Fewer rows get the first of them."""
        return self.world.random(*self.path, name).random(self.rows)

    def _choose(self, kind: str, traits: Traits) -> Ints:
        random = self._random(kind)
        return _index(random, len(traits.seen)) if self.uniform else np.searchsorted(traits.seen, random, side="right")

    @cached_property
    def row(self) -> Ints:
        """The number of the row."""
        return np.arange(self.start, self.start + self.rows)

    @cached_property
    def user(self) -> Ints:
        """From 0."""
        return self._choose("user", self.world.users)

    @cached_property
    def item(self) -> Ints:
        """From 0."""
        return self._choose("item", self.world.items)

    @cached_property
    def context(self) -> Ints:
        """From 0."""
        return _index(self._random("context"), CONTEXTS)

    @cached_property
    def hidden(self) -> Floats | float:
        """h; 0 where it has no effect."""
        return self.world.random(*self.path, "hidden").standard_normal(self.rows) if self.knobs.gamma else 0.0

    @property
    def user_id(self) -> Ints:
        """From 1."""
        return self.user + 1

    @property
    def item_id(self) -> Ints:
        """From 1."""
        return self.item + 1

    @property
    def user_group(self) -> Ints:
        """From 0."""
        return self.world.users.group[self.user]

    @property
    def item_category(self) -> Ints:
        """From 0."""
        return self.world.items.group[self.item]

    @cached_property
    def history(self) -> pa.ListArray:
        """Item ids, oldest first."""
        items, starts = self.world.histories
        lengths = np.diff(starts)[self.user]
        offsets = offsets_of(lengths)
        events = np.arange(offsets[-1]) + np.repeat(starts[self.user] - offsets[:-1], lengths)
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(items[events] + 1))

    @property
    def history_category(self) -> pa.ListArray:
        """The categories of `history`."""
        groups = self.world.items.group[self.history.flatten().to_numpy() - 1]
        return pa.ListArray.from_arrays(self.history.offsets, pa.array(groups))

    def score(self, n: int) -> Floats:
        """s_n."""
        return self.world.score(n, self.user, self.item, self.context)

    @cached_property
    def _first(self) -> Floats:
        mean, _, deviation = self.world.scales[0]
        first: Floats = (self.score(0) - mean) / deviation
        return first

    def standardised(self, n: int) -> Floats:
        """z_n."""
        if n == 0:
            return self._first
        mean, slope, deviation = self.world.scales[n]
        rest: Floats = (self.score(n) - mean - slope * self._first) / deviation
        return rest

    def _wish(self, n: int) -> Floats:
        """w_n."""
        if n == 0:
            return self._first
        rho = self.knobs.rho
        wish: Floats = rho * self._first + np.sqrt(1 - rho**2) * self.standardised(n)
        if self.knobs.delta:
            wish += self.knobs.delta * self.world.rule(n, self.user, self.item)
        return wish

    def wished(self, transition: Transition) -> Floats:
        """The logits without intercepts at h = 0, (outcomes, rows)."""
        if transition not in self._wished:
            deviation = self.knobs.kappa if transition.parent == self.chain.root else self.knobs.tau
            places = [self.world.outcomes.index((transition, outcome)) for outcome in transition.outcomes]
            self._wished[transition] = np.stack([deviation * self._wish(n) for n in places])
        return self._wished[transition]

    def shares(self, transition: Transition, hidden: Floats | float) -> Floats:
        """P(class given parent) at h, (classes, rows)."""
        visible = self.wished(transition) + self.world.intercepts[transition]
        return _softmax(visible + self.knobs.gamma * hidden)

    def _choice(self, transition: Transition) -> Ints:
        """The place of the class that would be chosen by whoever reaches the parent."""
        if transition not in self._chosen:
            limits = self.shares(transition, self.hidden)[:-1].cumsum(0)
            random = self._random("_or_".join(transition.outcomes))
            self._chosen[transition] = (random >= limits).sum(0)
        return self._chosen[transition]

    def would(self, stage: str, parent: str) -> Bits:
        """Whether `stage` would follow if `parent` were reached."""
        transition = next(t for t in self.chain.arrivals(stage) if t.parent == parent)
        return np.equal(self._choice(transition), transition.classes.index(stage)).astype(np.int8)

    def happened(self, stage: str) -> Bits:
        """Whether `stage` was reached."""
        if stage not in self._happened:
            found = np.zeros(self.rows, np.int8)
            for parent in self.chain.parents(stage):
                found |= self.happened(parent) & self.would(stage, parent)
            self._happened[stage] = found
        return self._happened[stage]

    def expected(self, amount: str) -> Floats:
        """E[amount given its parent], which is that over all rows with these features too."""
        spread, value = self.knobs.value_spread, self.chain.value(amount)
        wish = self._wish(self.world.outcomes.index((value, amount)))
        found: Floats = self.knobs.value_mean * np.exp(spread * wish - spread**2 / 2)
        return found

    def amount(self, amount: str) -> pa.Array:
        """The amount, null where its parent did not happen."""
        noise = self.knobs.value_noise
        random = self.world.random(*self.path, "amount", amount).standard_normal(self.rows)
        drawn = self.expected(amount) * np.exp(noise * random - noise**2 / 2)
        return pa.array(drawn, mask=self.happened(self.chain.value(amount).parent) == 0)

    def expected_anywhere(self, amount: str) -> Floats:
        """E[amount], 0 where its parent does not happen, given the features."""
        parent = self.chain.value(amount).parent
        return self.expected(amount) * (1.0 if parent == self.chain.root else self.marginal(parent))

    def marginal(self, stage: str) -> Floats:
        """P(stage) given the features."""
        return self._means[0][stage]

    def conditional(self, stage: str, parent: str) -> Floats:
        """P(stage given parent) given the features."""
        reached, both, _ = self._means
        return both[stage, parent] / reached[parent]

    def forced(self, stage: str, parent: str) -> Floats:
        """P(stage given do parent) given the features."""
        return self._means[2][stage, parent]

    @cached_property
    def _means(self) -> tuple[dict[str, Floats], dict[Step, Floats], dict[Step, Floats]]:
        """E[P(v)], E[P(u) P(v | u)] and E[P(v | u)] over h."""
        reached: dict[str, Floats] = {}
        both: dict[Step, Floats] = {}
        alone: dict[Step, Floats] = {}
        for hidden, weight in _nodes(self.knobs.gamma):
            p, given = self._at(hidden)
            _add(reached, weight, p)
            _add(both, weight, {(stage, parent): p[parent] * share for (stage, parent), share in given.items()})
            _add(alone, weight, given)
        return reached, both, alone

    def _at(self, hidden: Floats | float) -> tuple[dict[str, Floats], dict[Step, Floats]]:
        """P(stage), and P(stage | parent) of every step, at h."""
        shares = {t: self.shares(t, hidden) for t in self.chain.transitions}
        classes = (
            (t, stage, share) for t, found in shares.items() for stage, share in zip(t.classes, found, strict=True)
        )
        given = {(stage, t.parent): share for t, stage, share in classes if stage is not None}
        return _forward(self.chain, self.rows, lambda t, _: shares[t]), given


class _Past(Impressions):
    """Impressions of some users before the log begins, `PAST` of each."""

    def __init__(self, world: World, first: int, users: int) -> None:
        super().__init__(world, ("past", first), users * PAST)
        self.first = first

    @cached_property
    def user(self) -> Ints:
        return self.first + np.arange(self.rows) // PAST

    def kept(self) -> tuple[Ints, Ints]:
        """The items of every user's last first stages, and their number."""
        done = self.happened(self.world.outcomes[0][1]).reshape(-1, PAST)
        late = done[:, ::-1].cumsum(axis=1)[:, ::-1] <= LONGEST  # at most so many from here on
        kept = (done == 1) & late
        return self.item.reshape(-1, PAST)[kept], kept.sum(axis=1)


def _forward(chain: Chain, rows: int, shares_of: Callable[[Transition, Floats], Floats]) -> dict[str, Floats]:
    """P(stage) of every stage, (rows,). shares_of: (transition, P(parent)) to (classes, rows)."""
    found = {chain.root: np.ones(rows)}
    for transition in chain.transitions:
        reached = found[transition.parent]
        for stage, share in zip(transition.classes, shares_of(transition, reached), strict=True):
            if stage is not None:
                found[stage] = found.get(stage, 0.0) + reached * share
    return found


def _add(sums: dict[Name, Floats], weight: float, values: Mapping[Name, Floats]) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + weight * value


def _nodes(gamma: float) -> Iterator[tuple[float, float]]:
    """Values of h with their weights; one is enough where h has no effect."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(max(1, NODES * math.ceil(gamma)))
    return zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True)


def number_of(*path: object) -> int:
    """128 bits that belong to this path and to no other."""
    return int.from_bytes(hashlib.blake2b(repr(path).encode(), digest_size=16).digest(), "big")


def _index(random: Floats, number: int) -> Ints:
    """[0, 1) to 0 .. number - 1."""
    return (random * number).astype(np.int64)


def _standardised(columns: Floats) -> Floats:
    """Each column to mean 0 and deviation 1, so that groups, being few, differ as much in every world."""
    return np.asarray((columns - columns.mean(0)) / columns.std(0))


def _softmax(logits: Floats) -> Floats:
    """(outcomes, rows) to (outcomes + 1, rows), the last being the rest, whose logit is 0."""
    logits = np.concatenate([logits, np.zeros((1, logits.shape[1]))])
    powers = np.exp(logits - logits.max(0))
    return np.asarray(powers / powers.sum(0))


def _solve(logits: Floats, weights: Floats, rates: Floats) -> Floats:
    """The intercepts, (outcomes,), at which the weighted mean of the shares is `rates`.

    The mean's log-odds against the rest follow an intercept by less than all of its step, since rows differ; so adding to it what
    they lack comes closer every time.
    """
    wanted = np.log(rates / (1 - rates.sum()))
    found, step = wanted, np.ones(1)
    while np.abs(step).max() > 1e-10:
        means = _softmax(logits + found[:, None]) @ weights
        step = wanted - np.log(means[:-1] / means[-1])
        found = found + step
    return np.asarray(found)
