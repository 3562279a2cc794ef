"""Labels of a chain: 1, 0, or null for "not known yet". What follows from others is filled in, contradictions are found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from espace.chain import Chain, Transition
from espace.data.lists import first_text
from espace.errors import DataError

Column = NDArray[np.int8]
Mask = NDArray[np.bool_]
Policy = Literal["error", "drop", "zero", "promote"]
_MEND = "Mend the column, or name another one under labels."


@dataclass(frozen=True)
class Resolved:
    """Labels after the chain has had its say.

    values: (rows, stages but the root) int8, 1, 0 or -1 for unknown, in the order of `chain.stages[1:]`.
    orphans: `{stage: rows where it is 1 though no parent happened}`; clashes: `{transition: rows with two outcomes}`;
    both as they were read. broken: (rows,), true where a label still contradicts the chain after mending.
    """

    values: NDArray[np.int8]
    orphans: Mapping[str, Mask]
    clashes: Mapping[str, Mask]
    broken: Mask


def read_label(values: pa.Array, where: str, column: str, rows: NDArray[np.int64] | None = None) -> Column:
    """A label column as int8, -1 for null or NaN. `rows` are the numbers of its rows in `where`, if they are not 0, 1, 2 ...

    Raises DataError naming the first row that is not 1, 0 or null.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    try:
        numbers = np.array(pc.fill_null(values.cast(pa.float64()), np.nan), np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{where}: the label column '{column}' is of type {values.type}, and a label is 1, 0 or null"
            f"{first_text(values, rows)}. {_MEND}"
        ) from error
    unknown = np.isnan(numbers)
    wrong = ~(unknown | (numbers == 0) | (numbers == 1))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{where}, row {row if rows is None else rows[row]}: {column} = {values[row]}, but a label is 1, 0 or null;"
            f" {int(wrong.sum()):,} of {len(wrong):,} rows are not. {_MEND}"
        )
    return np.where(unknown, -1, numbers).astype(np.int8)


def resolve(chain: Chain, raw: Mapping[str, Column], policy: Policy) -> Resolved:
    """Fill in what follows and mend what `policy` says.

    raw: `{stage: (rows,) int8}` for `chain.labelled`. A null below a known 0 is a 0; an else stage happened where its
    parent did and none of the named outcomes. `zero` takes a child without its parent back (and all but the first of two
    outcomes that exclude each other), `promote` lets the parents of a child happen; `error` and `drop` change nothing.
    """
    rows = len(next(iter(raw.values())))
    found: dict[str, Column] = {chain.root: np.ones(rows, np.int8)}
    for stage in chain.stages[1:]:
        found[stage] = raw[stage].copy() if stage in raw else np.full(rows, -1, np.int8)
    orphans, clashes = _violations(chain, _follow(chain, found))
    if policy == "promote":
        _promote(chain, found)
    elif policy == "zero":
        _withdraw(chain, found)
    found = _follow(chain, found)
    broken = _any_row(rows, *_violations(chain, found))
    return Resolved(np.stack([found[s] for s in chain.stages[1:]], axis=1), orphans, clashes, broken)


def _follow(chain: Chain, found: Mapping[str, Column]) -> dict[str, Column]:
    """Nulls and else stages that follow from the stages above them."""
    out = dict(found)
    for stage in chain.stages[1:]:
        if stage in chain.otherwise:
            out[stage] = _any_of([_rest(out, t) for t in chain.arrivals(stage)])
        else:
            parents = _any_of([out[p] for p in chain.parents(stage)])
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


def _any_of(columns: list[Column]) -> Column:
    """1 where any is 1, 0 where all are 0, else -1."""
    out = columns[0]
    for column in columns[1:]:
        out = np.where((out == 1) | (column == 1), np.int8(1), np.minimum(out, column))
    return out


def _violations(chain: Chain, found: Mapping[str, Column]) -> tuple[dict[str, Mask], dict[str, Mask]]:
    orphans = {
        s: (found[s] == 1) & (_any_of([found[p] for p in chain.parents(s)]) == 0)
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
        parents = _any_of([reached[p] for p in chain.parents(stage)])
        found[stage] = np.where((found[stage] == 1) & (parents == 0), np.int8(0), found[stage])


def _promote(chain: Chain, found: dict[str, Column]) -> None:
    for stage in reversed(chain.labelled):
        (parent,) = chain.parents(stage)
        if parent != chain.root and parent not in chain.otherwise:
            found[parent] = np.where(found[stage] == 1, np.int8(1), found[parent])
