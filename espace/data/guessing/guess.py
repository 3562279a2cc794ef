"""The guess as a whole: chain, values, split, group key, features, and why each column became what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from espace.chain.chain import Chain
from espace.data.auditing.leaks import auc_of_category, auc_of_number
from espace.data.guessing import stages as staging
from espace.data.guessing.roles import Role, date_roles, is_id, role_of
from espace.data.guessing.sample import Column, Sample, words_of
from espace.data.guessing.splitting import Split, split_of, time_of
from espace.errors import DataError, did_you_mean

_TELLS = 0.98  # the AUC from which on one column tells a stage; the audit refuses 0.99
_LUCK = np.log(1e-9)
_FEW = 50  # values of a column of which each is looked at by itself
_SHOWN = {"impression", "request", "search", "query", "list", "slate", "page", "session"}  # together, as one choice
_AMOUNTS = {
    "revenue",
    "spend",
    "spent",
    "amount",
    "price",
    "gmv",
    "value",
    "sales",
    "payment",
    "income",
    "paid",
    "time",
}


@dataclass
class Guess:
    """All that was guessed. became: `{column: (what, why)}` in the order of the file."""

    chain: list[str]
    labels: dict[str, str]
    kinds: dict[str, str]
    split: Split
    group: str | None
    features: dict[str, dict[str, Any]]
    became: dict[str, tuple[str, str]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


@dataclass
class _Told:
    """The labels of the chain in the sample: `{stage: (rows,) -1 unknown, 0, 1}`, and each one's parent or None."""

    labels: Mapping[str, NDArray[np.int8]]
    parents: Mapping[str, str | None]


def guess(seen: Sample, chain: str | None, odd: Mapping[str, str]) -> Guess:
    """chain: what the user says it is, None to guess it; odd: columns that cannot be named, and why.

    Raises DataError where no stage can be guessed, or the chain names columns that are not there.
    """
    strange = {n: f"its type, {c.kind}, is none of a feature" for n, c in seen.columns.items() if not c.plain}
    odd = {**strange, **odd}
    columns = {name: column for name, column in seen.columns.items() if name not in odd}
    lines, labels = _given(chain, columns) if chain else _guessed(columns)
    parsed = Chain.parse(lines)
    amounts = {v.amount: v.parent for v in parsed.values}
    stages = {s: columns[labels.get(s, s)] for s in parsed.labelled}
    told = _Told({s: _label(c) for s, c in stages.items()}, {s: _parent(parsed, s) for s in stages})
    used = {column.name for column in stages.values()} | {labels.get(a, a) for a in amounts}
    odd |= {s: f"it is called like the stage {s}" for s in parsed.stages if s in columns and s not in used}
    rest = {name: column for name, column in columns.items() if name not in used and name not in odd}
    leaks = {name: why for name, column in rest.items() if (why := _leak(column, told))}
    likely = [n for n, c in rest.items() if n not in leaks and c.binary and staging.is_hinted(c)]
    leaks |= dict.fromkeys(likely, "it is called like a stage; add it if it is known before")
    if not chain:
        for name, stage in _values(rest, leaks, told).items():
            lines = (
                [f"{lines[0]} => {name}"]
                if stage == [*told.labels][-1] and not amounts
                else [*lines, f"{stage} => {name}"]
            )
            amounts[name] = stage
            del leaks[name], rest[name]
    kinds = {a: kind for a, s in amounts.items() if (kind := _kind(columns[labels.get(a, a)], told.labels.get(s)))}
    free = {name: column for name, column in rest.items() if name not in leaks}
    found = _features(free, seen, told)
    found.chain, found.kinds, found.labels = lines, kinds, {s: c for s, c in labels.items() if s != c}
    _tell(found, seen, parsed, stages, amounts, {**leaks, **odd})
    return found


