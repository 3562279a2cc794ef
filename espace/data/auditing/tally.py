"""Counts of labels over a part of the data: what the audit shows and the bias of every head starts from."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from typing import TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from espace.chain.chain import Chain
from espace.chain.grammar import Transition
from espace.data.encoding.known import Known, PlainKnown
from espace.data.encoding.labels import Column, Mask, Resolved

_EXAMPLES = 3


@dataclass
class StageTally:
    """Rows of one stage: with a known label, be it that it follows from others, positive, and with none; with a label
    in
    the column, and positive among these."""

    known: int = 0
    positives: int = 0
    unknown: int = 0
    read: int = 0
    read_positives: int = 0


@dataclass
class AmountTally:
    """Rows whose parent happened: with a known amount, and without; how many of these are 0; their mean and the sum of
    squared distances from it (Chan et al., 1979, eq. 2.1)."""

    known: int = 0
    unknown: int = 0
    zeros: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, amounts: NDArray[np.float64], parent: NDArray[np.bool_]) -> None:
        """Count some rows; amounts: (rows,), NaN where unknown or without a parent."""
        seen = amounts[~np.isnan(amounts)]
        self.unknown += int(parent.sum()) - len(seen)
        if len(seen):
            mean, total = float(seen.mean()), self.known + len(seen)
            shift = mean - self.mean
            self.squares += float(((seen - mean) ** 2).sum()) + shift**2 * self.known * len(seen) / total
            self.mean += shift * len(seen) / total
            self.known = total
            self.zeros += int((seen == 0).sum())

    @property
    def moments(self) -> tuple[float, float, float]:
        """Mean, variance and share of zeros. The deviation is 1 % of the mean at least; where both are 0 it is 1."""
        least = (0.01 * self.mean) ** 2 or 1.0
        return self.mean, max(self.squares / self.known, least), self.zeros / self.known


@dataclass
class PieceTally:
    """How the rate of a stage varies between pieces with known labels: their number, the sum of positives^2 / rows over
    them, the least and the largest rate."""

    pieces: int = 0
    squares: float = 0.0
    low: float = 1.0
    high: float = 0.0

    def add(self, label: Column) -> None:
        """Count one piece; label: (rows,), -1 for unknown."""
        known, positives = int((label >= 0).sum()), int((label == 1).sum())
        if known:
            self.pieces += 1
            self.squares += positives**2 / known
            self.low, self.high = min(self.low, positives / known), max(self.high, positives / known)

    def explained(self, stage: StageTally) -> float:
        """The share of the variance of the label that lies between pieces, beyond what chance puts there; 0 to 1."""
        varies = stage.positives * (1 - stage.positives / max(1, stage.known))
        between = self.squares - stage.positives**2 / max(1, stage.known)
        chance = max(0, self.pieces - 1) / max(1, stage.known)
        return max(0.0, between / varies - chance) if varies > 0 else 0.0


class PlainAmounts(TypedDict):
    """An `AmountTally` as plain values."""

    known: int
    unknown: int
    zeros: int
    mean: float
    squares: float


class PlainPieces(TypedDict):
    """A `PieceTally` as plain values."""

    pieces: int
    squares: float
    low: float
    high: float


class PlainTally(TypedDict):
    """A `Tally` as plain values."""

    rows: int
    kept: int
    broken: int
    stages: dict[str, dict[str, int]]
    outcomes: dict[str, list[int]]
    amounts: dict[str, PlainAmounts]
    violations: dict[str, int]
    examples: dict[str, list[str]]
    differ: dict[str, int]
    known: PlainKnown
    pieces: dict[str, PlainPieces]


@dataclass
class Tally:
    """Counts over one part, after filters and mends.

    rows: read; kept: left after `violations: drop`; stages: by stage; outcomes: `{transition: rows of each class}`,
    the last being else or nothing, among rows whose parent happened; amounts: by value; violations: `{stage, value or
    transition: rows}`, with some example places; equal: pairs of stages whose labels never differ; pieces: by stage.
    """

    rows: int = 0
    kept: int = 0
    broken: int = 0
    stages: dict[str, StageTally] = field(default_factory=dict)
    outcomes: dict[str, list[int]] = field(default_factory=dict)
    amounts: dict[str, AmountTally] = field(default_factory=dict)
    violations: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    differ: dict[str, int] = field(default_factory=dict)
    known: Known = field(default_factory=Known)
    pieces: dict[str, PieceTally] = field(default_factory=dict)

    def add(
        self,
        chain: Chain,
        labels: Resolved,
        drop: bool,
        rows: NDArray[np.int64],
        where: str,
        by: pa.Array | None = None,
        weights: NDArray[np.float32] | None = None,
    ) -> int:
        """Count one piece and return how many of its rows stay.

        rows: their numbers in the piece `where`; by: their values of `data.known_by`, text;
        weights: of the rows, (rows,); None for 1 each.
        """
        for name, mask in {**labels.orphans, **labels.clashes}.items():
            self.violations[name] = self.violations.get(name, 0) + int(mask.sum())
            places = self.examples.setdefault(name, [])
            places += [f"{where}, row {rows[i]}" for i in np.flatnonzero(mask)[: _EXAMPLES - len(places)]]
        stay = ~labels.broken if drop else np.ones(len(labels.values), np.bool_)
        found = {s: labels.values[stay, i] for i, s in enumerate(chain.stages[1:])}
        found[chain.root] = np.ones(int(stay.sum()), np.int8)
        self.rows += len(stay)
        self.kept += int(stay.sum())
        self.broken += int(labels.broken.sum())
        read = {name: mask[stay] for name, mask in labels.read.items()}
        counted = stay.astype(np.float64) if weights is None else np.where(stay, weights, 0).astype(np.float64)
        self.known.add(chain, labels, counted, by)
        for stage in chain.stages[1:]:
            self._count_stage(stage, found[stage], read.get(stage))
            self.pieces.setdefault(stage, PieceTally()).add(found[stage])
        for transition in chain.transitions:
            self._count_outcomes(transition, found, read)
        for place, value in enumerate(chain.values):
            amounts = labels.amounts[stay, place].astype(np.float64)
            self.amounts.setdefault(value.amount, AmountTally()).add(amounts, found[value.parent] == 1)
        self._count_differences(chain, found)
        return int(stay.sum())

    def _count_stage(self, stage: str, label: Column, read: Mask | None) -> None:
        tally, told = self.stages.setdefault(stage, StageTally()), label >= 0 if read is None else read
        tally.known += int((label >= 0).sum())
        tally.unknown += int((label < 0).sum())
        tally.positives += int((label == 1).sum())
        tally.read += int(told.sum())
        tally.read_positives += int((told & (label == 1)).sum())

    def _count_outcomes(self, transition: Transition, found: dict[str, Column], read: dict[str, Mask]) -> None:
        """Rows of each class, where all outcomes were read: of a row with one of them, more is known of one class."""
        told = np.logical_and.reduce([read[o] for o in transition.outcomes]) & (found[transition.parent] == 1)
        named = [found[o] for o in transition.outcomes]
        counts = [int((told & (n == 1)).sum()) for n in named]
        counts.append(int((told & np.logical_and.reduce([n == 0 for n in named])).sum()))
        before = self.outcomes.setdefault(transition.name, [0] * len(counts))
        self.outcomes[transition.name] = [a + b for a, b in zip(before, counts, strict=True)]

    def rate(self, chain: Chain, stage: str) -> float:
        """P(stage) over all rows, known labels standing for unknown ones; NaN where nothing is known."""
        if stage == chain.root:
            return 1.0
        if self.known.at_random(chain, stage):
            found = self.stages[stage]
            return found.read_positives / found.read if found.read else math.nan
        return self.known.marginal(chain, stage)

    def _count_differences(self, chain: Chain, found: dict[str, Column]) -> None:
        for stage in chain.labelled:
            for parent in chain.parents(stage):
                if parent in chain.labelled:
                    pair = f"{parent}={stage}"
                    self.differ[pair] = self.differ.get(pair, 0) + int((found[parent] != found[stage]).sum())

    def starts(self, chain: Chain, joint: Collection[str]) -> dict[str, list[int]]:
        """`{transition: rows of each class}` that its head starts from: `outcomes`; for `joint` stages of all rows."""
        counts = dict(self.outcomes)
        for stage in joint:
            rows, rate = self.stages[stage].known, self.rate(chain, stage)
            positives = 0 if math.isnan(rate) else round(rate * rows)
            counts[chain.arrivals(stage)[0].name] = [positives, rows - positives]
        return counts

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {**asdict(replace(self, known=Known())), "known": self.known.to_dict()}

    @classmethod
    def from_dict(cls, values: PlainTally) -> Tally:
        """The tally of `to_dict`."""
        return cls(
            rows=values["rows"],
            kept=values["kept"],
            broken=values["broken"],
            stages={s: StageTally(**t) for s, t in values["stages"].items()},
            outcomes=values["outcomes"],
            amounts={a: AmountTally(**t) for a, t in values["amounts"].items()},
            violations=values["violations"],
            examples=values["examples"],
            differ=values["differ"],
            known=Known.from_dict(values["known"]),
            pieces={s: PieceTally(**t) for s, t in values["pieces"].items()},
        )
