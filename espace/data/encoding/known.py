"""How known labels stand for unknown ones, so that what is judged does not depend on which labels are known.

A label may be null, not known yet. Rows below a known 0 need no label; so if rows above it were simply left out where
theirs is null, what stays would have too few parents that happened. Two things can be done, and which one is right is
seen in how the nulls lie:

* at random in all rows alike: rows without a label are left out, whether their parent happened or not;
* in rows whose parent happened only, or more of them: a row whose label is known stands for 1 / q rows, q being the
  share known among the rows whose parent happened, of the same stratum where `data.known_by` names a column.

With t running over the transitions on the ways to a stage, a row counts with the product of

    1 where the parent of t did not happen      1[t known] / q_t where it did      0 where that is not known

q is the share of the row weights, so that known rows weigh as much as all whose parent happened, whatever the weights
have to do with what is known.

(Horvitz and Thompson, 1952). Its mean, given what happened, is 1 as long as which labels are known does not depend on
what they are, given what is known above them and the stratum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from espace.chain.chain import Chain
from espace.chain.grammar import Transition, Value
from espace.chain.labels import counted
from espace.data.encoding.labels import Column, Mask, Resolved, any_of
from espace.errors import DataError

Floats = NDArray[np.float64]
Share = tuple[str, str]  # what is known: a stage, a value, ANY or ALL; and the transition whose parent happened
ANY, ALL = "*any", "*all"
_SIGMAS = 4.0  # by which two shares of nulls have to differ before they are taken for two
_STRATA = 10_000


class PlainKnown(TypedDict):
    """`Known`, as JSON gives it back."""

    strata: list[str | None]
    shares: list[tuple[str, str, list[int], list[int], list[int], list[float], list[float]]]
    below: dict[str, tuple[int, int]]
    incomplete: int


@dataclass
class Known:
    """Rows whose labels are known, by stratum, over one part of the data: what `Counts` are made of.

    strata: the values of `data.known_by`, or one None.
    reached, known, happened: `{share: (strata,)}`, rows whose columns say that the parent happened; those of them in
    which it is known; those of the latter in which a stage happened; reached_weight, known_weight: what they weigh.
    below: `{stage: rows whose columns say that no parent happened, and those of them with a label}`.
    incomplete: rows in which a label or an amount is not known, or was null and follows from one below or beside it.
    """

    strata: list[str | None] = field(default_factory=list)
    reached: dict[Share, NDArray[np.int64]] = field(default_factory=dict)
    known: dict[Share, NDArray[np.int64]] = field(default_factory=dict)
    happened: dict[Share, NDArray[np.int64]] = field(default_factory=dict)
    reached_weight: dict[Share, Floats] = field(default_factory=dict)
    known_weight: dict[Share, Floats] = field(default_factory=dict)
    below: dict[str, tuple[int, int]] = field(default_factory=dict)
    incomplete: int = 0

    def add(self, chain: Chain, labels: Resolved, weights: Floats, by: pa.Array | None) -> None:
        """Count the rows of a weight above 0, (rows,).

        by: their values of `data.known_by`, text, (rows,), None without it.

        Raises DataError for a column with too many values.
        """
        rows, at, stay = _Rows(chain, labels), self._places(by, len(weights)), weights > 0
        for share, (reached, known) in rows.shares():
            told = reached & known
            one = told & (rows.of(share[0]) == 1) if share[0] in chain.stages else told
            for counts, mask in ((self.reached, reached), (self.known, told), (self.happened, one)):
                counts[share] = _sum(np.bincount(at[mask & stay], minlength=len(self.strata)), counts.get(share))
            for sums, mask in ((self.reached_weight, reached), (self.known_weight, told)):
                weighed = np.bincount(at[mask], weights[mask], len(self.strata)).astype(np.float64)  # int of no rows
                sums[share] = _sum(weighed, sums.get(share))
        for stage in chain.stages[1:]:
            parents = chain.parents(stage)
            told = np.logical_and.reduce([rows.told(p) for p in parents])
            below = stay & told & (any_of([rows.of(p) for p in parents]) == 0)
            before = self.below.get(stage, (0, 0))
            self.below[stage] = (before[0] + int(below.sum()), before[1] + int((below & rows.has(stage)).sum()))
        self.incomplete += int((stay & rows.incomplete).sum())

    def _places(self, by: pa.Array | None, rows: int) -> NDArray[np.int64]:
        """The place of each row's value among the strata, to which new ones are added."""
        if by is None:
            self.strata = [None]
            return np.zeros(rows, np.int64)
        found = by.dictionary_encode(null_encoding="encode")
        place = {value: n for n, value in enumerate(self.strata)}
        mapped = [place.setdefault(value, len(place)) for value in found.dictionary.to_pylist()]
        if len(place) > _STRATA:
            raise DataError(
                f"data.known_by: the column has more than {_STRATA:,} values, too many to tell by each how many labels"
                f" are"
                " known. Name one with fewer, such as whole days."
            )
        self.strata = list(place)
        places: NDArray[np.int64] = np.array(mapped, np.int64)[found.indices.to_numpy(zero_copy_only=False)]
        return places

    def share(self, what: str, transition: str) -> float:
        """Of the rows whose parent happened, those in which `what` is known; NaN without such rows."""
        reached = int(self.reached[what, transition].sum())
        return int(self.known[what, transition].sum()) / reached if reached else math.nan

    def rate(self, chain: Chain, stage: str, transition: Transition) -> float:
        """P(stage given the parent of a transition), known rows standing for unknown ones; NaN where none is known."""
        parents, shares = self._rows(chain, transition.parent), self._given(stage, transition)
        inside = (parents > 0) & ~np.isnan(shares)
        return float((parents * shares)[inside].sum() / parents[inside].sum()) if inside.any() else math.nan

    def _rows(self, chain: Chain, stage: str) -> Floats:
        """In how many rows a stage happened, known rows standing for unknown ones: (strata,)."""
        arrivals = chain.arrivals(stage)
        if not arrivals:
            first = chain.transitions[0]
            return self.reached[ALL, first.name].astype(np.float64)
        found = [self._rows(chain, t.parent) * np.nan_to_num(self._given(stage, t)) for t in arrivals]
        rows: Floats = np.add.reduce(found)
        return rows

    def _given(self, stage: str, transition: Transition) -> Floats:
        """P(stage given the parent) in each stratum, NaN where no label is known: (strata,)."""
        known, happened = self.known[stage, transition.name], self.happened[stage, transition.name]
        shares: Floats = np.where(known > 0, happened / np.maximum(known, 1), np.nan)
        return shares

    def marginal(self, chain: Chain, stage: str) -> float:
        """P(stage) over all rows, known rows standing for unknown ones; NaN without rows."""
        rows = self._rows(chain, chain.root).sum()
        return float(self._rows(chain, stage).sum() / rows) if rows else math.nan

    def at_random(self, chain: Chain, stage: str) -> bool:
        """Whether a null says nothing of whether a parent of the stage happened, as far as these rows tell."""
        if self.strata != [None]:
            return False
        if chain.parents(stage) == (chain.root,) or stage in chain.otherwise:
            return stage not in chain.otherwise  # what an else stage is depends on whether its parent happened
        below, told = self.below[stage]
        arrivals = [(stage, t.name) for t in chain.arrivals(stage)]
        pairs = [(int(self.reached[a].sum()), int(self.known[a].sum())) for a in arrivals]
        if told in (0, below) or all(known == reached for reached, known in pairs):
            return False
        if any(reached and not known for reached, known in pairs):
            return False
        return all(_alike((below, told), pair) for pair in pairs if pair[0])

    def counts(self, chain: Chain) -> Counts | None:
        """How rows are counted so that known labels stand for unknown ones; None where each counts once."""
        if not self.incomplete:
            return None
        stages = frozenset(s for s in chain.stages[1:] if self.at_random(chain, s))
        shares = {share: self.weighed(share) for share in self.reached}
        return Counts(tuple(self.strata), {s: tuple(q.tolist()) for s, q in shares.items()}, stages)

    def weighed(self, share: Share) -> Floats:
        """The share known of the weight of the rows whose parent happened, 1 without any: (strata,)."""
        reached, known = self.reached_weight[share], self.known_weight[share]
        found: Floats = np.divide(known, reached, out=np.ones_like(reached), where=reached > 0)
        return found

    def never(self) -> Iterator[tuple[str, str, str | None, int]]:
        """(what, transition, stratum, rows) wherever rows have no known one that could stand for them."""
        for (what, transition), reached in self.reached.items():
            known = self.known[what, transition]
            for place in np.flatnonzero((reached > 0) & (known == 0)).tolist():
                yield what, transition, self.strata[place], int(reached[place])

    def to_dict(self) -> PlainKnown:
        """Plain values, for JSON."""
        found = (self.reached, self.known, self.happened, self.reached_weight, self.known_weight)
        shares = [(*s, *(counts[s].tolist() for counts in found)) for s in self.reached]
        return {"strata": self.strata, "shares": shares, "below": self.below, "incomplete": self.incomplete}

    @classmethod
    def from_dict(cls, values: PlainKnown) -> Known:
        """The one of `to_dict`."""
        made = cls(values["strata"], incomplete=values["incomplete"])
        for what, transition, *counts, reached, known in values["shares"]:
            share = (what, transition)
            for one, numbers in zip((made.reached, made.known, made.happened), counts, strict=True):
                one[share] = np.array(numbers, np.int64)
            made.reached_weight[share], made.known_weight[share] = np.array(reached, float), np.array(known, float)
        made.below = {stage: (rows, told) for stage, (rows, told) in values["below"].items()}
        return made