def _guessed(columns: Mapping[str, Column]) -> tuple[list[str], dict[str, str]]:
    found = staging.candidates([*columns.values()])
    path = staging.longest(found)
    if not path:
        few = [c.name for c in columns.values() if c.binary and c not in found and staging.is_hinted(c)]
        there = [c.name for c in columns.values() if c.binary]
        what = (
            f"The columns of 0 and 1 are {', '.join(there[:20])}" if there else "No column has 0 and 1 and nothing else"
        )
        what += f"; 1 or 0 in fewer than {staging.LEAST} rows: {', '.join(few)}" if few else ""
        raise DataError(
            "no stages can be guessed: there is no column of 0 and 1 that is called like a stage, and none that"
            f" happens only where another does. {what}. Say what follows what, as in --chain 'impression -> click ->"
            " conversion'."
        )
    named = staging.named(path, [*columns])
    return [named.line], {stage: column.name for stage, column in named.labels.items()}


def _given(chain: str, columns: Mapping[str, Column]) -> tuple[list[str], dict[str, str]]:
    parsed = Chain.parse(chain)
    wanted = [*parsed.labelled, *(v.amount for v in parsed.values)]
    if missing := [name for name in wanted if name not in columns]:
        told = "\n".join(f"--chain: there is no column '{name}'.{did_you_mean(name, columns)}" for name in missing)
        raise DataError(told)
    return [line.strip() for line in chain.splitlines() if line.strip()], {name: name for name in wanted}


def _parent(chain: Chain, stage: str) -> str | None:
    parents = [p for p in chain.parents(stage) if p in chain.labelled]
    return parents[0] if len(parents) == 1 and len(chain.parents(stage)) == 1 else None


def _label(column: Column) -> NDArray[np.int8]:
    if column.numbers is None:
        return np.full(len(column.values), -1, np.int8)
    return np.where(column.known, column.numbers == 1, -1).astype(np.int8)


def _leak(column: Column, told: _Told) -> str | None:
    """Why a column says what happened; None where it does not seem to."""
    if not column.known.any():
        return None
    for stage, label in told.labels.items():
        parent = told.parents[stage]
        inside = label if parent is None else np.where(told.labels[parent] == 1, label, -1).astype(np.int8)
        for y, where in ((label, ""), (inside, f" where {parent} is 1")):
            if not column.nested and _auc(column, y) > _TELLS:
                return f"it alone tells {stage}{where}, so it is known only afterwards"
    for stage, label in [*told.labels.items()][::-1]:
        if value := _only_where(column, label):
            return f"{value} only where {stage} is 1, so it is known only afterwards"
    return None


def _auc(column: Column, label: NDArray[np.int8]) -> float:
    found = 0.5
    if column.numbers is not None:
        found = auc_of_number(np.nan_to_num(column.numbers, posinf=0, neginf=0), label)
    if column.numbers is None or column.distinct <= _FEW:
        codes = np.asarray(column.codes, np.int32)
        found = max(found, auc_of_category(codes, label))
    return found


def _only_where(column: Column, label: NDArray[np.int8]) -> str | None:
    """Which values are seen only where a stage happened, though luck would have put some elsewhere."""
    known = label >= 0
    if not known.any() or not (rate := float((label[known] == 1).mean())):
        return None

    def only(rows: NDArray[np.bool_]) -> bool:
        rows = rows & known
        few = rows.sum() < known.sum()
        return bool(few and rows.any() and (label[rows] == 1).all() and rows.sum() * np.log(rate) < _LUCK)

    if only(column.happened):
        return "it is other than 0" if column.numbers is not None else "it has a value"
    if column.nested or column.distinct > _FEW:
        return None
    for code in np.unique(column.codes[column.known]):
        if only(column.codes == code):
            shown = str(column.shown(int((column.codes == code).argmax())))
            return f"it is '{shown[:20]}'"
    return None


def _values(rest: Mapping[str, Column], leaks: Mapping[str, str], told: _Told) -> dict[str, str]:
    """`{column: stage}` of amounts that are above 0 nowhere but where a stage happened, and nearly always there."""
    found = {}
    for name in leaks:
        column = rest[name]
        x = column.numbers
        if (
            x is None
            or column.binary
            or column.distinct <= 10
            or not name.isidentifier()
            or name in told.labels
            or np.nanmin(x) < 0
        ):
            continue
        if not (pa.types.is_floating(column.kind) or pa.types.is_decimal(column.kind) or {*column.words} & _AMOUNTS):
            continue
        if is_id(column) or np.nanmax(x) > 1e30:
            continue
        for stage, label in [*told.labels.items()][::-1]:
            stray = column.happened & (label != 1)
            if not stray.any() and column.happened[label == 1].mean() > 0.8:
                found[name] = stage
                break
    return found


