"""What is printed fits into a terminal of any width: no name is cut, and what does not fit goes as a whole."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.console import Console

from espace.runs.experiment import Experiment
from espace.runs.report import Report
from espace.training.narrator import fitting
from tests.shop import CONFIG, put, rows

WIDTHS = (60, 80, 100, 180)
STAGES = ["impression", "click", "conversion_after_click"]
LABELS = ["click", "bought_within_seven_days"]


def screen(width):
    """A report on a terminal, and what it shows."""
    report = Report()
    report.console = Console(file=StringIO(), force_terminal=True, width=width, markup=False, highlight=False)
    return report, report.console.file


def plain(shown):
    """Lines without colours; of what is drawn again and again every state."""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]+", text)]


def tables(lines):
    """The lines that are no notes: these are wrapped by the terminal, so that paths in them can be copied."""
    return [
        line
        for line in lines
        if not line.startswith(("Note:", "Chosen for", "step ", "Run folder", "shop:", "Predict with"))
    ]


@pytest.fixture
def yaml(shop):
    for name, seed in (("train", 0), ("validation", 1)):
        table = rows(600, seed)
        shop.write(
            put(table, bought_within_seven_days=table["conversion"]).drop_columns("conversion"), f"{name}.parquet"
        )
    return shop.yaml(
        chain=["impression -> click -> conversion_after_click"],
        labels={"conversion_after_click": "bought_within_seven_days"},
        data={"train": "train.parquet", "validation": "validation.parquet", "batch_size": 30, "split": {"by": "day"}},
        trainer={**CONFIG["trainer"], "max_epochs": 2},
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_the_audit_has_every_stage_and_label_in_full_at_every_width(width, yaml):
    report, shown = screen(width)
    Experiment.from_yaml(yaml).check(report)
    lines = plain(shown)
    assert max(map(len, tables(lines))) <= width
    labels = lines[: next(i for i, line in enumerate(lines) if line.startswith("Times"))]
    for name in STAGES + LABELS:
        assert any(re.search(rf"(^| ){name}( |$)", line) for line in labels), name
    text = "\n".join(lines)
    for name in ("conversion_after_click", "first", "last", "validation"):
        assert name in text


@pytest.mark.parametrize("width", WIDTHS)
def test_columns_go_by_need_and_the_caption_names_them(width, yaml):
    report, shown = screen(width)
    Experiment.from_yaml(yaml).check(report)
    text = " ".join(plain(shown))
    whole, whole_shown = screen(1000)
    Experiment.from_yaml(yaml).check(whole)
    assert "A wider terminal also shows" not in whole_shown.getvalue()
    for column in ("part", "known rows", "positives", "given parent", "unknown", "violations", "divided by"):
        assert column in text, f"{column} is shown, or the caption says that it is not"
    assert ("A wider terminal also shows" in text) == (width < 180)


def test_a_name_that_is_wider_than_the_terminal_is_folded_and_not_cut(shop):
    shop.write(put(rows(600), **{"c" * 90: rows(600)["click"]}))
    yaml = shop.yaml(labels={"click": "c" * 90}, data={"train": "train.parquet"}, metrics=None)
    report, shown = screen(60)
    Experiment.from_yaml(yaml).check(report)
    assert max(map(len, tables(plain(shown)))) <= 60
    assert shown.getvalue().count("c" * 20) >= 2


@pytest.mark.parametrize("width", WIDTHS)
def test_a_fit_shows_its_bar_and_its_results_at_every_width(width, yaml, shop):
    report, shown = screen(width)
    Experiment.from_yaml(yaml).fit(shop.folder / f"run{width}", report=report)
    lines = plain(shown)
    assert max(map(len, tables(lines))) <= width
    bars = [line for line in lines if line.startswith("training ")]
    assert bars
    assert all("━" * 8 in line and "/40 " in line for line in bars)
    assert any("loss 0." in line for line in bars)
    results = lines[next(i for i, line in enumerate(lines) if line.startswith("Results on")) :]
    for name in ("click", "conversion_after_click", "conversion_after_click_given_click", "AUC"):
        assert any(re.search(rf"(^| ){name}( |$)", line) for line in results), name


def test_losses_are_left_out_whole():
    assert fitting(["loss 0.1", "loss/click 0.2", "9 rows/s"], 100) == "loss 0.1  loss/click 0.2  9 rows/s"
    assert fitting(["loss 0.1", "loss/click 0.2", "9 rows/s"], 24) == "loss 0.1  loss/click 0.2"
    assert fitting(["loss 0.1", "loss/click 0.2", "9 rows/s"], 23) == "loss 0.1"
    assert fitting(["loss 0.1"], 7) == ""
