"""Labels of a chain: 1, 0, or null for "not known yet", and the amounts of its values. What follows from others is
filled in, contradictions are found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from espace.chain.chain import Chain
from espace.chain.grammar import Transition, Value
from espace.data.reading.lists import first_text, null_hint
from espace.errors import DataError

Column = NDArray[np.int8]
Amounts = NDArray[np.float64]  # (rows,), NaN where not known
Limits = tuple[float, float]  # the least and the largest amount that there can be, both included
Mask = NDArray[np.bool_]
Policy = Literal["error", "drop", "zero", "promote"]
_MEND = "Mend the column, or name another one under labels."


@dataclass(frozen=True)
class Resolved:
    """Labels after the chain has had its say.

    values: (rows, stages but the root) int8, 1, 0 or -1 for unknown, in the order of `chain.stages[1:]`.
    amounts: (rows, values of the chain) float32, NaN where the parent did not happen or it is not known.
    orphans: `{stage or value: rows where it is 1, or not 0, though no parent happened}`; clashes: `{transition: rows
    with two outcomes}` and `{transition of a value: rows with an amount that there cannot be}`; all as they were read.
    broken: (rows,), true where a label still contradicts the chain after mending.
    read: `{stage with a label, or value: rows in which the column says it}`.
    inferred: (rows,), true where a label was null and follows from one below or beside it.
    """

    values: NDArray[np.int8]
    amounts: NDArray[np.float32]
    orphans: Mapping[str, Mask]
    clashes: Mapping[str, Mask]
    broken: Mask
    read: Mapping[str, Mask]
    inferred: Mask


def read_label(values: pa.Array, where: str, column: str, rows: NDArray[np.int64] | None = None) -> Column:
    """A label column as int8, -1 for null or NaN.

    rows: the numbers of its rows in `where`, if they are not 0, 1, 2 ...

    Raises DataError naming the first row that is not 1, 0 or null.
    """
    numbers = _as_numbers(values, f"{where}: the label column '{column}'", "a label is 1, 0 or null", rows)
    unknown = np.isnan(numbers)
    wrong = ~(unknown | (numbers == 0) | (numbers == 1))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{where}, row {row if rows is None else rows[row]}: {column} = {values[row]}, but a label is 1, 0 or null;"
            f" {int(wrong.sum()):,} of {len(wrong):,} rows are not. {_MEND}"
        )
    return np.where(unknown, -1, numbers).astype(np.int8)


def _as_numbers(values: pa.Array, what: str, meant: str, rows: NDArray[np.int64] | None) -> Amounts:
    """A column as float64, NaN for null."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    try:
        return np.array(pc.fill_null(values.cast(pa.float64(), safe=False), np.nan), np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        text = first_text(values, rows)
        raise DataError(f"{what} is of type {values.type}, and {meant}{text}. {_MEND}{null_hint(text)}") from error


def read_amount(values: pa.Array, where: str, column: str, rows: NDArray[np.int64] | None = None) -> Amounts:
    """The column of a value, NaN for null or NaN. `rows` as in `read_label`.

    Raises DataError naming the first row that is no number, or one that no float32 can hold.
    """
    numbers = _as_numbers(values, f"{where}: '{column}'", "an amount is a number or null", rows)
    wrong = np.abs(numbers) > np.finfo(np.float32).max
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{where}, row {row if rows is None else rows[row]}: {column} = {values[row]}, which is not finite in"
            f" 32 bits. {_MEND}"
        )
    return numbers


