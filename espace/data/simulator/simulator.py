"""The reader of a simulated world (`espace.data.simulator.world`): rows of any chain with known true probabilities.

`true_*` are the probabilities of a row given its features. `potential_<stage>` is drawn for EVERY row: what would
follow if its parent were reached. Its mean is P(stage given do parent) over all rows with these features, and P(stage
given parent) over those that reached the parent; the label is it where they did, else 0. Of a value the label is an
amount, null where its parent did not happen, and `true_*` its expectation.

`history` has the items of which the user did the first stage before the log begins, oldest first: the last 50 of these
among 128 impressions of the same world. `history_category` has their categories.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from functools import lru_cache
from typing import Literal, TypeGuard, get_args, get_origin, get_type_hints

import pyarrow as pa

import espace
from espace.chain.chain import Chain
from espace.data.reading.readers import Piece
from espace.data.simulator.arithmetic import number_of
from espace.data.simulator.knobs import Count, Knobs, Rate
from espace.data.simulator.world import Impressions, World
from espace.errors import ChainError, ConfigError, DataError, did_you_mean

Column = tuple[str, tuple[str, ...]]  # a method of `Impressions` and what to ask it about

_FEATURES = ("row", "user_id", "item_id", "user_group", "item_category", "context")
_LISTS = ("history", "history_category")
MOST_PIECES, MOST_NUMBERS = 2**20, 2**30  # of one source; that a world keeps of its users and items
_DRAWS = ("user", "item", "hidden")  # a stage called like one of these would be drawn with its random numbers


@dataclass(unsafe_hash=True)
class Simulator(Knobs):
    """A reader of rows that it makes up; `source` is their number.

    A piece depends on the options, the split and its index alone, and stays the same when the split gets more rows. The
    world behind it depends on neither split nor exposure, and the random numbers of a chain are the same whatever the
    other knobs are. At the defaults the truth itself reaches an AUC of 0.785 for clicks, 0.774 for conversions among
    the clicks and 0.786 for potential conversions among all rows.

    Raises ConfigError for options out of range, all at once, and DataError when `source` is not a number of rows.
    """

    source: int
    split: str
    _: KW_ONLY
    exposure: Literal["logged", "uniform"] = "logged"  # uniform: every pair of user and item alike, in the same world
    piece_rows: Count = 65_536  # rows held in memory at a time

    schema: pa.Schema = field(init=False, repr=False, compare=False)
    pieces: Sequence[Piece] = field(init=False, repr=False, compare=False)
    fingerprint: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _is_whole(self.source) or self.source < 1:
            raise DataError(
                f"data.{self.split}: {self.source!r} is not a number of rows. The simulator reads no file; write how"
                f" many rows it shall make, as in {self.split}: 100000."
            )
        if problems := list(_problems(self)):
            raise ConfigError(problems)
        chain = Chain.parse(self.chain)
        self.chain = tuple(chain.lines())
        self._columns = _columns(chain)
        self.schema = pa.schema([(name, _type_of(name, method)) for name, (method, _) in self._columns.items()])
        self.pieces = tuple(
            Piece(f"simulator, {self.split}", index, min(self.piece_rows, self.source - start))
            for index, start in enumerate(range(0, self.source, self.piece_rows))
        )
        self.fingerprint = f"{number_of('simulator 2', self):032x}"

    def read(self, piece: Piece, columns: Sequence[str]) -> pa.Table:
        """The named columns of one piece, in the order of the schema; only what they need is computed.

        Raises DataError for a name that is not in the schema.
        """
        for name in columns:
            if name not in self._columns:
                raise DataError(f"{piece}: there is no column '{name}'.{did_you_mean(name, self._columns)}")
        world = _world(Knobs(**{knob.name: getattr(self, knob.name) for knob in fields(Knobs)}))
        path, start = ("rows", self.split, piece.index), piece.index * self.piece_rows
        rows = Impressions(world, path, piece.rows, start, uniform=self.exposure == "uniform")
        schema = pa.schema([field for field in self.schema if field.name in columns])
        found = [_ask(rows, *self._columns[name]) for name in schema.names]
        return pa.table([c if isinstance(c, pa.Array) else pa.array(c) for c in found], schema=schema)


@lru_cache(maxsize=2)
def _world(knobs: Knobs) -> World:
    return World(knobs)


def _ask(rows: Impressions, method: str, about: tuple[str, ...]) -> object:
    """A column, an Arrow or a numpy array."""
    found = getattr(rows, method)
    return found(*about) if about else found


def _type_of(name: str, method: str) -> pa.DataType:
    if name in _LISTS:
        return pa.list_(pa.int64())
    if name in _FEATURES:
        return pa.int64()
    return pa.int8() if method in ("happened", "would") else pa.float64()


def _columns(chain: Chain) -> dict[str, Column]:
    """Every column by name. Of two with one name the latter stays; `_chain_problems` refuses such chains."""
    return dict([*_given(_FEATURES), *_of_chain(chain), *_given(_LISTS)])


def _given(names: Sequence[str]) -> Iterator[tuple[str, Column]]:
    return ((name, (name, ())) for name in names)


def _of_chain(chain: Chain) -> Iterator[tuple[str, Column]]:
    """Labels, potential outcomes, truths."""
    for stage in chain.labelled:
        yield stage, ("happened", (stage,))
    parents = {s: [p for p in chain.parents(s) if p != chain.root] for s in chain.stages[1:]}
    for stage, found in parents.items():
        for parent in found:
            name = f"{stage}_given_{parent}" if len(found) > 1 else stage
            yield f"potential_{name}", ("would", (stage, parent))
    for stage, found in parents.items():
        yield from ((f"true_{stage}_given_{p}", ("conditional", (stage, p))) for p in found)
        yield f"true_{stage}", ("marginal", (stage,))
        yield from ((f"true_{stage}_given_do_{p}", ("forced", (stage, p))) for p in found)
    for v in chain.values:
        yield v.amount, ("amount", (v.amount,))
    for name, (amount, given) in chain.expectations.items():
        yield f"true_{name}", ("expected" if given else "expected_anywhere", (amount,))


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


_SIGNS = (("ge", ">=", operator.ge), ("gt", ">", operator.gt), ("le", "<=", operator.le), ("lt", "<", operator.lt))


def _problems(options: Simulator) -> Iterator[str]:
    """Options that are not what their type says. A YAML file is checked before; this is for those who write Python."""
    hints = get_type_hints(Simulator, include_extras=True)
    for option in (f for f in fields(options) if f.init and f.kw_only and f.name not in ("chain", "rates")):
        value, hint = getattr(options, option.name), hints[option.name]
        wanted = _mismatch(value, hint)
        if wanted:
            yield f"data.{option.name}: {value!r} is not {wanted}. Write one, or leave it out for {option.default!r}."
    try:
        chain = Chain.parse(options.chain)
    except ChainError as error:
        yield f"data.{error}"
    else:
        yield from _size_problems(options, chain)
        yield from _names_taken(chain)
        yield from _rate_problems(options, chain)


def _size_problems(options: Simulator, chain: Chain) -> Iterator[str]:
    """What no memory holds."""
    whole = (options.users, options.items, options.latent, options.piece_rows)
    if not all(_is_whole(n) and n >= 1 for n in whole):
        return  # which is told
    outcomes = sum(len(t.outcomes) for t in chain.heads)
    numbers = max((options.users + options.items) * options.latent, options.piece_rows) * outcomes
    if numbers > MOST_NUMBERS:
        yield (
            f"data.users, items, latent and piece_rows: {options.users:,} users and {options.items:,} items of"
            f" {options.latent:,} numbers each, for {outcomes} outcomes, or {options.piece_rows:,} rows at a time are"
            f" more than {MOST_NUMBERS:,} numbers. Make them fewer."
        )
    if options.source > MOST_PIECES * options.piece_rows:
        yield (
            f"data.{options.split}: {options.source:,} rows are more than {MOST_PIECES:,} times the"
            f" {options.piece_rows:,} of data.piece_rows. Make them fewer."
        )


def _mismatch(value: object, hint: object) -> str | None:
    """What the type wants, if the value is not that."""
    if get_origin(hint) is Literal:
        return None if value in get_args(hint) else " or ".join(map(repr, get_args(hint)))
    kind, *bounds = get_args(hint)
    limits = [(sign, holds, getattr(b, name)) for b in bounds for name, sign, holds in _SIGNS if hasattr(b, name)]
    if (_is_whole(value) or (kind is float and isinstance(value, float))) and all(
        holds(value, limit) for _, holds, limit in limits
    ):
        return None
    name = "a whole number" if kind is int else "a number"
    return f"{name} {' and '.join(f'{sign} {limit}' for sign, _, limit in limits)}"


def _names_taken(chain: Chain) -> Iterator[str]:
    names = Counter([*_FEATURES, *_LISTS, *_DRAWS, *(name for name, _ in _of_chain(chain))])
    for name in (n for n, number in names.items() if number > 1):
        yield f"data.chain: '{name}' would be two things in the simulator. Call the stage otherwise."


def _rate_problems(options: Simulator, chain: Chain) -> Iterator[str]:
    rates = options.rates or {}
    known = [
        name
        for name, (stage, given) in chain.addresses.items()
        if stage not in chain.otherwise and (given or chain.parents(stage) == (chain.root,))
    ]
    for name, rate in rates.items():
        if name not in known:
            yield f"data.rates: '{name}' is no rate of one step of the chain.{did_you_mean(name, known)}"
        elif wanted := _mismatch(rate, Rate):
            yield f"data.rates.{name}: {rate!r} is not {wanted}."
    for t in chain.transitions:
        total = sum(options.rate(chain, t, outcome) for outcome in t.outcomes)
        if len(t.outcomes) > 1 and total >= 1:
            yield (
                f"data.rates: those of {t} sum to {total:g}, and none is left for {t.otherwise or 'nothing'}."
                " Give lower ones."
            )


@espace.hookimpl
def register_readers(register: espace.Register[espace.Reader]) -> None:
    """The simulator by its name."""
    register("simulator", Simulator)
