"""One streaming pass over a part of the data before training: vocabularies, label counts, leaks. Kept in the cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypedDict, TypeVar

import numpy as np

from espace.chain.chain import Chain
from espace.data.auditing.leaks import LeakSample
from espace.data.auditing.tally import PlainTally, Tally
from espace.data.encoding.columns import Feature, is_list, table_of
from espace.data.encoding.encode import Encoder, NumberStats
from espace.data.encoding.kinds import Kind, State
from espace.data.encoding.labels import Amounts, Column, Limits, Policy, resolve
from espace.data.encoding.learn import Learner, ListFacts, PlainFacts
from espace.data.encoding.strays import PlainStray, Stray, Strays
from espace.data.encoding.table import Columns, Extra, Problems
from espace.data.encoding.vocabulary import UNKNOWN, Vocabulary
from espace.data.reading import cache, sealed
from espace.data.reading.split import Part
from espace.data.reading.times import Clock, PlainSpan, Span, joined
from espace.errors import DataError

Progress = Callable[[str, int, int], None]  # what is read, rows done, rows in all

_VERSION = 14


@dataclass
class Scan:
    """What one pass found.

    counts: rows that each piece keeps; missing: `{number feature: (missing or not finite, rows)}`;
    leaks: `{feature: (stage, AUC of the feature alone)}`;
    unknown: `{feature: share of its values not in the vocabulary}`;
    strays: `{number feature: what lies far from all that training saw}`;
    weight: sum of the row weights, None where rows have none; span: of the times of the rows, where there are any.
    lists: `{list feature: what its lists look like}`; kinds: `{feature: what was seen in its column}`.
    """

    tally: Tally
    counts: list[int]
    missing: dict[str, tuple[int, int]] = field(default_factory=dict)
    leaks: dict[str, tuple[str, float]] = field(default_factory=dict)
    unknown: dict[str, float] = field(default_factory=dict)
    strays: dict[str, Stray] = field(default_factory=dict)
    weight: float | None = None
    span: Span | None = None
    lists: dict[str, ListFacts] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What a scan depends on besides the rows."""

    features: Sequence[Feature]
    chain: Chain
    labels: Mapping[str, str]
    policy: Policy
    weight: str | None = None
    extras: Mapping[str, Extra] = field(default_factory=dict)
    limits: Mapping[str, Limits] = field(default_factory=dict)  # of every value
    known_by: str | None = None
    clock: Clock | None = None  # of the column of times, where a part has it

    def key(self, part: Part, *more: object) -> str:
        """Changes when the result of a scan would."""
        facts = [_VERSION, part.identity, list(self.features), self.chain.lines(), sorted(self.labels.items())]
        more = (sorted(self.limits.items()), self.known_by, self.clock, *more)
        return cache.digest(*facts, self.policy, self.weight, sorted(self.extras.items()), *more)


class _Saved(TypedDict):
    """A `Scan` as JSON gives it back."""

    tally: PlainTally
    counts: list[int]
    missing: dict[str, list[int]]
    leaks: dict[str, list[str | float]]
    unknown: dict[str, float]
    strays: dict[str, PlainStray]
    weight: float | None
    span: PlainSpan | None
    lists: dict[str, PlainFacts]
    kinds: dict[str, State]


Array = TypeVar("Array")
Learnt = tuple[dict[str, Vocabulary | int], dict[str, NumberStats]]


def scan_training(task: Task, part: Part, progress: Progress) -> tuple[Scan, Learnt]:
    """Count labels, learn vocabularies and moments, look for leaks; from the cache when the content was seen before.

    Raises DataError for a value that cannot be read.
    """
    kept = cache.Kept(f"scan-{task.key(part)}", suffix=".scan")
    if (found := kept.found(lambda path: _load(path, kept.key))) is not None:
        return found
    learner, leaks = Learner(task.features), LeakSample(task.features, task.chain)

    def see(table: Columns, labels: Column, rows: int) -> None:
        learner.add(table)
        leaks.add(table, labels)

    columns = _columns(task)
    scan = _run(task, part, columns, see, progress)
    scan.missing, scan.leaks = learner.missing, leaks.aucs()
    scan.lists, scan.kinds = learner.lists, learner.kinds
    learnt = (learner.tables(), learner.numbers())
    _save(kept, scan, learnt)
    return scan, learnt


def scan_other(task: Task, part: Part, encoder: Encoder, progress: Progress) -> Scan:
    """Count labels and unknown ids of validation or test, with what training has learnt; cached likewise."""
    kept = cache.Kept(f"scan-{task.key(part, encoder.identity)}", suffix=".scan")
    if (found := kept.found(lambda path: _scan_from(sealed.read(path, kept.key)[0]))) is not None:
        return found
    unknown, strays = _UnknownShares(encoder), Strays(encoder, lambda line: None)

    def see(table: Columns, labels: Column, rows: int) -> None:
        unknown.add(table)
        strays.add(table)

    scan = _run(task, part, _columns(task), see, progress)
    scan.unknown, scan.strays = unknown.shares(), strays.found
    with contextlib.suppress(DataError):  # a cache that cannot be written costs time, not the run
        kept.filled(lambda path: sealed.write(path, kept.key, _plain(scan)))
    return scan


def _columns(task: Task) -> list[str]:
    probe = Encoder(
        task.features,
        task.chain,
        task.labels,
        dim=1,
        weight=task.weight,
        extras=task.extras,
        known_by=task.known_by,
        tables={},
        numbers={},
    )
    return probe.columns()


