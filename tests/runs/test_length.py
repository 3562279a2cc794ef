"""How long a run trains where the YAML leaves it open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import espace
from espace.runs import length
from tests.shop import CONFIG, Shop

SIZES = [4_000, 18_000, 38_000, 74_000, 195_000, 278_000, 600_000, 1_000_000, 40_000_000]


def test_small_sets_have_more_steps_and_large_ones_one_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(length, "_MOST", 50)
    chosen = [(length.batch_size(n), length.most_epochs(n, True), length.most_epochs(n, False)) for n in SIZES]
    assert chosen == [
        (64, 50, 10),
        (64, 50, 10),
        (128, 28, 7),
        (256, 14, 4),
        (512, 5, 1),
        (1024, 4, 1),
        (1024, 2, 1),
        (1024, 1, 1),
        (1024, 1, 1),
    ]


@given(st.integers(1, 10**10), st.integers(1, 10**10))
def test_more_rows_are_never_smaller_batches_nor_more_epochs(one: int, other: int) -> None:
    few, many = sorted((one, other))
    assert 64 <= length.batch_size(few) <= length.batch_size(many) <= 1024
    for monitored in (True, False):
        assert 1 <= length.most_epochs(many, monitored) <= length.most_epochs(few, monitored) <= 50


def open_yaml(shop: Shop, **sections: Any) -> str:
    """The YAML of the shop with nothing said of length, unless `sections` does."""
    data = {k: v for k, v in CONFIG["data"].items() if k != "batch_size"}
    trainer = {"accelerator": "cpu", "log_every_n_steps": 5}
    return shop.yaml(**{"data": data, "optimizer": None, "trainer": trainer, **sections})


def config_of(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())


def lengths(tree: dict[str, Any]) -> tuple[Any, ...]:
    return tree["data"]["batch_size"], tree["optimizer"]["lr"], tree["trainer"].get("max_epochs"), tree["patience"]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(length, "_MOST", 6)


def test_what_was_chosen_is_told_and_stands_in_the_run(shop: Shop) -> None:
    said = shop.espace("fit", open_yaml(shop), "--run-dir", "run")
    assert said.code == 0
    line = (
        "Chosen for 600 training rows: batches of 64; a rate of 0.0005; up to 6 epochs of 10 steps, until val/loss has"
        " not improved for 6 validations; the average of about the last 100 weights is kept (data.batch_size, optimizer.lr,"
        " optimizer.average, trainer.max_epochs and patience set them)."
    )
    assert line in said.out
    assert lengths(config_of(Path("run"))) == (64, 0.0005, 6, 6)
    assert line in shop.espace("check", "shop.yaml").out


def test_what_is_written_stays(shop: Shop) -> None:
    data = CONFIG["data"] | {"batch_size": 100}
    text = open_yaml(shop, data=data, trainer={"accelerator": "cpu", "max_steps": 7})
    said = shop.espace("fit", text, "--run-dir", "run")
    assert "Chosen" not in said.out
    assert lengths(config_of(Path("run"))) == (100, 0.001, None, None)


def test_without_validation_rows_the_length_is_fixed_and_waits_for_nothing(shop: Shop) -> None:
    data = {k: v for k, v in CONFIG["data"].items() if k not in ("batch_size", "validation", "test")}
    said = shop.espace("check", open_yaml(shop, data=data))
    assert "batches of 64; a rate of 0.0005; 10 epochs of 10 steps; the average" in said.out


def test_a_run_that_goes_on_keeps_what_was_chosen_at_its_beginning(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = espace.Experiment.from_yaml(open_yaml(shop))
    experiment.fit("run")
    whole = lengths(config_of(Path("run")))
    monkeypatch.setattr(length, "RATE", 0.5)  # as a later version might choose
    monkeypatch.setattr(length, "_LEAST", 128)
    run = experiment.fit(resume="run")
    assert run is not None
    found = run.config
    assert (found.data.batch_size, found.optimizer.lr, found.trainer["max_epochs"], found.patience) == whole
