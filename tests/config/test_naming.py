"""One rule for names that users give; what is written under them stays in its folder and is found again."""

from __future__ import annotations

import json
import re
import string

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import espace
from espace.config.naming import LONGEST, name_problem
from espace.data.reading.naming import file_name
from espace.errors import ConfigError
from tests.shop import Shop, put, rows

NAMES = st.text(st.sampled_from([*string.printable, *"点击é\u0301/\\.\0~%\u202e"]), max_size=300)


@settings(max_examples=300, deadline=None)
@given(NAMES, NAMES)
def test_different_names_are_different_files_and_none_leaves_its_folder(one: str, other: str) -> None:
    files = {file_name(one), file_name(other)}
    assert len(files) == len({one, other})
    for file in files:
        assert 0 < len(file.encode()) <= 180
        assert re.fullmatch(r"[\w%~-]+", re.sub(r"[^\x00-\x7f]", "", file) or "x")


def test_plain_names_are_their_own_files() -> None:
    assert [file_name(n) for n in ("user_id", "点击", "a-1")] == ["user_id", "点击", "a-1"]
    assert file_name("../../x y") == "%2E%2E%2F%2E%2E%2Fx%20y"


@pytest.mark.parametrize("name", ["a b", "price.usd", "点击", "a/b", "x" * LONGEST, "../x", "👍🏽", "'\""])
def test_a_name_may_be_almost_anything(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "the name is empty"),
        (" ", "the name is empty"),
        ("a\x1b[31m", r"the name has the character U\+001B"),
        ("a\u202eb", r"the name has the character U\+202E"),
        ("x" * 201, "the name has 201 characters, more than 200"),
    ],
)
def test_what_is_no_name_is_refused_wherever_it_stands(shop: Shop, name: str, says: str) -> None:
    refused = rf"{says}.*\. (Write|Choose) "
    part = {"type": "auc"}
    for key, section in {
        "features": {"user_id": "id", name: "id"},
        "metrics": {"auc": None, name: part},
        "name": name.strip() or "x" * 201,
    }.items():
        expected = refused if key != "name" or name.strip() else "the name has 201"
        with pytest.raises(ConfigError, match=expected):
            espace.Experiment.from_yaml(shop.yaml(**{key: section}))


@pytest.mark.parametrize("section", ["stages", "values", "scores"])
def test_a_name_of_a_stage_a_value_or_a_score_has_a_bound(shop: Shop, section: str) -> None:
    name = "x" * 201
    changed = {
        "stages": {"chain": [f"impression -> click -> {name}"]},
        "values": {"chain": [f"impression -> click -> conversion => {name}"]},
        "scores": {"scores": {name: "click * 2"}},
    }[section]
    with pytest.raises(ConfigError, match=r"the name has 201 characters, more than 200\. Choose"):
        espace.Experiment.from_yaml(shop.yaml(**changed))


def test_everything_may_be_called_like_a_method_of_a_module_or_a_path(shop: Shop) -> None:
    table = rows(300)
    amounts = [1.5 * c for c in table["conversion"].to_pylist()]
    named = put(table, apply=table["click"], train=table["conversion"], type=amounts)
    named = put(named, **{"../../outside": table["user_id"], "half": table["age"]})
    shop.write(named, "train.parquet")
    path = shop.yaml(
        name="../../named",
        chain=["impression -> apply -> train", "apply -> keys | float else pop", "train => type"],
        labels={"keys": "conversion2", "float": "click2"},
        data={"train": "train.parquet", "validation": "train.parquet", "batch_size": 128},
        features={"../../outside": "id", "half": {"type": "number", "buckets": 3}},
        metrics={"forward": {"type": "auc"}, "auc": None, "to.x": {"type": "log_loss"}, "log_loss": None},
        sharing="mmoe",
        link="aitm",
        scores={"score": "apply * type"},
        trainer={"accelerator": "cpu", "max_steps": 2},
    )
    keys = put(named, conversion2=[int(a and i % 3 == 0) for i, a in enumerate(table["click"].to_pylist())])
    keys = put(keys, click2=[int(a and i % 3 == 1) for i, a in enumerate(table["click"].to_pylist())])
    shop.write(keys, "train.parquet")
    run = espace.Experiment.from_yaml(path).fit()
    assert run is not None
    assert run.folder is not None
    folder = run.folder.resolve()
    assert folder.parent == shop.folder / "runs" / "%2E%2E%2F%2E%2E%2Fnamed"
    assert pq.read_table(folder / "vocabulary" / "%2E%2E%2F%2E%2E%2Foutside.parquet").num_rows > 0
    assert {p.name for p in shop.folder.iterdir()} >= {"runs", "train.parquet"}
    assert not [*shop.folder.glob("outside*"), *shop.folder.glob("runs/outside*")]
    results = json.loads((folder / "results.json").read_text())
    assert {"val/train_given_apply/auc", "val/keys/auc"} <= {*results}
    predicted = espace.load(folder).predict(keys)
    assert {"p_apply", "p_train", "p_train_given_apply", "p_keys", "p_pop", "e_type", "score_score"} <= {
        *predicted.column_names
    }
