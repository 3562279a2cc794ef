"""A simulated advertising funnel whose truth is known: impression -> click -> conversion.

    s_c = A_u . B_i / sqrt(latent) + a_u + b_i + context          the wish to click
    s_o = the same with traits of its own                         what a wish to convert has besides
    s_v = rho z_c + sqrt(1 - rho^2) z_o + delta 1[b_i < 0] A_u1 B'_i1
    p   = sigmoid(kappa z_c + gamma h + c0)                       h ~ N(0, 1) is hidden: no column holds it
    q   = sigmoid(tau s_v + gamma h + v0)

z_c is s_c standardised over logged impressions; z_o is s_o made uncorrelated with z_c, and standardised. c0 and v0 are
solved so that E[p] = click_rate and E[q | click] = conversion_rate there.

Two estimands are called "conversion rate". With means over the hidden h at given features,

    true_conversion_given_click      q_x  = E[p q] / E[p]   among those who click: what a chain learns from logs
    true_conversion_given_do_click   q_do = E[q]            if everyone were made to click

and gamma = 0 makes them one. `potential_conversion` is drawn from q at the row's own h, for EVERY impression: its mean
is q_do over all impressions with these features, and q_x over the clicked ones. `conversion` is it where there is a
click, else 0.

`history` has the items that the user clicked before the log begins, oldest first: the last 50 clicks among 128 impressions
of the same world. `history_category` has their categories.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Gt, Le, Lt
from numpy.typing import NDArray

import espace
from espace.data.lists import offsets_of
from espace.data.readers import Piece
from espace.errors import ConfigError, DataError, did_you_mean

Bits = NDArray[np.int8]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Count = Annotated[int, Ge(1)]
Rate = Annotated[float, Gt(0), Lt(1)]
Spread = Annotated[float, Ge(0), Le(5)]
Skew = Annotated[float, Ge(0), Le(5)]

GROUPS, CONTEXTS = 16, 8
USER_BIAS, ITEM_BIAS, CONTEXT_BIAS = 0.7, 1.0, 0.5  # deviations; the interaction has 1
CALIBRATION_ROWS = 2**17
NODES = 15  # of Gauss-Hermite quadrature over h, for each unit of gamma: q_x is exact to 1e-4 or better
CLICK, OWN = 0, 1  # the two scores s_c and s_o
PAST, LONGEST = 128, 50  # impressions of every user before the log begins; clicks among them that a history keeps
USERS_AT_ONCE = 4_096

_COLUMNS = {
    pa.int64(): ("row", "user_id", "item_id", "user_group", "item_category", "context"),
    pa.int8(): ("click", "conversion", "potential_conversion"),
    pa.float64(): ("true_click", "true_conversion_given_click", "true_conversion", "true_conversion_given_do_click"),
    pa.list_(pa.int64()): ("history", "history_category"),
}
SCHEMA = pa.schema([(name, kind) for kind, names in _COLUMNS.items() for name in names])


@dataclass(unsafe_hash=True)
class Simulator:
    """A reader of rows that it makes up; `source` is their number.

    A piece depends on the options, the split and its index alone, and stays the same when the split gets more rows. The
    world behind it depends on neither split nor exposure, and its random numbers are the same whatever the knobs are.
    At the defaults the truth itself reaches an AUC of 0.785 for clicks, 0.774 for conversions among the clicks and 0.786
    for potential conversions among all rows.

    Raises ConfigError for options out of range, all at once, and DataError when `source` is not a number of rows.
    """

    source: int
    split: str
    _: KW_ONLY
    seed: Annotated[int, Ge(0)] = 0  # of the world and of the rows
    users: Count = 5_000
    items: Count = 2_000
    rho: Annotated[float, Ge(-1), Le(1)] = 0.5  # correlation of the wish to click and the wish to convert
    kappa: Spread = 1.2  # deviation of the logits of click: how far clicked rows differ from all rows
    tau: Spread = 1.2  # deviation of the logits of conversion
    gamma: Annotated[float, Ge(0), Le(3)] = 0.0  # a hidden common cause of click and conversion
    delta: Annotated[float, Ge(-3), Le(3)] = 0.0  # a rule of conversion that holds only for items seldom clicked
    click_rate: Rate = 0.1  # over logged impressions
    conversion_rate: Rate = 0.15  # over the clicks among them
    user_skew: Skew = 0.6  # exponent of Zipf's law by which users are seen; 0 is uniform
    item_skew: Skew = 0.8
    latent: Count = 4  # dimensions of the interaction of users and items
    group_share: Annotated[float, Ge(0), Le(1)] = 0.5  # of a trait's variance, from user_group or item_category
    exposure: Literal["logged", "uniform"] = "logged"  # uniform: every pair of user and item alike, in the same world
    piece_rows: Count = 65_536  # rows held in memory at a time

    schema: pa.Schema = field(init=False, repr=False, compare=False)
    pieces: Sequence[Piece] = field(init=False, repr=False, compare=False)
    fingerprint: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _is_whole(self.source) or self.source < 1:
            raise DataError(
                f"data.{self.split}: {self.source!r} is not a number of rows. The simulator reads no file; write how many"
                f" rows it shall make, as in {self.split}: 100000."
            )
        if problems := list(_problems(self)):
            raise ConfigError(problems)
        self.schema = SCHEMA
        self.pieces = tuple(
            Piece(f"simulator, {self.split}", index, min(self.piece_rows, self.source - start))
            for index, start in enumerate(range(0, self.source, self.piece_rows))
        )
        self.fingerprint = f"{_number('simulator 1', self):032x}"

    def read(self, piece: Piece, columns: Sequence[str]) -> pa.Table:
        """The named columns of one piece, in the order of the schema; only what they need is computed.

        Raises DataError for a name that is not in the schema.
        """
        for name in columns:
            if name not in SCHEMA.names:
                raise DataError(f"{piece}: there is no column '{name}'.{did_you_mean(name, SCHEMA.names)}")
        # What the world must not depend on is made the same for all, and so cannot reach it.
        world = _world(replace(self, source=1, split="", exposure="logged", piece_rows=1))
        path, start = ("rows", self.split, piece.index), piece.index * self.piece_rows
        rows = _Impressions(world, path, piece.rows, start, uniform=self.exposure == "uniform")
        schema = pa.schema([field for field in SCHEMA if field.name in columns])
        found = [getattr(rows, name) for name in schema.names]
        return pa.table([c if isinstance(c, pa.Array) else pa.array(c) for c in found], schema=schema)


@dataclass(frozen=True)
class Traits:
    """What every user, or every item, is like, for each of the two scores."""

    group: Ints  # (number,)
    seen: Floats  # (number,) cumulative shares of the impressions, in no order of size
    vectors: Floats  # (scores, number, latent)
    biases: Floats  # (scores, number)


class World:
    """Users, items and contexts, how they wish and how easily they act on it."""

    def __init__(self, knobs: Simulator) -> None:
        self.knobs = knobs
        self.users = self._traits("user", knobs.users, knobs.user_skew, USER_BIAS)
        self.items = self._traits("item", knobs.items, knobs.item_skew, ITEM_BIAS)
        of_context = _standardised(self.random("context").standard_normal((CONTEXTS, 2)))
        self.contexts = CONTEXT_BIAS * of_context.T  # (scores, contexts)
        self._calibrate(_Impressions(self, ("calibration",), CALIBRATION_ROWS))

    def random(self, *path: object) -> np.random.Generator:
        """Random numbers that belong to this path and to no other."""
        return np.random.Generator(np.random.Philox(_number(self.knobs.seed, *path)))

    def _traits(self, kind: str, number: int, skew: float, bias: float) -> Traits:
        share, latent = self.knobs.group_share, self.knobs.latent
        group = _index(self.random(kind, "group").random(number), GROUPS)

        def normal(name: str, columns: int) -> Floats:
            of_group = _standardised(self.random(kind, name, "of group").standard_normal((GROUPS, columns)))
            own = self.random(kind, name, "own").standard_normal((number, columns))
            mixed: Floats = np.sqrt(share) * of_group[group] + np.sqrt(1 - share) * own
            return mixed

        vectors = np.stack([normal("click", latent), normal("own", latent)])
        seen = np.cumsum((1.0 + self.random(kind, "rank").permutation(number)) ** -skew)
        return Traits(group, seen / seen[-1], vectors, bias * normal("bias", 2).T)

    def score(self, which: int, user: Ints, item: Ints, context: Ints) -> Floats:
        """s_c or s_o, (rows,)."""
        users, items = self.users, self.items
        score: Floats = np.einsum("nk,nk->n", users.vectors[which][user], items.vectors[which][item])
        score /= np.sqrt(self.knobs.latent)
        score += users.biases[which][user] + items.biases[which][item] + self.contexts[which][context]
        return score

    def rule(self, user: Ints, item: Ints) -> Floats:
        """1[b_i < 0] A_u1 B'_i1, (rows,)."""
        product: Floats = self.users.vectors[CLICK][user, 0] * self.items.vectors[OWN][item, 0]
        return np.where(self.items.biases[CLICK][item] < 0, product, 0.0)

    @cached_property
    def histories(self) -> tuple[Ints, Ints]:
        """Items that users clicked before the log, user after user, (clicks,), and where each user's begin, (users + 1,)."""
        number = len(self.users.seen)
        parts = [_Past(self, first, min(USERS_AT_ONCE, number - first)) for first in range(0, number, USERS_AT_ONCE)]
        items, lengths = zip(*(part.clicked() for part in parts), strict=True)
        return np.concatenate(items), offsets_of(np.concatenate(lengths))

    def _calibrate(self, rows: _Impressions) -> None:
        """Set what the wishes are standardised by, then the intercepts."""
        knobs, cause = self.knobs, self.knobs.gamma * rows.hidden
        self.click_scale = rows.click_score.mean(), rows.click_score.std()
        slope = np.mean(rows.click_wish * rows.own_score)
        self.own_scale = rows.own_score.mean(), slope, (rows.own_score - slope * rows.click_wish).std()
        click = knobs.kappa * rows.click_wish + cause
        self.click_intercept = _solve(lambda c: _sigmoid(click + c).mean() - knobs.click_rate)
        p = _sigmoid(click + self.click_intercept)
        convert = knobs.tau * rows.conversion_wish + cause
        clicked = knobs.conversion_rate * p.mean()
        self.conversion_intercept = _solve(lambda v: (p * _sigmoid(convert + v)).mean() - clicked)