def _run(
    task: Task,
    part: Part,
    columns: Sequence[str],
    see: Callable[[Columns, Column, int], None],
    progress: Progress,
) -> Scan:
    scan, done = Scan(Tally(), [], weight=0.0 if task.weight else None), 0
    total = sum(p.rows for p in part.reader.pieces)
    clock = task.clock if task.clock and task.clock.by in part.reader.schema.names else None
    for number, piece in enumerate(part.reader.pieces):
        data, rows = part.read(number, [*columns, clock.by] if clock else columns)
        if clock:
            scan.span = joined(scan.span, clock.span(data.column(clock.by), part.where(number)))
        table, problems = Columns(data, part.where(number), rows), Problems()
        raw, amounts = _read_labels(task, table, problems)
        resolved = resolve(task.chain, raw, task.policy, amounts, task.limits)
        _see_others(task, table, scan, problems)
        with problems.noted():
            see(table, resolved.values, len(rows))
        problems.refuse()
        by = table.stratum(task.known_by) if task.known_by else None
        weights = table.weights(task.weight) if task.weight else None
        scan.counts.append(scan.tally.add(task.chain, resolved, task.policy == "drop", rows, table.where, by, weights))
        done += piece.rows
        progress(part.name, done, total)
    return scan


def _read_labels(task: Task, table: Columns, problems: Problems) -> tuple[dict[str, Column], dict[str, Amounts]]:
    """The columns of labels and of amounts; unknown in every row of one that cannot be read, which is a problem."""
    rows = table.table.num_rows
    labels = {stage: np.full(rows, -1, np.int8) for stage in task.labels if stage in task.chain.labelled}
    amounts = {v.amount: np.full(rows, np.nan) for v in task.chain.values}
    return _read(labels, table.label, task, problems), _read(amounts, table.amount, task, problems)


def _read(unknown: dict[str, Array], read: Callable[[str], Array], task: Task, problems: Problems) -> dict[str, Array]:
    found = dict(unknown)
    for name in found:
        with problems.noted():
            found[name] = read(task.labels[name])
    return found


def _see_others(task: Task, table: Columns, scan: Scan, problems: Problems) -> None:
    """Read the columns that training reads besides features and labels."""
    if task.weight and scan.weight is not None:
        with problems.noted():
            scan.weight += float(table.weights(task.weight).sum())
    for column, kind in task.extras.items():
        with problems.noted():
            table.extra(column, kind)


class _UnknownShares:
    """Counts of ids that training has not seen, by feature."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        offsets = [encoder.layout.slots[table_of(f)].offset for f in encoder.ids]
        self._unknown_rows = np.array(offsets, np.int32) + UNKNOWN
        self._hits = np.zeros(len(offsets), np.int64)
        self._lists = {f.name: np.zeros(2, np.int64) for f in encoder.features if is_list(f)}  # unknown, in all
        self._rows = 0

    def add(self, table: Columns) -> None:
        batch = self.encoder.encode(table.table, table.where, labels=False)
        self._hits += (batch.ids.numpy() == self._unknown_rows).sum(axis=0)
        self._rows += len(batch)
        for feature in (f for f in self.encoder.features if is_list(f)):
            events = batch.lists[feature.name].values
            unknown = events == self.encoder.layout.slots[table_of(feature)].offset + UNKNOWN
            self._lists[feature.name] += (int(unknown.sum()), len(events))

    def shares(self) -> dict[str, float]:
        ids = {f.name: float(n / max(self._rows, 1)) for f, n in zip(self.encoder.ids, self._hits, strict=True)}
        return ids | {name: float(found[0] / max(found[1], 1)) for name, found in self._lists.items()}


def _save(kept: cache.Kept, scan: Scan, learnt: Learnt) -> None:
    """The scan and the numbers as plain values, the vocabularies as arrays behind them."""
    tables, numbers = learnt
    states = {n: t.state() for n, t in tables.items() if isinstance(t, Vocabulary)}
    values = {**_plain(scan), "numbers": {n: asdict(s) for n, s in numbers.items()}}
    values["tables"] = {n: t if isinstance(t, int) else list(states[n]) for n, t in tables.items()}
    arrays = [array for state in states.values() for array in state.values()]
    with contextlib.suppress(DataError):  # a cache that cannot be written costs time, not the run
        kept.filled(lambda path: sealed.write(path, kept.key, values, arrays))


def _plain(scan: Scan) -> dict[str, object]:
    """Plain values, for JSON."""
    kinds = {name: kind.state() for name, kind in scan.kinds.items()}
    return {**asdict(replace(scan, kinds={}, tally=Tally())), "kinds": kinds, "tally": scan.tally.to_dict()}


def _load(path: Path, key: str) -> tuple[Scan, Learnt]:
    """What `_save` wrote. Raises sealed.DamagedError for anything else."""
    values, arrays = sealed.read(path, key)
    each = iter(arrays)
    tables: dict[str, Vocabulary | int] = {
        n: t if isinstance(t, int) else Vocabulary.from_state({part: next(each) for part in t})
        for n, t in values.pop("tables").items()
    }
    numbers = {n: NumberStats(**{**s, "edges": tuple(s["edges"])}) for n, s in values.pop("numbers").items()}
    return _scan_from(values), (tables, numbers)


def _scan_from(values: _Saved) -> Scan:
    missing = {name: (gone, rows) for name, (gone, rows) in values["missing"].items()}
    leaks = {name: (str(stage), float(auc)) for name, (stage, auc) in values["leaks"].items()}
    lists = {name: ListFacts(**facts) for name, facts in values["lists"].items()}
    kinds = {name: Kind.from_state(kind) for name, kind in values["kinds"].items()}
    strays = {name: Stray(**stray) for name, stray in values["strays"].items()}
    tally, span = Tally.from_dict(values["tally"]), values["span"]
    found = Scan(tally, values["counts"], missing, leaks, values["unknown"], strays, values["weight"])
    return replace(found, span=span and Span(**span), lists=lists, kinds=kinds)
