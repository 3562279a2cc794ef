"""What a column is that is no stage: a feature of some type, or left out, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from espace.data.guessing.sample import Column, Sample

Feature = dict[str, Any]  # as a YAML has it

_FEW = 10  # values of whole numbers that are more likely a category
_ENOUGH = 20  # rows from which on it means something that no two are alike
_IDS = {
    *("id", "ids", "uid", "iid", "pid", "cid", "sid", "aid", "user", "item", "product", "article", "ad", "campaign"),
    *("category", "cat", "brand", "shop", "seller", "store", "city", "region", "country", "device", "channel"),
    *(
        "segment",
        "group",
        "type",
        "class",
        "code",
        "zip",
        "zipcode",
        "postcode",
        "gender",
        "sex",
        "os",
        "hour",
        "weekday",
    ),
    *("session", "request", "search", "query", "impression", "customer", "member", "visitor", "author", "publisher"),
    *("place", "platform", "browser", "language", "lang", "topic", "tag", "categorical", "cate", "state", "county"),
    *("month", "slot", "position", "hash", "sku", "key"),
}
_NUMBERS = {
    *(
        "num",
        "number",
        "count",
        "cnt",
        "age",
        "amount",
        "days",
        "hours",
        "minutes",
        "seconds",
        "price",
        "length",
        "len",
    ),
    *("total", "sum", "avg", "mean", "rate", "ratio", "score", "recency", "frequency", "credits", "size", "duration"),
}
_ROWS = {"id", "row", "index", "unnamed", "rowid", "nr"}
_PAST = {"history", "hist", "seq", "sequence", "last", "past", "recent", "previous"}


@dataclass
class Role:
    """What became of a column: features by name, or none of them; and why."""

    why: str
    features: dict[str, Feature] = field(default_factory=dict)


def role_of(column: Column, seen: Sample, ids: Mapping[str, Column]) -> Role:
    """ids: columns of ids, whose tables lists may share."""
    n = int(column.known.sum())
    if not n:
        return Role("no row has a value")
    if column.nested:
        return _list(column, ids)
    if column.distinct < 2 and n == len(column.values):
        return Role("it is the same in all rows")
    if column.numbers is not None and not pa.types.is_boolean(column.kind):
        return _number(column, seen, n)
    if pa.types.is_boolean(column.kind):
        return Role("true and false", {column.name: {"type": "id"}})
    if column.text or pa.types.is_time(column.kind) or pa.types.is_binary(column.kind):
        return _text(column, seen, n, ids)
    return Role(f"its type, {column.kind}, is none of a feature")


def is_id(column: Column) -> bool:
    """Whether a column of single values names something: a user, an item, a place."""
    if column.nested or column.text:
        return column.text
    large = column.numbers is not None and column.known.any() and float(np.nanmax(np.abs(column.numbers))) >= 2**53
    if not column.whole or (large and pa.types.is_floating(column.kind)):
        return False
    if {*column.words} & _NUMBERS:
        return False
    return bool({*column.words} & _IDS) or column.name.isdecimal() or column.distinct <= _FEW


def _number(column: Column, seen: Sample, n: int) -> Role:
    x = column.numbers
    assert x is not None, "a number"
    x = x[column.known]
    alone = column.whole and column.distinct == n >= _ENOUGH
    rising = bool(np.all(x[1:] > x[:-1]) or np.all(x[1:] < x[:-1]))
    if alone and (rising or is_id(column) or {*column.words} & _ROWS):
        return Role("it differs in every row, as the number of a row does")
    if is_id(column):
        return _id(column, seen, n, "whole numbers that name something" if column.distinct > _FEW else "")
    if not np.isfinite(x).any():
        return Role("no value is finite")
    low, high = float(x[np.isfinite(x)].min()), float(x[np.isfinite(x)].max())
    skewed = low >= 0 and float(np.mean(x[np.isfinite(x)])) > 1.5 * max(float(np.median(x[np.isfinite(x)])), 1e-9)
    skewed = skewed and high > 10
    told = f"numbers from {low:g} to {high:g}"
    if skewed:
        return Role(f"{told}, with a long tail", {column.name: {"type": "number", "log1p": True}})
    return Role(told, {column.name: {"type": "number"}})


def _id(column: Column, seen: Sample, n: int, why: str) -> Role:
    if seen.whole and n >= _ENOUGH and n < 1.2 * column.distinct:
        return Role(f"{column.distinct:,} values in {n:,} rows: few are seen twice, so nothing is learnt of them")
    return Role(f"{column.distinct:,} values{', ' if why else ''}{why}", {column.name: {"type": "id"}})


def _text(column: Column, seen: Sample, n: int, ids: Mapping[str, Column]) -> Role:
    if column.text and (found := _split(column, ids)):
        return found
    if column.distinct == n >= _ENOUGH:
        return Role("it differs in every row, as the number of a row does")
    if column.text and column.distinct > 0.5 * n >= 10:
        length = pc.mean(pc.utf8_length(column.values)).as_py()
        if length > 40:
            return Role(f"free text, {length:.0f} characters on average")
    return _id(column, seen, n, "text" if column.text else str(column.kind))


def _split(column: Column, ids: Mapping[str, Column]) -> Role | None:
    """Of text that holds several values between `|`."""
    texts = pc.drop_null(column.values)
    if pc.mean(pc.match_substring(texts, "|").cast(pa.float64())).as_py() < 0.3:
        return None
    values = pc.utf8_trim_whitespace(pc.list_flatten(pc.split_pattern(texts, "|")))
    values = values.filter(pc.not_equal(values, ""))
    if len(values) < 2 or pc.count_distinct(values).as_py() > 0.8 * len(values):
        return None
    return _listed(column, values, ids, "text with | between its values")


def _list(column: Column, ids: Mapping[str, Column]) -> Role:
    if not pa.types.is_list(column.kind):
        return Role(f"its type, {column.kind}, is none of a feature")
    inner, values = column.kind.value_type, pc.list_flatten(column.values)
    if pa.types.is_floating(inner):
        lengths = pc.drop_null(pc.list_value_length(column.values))
        low, high = pc.min(lengths).as_py(), pc.max(lengths).as_py()
        if low != high or low < 2 or values.null_count:
            return Role("lists of numbers with a fraction that are not all of one length")
        return Role(f"lists of {low} numbers", {column.name: {"type": "vector", "size": low}})
    if not (pa.types.is_integer(inner) or pa.types.is_string(inner)):
        return Role(f"lists of {inner}, which is none of a feature")
    if not len(pc.drop_null(values)):
        return Role("all its lists are empty")
    return _listed(column, pc.drop_null(values), ids, "lists")


def _listed(column: Column, values: pa.Array, ids: Mapping[str, Column], why: str) -> Role:
    share = _shared(values, ids)
    past = share is not None or bool({*column.words} & _PAST)
    part: Feature = {"type": "sequence" if past else "bag"}
    if share is not None:
        return Role(f"{why}, of the values of {share}", {column.name: {**part, "share": share}})
    return Role(f"{why}{', in the order of time by its name' if past else ''}", {column.name: part})


def _shared(values: pa.Array, ids: Mapping[str, Column]) -> str | None:
    """The column of ids in which most of the values are found, if that is most of them."""
    best: tuple[float, str | None] = (0.5, None)
    for name, column in ids.items():
        if column.distinct < 20 or pa.types.is_string(column.kind) != pa.types.is_string(values.type):
            continue
        known = pc.unique(pc.drop_null(column.values))
        found = pc.is_in(values[:200_000], value_set=known.cast(values.type, safe=False))
        hit = pc.mean(found.cast(pa.float64())).as_py()
        if hit is not None and hit > best[0]:
            best = (hit, name)
    return best[1]


def date_roles(columns: Sequence[Column], time: Column | None, taken: Sequence[str]) -> dict[str, Role]:
    """Parts of the time of a row; ages of other dates at that time."""

    def free(name: str) -> str:
        return name if name not in taken else free(f"{name}_of_it")

    found = {}
    for column in columns:
        times = column.times
        assert times is not None, "dates"
        if column is time:
            features = {
                free(f"{column.name}_{part}"): {"type": "id", "column": column.name, "part": part}
                for part in _parts(times)
            }
            found[column.name] = Role("the time of a row", features)
        elif time is not None and _zoned(time) == _zoned(column):
            age = {"type": "number", "column": column.name, "part": "age", "at": time.name}
            found[column.name] = Role(f"days from it to {time.name}", {free(f"{column.name}_age"): age})
        else:
            month = {"type": "id", "column": column.name, "part": "month"}
            found[column.name] = Role("a date, of which the month is taken", {free(f"{column.name}_month"): month})
    return found


def _zoned(column: Column) -> bool:
    return getattr(column.kind, "tz", None) is not None


def _parts(times: np.ndarray[Any, np.dtype[np.datetime64]]) -> list[str]:
    known = times[~np.isnat(times)]
    hours = known.astype("datetime64[h]").astype(np.int64) % 24
    days = known.astype("datetime64[D]").astype(np.int64) % 7
    return [name for name, values in (("hour", hours), ("weekday", days)) if len(np.unique(values)) > 1]