class _Impressions:
    """Some impressions and what comes of them; every column is computed when it is first asked for, (rows,)."""

    def __init__(
        self, world: World, path: tuple[object, ...], rows: int, start: int = 0, *, uniform: bool = False
    ) -> None:
        self.world, self.knobs, self.uniform = world, world.knobs, uniform
        self.path, self.rows, self.start = path, rows, start

    def _random(self, name: str) -> Floats:
        """In [0, 1). Fewer rows get the first of them."""
        return self.world.random(*self.path, name).random(self.rows)

    def _choose(self, kind: str, traits: Traits) -> Ints:
        random = self._random(kind)
        return _index(random, len(traits.seen)) if self.uniform else np.searchsorted(traits.seen, random, side="right")

    @cached_property
    def row(self) -> Ints:
        return np.arange(self.start, self.start + self.rows)

    @cached_property
    def user(self) -> Ints:
        return self._choose("user", self.world.users)

    @cached_property
    def item(self) -> Ints:
        return self._choose("item", self.world.items)

    @cached_property
    def context(self) -> Ints:
        return _index(self._random("context"), CONTEXTS)

    @cached_property
    def hidden(self) -> Floats | float:
        """h; 0 where it has no effect."""
        return self.world.random(*self.path, "hidden").standard_normal(self.rows) if self.knobs.gamma else 0.0

    @property
    def user_id(self) -> Ints:
        return self.user + 1

    @property
    def item_id(self) -> Ints:
        return self.item + 1

    @property
    def user_group(self) -> Ints:
        return self.world.users.group[self.user]

    @property
    def item_category(self) -> Ints:
        return self.world.items.group[self.item]

    @cached_property
    def history(self) -> pa.ListArray:
        """As in the schema."""
        items, starts = self.world.histories
        lengths = np.diff(starts)[self.user]
        offsets = offsets_of(lengths)
        events = np.arange(offsets[-1]) + np.repeat(starts[self.user] - offsets[:-1], lengths)
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(items[events] + 1))

    @property
    def history_category(self) -> pa.ListArray:
        """As in the schema."""
        groups = self.world.items.group[self.history.flatten().to_numpy() - 1]
        return pa.ListArray.from_arrays(self.history.offsets, pa.array(groups))

    @cached_property
    def click_score(self) -> Floats:
        """s_c."""
        return self.world.score(CLICK, self.user, self.item, self.context)

    @cached_property
    def own_score(self) -> Floats:
        """s_o."""
        return self.world.score(OWN, self.user, self.item, self.context)

    @cached_property
    def click_wish(self) -> Floats:
        """z_c."""
        mean, deviation = self.world.click_scale
        wish: Floats = (self.click_score - mean) / deviation
        return wish

    @cached_property
    def conversion_wish(self) -> Floats:
        """s_v."""
        rho, (mean, slope, deviation) = self.knobs.rho, self.world.own_scale
        own = (self.own_score - mean - slope * self.click_wish) / deviation
        wish: Floats = rho * self.click_wish + np.sqrt(1 - rho**2) * own
        if self.knobs.delta:
            wish += self.knobs.delta * self.world.rule(self.user, self.item)
        return wish

    def _click(self, hidden: Floats | float) -> Floats:
        """p at h."""
        visible = self.knobs.kappa * self.click_wish + self.world.click_intercept
        return _sigmoid(visible + self.knobs.gamma * hidden)

    def _convert(self, hidden: Floats | float) -> Floats:
        """q at h."""
        visible = self.knobs.tau * self.conversion_wish + self.world.conversion_intercept
        return _sigmoid(visible + self.knobs.gamma * hidden)

    @cached_property
    def click(self) -> Bits:
        return (self._random("click") < self._click(self.hidden)).astype(np.int8)

    @cached_property
    def potential_conversion(self) -> Bits:
        return (self._random("conversion") < self._convert(self.hidden)).astype(np.int8)

    @property
    def conversion(self) -> Bits:
        return self.click * self.potential_conversion

    @property
    def true_click(self) -> Floats:
        """p_x."""
        p, _, _ = self._means
        return p

    @property
    def true_conversion_given_click(self) -> Floats:
        """q_x."""
        p, _, both = self._means
        return both / p

    @property
    def true_conversion(self) -> Floats:
        """p_x q_x."""
        _, _, both = self._means
        return both

    @property
    def true_conversion_given_do_click(self) -> Floats:
        """q_do."""
        _, q, _ = self._means
        return q

    @cached_property
    def _means(self) -> tuple[Floats, Floats, Floats]:
        """E[p], E[q] and E[p q] over h."""
        p, q, both = np.zeros(self.rows), np.zeros(self.rows), np.zeros(self.rows)
        for hidden, weight in _nodes(self.knobs.gamma):
            click, convert = self._click(hidden), weight * self._convert(hidden)
            p += weight * click
            q += convert
            both += click * convert
        return p, q, both


