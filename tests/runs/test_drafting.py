"""`espace new experiment`: chains are found whatever their columns are called, and what is written always passes `check`."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from espace.config import load
from espace.data.guessing.sample import Column, words_of
from espace.data.guessing.stages import candidates, longest, within
from tests.shop import Shop, put, rows

SHARED = Path(__file__).parents[3] / "shared" / "data"
SOME = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = st.text("abcXY_ :#'\"-点击购1", min_size=1, max_size=8).filter(lambda n: n.strip() and "\n" not in n)


def nested(seed: int, depth: int, count: int = 800) -> list[np.ndarray]:
    """0/1 columns of which each happens in about half of the rows in which the one before it did."""
    random = np.random.default_rng(seed)
    found = [random.random(count) < 0.6]
    for _ in range(depth - 1):
        found.append(found[-1] & (random.random(count) < 0.5))
    return found


def tree_of(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


def made(shop: Shop, table: pa.Table, *more: str, name: str = "mine.parquet") -> dict[str, Any]:
    """What is written for a table, which has to pass `check`."""
    shop.write(table, name)
    Path("experiment.yaml").unlink(missing_ok=True)
    said = shop.espace("new", "experiment", name, *more)
    assert (said.code, said.error) == (0, ""), said
    assert max(map(len, said.out.splitlines())) <= 80
    checked = shop.espace("check", "experiment.yaml")
    assert (checked.code, checked.error) == (0, ""), Path("experiment.yaml").read_text()
    return tree_of(Path("experiment.yaml"))


# Laws


@SOME
@given(st.integers(0, 10_000), st.integers(2, 4), st.lists(NAMES, min_size=7, max_size=7, unique=True))
def test_a_nested_chain_is_found_under_any_names_and_passes_check(
    shop: Shop, seed: int, depth: int, names: list[str]
) -> None:
    random = np.random.default_rng(seed)
    stages, others = names[:depth], names[depth:]
    columns = dict(zip(stages, (c.astype(int) for c in nested(seed, depth)), strict=True))
    columns |= {others[0]: random.integers(0, 2, 800), others[1]: random.integers(0, 60, 800)}
    columns |= {others[2]: random.normal(size=800)}
    order = random.permutation([*columns])
    tree = made(shop, pa.table({name: columns[name] for name in order}))
    found = tree["chain"][0].split(" -> ")[1:]
    labels = tree.get("labels", {})
    if not any(word.startswith(("点击", "购买")) for name in names for word in words_of(name)):
        assert [labels.get(stage, stage) for stage in found] == stages
    assert not {*stages} & {*tree["features"]}


@SOME
@given(st.integers(0, 10_000))
def test_columns_that_are_not_nested_are_no_chain(seed: int) -> None:
    random = np.random.default_rng(seed)
    columns = [Column(f"c{i}", pa.array(random.integers(0, 2, 500))) for i in range(5)]
    assert longest(candidates(columns)) == []
    assert not any(within(a, b) for a in columns for b in columns)


@SOME
@given(st.integers(0, 10_000))
def test_whatever_tells_a_stage_is_left_out_with_the_reason(shop: Shop, seed: int) -> None:
    random = np.random.default_rng(seed)
    click, buy = (c.astype(int) for c in nested(seed, 2))
    result = np.where(buy == 1, "bought", np.where(click == 1, "clicked", "nothing"))
    leaks = {
        "result": result,
        "seconds": np.where(click == 1, random.integers(1, 9, 800), 0),
        "order_no": pa.array([f"o{i % 90}" if b else None for i, b in enumerate(buy)]),
        "lost": ((click == 1) & (buy == 0)).astype(int),
        "copy": click,
    }
    tree = made(shop, pa.table({"user_id": random.integers(0, 50, 800), **leaks, "click": click, "buy": buy}))
    assert tree["chain"] == ["impression -> click -> buy"]
    assert [*tree["features"]] == ["user_id"]
    text = Path("experiment.yaml").read_text()
    assert all(f"#   {name}: " in text for name in leaks)


def test_the_words_of_a_name() -> None:
    assert words_of("userId") == words_of("user_id") == words_of("User id") == words_of("user.id") == ["user", "id"]


# What is guessed


def shop_log() -> pa.Table:
    table = rows(2000, 5)
    random = np.random.default_rng(1)
    start = datetime(2026, 3, 1)
    revenue = [round(float(random.gamma(2, 20)) + 1, 2) if c else 0.0 for c in table["conversion"].to_pylist()]
    return put(
        table.drop_columns(["weight", "day", "session"]),
        revenue=revenue,
        row_id=list(range(2000)),
        constant=[1] * 2000,
        empty=pa.nulls(2000),
        request_id=[i // 8 for i in range(2000)],
        shown_at=[start + timedelta(minutes=20 * i) for i in range(2000)],
        published=[start - timedelta(days=int(d)) for d in random.integers(0, 300, 2000)],
        words=["|".join(f"w{w}" for w in random.integers(0, 9, 3)) for _ in range(2000)],
        took=pa.array([timedelta(seconds=1)] * 2000),
    )


def test_a_log_of_every_sort_of_column(shop: Shop) -> None:
    tree = made(shop, shop_log())
    features = tree["features"]
    assert tree["chain"] == ["impression -> click -> conversion => revenue"]
    assert tree["data"]["split"]["by"] == "shown_at"
    assert tree["metrics"]["gauc"] == {"type": "gauc", "by": "request_id"}
    assert features["user_id"] == features["item_id"] == "id"
    assert features["history"] == {"type": "sequence", "share": "item_id"}
    assert features["text"] == {"type": "vector", "size": 3}
    assert features["words"] == "bag"
    assert features["published_age"] == {"type": "number", "column": "published", "part": "age", "at": "shown_at"}
    assert features["shown_at_hour"] == {"type": "id", "column": "shown_at", "part": "hour"}
    assert not {"row_id", "constant", "empty", "request_id", "took", "revenue"} & {*features}


def test_it_trains_as_it_is(shop: Shop) -> None:
    made(shop, shop_log())
    said = shop.espace("fit", "experiment.yaml", "trainer.max_steps=3", "--run-dir", "run", "-q")
    assert (said.code, said.error) == (0, "")


def test_an_amount_that_is_0_for_some_has_a_kind_that_allows_it(shop: Shop) -> None:
    table = shop_log()
    some = [v if i % 7 else 0.0 for i, v in enumerate(table["revenue"].to_pylist())]
    assert made(shop, put(table, revenue=some))["stages"] == {"revenue": {"kind": "ziln"}}


def test_a_chain_that_is_given_goes_before_all_guesses(shop: Shop) -> None:
    tree = made(shop, shop_log(), "--chain", "show -> click")
    assert tree["chain"] == ["show -> click"]
    assert not {"conversion", "revenue", "click"} & {*tree["features"]}


def test_validation_and_test_rows_beside_the_file_are_used_if_they_fit(shop: Shop) -> None:
    tree = made(shop, rows(600, 0), name="train.parquet")
    assert (tree["data"]["validation"], tree["data"]["test"]) == ("validation.parquet", "test.parquet")
    shop.write(rows(100, 3).drop_columns(["click"]), "test.parquet")
    assert "test" not in made(shop, rows(600, 0), name="train.parquet")["data"]


def test_a_csv_with_semicolons_and_a_folder(shop: Shop) -> None:
    table = rows(600, 0).drop_columns(["history", "tags", "tag_weights", "text"])
    options = pyarrow.csv.WriteOptions(delimiter=";")
    pyarrow.csv.write_csv(table, "mine.csv", options)
    assert shop.espace("new", "experiment", "mine.csv", "--out", "csv.yaml").code == 0
    assert tree_of(Path("csv.yaml"))["data"]["delimiter"] == ";"
    assert shop.espace("check", "csv.yaml").error == ""
    Path("folder").mkdir()
    pq.write_table(table, "folder/a.parquet")
    assert shop.espace("new", "experiment", "folder", "--out", "sub/folder.yaml").code == 0
    assert shop.espace("check", "sub/folder.yaml").error == ""


def test_names_that_need_quotes_or_a_column_of_their_own(shop: Shop) -> None:
    table = rows(800, 0).select(["user_id", "item_id", "click", "conversion"])
    tree = made(shop, table.rename_columns(["on: a*", "用户 ${x}", "has click?", "转化 #1"]))
    assert tree["chain"] == ["impression -> has_click -> 转化_1"]
    assert tree["labels"] == {"has_click": "has click?", "转化_1": "转化 #1"}
    assert {f.options["column"] or n for n, f in load("experiment.yaml").features.items()} == {"on: a*", "用户 ${x}"}


# Mistakes


def test_a_file_that_is_there_is_not_written_over(shop: Shop) -> None:
    Path("experiment.yaml").write_text("mine")
    said = shop.espace("new", "experiment", "train.parquet")
    assert said.code == 2
    assert "experiment.yaml is there already. Name another file with --out" in said.error
    assert Path("experiment.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("empty.csv", "", "empty.csv"),
        ("head.csv", "a,b\n", "head.csv"),
        ("odd.parquet", "no parquet", "odd.parquet: is not a Parquet file"),
        ("odd.xlsx", "x", "the ending '.xlsx' says no"),
        ("ab.csv", "a,b\n" + "1.5,x\n2.5,y\n" * 50, "No column has 0 and 1 and nothing else. Say what follows what"),
        ("flags.csv", "a,b\n" + "1,0\n0,1\n1,1\n0,0\n" * 50, "The columns of 0 and 1 are a, b. Say what follows what"),
        ("bare.csv", "click\n" + "1\n0\n" * 50, "no column is left for a feature: click (stage)"),
    ],
)
def test_data_of_which_no_experiment_can_be_made(shop: Shop, name: str, text: str, says: str) -> None:
    Path(name).write_text(text)
    said = shop.espace("new", "experiment", name)
    assert said.code == 2
    assert says in said.error
    assert not Path("experiment.yaml").exists()


def test_a_chain_of_columns_that_are_not_there(shop: Shop) -> None:
    said = shop.espace("new", "experiment", "train.parquet", "--chain", "impression -> clik -> conversion")
    assert (said.code, "there is no column 'clik'. Did you mean 'click'?" in said.error) == (2, True)
    said = shop.espace("new", "experiment", "train.parquet", "--chain", "click")
    assert (said.code, "--chain" in said.error) == (2, True)


def test_options_of_the_other_kind_are_refused(shop: Shop) -> None:
    assert "--folder" in shop.espace("new", "experiment", "train.parquet", "--folder", "x").error
    assert "--chain" in shop.espace("new", "tower", "my_tower", "--chain", "a -> b").error


def test_a_place_that_cannot_be_written(shop: Shop) -> None:
    said = shop.espace("new", "experiment", "train.parquet", "--out", "train.parquet/x.yaml")
    assert (said.code, "cannot be written" in said.error) == (2, True)


# Real data

REAL = {
    "hillstrom/train.csv": ("impression -> visit -> conversion => spend", set()),
    "oulad/train.csv": (
        "impression -> stays -> passes -> distinction",
        {"final_result", "fail", "withdrawn", "pass_only"},
    ),
    "kuairec/train.parquet": ("impression -> half -> full -> twice", {"ratio"}),
    "ebnerd/train.parquet": ("impression -> click -> read -> finish", {"impression_id"}),
    "beibei/train.parquet": ("impression -> view -> cart -> buy", set()),
}


@pytest.mark.skipif(not SHARED.is_dir() and "ESPACE_DATA" not in os.environ, reason="needs shared/data")
@pytest.mark.parametrize("name", REAL)
def test_real_data_is_guessed_and_passes_check(shop: Shop, name: str) -> None:
    chain, never = REAL[name]
    data = Path(os.environ.get("ESPACE_DATA", SHARED)) / name
    assert shop.espace("new", "experiment", data).code == 0
    tree = tree_of(Path("experiment.yaml"))
    assert tree["chain"] == [chain]
    assert not never & {*tree["features"]}
    assert shop.espace("check", "experiment.yaml").error == ""


@SOME
@given(st.integers(0, 10_000))
def test_odd_types_and_values_pass_check(shop: Shop, seed: int) -> None:
    random = np.random.default_rng(seed)
    click, buy = nested(seed, 2)
    start = datetime(2026, 1, 1)
    some = random.random(800) < 0.2
    zoned = pa.array([start + timedelta(hours=int(h)) for h in random.integers(0, 900, 800)], pa.timestamp("us", "UTC"))
    columns = {
        "clicked": pa.array(click),
        "bought": pa.array(buy.astype(float), mask=some & ~click),
        "big": pa.array(random.integers(2**60, 2**62, 60)[random.integers(0, 60, 800)]),
        "float_id": pa.array(random.integers(0, 90, 800).astype(float), mask=some),
        "wide_float_id": pa.array(random.integers(2**54, 2**55, 9)[random.integers(0, 9, 800)].astype(float)),
        "infinite": pa.array(np.where(some, np.inf, random.normal(size=800))),
        "nan": pa.array(np.where(some, np.nan, random.normal(size=800)), from_pandas=False),
        "money": pa.array([f"{v:.2f}" for v in random.gamma(2, 20, 800)]).cast(pa.decimal128(10, 2)),
        "seen": zoned,
        "born": pa.array([start.date() - timedelta(days=int(d)) for d in random.integers(0, 9000, 800)]),
        "day_text": pa.array([f"2026-01-{d:02d}" for d in random.integers(1, 28, 800)], mask=some),
        "clock": pa.array(random.integers(0, 86400, 800).astype("int32"), pa.time32("s")),
        "raw": pa.array([bytes([v]) for v in random.integers(65, 80, 800)]),
        "pair": pa.array([{"a": 1}] * 800),
        "lists": pa.array([[1, None] if v else None for v in some]),
        "fixed": pa.array(random.normal(size=(800, 2)).tolist(), pa.list_(pa.float32(), 2)),
        "kinds": pa.array(random.choice(["a", "b", ""], 800)).dictionary_encode(),
        "json": pa.array([f"[{a}, {b}]" for a, b in random.integers(0, 5, (800, 2))]),
        "nothing": pa.nulls(800),
    }
    tree = made(shop, pa.table(columns))
    assert tree["chain"] == ["impression -> clicked -> bought"]


def test_a_column_called_like_a_stage_never_comes_in_as_a_feature(shop: Shop) -> None:
    table = rows(800, 0).select(["user_id", "item_id", "click"])
    clicked = np.flatnonzero(table["click"].to_numpy())[:3]
    tree = made(shop, table.append_column("purchase", pa.array(np.isin(np.arange(800), clicked).astype(int))))
    assert (tree["chain"], "purchase" in tree["features"]) == (["impression -> click"], False)
