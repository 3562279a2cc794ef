"""Callbacks and loggers of plugins: called, kept with the run, blamed by name. tests/training/test_resume.py resumes them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from espace.errors import ConfigError, PluginError, RunError
from espace.runs.experiment import Experiment
from espace.runs.report import Report
from espace.training.checkpoint import read_checkpoint
from tests import guests
from tests.shop import Shop

QUIET = Report(quiet=True)
FEW = {"features": {"user_id": "id"}, "metrics": {"auc": None}, "test": None}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.chdir(tmp_path)
    return Shop(tmp_path).fill(400)


def fit(shop: Shop, name: str = "run", resume: bool = False, **sections: object) -> Path:
    trainer = {"accelerator": "cpu", "max_epochs": 1, "log_every_n_steps": 1, **sections.pop("trainer", {})}
    text = shop.yaml(**{**FEW, "plugins": guests.written(shop.folder), **sections, "trainer": trainer})
    folder = shop.folder / name
    Experiment.from_yaml(text).fit(None if resume else folder, resume=folder if resume else None, report=QUIET)
    return folder


def test_a_callback_sees_every_step_and_its_state_is_in_the_checkpoint(shop):
    run = fit(shop, callbacks={"a": "shrink", "b": {"type": "again", "by": 0.0}})
    states = read_checkpoint(run / "checkpoints" / "last.ckpt")["callbacks"]
    assert states["Shrink"] == states["again"] == {"steps": 2}


def test_what_a_callback_raises_is_told_with_its_name(shop):
    with pytest.raises(PluginError, match=r"callback 'shrink' of .*guests.py:\d+, in on_train_batch_end: ValueError"):
        fit(shop, callbacks={"a": {"type": "shrink", "fail_at": 1}})


def test_a_state_that_no_checkpoint_can_keep_is_refused_before_it_is_written(shop):
    with pytest.raises(PluginError, match="the state of 'Shrink' holds a int64, which no checkpoint can keep"):
        fit(shop, callbacks={"a": {"type": "shrink", "odd": True}})


def test_two_callbacks_with_one_place_in_a_checkpoint_are_refused(shop):
    with pytest.raises(PluginError, match=r"callbacks.b: a checkpoint would keep the state of it and of 'a'"):
        fit(shop, callbacks={"a": "shrink", "b": "shrink"})


def test_what_is_no_callback_is_refused(shop):
    with pytest.raises(PluginError, match=r"callbacks.a: a int is no pytorch_lightning.Callback"):
        fit(shop, callbacks={"a": "no_callback"})


def test_a_misspelt_callback_and_its_options_are_refused_where_they_stand(shop):
    with pytest.raises(ConfigError, match=r"there is no callback 'shrnk'. Did you mean 'shrink'\?"):
        fit(shop, callbacks={"a": "shrnk"})
    with pytest.raises(ConfigError, match=r"shrink has no option 'bye'. Did you mean 'by'\?"):
        fit(shop, callbacks={"a": {"type": "shrink", "bye": 1.0}})
    with pytest.raises(ConfigError, match="there is no callback 'ema'"):
        fit(shop, plugins=[], callbacks={"a": "ema"})


def test_a_run_goes_on_with_its_callbacks_and_no_others(shop):
    fit(shop, callbacks={"a": "shrink"})
    fit(shop, resume=True, callbacks={"a": "shrink"}, trainer={"max_epochs": 2})
    assert read_checkpoint(shop.folder / "run" / "checkpoints" / "last.ckpt")["callbacks"]["Shrink"] == {"steps": 4}
    with pytest.raises(RunError, match="begun with another callbacks"):
        fit(shop, resume=True, trainer={"max_epochs": 3})


def test_loggers_are_those_of_the_yaml_and_metrics_csv_is_always_there(shop):
    assert (fit(shop, "one") / "tensorboard").is_dir()
    none = fit(shop, "none", loggers={"tensorboard": None})
    assert not (none / "tensorboard").exists()
    table = fit(shop, "table", loggers={"tensorboard": None, "table": "csv"})
    assert (none / "metrics.csv").read_text() == (table / "metrics.csv").read_text() != ""
    assert Experiment.from_yaml(none / "config.yaml").config.loggers == {}


def test_steps_csv_has_a_line_for_each_step_and_what_metrics_csv_has(shop):
    run = fit(shop, loggers={"table": "csv"})
    fit(shop, resume=True, loggers={"table": "csv"}, trainer={"max_epochs": 2})
    with (run / "steps.csv").open(newline="") as file:
        lines = [*csv.DictReader(file)]
    with (run / "metrics.csv").open(newline="") as file:
        told = [*csv.DictReader(file)]
    assert [line["step"] for line in lines] == ["1", "2", "3", "4"]
    found = {
        (line["step"], name): v for line in lines for name, v in line.items() if v and name not in ("step", "epoch")
    }
    assert found == {(line["step"], line["name"]): line["value"] for line in told}