def resolve(
    chain: Chain,
    raw: Mapping[str, Column],
    policy: Policy,
    amounts: Mapping[str, Amounts] | None = None,
    limits: Mapping[str, Limits] | None = None,
) -> Resolved:
    """Fill in what follows and mend what `policy` says.

    raw: `{stage: (rows,) int8}` for `chain.labelled`; amounts, limits: of every value. A null below a known 0 is a 0;
    an else stage happened where its parent did and none of the named outcomes. `zero` takes a child without its parent
    back (and all but the first of two outcomes that exclude each other), `promote` lets the parents of a child happen;
    `error` and `drop` change nothing. An amount other than 0 is a child of its stage. An amount outside the limits,
    where the parent happened, is mended by nothing.
    """
    rows = len(next(iter(raw.values())))
    found: dict[str, Column] = {chain.root: np.ones(rows, np.int8)}
    for stage in chain.stages[1:]:
        found[stage] = raw[stage].copy() if stage in raw else np.full(rows, -1, np.int8)
    measured = _Measured(chain, dict(amounts or {}), limits or {})
    read = {s: found[s] >= 0 for s in chain.labelled} | {n: ~np.isnan(x) for n, x in measured.amounts.items()}
    before, _ = _completed(chain, found, measured)
    (orphans, clashes), (strays, impossible) = _violations(chain, before), measured.violations(before)
    if policy in ("promote", "zero"):
        found |= _mended(chain, policy, found, before, measured)
    begun = found
    found, inferred = _completed(chain, begun, measured)
    broken = _any_row(rows, *_violations(chain, found), *measured.violations(found))
    if inferred.any():
        plain, _ = _completed(chain, begun, measured, choices=False)
        found |= {c: plain[c] for t in chain.transitions if len(t.outcomes) > 1 for c in t.children}
    labels = np.stack([found[s] for s in chain.stages[1:]], axis=1)
    amounts_ = measured.matrix(rows, found)
    return Resolved(labels, amounts_, orphans | strays, clashes | impossible, broken, read, inferred)


def _mended(
    chain: Chain, policy: Policy, found: Mapping[str, Column], before: Mapping[str, Column], measured: _Measured
) -> dict[str, Column]:
    """Labels that contradict each other no more; nulls stay nulls, since they follow from the others."""
    mended = dict(before)
    if policy == "promote":
        measured.promote(before, mended)
        _promote(chain, mended)
    else:
        measured.withdraw(before)
        _withdraw(chain, mended)
    return {s: np.where(found[s] < 0, found[s], mended[s]) for s in chain.labelled}


class _Measured:
    """The amounts of some rows, against the labels of their parents."""

    def __init__(self, chain: Chain, amounts: dict[str, Amounts], limits: Mapping[str, Limits]) -> None:
        self.chain, self.amounts, self.limits = chain, amounts, limits

    def violations(self, found: Mapping[str, Column]) -> tuple[dict[str, Mask], dict[str, Mask]]:
        """`{value: amounts without a parent}`, `{its transition: amounts outside the limits}`."""
        outside = {}
        for v in self.chain.values:
            low, high = self.limits.get(v.amount, (-np.inf, np.inf))
            x = self.amounts[v.amount]
            outside[v.name] = (found[v.parent] == 1) & ((x < low) | (x > high))
        return {v.amount: self._strays(v, found) for v in self.chain.values}, outside

    def _strays(self, value: Value, found: Mapping[str, Column]) -> Mask:
        x = self.amounts[value.amount]
        strays: Mask = ~np.isnan(x) & (x != 0) & (found[value.parent] == 0)
        return strays

    def withdraw(self, found: Mapping[str, Column]) -> None:
        """Forget amounts whose parent did not happen."""
        for v in self.chain.values:
            self.amounts[v.amount] = np.where(self._strays(v, found), np.nan, self.amounts[v.amount])

    def promote(self, before: Mapping[str, Column], found: dict[str, Column]) -> None:
        """Let the parents of amounts happen, in `found`."""
        for v in self.chain.values:
            if v.parent in self.chain.labelled:
                found[v.parent] = np.where(self._strays(v, before), np.int8(1), found[v.parent])

    def parents(self) -> dict[str, Mask]:
        """`{stage: rows in which an amount says that it happened}`."""
        found: dict[str, Mask] = {}
        for v in self.chain.values:
            x = self.amounts[v.amount]
            found[v.parent] = found.get(v.parent, np.zeros(len(x), np.bool_)) | (~np.isnan(x) & (x != 0))
        return found

    def matrix(self, rows: int, found: Mapping[str, Column]) -> NDArray[np.float32]:
        """(rows, values) float32, NaN where the parent is not known to have happened."""
        columns = [np.where(found[v.parent] == 1, self.amounts[v.amount], np.nan) for v in self.chain.values]
        return np.stack(columns, axis=1).astype(np.float32) if columns else np.empty((rows, 0), np.float32)


def _completed(
    chain: Chain, found: Mapping[str, Column], measured: _Measured, choices: bool = True
) -> tuple[dict[str, Column], Mask]:
    """Labels with all that follows from those above, below and beside them; the rows in which one was null and follows
    from those below or beside it.

    Unless `choices`, an outcome of several does not follow from what is below it: of rows in which it is null, those
    with something below it would be told apart from the rest, and no likelihood of the transition alone would be right.
    """
    out = _follow(chain, found)
    inferred: Mask = np.zeros(len(out[chain.root]), np.bool_)
    while any((out[s] < 0).any() for s in chain.stages[1:]):
        before, out = out, _infer(chain, out, measured, choices)
        changed = [(out[s] != before[s]) for s in chain.stages[1:]]
        if not np.any(changed):
            break
        inferred = np.logical_or.reduce([inferred, *changed])
        out = _follow(chain, out)
    return out, inferred


