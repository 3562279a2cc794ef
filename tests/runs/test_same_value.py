"""The same values in another container train the same model, and find the same rows in it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

import espace
from tests.shop import Shop

FEATURES = {
    "user": "id",
    "zip": {"type": "hash", "buckets": 50},
    "code": "id",
    "history": {"type": "sequence", "share": "user"},
    "hour": {"type": "number", "column": "time", "part": "hour"},
    "weekday": {"type": "id", "column": "time", "part": "weekday"},
    "age": {"type": "number", "column": "since", "part": "age", "at": "time"},
}


def shop_rows(count=400):
    random = np.random.default_rng(0)
    user, start = random.integers(0, 30, count), np.datetime64("2024-03-01", "us")
    return pa.table(
        {
            "user": user,
            "zip": random.choice(["00501", "501", "10001"], count),
            "code": random.choice(["00501", "501", "08:00", "true", "0x1A"], count),
            "history": [random.integers(0, 40, n).tolist() for n in random.integers(0, 4, count)],
            "time": start + random.integers(0, 10**6, count) * np.timedelta64(1, "s"),
            "since": pa.array(np.datetime64("2024-01-01") + random.integers(0, 30, count), pa.date32()),
            "click": (random.random(count) < 0.3).astype(int),
        }
    )


def as_csv(table, path):
    lists = pa.array([json.dumps(v) for v in table["history"].to_pylist()])
    pa.csv.write_csv(table.set_column(3, "history", lists), path)


def yaml_of(shop, name):
    return shop.yaml(
        chain=["impression -> click"],
        data={"train": name, "validation": name, "batch_size": 200},
        features=FEATURES,
        metrics=None,
        trainer={"accelerator": "cpu", "max_steps": 3},
    )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The shop, and the runs of its rows as Parquet and as CSV."""
    with pytest.MonkeyPatch.context() as patch:
        shop = Shop(tmp_path_factory.mktemp("same"))
        patch.setenv("ESPACE_CACHE", str(shop.folder / "cache"))
        patch.chdir(shop.folder)
        shop.write(shop_rows(), "rows.parquet", group=400)
        as_csv(shop_rows(), "rows.csv")
        for name in ("rows.parquet", "rows.csv"):
            said = shop.espace("fit", yaml_of(shop, name), "--run-dir", name.split(".")[1])
            assert said.code == 0, said
        yield shop, espace.load("parquet"), espace.load("csv")


def test_a_fit_from_csv_is_that_from_parquet_bit_for_bit(fitted):
    _, parquet, csv = fitted
    for name, table in parquet.encoder.tables.items():
        assert getattr(table, "identity", table) == getattr(csv.encoder.tables[name], "identity", table)
    assert parquet.encoder.numbers == csv.encoder.numbers
    assert parquet.predict(shop_rows()).equals(csv.predict(shop_rows()))


def test_a_prediction_does_not_depend_on_what_holds_its_rows(fitted):
    _, *runs = fitted
    plain = shop_rows().to_pydict()
    plain |= {"time": [t.isoformat() for t in plain["time"]], "since": [str(d) for d in plain["since"]]}
    plain |= {"user": [float(u) for u in plain["user"]], "history": [json.dumps(h) for h in plain["history"]]}
    for run in runs:
        assert run.predict(plain).equals(run.predict(shop_rows()))


def test_the_audit_shows_what_lists_look_like_within_80_columns(fitted, monkeypatch):
    shop, *_ = fitted
    monkeypatch.chdir(shop.folder)
    lines = shop.espace("check", yaml_of(shop, "rows.csv")).out.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("Lists"))
    assert lines[start + 2].split() == ["feature", "mean", "length", "empty", "most", "frequent", "of", "all"]
    assert lines[start + 4].split()[0] == "history"
    assert max(len(line.rstrip()) for line in lines[start : start + 5]) <= 80


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("time", pa.array([5] * 400), "column 'time': it is of type int64, which has no parts of a date"),
        ("user", pa.array([True] * 400), "column 'user': it was int64 in training and is bool here. Write it as int64"),
        ("user", pa.array([2.0**60] * 400), "column 'user': ids are of type double, and"),
        ("history", pa.array(["(1, 2)"] * 400), "column 'history': row 0 has '(1, 2)', which begins like a list"),
    ],
)
def test_a_column_to_predict_that_cannot_be_converted_is_refused(fitted, column, values, said, monkeypatch):
    shop, *_ = fitted
    monkeypatch.chdir(shop.folder)
    table = shop_rows()
    shop.write(table.set_column(table.column_names.index(column), column, values), "wrong.parquet", group=400)
    found = shop.espace("predict", "parquet", "--data", "wrong.parquet", "--out", "p.parquet")
    assert (found.code, said in found.error) == (2, True), found
