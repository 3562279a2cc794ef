"""No name of a column, no label and no value of the data commands the terminal: control characters are written out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from espace.errors import visible
from espace.runs.report import Report
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
