"""The door of predictions: whatever columns a table has, every row gets probabilities that obey the chain, or none does."""

from __future__ import annotations

import datetime
import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st

import espace
from espace.runs.run import Run
from tests.fuzz.doors import ACCEPTED, try_door, verdict
from tests.shop import Trained, rows

FEW = 150
ROWS = rows(12, 7)
READ = ["user_id", "item_id", "place", "price", "age", "history", "tags", "tag_weights", "text"]
NUMBERS = [0, 1, -1, 7, 2**31, 2**63 - 1, -(2**63), 2**64 - 1, 0.5, -0.0, 1e-320, 1e30, 1e308, -1e308]
ODD_NUMBERS = [float("nan"), float("inf"), float("-inf")]
TEXTS = ["", "i1", "t0", "7", "7.0", "1e400", "nan", "null", " ", "\0", "é" * 50, "2024-01-31", "x|y", "\ud7ff", "𝕏"]
TIMES = [datetime.datetime(1970, 1, 1), datetime.datetime(2262, 4, 11), datetime.date(1, 1, 1), datetime.timedelta(-1)]
VALUES = [*NUMBERS, *ODD_NUMBERS, *TEXTS, *TIMES, None, True, False, b"", b"\xff\xfe"]
TYPES = [pa.int8(), pa.uint64(), pa.int64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.string()]
TYPES += [
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.decimal128(38, 2),
    pa.null(),
    pa.date32(),
    pa.time64("us"),
]
TYPES += [pa.timestamp("ns"), pa.timestamp("s", "UTC"), pa.duration("ms"), pa.list_(pa.int64()), pa.list_(pa.string())]
TYPES += [pa.large_list(pa.float32()), pa.list_(pa.float64(), 3), pa.list_(pa.list_(pa.string()))]
TYPES += [pa.dictionary(pa.int32(), pa.string()), pa.struct([("x", pa.int64())]), pa.map_(pa.string(), pa.int64())]
Change = Callable[[pa.Table], pa.Table]
COLUMN = st.sampled_from(READ)
ROW = st.integers(0, ROWS.num_rows - 1)


def changed(table: pa.Table, name: str, array: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The table with that column, at its place if it has it."""
    if name not in table.column_names:
        return table.append_column(name, array)
    return table.set_column(table.column_names.index(name), name, array)


def _has(table: pa.Table, name: str) -> bool:
    return bool(table.column_names.count(name) == 1)


def made(make: Callable[[], pa.Array]) -> pa.Array | None:
    """An array, or None where Arrow itself does not make it."""
    try:
        return make()
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None


def put(table: pa.Table, name: str, row: int, value: Any) -> pa.Table:
    """Another value in one row, of the type of the column or of its own."""
    if not _has(table, name) or not table.num_rows:
        return table
    values = [*table[name].to_pylist()]
    values[row % len(values)] = value
    array = made(lambda: pa.array(values, table[name].type))
    array = made(lambda: pa.array(values)) if array is None else array
    return table if array is None else changed(table, name, array)


def filled(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    """Other values in all rows."""
    array = made(lambda: pa.array([values[n % len(values)] for n in range(table.num_rows)]))
    return table if array is None else changed(table, name, array)


def cast(table: pa.Table, name: str, to: pa.DataType) -> pa.Table:
    """Another type; where the values have none of it, nulls."""
    if not _has(table, name):
        return table
    found = made(lambda: table[name].combine_chunks().cast(to, safe=False))
    found = made(lambda: pa.nulls(table.num_rows, to)) if found is None else found
    return table if found is None else changed(table, name, found)


def listed(table: pa.Table, name: str, depth: int) -> pa.Table:
    """Lists where a value was, and a value where a list was."""
    if not _has(table, name):
        return table
    values = table[name].to_pylist()
    flat = [v[0] if isinstance(v, list) and v else None if isinstance(v, list) else [v] * depth for v in values]
    array = made(lambda: pa.array(flat))
    return table if array is None else changed(table, name, array)


def chunked(table: pa.Table, at: int) -> pa.Table:
    """The same rows in pieces, some of them empty."""
    return pa.concat_tables([table.slice(0, at), table.slice(0, 0), table.slice(at)])


def without(table: pa.Table, name: str) -> pa.Table:
    return table.drop_columns([name]) if _has(table, name) else table


def twice(table: pa.Table, name: str) -> pa.Table:
    """Two columns of one name."""
    return table.append_column(name, pa.nulls(table.num_rows))


def _change(function: Callable[..., pa.Table], *given: st.SearchStrategy[Any]) -> st.SearchStrategy[Change]:
    return st.tuples(*given).map(lambda found: functools.partial(_applied, function, found))


def _applied(function: Callable[..., pa.Table], given: tuple[Any, ...], table: pa.Table) -> pa.Table:
    return function(table, *given)


VALUE = st.sampled_from(VALUES)
LISTS = st.lists(st.one_of(VALUE, st.lists(st.sampled_from([*TEXTS, None]), max_size=5)), max_size=4)
HARMLESS = st.one_of(
    _change(lambda t, n: t.slice(0, n), st.sampled_from([0, 1, 5])),
    _change(chunked, ROW),
    _change(lambda t, values: filled(t, "another", values), st.lists(VALUE, min_size=1, max_size=3)),
    _change(put, st.sampled_from(["user_id", "item_id", "place"]), ROW, st.sampled_from([None, 999, "unseen", 2**40])),
    _change(put, st.sampled_from(["price", "age"]), ROW, st.sampled_from([None, 0, 3, 1e6, -5, 40.5])),
    _change(put, st.just("history"), ROW, st.lists(st.sampled_from(["i1", "i2", "unseen", "", None]), max_size=60)),
    _change(lambda t: t.select([*reversed(t.column_names)])),
)
WILD = st.one_of(
    _change(put, COLUMN, ROW, VALUE),
    _change(put, COLUMN, ROW, LISTS),
    _change(filled, COLUMN, st.lists(VALUE, min_size=1, max_size=3)),
    _change(cast, COLUMN, st.sampled_from(TYPES)),
    _change(listed, COLUMN, st.integers(0, 4)),
    _change(without, COLUMN),
    _change(twice, COLUMN),
)
EXAMPLES = st.tuples(st.lists(HARMLESS, max_size=4), st.one_of(st.just([]), st.lists(WILD, min_size=1, max_size=2)))


@pytest.fixture(scope="module")
def run(trained: Trained) -> Run:
    return espace.load(trained.run)


def judge(run: Run, changes: tuple[list[Change], list[Change]]) -> str:
    """Refused with a reason, or probabilities for every row that the chain allows."""
    table = ROWS.select(READ)
    for change in [*changes[0], *changes[1]]:
        table = change(table)
    found: list[pa.Table] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # numbers far from all that training saw are told
        told = verdict(lambda: found.append(run.predict(table)))
    if told == ACCEPTED:
        p = {name: found[0][name].to_numpy() for name in found[0].column_names}
        assert all(len(v) == table.num_rows and ((v >= 0) & (v <= 1)).all() for v in p.values())
        assert (p["p_conversion"] <= p["p_click"]).all()
        np.testing.assert_allclose(p["p_conversion"], p["p_click"] * p["p_conversion_given_click"], rtol=1e-5)
    assert told == ACCEPTED or changes[1], "a table of the kind that training saw"
    return told


def test_whatever_a_table_holds_its_rows_get_probabilities_or_it_is_refused(run: Run) -> None:
    try_door("predict", EXAMPLES, lambda changes: judge(run, changes), FEW)
