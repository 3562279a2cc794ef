"""Features in bulk: patterns and sorts of columns are what would have been written by hand, and nothing else."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from espace import config as configuration
from espace.config import load, save
from espace.errors import ConfigError
from espace.registry.registry import load as load_plugins
from tests.shop import CONFIG, Shop

NAMES = st.text("ab_é 1:#", min_size=1, max_size=6).filter(str.strip)
SOME = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, columns: list[str], features: dict[str, Any], **more: Any) -> Path:
    """A YAML beside a file with a label and these columns of numbers."""
    table = pa.table({"click": [0, 1], **{name: [1.0, 2.0] for name in columns}})
    pq.write_table(table, folder / "t.parquet")
    tree = {"chain": ["impression -> click"], "data": {"train": str(folder / "t.parquet")}, "features": features}
    (folder / "x.yaml").write_text(yaml.safe_dump({**tree, **more}, sort_keys=False, allow_unicode=True))
    return folder / "x.yaml"


@SOME
@given(st.lists(NAMES, min_size=1, unique=True), st.text("ab*?_", min_size=1, max_size=3))
def test_a_pattern_is_its_columns_written_one_by_one(tmp_path: Path, columns: list[str], pattern: str) -> None:
    pattern = f"{pattern}*"
    matching = [name for name in columns if fnmatchcase(name, pattern)]
    path = write(tmp_path, columns, {pattern: {"type": "number", "log1p": True}})
    if not matching:
        with pytest.raises(ConfigError, match=r"no column of the training data matches|read by something else"):
            load(path)
        return
    by_hand = write(tmp_path, columns, {name: {"type": "number", "log1p": True} for name in matching})
    assert load(write(tmp_path, columns, {pattern: {"type": "number", "log1p": True}})) == load(by_hand)


@SOME
@given(st.lists(NAMES.filter(lambda n: n != "click"), min_size=1, unique=True))
def test_what_comes_out_needs_neither_data_nor_patterns(tmp_path: Path, columns: list[str]) -> None:
    config = load(write(tmp_path, columns, {"*": "id"}))
    assert list(config.features) == columns
    (tmp_path / "t.parquet").unlink()
    save(config, tmp_path / "again.yaml")
    assert load(tmp_path / "again.yaml") == config


def test_a_name_goes_before_a_pattern_and_an_earlier_pattern_before_a_later_one(tmp_path: Path) -> None:
    a_1 = {"type": "number", "buckets": 3}
    with pytest.raises(ConfigError, match=r"features\.a_\*: no column is left for it: an earlier line takes a_1, a_2"):
        load(write(tmp_path, ["a_1", "a_2", "b"], {"*": "id", "a_*": "number"}))
    config = load(write(tmp_path, ["a_1", "a_2", "b"], {"a_*": "number", "*": "id", "a_1": a_1}))
    assert {n: (f.type, f.options.get("buckets")) for n, f in config.features.items()} == {
        "a_2": ("number", None),
        "b": ("id", None),
        "a_1": ("number", 3),
    }


def test_a_column_whose_name_holds_a_star_stays_a_name(tmp_path: Path) -> None:
    config = load(write(tmp_path, ["a*", "ab"], {"*": "id"}))
    assert config.features["a*"].options["column"] == "a*"
    save(config, tmp_path / "again.yaml")
    assert load(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    ("features", "says"),
    [
        (
            {"*_idd": "id"},
            r"x\.yaml:\d+:3: features\.\*_idd: no column of the training data matches\. Did you mean 'u_id'",
        ),
        ({"cli*": "id"}, r"all columns that match are read by something else: click \(the label of 'click'\)"),
        (
            {"*": {"numbrs": "number"}},
            r"features\.\*\.numbrs: there is no such sort of column\. Did you mean 'numbers'",
        ),
        ({"*": {"numbers": {"type": "number", "lgo1p": True}}}, r"features\.\*\.numbers: number has no option 'lgo1p'"),
        ({"*": {"type": "id", "dmi": 3}}, r"features\.\*: id has no option 'dmi'\. Did you mean 'dim'"),
        ({"*": "id", "u_idd": None}, r"features\.u_idd: there is no column 'u_idd' to leave out\. Did you mean 'u_id'"),
        ({"*": {"lists": "sequence"}}, r"features\.\*: no column is left for it"),
        ({"*": 3}, r"features\.\*: 3 is neither the name of a feature nor a mapping"),
    ],
)
def test_mistakes_say_where_and_the_way_out(tmp_path: Path, features: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(write(tmp_path, ["u_id", "v"], features))


def test_all_other_mistakes_of_the_file_come_with_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no such key") as found:
        load(write(tmp_path, ["a"], {"*": {"type": "id", "dmi": 3}}, towr="mlp"))
    assert len(found.value.problems) == 2


def test_the_owner_of_a_table_may_be_among_those_that_share_it(tmp_path: Path) -> None:
    config = load(write(tmp_path, ["item", "last_item"], {"*item": {"type": "id", "share": "item"}}))
    assert [f.options["share"] for f in config.features.values()] == [None, "item"]


PATTERNS = {
    "*_id": {"type": "id", "dim": 4},
    "tag*": None,
    "text": None,
    "history": {"type": "sequence", "share": "item_id"},
    "*": {"numbers": "number", "text": "id", "lists": "sequence"},
}


class TestInAShop:
    """On rows with every sort of column."""

    def test_labels_weights_and_group_keys_never_come_in(self, shop: Shop) -> None:
        config = load(shop.yaml(features={"*": {"numbers": "number", "text": "id"}}))
        assert list(config.features) == ["user_id", "item_id", "place", "price", "age", "day"]

    def test_a_column_of_an_outcome_never_comes_in_whatever_its_label_is_called(self, shop: Shop) -> None:
        lines = ["impression -> click else skip", "click -> conversion"]
        shop.write(_with(shop, skip=[1] * 600, clk=pq.read_table("train.parquet")["click"]), "train.parquet")
        said = {"train": "train.parquet"}
        config = load(shop.yaml(chain=lines, labels={"click": "clk"}, data=said, features={"*": {"integers": "id"}}))
        assert not {"skip", "clk", "click", "conversion"} & {*config.features}

    def test_the_audit_sees_a_leak_that_a_pattern_brings(self, shop: Shop) -> None:
        clicks = pq.read_table("train.parquet")["click"]
        shop.write(_with(shop, x_copy=clicks), "leaks.parquet")
        path = shop.yaml(features={"x_*": "number"}, data={"train": "leaks.parquet"})
        said = shop.espace("check", path)
        assert said.code == 2
        assert "features.x_copy: alone it tells 'click'" in said.error

    def test_check_prints_a_line_for_each_and_a_run_has_plain_names(self, shop: Shop) -> None:
        path = shop.yaml(features=PATTERNS)
        lines = [line for line in shop.espace("check", path).out.splitlines() if line.startswith("features '")]
        assert lines[0] == "features '*_id': id user_id, item_id"
        assert lines[1] == "features 'tag*': left out tags, tag_weights"
        assert lines[2].startswith("features '*': number place, price, age, day; not click (the label of 'click'), ")
        said = shop.espace("fit", path, "trainer.max_steps=2", "--run-dir", "run")
        assert (said.code, said.error) == (0, "")
        assert "features '*_id': id user_id, item_id" in said.out
        kept = yaml.safe_load(Path("run/config.yaml").read_text())["features"]
        assert list(kept) == ["user_id", "item_id", "history", "place", "price", "age", "day"]
        Path("train.parquet").unlink()
        args = ("predict", "run", "--data", "test.parquet", "--out", "out.parquet")
        assert shop.espace(*args).code == 0

    def test_it_goes_on_with_the_same_columns(self, shop: Shop) -> None:
        path = shop.yaml(features=PATTERNS)
        shop.espace("fit", path, "trainer.max_steps=2", "--run-dir", "run")
        for more in (["--resume", "run"], [path, "--resume", "run"]):
            said = shop.espace("fit", *more, "trainer.max_steps=3")
            assert (said.code, said.error) == (0, "")

    def test_overrides_change_patterns_and_take_columns_out(self, shop: Shop) -> None:
        path = shop.yaml(features=PATTERNS)
        config = load(path, ["features.day=null", "features.*_id.dim=8", "features.tag*=null"])
        assert "day" not in config.features
        assert config.features["user_id"].options["dim"] == 8
        with pytest.raises(ConfigError, match=r"there is no column 'dya' to leave out\. Did you mean 'day'"):
            load(path, ["features.dya=null"])

    def test_the_truth_of_a_simulator_does_not_come_in(self, shop: Shop) -> None:
        data = {"type": "simulator", "chain": "${chain}", "train": 300, "users": 40, "items": 30}
        config = load(shop.yaml(data=data, metrics=None, features={"*": {"numbers": "id", "lists": "sequence"}}))
        assert [n for n in config.features if "true" in n or "potential" in n] == []
        assert {"user_id", "item_id", "history"} <= {*config.features}

    def test_columns_of_a_csv(self, shop: Shop) -> None:
        Path("t.csv").write_text("u_id,price,city,click\n1,2.5,x,0\n2,3.5,y,1\n")
        config = load(shop.yaml(data={"train": "t.csv"}, metrics=None, chain=["i -> click"], features=PATTERNS_CSV))
        assert {n: f.type for n, f in config.features.items()} == {"u_id": "id", "price": "number", "city": "id"}


PATTERNS_CSV = {"*_id": "id", "*": {"floats": "number", "text": "id"}}


def _with(shop: Shop, **columns: Any) -> pa.Table:
    table = pq.read_table("train.parquet")
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values) if isinstance(values, list) else values)
    return table


def test_the_json_schema_has_them() -> None:
    found = configuration.json_schema(load_plugins())["properties"]["features"]["patternProperties"]["[*?]"]
    assert {"numbers", "text", "lists"} <= {*found["anyOf"][1]["properties"]}
    assert CONFIG["features"]


def test_as_many_columns_as_a_wide_table_has_are_read_again(tmp_path: Path) -> None:
    config = load(write(tmp_path, [f"c{i}" for i in range(4000)], {"c*": "number"}))
    save(config, tmp_path / "again.yaml")
    assert load(tmp_path / "again.yaml") == config