def _infer(chain: Chain, found: Mapping[str, Column], measured: _Measured, choices: bool) -> dict[str, Column]:
    """What follows from a stage that happened: its parent did, if only one can have, and what it excludes did not."""
    out = dict(found)
    chosen = {c for t in chain.transitions if len(t.outcomes) > 1 and not choices for c in t.children}
    for stage, mask in measured.parents().items() if choices else ():
        out[stage] = np.where(mask & (out[stage] < 0), np.int8(1), out[stage])
    for stage in reversed(chain.stages[1:]):
        arrivals = chain.arrivals(stage)
        for t in arrivals:
            sure = np.logical_and.reduce([out[stage] == 1, *(out[u.parent] == 0 for u in arrivals if u != t)])
            if t.parent not in chosen:
                out[t.parent] = np.where(sure & (out[t.parent] < 0), np.int8(1), out[t.parent])
            for other in (o for o in t.outcomes if o != stage):
                out[other] = np.where(sure & (out[other] < 0), np.int8(0), out[other])
    return out


def _follow(chain: Chain, found: Mapping[str, Column]) -> dict[str, Column]:
    """Nulls and else stages that follow from the stages above them."""
    out = dict(found)
    for stage in chain.stages[1:]:
        if stage in chain.otherwise:
            out[stage] = any_of([_rest(out, t) for t in chain.arrivals(stage)])
        else:
            parents = any_of([out[p] for p in chain.parents(stage)])
            out[stage] = np.where((out[stage] < 0) & (parents == 0), np.int8(0), out[stage])
    return out


def _rest(found: Mapping[str, Column], transition: Transition) -> Column:
    """The label of the else stage, as far as one transition tells."""
    named = [found[o] for o in transition.outcomes]
    taken = np.logical_or.reduce([n == 1 for n in named])
    open_ = np.logical_or.reduce([n < 0 for n in named])
    parent = found[transition.parent]
    out = np.where((parent < 0) | open_, np.int8(-1), np.int8(1))
    return np.where((parent == 0) | taken, np.int8(0), out)


def any_of(columns: list[Column]) -> Column:
    """1 where any is 1, 0 where all are 0, else -1."""
    out = columns[0]
    for column in columns[1:]:
        out = np.where((out == 1) | (column == 1), np.int8(1), np.minimum(out, column))
    return out


def _violations(chain: Chain, found: Mapping[str, Column]) -> tuple[dict[str, Mask], dict[str, Mask]]:
    orphans = {
        s: (found[s] == 1) & (any_of([found[p] for p in chain.parents(s)]) == 0)
        for s in chain.labelled
        if chain.parents(s) != (chain.root,)
    }
    clashes = {
        t.name: np.add.reduce([(found[o] == 1).astype(np.int8) for o in t.outcomes]) > 1
        for t in chain.transitions
        if len(t.outcomes) > 1
    }
    return orphans, clashes


def _any_row(rows: int, *found: Mapping[str, Mask]) -> Mask:
    out: Mask = np.logical_or.reduce([np.zeros(rows, np.bool_), *(m for masks in found for m in masks.values())])
    return out


def _withdraw(chain: Chain, found: dict[str, Column]) -> None:
    for stage in chain.stages[1:]:
        for transition in chain.arrivals(stage):
            before = transition.outcomes[: transition.outcomes.index(stage)] if stage in transition.outcomes else ()
            for other in before:
                found[stage] = np.where((found[stage] == 1) & (found[other] == 1), np.int8(0), found[stage])
        reached = _follow(chain, found)
        parents = any_of([reached[p] for p in chain.parents(stage)])
        found[stage] = np.where((found[stage] == 1) & (parents == 0), np.int8(0), found[stage])


def _promote(chain: Chain, found: dict[str, Column]) -> None:
    for stage in reversed(chain.labelled):
        (parent,) = chain.parents(stage)
        if parent != chain.root and parent not in chain.otherwise:
            found[parent] = np.where(found[stage] == 1, np.int8(1), found[parent])
