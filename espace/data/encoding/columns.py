"""The feature types of the YAML. Keyword-only fields are options; the encoder makes ids, lists or numbers of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from datetime import date
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

Rate = Annotated[float, Ge(0.0), Le(1.0)]
Positive = Annotated[int, Gt(0)]
DatePart = Literal["hour", "weekday", "day", "month", "age"]


@dataclass(frozen=True)
class Id:
    """A category. Its vocabulary is learnt from the training rows; rare and later values are "unknown"."""

    name: str
    _: KW_ONLY
    column: str | None = None
    share: str | None = None  # another feature whose vocabulary and table this one uses
    dim: Positive | None = None  # None: embedding.dim
    min_count: Positive = 1
    max_size: Positive | None = None
    unknown_rate: Rate = 0.01  # share of values replaced by "unknown" while training, so that its row is learnt
    part: DatePart | None = None  # of a column of dates or times, this part instead of the whole
    at: str | None = None  # of part: age, the day at which it is counted, or the column that has it


@dataclass(frozen=True)
class Hash:
    """A category of an open set: xxh64 of the value's text, salted by the table's name, modulo `buckets`."""

    name: str
    _: KW_ONLY
    buckets: Positive
    column: str | None = None
    share: str | None = None
    dim: Positive | None = None


@dataclass(frozen=True)
class Number:
    """A number. Without `buckets` it is two columns, the value and a flag for missing; with them it is a category."""

    name: str
    _: KW_ONLY
    column: str | None = None
    log1p: bool = False  # sign(x) log(1 + |x|), first
    standardise: bool = True  # to mean 0 and deviation 1 over the training rows
    buckets: Positive | list[float] | None = None  # a number of quantiles, or the inner edges
    dim: Positive | None = None  # of the bucket's embedding
    part: DatePart | None = None  # of a column of dates or times, this number
    at: str | None = None  # of part: age, the day at which it is counted, or the column that has it


@dataclass(frozen=True)
class Sequence:
    """A history in the order of time: a list column, or text with a separator."""

    name: str
    _: KW_ONLY
    column: str | None = None
    share: str | None = None
    dim: Positive | None = None
    max_length: Positive = 50
    keep: Literal["last", "first"] = "last"  # the side that stays when a history is longer
    pool: Literal["mean", "sum", "none"] = "mean"  # how it enters the flat vector
    separator: str = "|"
    min_count: Positive = 1
    max_size: Positive | None = None
    buckets: Positive | None = None  # hash into this many instead of learning a vocabulary


@dataclass(frozen=True)
class Bag:
    """Several values without an order, pooled: a list column, or text with a separator; `weights` is a list column."""

    name: str
    _: KW_ONLY
    column: str | None = None
    share: str | None = None
    dim: Positive | None = None
    weights: str | None = None
    pool: Literal["mean", "sum"] = "mean"
    separator: str = "|"
    min_count: Positive = 1
    max_size: Positive | None = None
    buckets: Positive | None = None


@dataclass(frozen=True)
class Vector:
    """A list of `size` numbers, such as a pretrained embedding; a missing one is all zeros."""

    name: str
    _: KW_ONLY
    size: Positive
    column: str | None = None


Feature = Id | Hash | Number | Sequence | Bag | Vector

FEATURE_TYPES: Mapping[str, type[Feature]] = {
    "id": Id,
    "hash": Hash,
    "number": Number,
    "sequence": Sequence,
    "bag": Bag,
    "vector": Vector,
}


def column_of(feature: Feature) -> str:
    """The column that a feature reads; named like the feature unless `column` says otherwise."""
    return feature.column or feature.name


def part_of(feature: Feature) -> DatePart | None:
    """The part of a date that a feature is; None for a value as it is."""
    return feature.part if isinstance(feature, Id | Number) else None


def columns_of(feature: Feature) -> list[str]:
    """All columns that a feature reads."""
    found = [column_of(feature)]
    if isinstance(feature, Bag) and feature.weights:
        found.append(feature.weights)
    if isinstance(feature, Id | Number) and feature.at is not None and not is_day(feature.at):
        found.append(feature.at)
    return found


def columns_as_text(features: Iterable[Feature]) -> list[str]:
    """The columns of categories and of lists, which a reader that has to guess types leaves as text."""
    kept = [f for f in features if not isinstance(f, Number) and part_of(f) is None]
    return [column for f in kept for column in columns_of(f)]


def is_day(at: str) -> bool:
    """Whether `at` is a date, as 2024-01-31, and no column."""
    try:
        return len(at) == 10 and bool(date.fromisoformat(at))
    except ValueError:
        return False


def is_categorical(feature: Feature) -> bool:
    """Whether a feature has rows in an embedding table."""
    return isinstance(feature, Id | Hash | Sequence | Bag) or (
        isinstance(feature, Number) and feature.buckets is not None
    )


def is_list(feature: Feature) -> bool:
    """Whether a row holds several values of the feature."""
    return isinstance(feature, Sequence | Bag)


def table_of(feature: Feature) -> str:
    """The name of the feature whose vocabulary and table this one uses: its own, or the one it shares."""
    return getattr(feature, "share", None) or feature.name


def hash_buckets(feature: Feature) -> int | None:
    """Buckets of a hashed feature; None where a vocabulary is learnt, or none is needed."""
    return feature.buckets if isinstance(feature, Hash | Sequence | Bag) else None