class _Past(_Impressions):
    """Impressions of some users before the log begins, `PAST` of each."""

    def __init__(self, world: World, first: int, users: int) -> None:
        super().__init__(world, ("past", first), users * PAST)
        self.first = first

    @cached_property
    def user(self) -> Ints:
        return self.first + np.arange(self.rows) // PAST

    def clicked(self) -> tuple[Ints, Ints]:
        """The items of every user's last clicks, and their number."""
        clicks = self.click.reshape(-1, PAST)
        late = clicks[:, ::-1].cumsum(axis=1)[:, ::-1] <= LONGEST  # at most so many clicks from here on
        kept = (clicks == 1) & late
        return self.item.reshape(-1, PAST)[kept], kept.sum(axis=1)


def _nodes(gamma: float) -> Iterator[tuple[float, float]]:
    """Values of h with their weights; one is enough where h has no effect."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(max(1, NODES * math.ceil(gamma)))
    return zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True)


@lru_cache(maxsize=2)
def _world(knobs: Simulator) -> World:
    return World(knobs)


def _number(*path: object) -> int:
    """128 bits that belong to this path and to no other."""
    return int.from_bytes(hashlib.blake2b(repr(path).encode(), digest_size=16).digest(), "big")


def _index(random: Floats, number: int) -> Ints:
    """[0, 1) to 0 .. number - 1."""
    return (random * number).astype(np.int64)


def _standardised(columns: Floats) -> Floats:
    """Each column to mean 0 and deviation 1, so that groups, being few, differ as much in every world."""
    return np.asarray((columns - columns.mean(0)) / columns.std(0))


def _sigmoid(logit: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-logit)))


def _solve(rising: Callable[[float], float]) -> float:
    """The root, by bisection."""
    low, high = -500.0, 500.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return high


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_SIGNS = (("ge", ">=", operator.ge), ("gt", ">", operator.gt), ("le", "<=", operator.le), ("lt", "<", operator.lt))


def _problems(options: Simulator) -> Iterator[str]:
    """Options that are not what their type says. A YAML file is checked before; this is for those who write Python."""
    hints = get_type_hints(Simulator, include_extras=True)
    for option in (f for f in fields(options) if f.init and f.kw_only):
        value, hint = getattr(options, option.name), hints[option.name]
        wanted = _mismatch(value, hint)
        if wanted:
            yield f"data.{option.name}: {value!r} is not {wanted}. Write one, or leave it out for {option.default!r}."


def _mismatch(value: Any, hint: Any) -> str | None:
    """What the type wants, if the value is not that."""
    if get_origin(hint) is Literal:
        return None if value in get_args(hint) else " or ".join(map(repr, get_args(hint)))
    kind, *bounds = get_args(hint)
    limits = [(sign, holds, getattr(b, name)) for b in bounds for name, sign, holds in _SIGNS if hasattr(b, name)]
    fits = _is_whole(value) or (kind is float and isinstance(value, float))
    if fits and all(holds(value, limit) for _, holds, limit in limits):
        return None
    name = "a whole number" if kind is int else "a number"
    return f"{name} {' and '.join(f'{sign} {limit}' for sign, _, limit in limits)}"


@espace.hookimpl
def register_readers(register: espace.Register) -> None:
    """The simulator by its name."""
    register("simulator", Simulator)
