"""No name of a column, no label and no value of the data commands the terminal: control characters are written out."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

import espace
from espace.data.raw.prepare import prepare
from espace.errors import visible
from espace.runs.report import Report
from tests.raw import AliCcp
from tests.shop import Shop, put, rows

EVIL = "a\x1b[2J\x9b31m\u202eb"


@given(st.text())
def test_text_made_visible_has_no_control_characters_and_ends_its_lines_where_it_did(text: str) -> None:
    shown = visible(text)
    assert not [c for c in shown if (c < " " and c not in "\n\t") or "\x7f" <= c <= "\x9f"]
    assert shown.count("\n") == text.count("\n")
    assert visible(shown) == shown


def test_tables_notes_and_lines_are_made_visible(capsys: pytest.CaptureFixture[str]) -> None:
    report, table = Report(), Table(EVIL, title=EVIL)
    table.add_row(EVIL)
    report.console.print(table)
    report.warn(EVIL)
    report.tell(EVIL)
    said = capsys.readouterr().out
    assert said.count(r"a\x1b[2J\x9b31m\u202eb") == 5
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & {*said}


def test_many_notes_of_one_kind_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Report().warn_all([f"train: 'f{i}' is unknown in {i} %." for i in range(60)] + ["another", "another one"])
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "Note: train: 'f0' is unknown in 0 %. And 59 more notes of this kind.",
        "Note: another",
        "Note: another one",
    ]


def test_everything_is_printed_on_the_console_that_is_safe() -> None:
    for path in (p for p in Path(espace.__file__).parent.rglob("*.py") if p.name != "console.py"):
        assert not re.findall(r"(?<!Safe)Console\(", path.read_text()), path


def test_what_prepare_says_is_made_visible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        AliCcp(rows=60, faults=0.5).write(tmp_path / EVIL, split)
    prepare("ali-ccp", tmp_path / EVIL, tmp_path / f"out{EVIL}")
    prepare("ali-ccp", tmp_path / EVIL, tmp_path / f"out{EVIL}")
    said = capsys.readouterr().out
    assert said.count(r"a\x1b[2J\x9b31m\u202eb is complete.") == 1
    assert not {"\x1b", "\x9b", "\u202e"} & {*said}


def test_notes_after_results_and_predictions_of_one_kind_are_one_line_too(shop: Shop) -> None:
    random = np.random.default_rng(0)
    numbers = {f"f{i}": np.ones(300) for i in range(6)}
    chain = [f"impression -> s{i}" for i in range(6)]
    labels = {f"s{i}": (random.random(300) < 0.3).astype(int) for i in range(6)}
    shop.write(pa.table(numbers | labels))
    shop.write(pa.table({n: 2 * v for n, v in numbers.items()}), "far.parquet")
    data = {"train": "train.parquet", "validation": "train.parquet"}
    features = dict.fromkeys(numbers, "number")
    trainer = {"accelerator": "cpu", "max_steps": 1}
    path = shop.yaml(chain=chain, data=data, features=features, metrics=None, trainer=trainer, optimizer={"lr": 1e-12})
    predict = ("predict", "run", "--data", "far.parquet", "--out", "p.parquet")
    for arguments in (("fit", path, "--run-dir", "run"), predict):
        said = shop.espace(*arguments)
        assert said.code == 0, said
        assert "And 5 more notes of this kind." in " ".join(said.out.split()), said
        assert said.out.count("Note:") < 6, said


def test_a_column_with_escapes_reaches_no_terminal(shop: Shop) -> None:
    table = rows(300)
    shop.write(put(table, **{EVIL: table["user_id"], "odd": [EVIL] * 300}), "train.parquet")
    part = {"train": "train.parquet", "validation": "train.parquet"}
    features = {"user_id": "id", "f": {"type": "id", "column": EVIL}}
    for changed in (
        {"features": features},
        {"features": {"f": {"type": "id", "column": EVIL + "x"}}},
        {"features": {"odd": "number"}},
        {"labels": {"click": EVIL}, "features": {"user_id": "id"}},
        {"labels": {"click": "odd"}},
    ):
        said = shop.espace("check", shop.yaml(data=part, **changed))
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & {*said.out, *said.error}