def _sum(found: NDArray[Any], before: NDArray[Any] | None) -> NDArray[Any]:
    """Both, in place; what was counted before may have fewer strata."""
    found[: 0 if before is None else len(before)] += 0 if before is None else before
    return found


def _alike(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two shares, as (rows, known rows), differ by no more than chance makes them."""
    (n, k), (m, j) = one, other
    both = (k + j) / (n + m)
    return abs(k / n - j / m) <= _SIGMAS * math.sqrt(both * (1 - both) * (1 / n + 1 / m))


@dataclass(frozen=True)
class Counts:
    """For how many rows each row stands in what is judged.

    strata: the values of `data.known_by`; shares: `{share: (strata,)}`, the share known; at_random: the stages of which
    rows without a label are left out, whether a parent happened or not.
    """

    strata: tuple[str | None, ...]
    shares: Mapping[Share, tuple[float, ...]]
    at_random: frozenset[str]

    @property
    def facts(self) -> list[object]:
        """What they are, in an order that is always the same."""
        return [self.strata, sorted(self.shares.items()), sorted(self.at_random)]

    def of(self, chain: Chain, labels: Resolved, by: pa.Array | None) -> NDArray[np.float32]:
        """(rows, names in `counted`) of rows of the part that the shares are of; by: as in `Known.add`."""
        return np.stack(list(_Counting(self, chain, labels, by).all()), axis=1).astype(np.float32)


class _Rows:
    """Some rows: what happened, and what is known of it."""

    def __init__(self, chain: Chain, labels: Resolved) -> None:
        self.chain, self.labels = chain, labels
        self._told: dict[str, Mask] = {}

    def of(self, stage: str) -> Column:
        """(rows,): 1, 0 or -1."""
        rows = self.labels.values
        return np.ones(len(rows), np.int8) if stage == self.chain.root else rows[:, self.chain.stages.index(stage) - 1]

    def has(self, name: str) -> Mask:
        """Whether the column had the label of a stage, or the amount of a value, (rows,); of an else stage, whether the
        columns of all that it is not had."""
        if name not in self.chain.otherwise:
            return self.labels.read[name]
        told: Mask = np.logical_and.reduce([self.known(ALL, t) for t in self.chain.arrivals(name)])
        return told

    def known(self, what: str, transition: Transition) -> Mask:
        """Whether a stage, a value, ANY or ALL outcomes of a transition were in the columns, (rows,)."""
        if what not in (ANY, ALL):
            return self.known(ALL, transition) if what == transition.otherwise else self.has(what)
        found = [self.labels.read[o] for o in transition.outcomes]
        told: Mask = np.logical_or.reduce(found) if what == ANY else np.logical_and.reduce(found)
        return told

    def told(self, stage: str) -> Mask:
        """Whether the columns say, without what follows from later stages, if a stage happened, (rows,)."""
        if stage not in self._told:
            found: Mask = np.ones(len(self.labels.values), np.bool_)
            for t in self.chain.arrivals(stage):
                parent = self.of(t.parent)
                found &= self.told(t.parent) & ((parent == 0) | ((parent == 1) & self.known(ALL, t)))
            self._told[stage] = found
        return self._told[stage]

    def shares(self) -> Iterator[tuple[Share, tuple[Mask, Mask]]]:
        """Every share with the rows whose parent happened, and those in which it is known."""
        for t in self.chain.heads:
            reached = (self.of(t.parent) == 1) & self.told(t.parent)
            for what in t.outcomes if isinstance(t, Value) else (*t.children, ANY, ALL):
                yield (what, t.name), (reached, self.known(what, t))

    @property
    def incomplete(self) -> Mask:
        """Rows in which not all is known, or some of it only because it follows from others."""
        amounts = [(self.of(v.parent) == 1) & ~self.labels.read[v.amount] for v in self.chain.values]
        unknown: Mask = np.logical_or.reduce([(self.labels.values < 0).any(axis=1), self.labels.inferred, *amounts])
        return unknown


class _Counting:
    """The columns of `Counts.of`."""

    def __init__(self, counts: Counts, chain: Chain, labels: Resolved, by: pa.Array | None) -> None:
        self.counts, self.chain, self.rows = counts, chain, _Rows(chain, labels)
        length = len(labels.values)
        found = None if by is None else pc.index_in(by, value_set=pa.array(counts.strata, pa.string())).fill_null(0)
        self.at = np.zeros(length, np.int64) if found is None else found.to_numpy(zero_copy_only=False)
        self._one = np.ones(length)
        self._factors: dict[Share, Floats] = {}

    def all(self) -> Iterator[Floats]:
        """A column for each name in `counted`."""
        for name in counted(self.chain):
            if name in self.chain.addresses:
                yield self._stage(*self.chain.addresses[name])
            elif name in self.chain.expectations:
                value = self.chain.value(self.chain.expectations[name][0])
                yield self._way({value.parent}) * self._factor(value.amount, value)
            else:
                t = next(t for t in self.chain.transitions if t.name == name)
                happened = self.rows.of(t.parent) == 1
                what = ANY if len(self.counts.strata) == 1 else ALL  # part of a choice says more in some strata
                yield self._way({t.parent}) * self._factor(what, t) * happened

    def _stage(self, stage: str, given: str | None) -> Floats:
        if given is None and stage in self.counts.at_random:
            return self.rows.has(stage).astype(np.float64)
        arrivals = self.chain.arrivals(stage)
        return math.prod([self._factor(stage, t) for t in arrivals], start=self._way({t.parent for t in arrivals}))

    def _way(self, stages: set[str]) -> Floats:
        """The product over the transitions on the ways to some stages that exclude each other."""
        ways = {t for stage in stages for t in self._ways[stage]}
        return math.prod([self._factor(ALL, t) for t in self.chain.transitions if t in ways], start=self._one)

    @cached_property
    def _ways(self) -> Mapping[str, frozenset[Transition]]:
        """The transitions on the ways to each stage."""
        found: dict[str, frozenset[Transition]] = {}
        for stage in self.chain.stages:
            arrivals = self.chain.arrivals(stage)
            found[stage] = frozenset(arrivals).union(*(found[t.parent] for t in arrivals))
        return found

    def _factor(self, what: str, t: Transition) -> Floats:
        """1 where the parent did not happen, 1 / share where it did and `what` is known, else 0: (rows,)."""
        if (what, t.name) not in self._factors:
            parent, known = self.rows.of(t.parent), self.rows.known(what, t)
            share = np.array(self.counts.shares[what, t.name])[self.at]
            inverse = np.divide(1.0, share, out=np.zeros_like(share), where=share > 0)
            found = np.where(parent == 0, 1.0, np.where((parent == 1) & known, inverse, 0.0))
            self._factors[what, t.name] = found * (share > 0)  # where nobody is known, nothing is judged
        return self._factors[what, t.name]
