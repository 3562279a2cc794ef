"""A simulated world whose truth is known: users and items, what they wish, and what follows in any chain.

    s_0 = A_u . B_i / sqrt(latent) + a_u + b_i + context          the wish for the first stage
    s_n = the same with traits of its own                         what the n-th outcome of the chain has besides
        (with `transfer`, part of A is that of the stage before, and of B a turn of what it was there)
    w_0 = z_0,   w_n = rho z_0 + sqrt(1 - rho^2) z_n + delta 1[b_i < 0] A_u1 B'_i1

and at every transition, with h ~ N(0, 1) hidden, for which there is no column,

    P(outcome n | parent) = softmax( deviation w_n + gamma h + c_n for every outcome, 0 for else or nothing )

which for one outcome is a sigmoid. z_0 is s_0 standardised over logged impressions; z_n is s_n made uncorrelated with
z_0, and standardised. The deviation is kappa for what follows the root and tau for the rest. c_n are solved so that the
mean of P(outcome | parent) over logged impressions, each counted by its P(parent), is the rate asked for.

Two estimands are called "conversion rate". With means over the hidden h at given features,

    P(v given u)      E[ P(u) P(v | u) ] / E[ P(u) ]     among those who reach u: what a chain learns from logs
    P(v given do u)   E[ P(v | u) ]                      if everyone were made to

and gamma = 0 makes them one. A value has a wish w like every other outcome. Where its parent happened, its amount is

    x = E[x] exp( noise e - noise^2 / 2 ),   E[x] = mean exp( spread w - spread^2 / 2 ),   e ~ N(0, 1)
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pyarrow as pa

from espace.chain.chain import Chain
from espace.chain.grammar import Transition
from espace.data.reading.lists import offsets_of
from espace.data.simulator.arithmetic import (
    Bits,
    Floats,
    Ints,
    add,
    forward,
    index,
    nodes,
    random_of,
    softmax,
    solve,
    standardised,
)
from espace.data.simulator.knobs import Knobs
from espace.data.simulator.traits import Traits, sources_of

Step = tuple[str, str]  # a stage and its parent

CONTEXTS = 8
USER_BIAS, ITEM_BIAS, CONTEXT_BIAS = 0.7, 1.0, 0.5  # deviations; the interaction has 1
CALIBRATION_ROWS = 2**17
PAST, LONGEST = 128, 50  # impressions of every user before the log begins; first stages among them that a history keeps
USERS_AT_ONCE = 4_096


class World:
    """Users, items and contexts, how they wish and how easily they act on it."""

    def __init__(self, knobs: Knobs) -> None:
        self.knobs, self.chain = knobs, Chain.parse(knobs.chain)
        self.outcomes = [(t, outcome) for t in self.chain.heads for outcome in t.outcomes]
        sources = sources_of(self.chain)
        self.users = Traits.drawn(knobs, sources, "user", knobs.users, knobs.user_skew, USER_BIAS)
        self.items = Traits.drawn(knobs, sources, "item", knobs.items, knobs.item_skew, ITEM_BIAS)
        of_context = standardised(self.random("context").standard_normal((CONTEXTS, len(self.outcomes))))
        self.contexts = CONTEXT_BIAS * of_context.T  # (scores, contexts)
        self.scales: list[
            tuple[float, float, float]
        ] = []  # of each score: mean, slope against z_0, deviation of the rest
        self.intercepts: dict[Transition, Floats] = {}  # (outcomes, 1)
        self._calibrate(Impressions(self, ("calibration",), CALIBRATION_ROWS))

    def random(self, *path: object) -> np.random.Generator:
        """Random numbers that belong to this path and to no other."""
        return random_of(self.knobs.seed, *path)

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
        """Items of which users did the first stage before the log, user after user, (events,), and where each user's
        begin, (users + 1,)."""
        number = len(self.users.seen)
        parts = [_Past(self, first, min(USERS_AT_ONCE, number - first)) for first in range(0, number, USERS_AT_ONCE)]
        items, lengths = zip(*(part.kept() for part in parts), strict=True)
        return np.concatenate(items), offsets_of(np.concatenate(lengths))

    def _calibrate(self, rows: Impressions) -> None:
        """Set what the scores are standardised by, then the intercepts, parents first."""
        for n in range(len(self.outcomes)):
            score = rows.score(n)
            slope = float(np.mean(rows.standardised(0) * score)) if n else 0.0
            rest = score - slope * rows.standardised(0) if n else score
            self.scales.append((float(score.mean()), slope, float(rest.std())))

        def shares_of(transition: Transition, reached: Floats) -> Floats:
            rates = [self.knobs.rate(self.chain, transition, outcome) for outcome in transition.outcomes]
            logits = rows.wished(transition) + self.knobs.gamma * rows.hidden
            self.intercepts[transition] = solve(logits, reached, np.array(rates))[:, None]
            return rows.shares(transition, rows.hidden)

        forward(self.chain, rows.rows, shares_of)


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
        return index(random, len(traits.seen)) if self.uniform else np.searchsorted(traits.seen, random, side="right")

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
        return index(self._random("context"), CONTEXTS)

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
        return softmax(visible + self.knobs.gamma * hidden)

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
        for hidden, weight in nodes(self.knobs.gamma):
            p, given = self._at(hidden)
            add(reached, weight, p)
            add(both, weight, {(stage, parent): p[parent] * share for (stage, parent), share in given.items()})
            add(alone, weight, given)
        return reached, both, alone

    def _at(self, hidden: Floats | float) -> tuple[dict[str, Floats], dict[Step, Floats]]:
        """P(stage), and P(stage | parent) of every step, at h."""
        shares = {t: self.shares(t, hidden) for t in self.chain.transitions}
        classes = (
            (t, stage, share) for t, found in shares.items() for stage, share in zip(t.classes, found, strict=True)
        )
        given = {(stage, t.parent): share for t, stage, share in classes if stage is not None}
        return forward(self.chain, self.rows, lambda t, _: shares[t]), given


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