def _kind(column: Column, label: NDArray[np.int8] | None) -> str | None:
    """The distribution of an amount, where the default does not have all that is seen."""
    if column.numbers is None:
        return None
    x = column.numbers[column.known & (label == 1)] if label is not None else column.numbers[column.known]
    if not len(x) or x.min() > 0:
        return None
    return "ziln" if x.min() == 0 else "normal"


def _features(free: Mapping[str, Column], seen: Sample, told: _Told) -> Guess:
    time = time_of([*free.values()])
    split = split_of(time, [*told.labels.values()])
    time = None if time is None or time.times is None else time
    group = _group(free)
    dates = [c for c in free.values() if c.times is not None]
    roles = date_roles(dates, time, [*seen.columns])
    if split.by is not None and split.by not in roles:
        roles[split.by] = Role("the time of a row, by which rows are split")
    ids = {n: c for n, c in free.items() if n not in roles and is_id(c)}
    roles |= {name: role_of(column, seen, ids) for name, column in free.items() if name not in roles}
    for name, column in free.items():
        if {*column.words} & _SHOWN and {*column.words} <= {*_SHOWN, "id"} and "id" in column.words:
            roles[name] = Role("it tells which rows were shown together; tomorrow's are new")
    kept = {name for role in roles.values() for name in role.features}
    for role in roles.values():
        for part in role.features.values():
            if part.get("share", "") and part["share"] not in kept:
                del part["share"]
    features = {n: part for name in free for n, part in roles[name].features.items()}
    found = Guess([], {}, {}, split, group, features)
    found.became = {n: _became(n, r) for n, r in roles.items() if r.features}
    found.left = {n: r.why for n, r in roles.items() if not r.features}
    return found


def _became(name: str, role: Role) -> tuple[str, str]:
    if [*role.features] != [name]:
        parts = ", ".join(f"{p['type']} {p['part']}" for p in role.features.values())
        return parts, role.why
    part = role.features[name]
    more = " log1p" if part.get("log1p") else ""
    return f"{part['type']}{more}", role.why


def _group(free: Mapping[str, Column]) -> str | None:
    """The column by whose values rows belong together: a list that was shown, else a user."""
    for wanted in (_SHOWN, {"user", "uid", "customer", "member", "visitor"}):
        for name, column in free.items():
            single = not column.nested and column.times is None and (column.whole or column.text)
            if single and {*words_of(name)} & wanted and column.distinct > 1:
                often = column.known.all() and len(column.values) >= 2 * column.distinct
                if often and {*column.words} <= {*wanted, "id", "ids", "no", "key"}:
                    return name
    return None


def _tell(
    found: Guess,
    seen: Sample,
    chain: Chain,
    stages: Mapping[str, Column],
    amounts: Mapping[str, str],
    left: Mapping[str, str],
) -> None:
    """Put what every column became in the order of the file."""
    told = {}
    for stage, column in stages.items():
        inside = " and ".join(p for p in chain.parents(stage) if p in stages)
        rate = float(np.mean(column.happened[column.known])) if column.known.any() else 0.0
        told[column.name] = ("stage", f"1 in {rate:.2%} of the rows{f', only where {inside} is' if inside else ''}")
    for amount, stage in amounts.items():
        told[found.labels.get(amount, amount)] = ("value", f"above 0 only where {stage} is 1")
    found.left = {**found.left, **left}
    everything = {**found.became, **told, **{name: ("left out", why) for name, why in found.left.items()}}
    if found.group is not None and found.group in found.left:
        everything[found.group] = ("group of gauc", found.left[found.group])
    elif found.group is not None:
        what, why = everything[found.group]
        everything[found.group] = (f"{what}, group of gauc", why)
    if found.split.by is not None and found.split.by in found.left:
        everything[found.split.by] = ("split.by", found.left[found.split.by])
    found.became = {name: everything[name] for name in seen.columns}
