"""The default precision follows the machine, and what is trained in 16 bits is judged and served so."""

import contextlib

import pytest
import torch

from espace.runs.report import Report
from espace.runs.run import load
from espace.training import precision
from tests.shop import rows as shop_rows
from tests.training.test_lightning import experiment, fit


def machine(monkeypatch, *, amx=False, cuda=False, tensor_cores=False):
    monkeypatch.delenv("ESPACE_PRECISION", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: tensor_cores)


@pytest.mark.parametrize(
    ("has", "accelerator", "expected"),
    [
        ({}, "auto", "32-true"),
        ({"amx": True}, "auto", "bf16-mixed"),
        ({"amx": True}, "cpu", "bf16-mixed"),
        ({"amx": True}, "mps", "32-true"),
        ({"amx": True, "cuda": True}, "auto", "32-true"),
        ({"cuda": True, "tensor_cores": True}, "gpu", "bf16-mixed"),
        ({"cuda": True, "tensor_cores": True}, "cpu", "32-true"),
    ],
)
def test_sixteen_bits_where_the_machine_has_units_for_them(monkeypatch, has, accelerator, expected):
    machine(monkeypatch, **has)
    assert precision.default_precision(accelerator) == expected


def test_an_older_torch_that_cannot_tell_gets_32_bits(monkeypatch):
    machine(monkeypatch)
    with contextlib.suppress(AttributeError):
        monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert precision.default_precision("cpu") == "32-true"


def test_the_environment_decides_for_all_that_does_not_say(monkeypatch):
    machine(monkeypatch, amx=True)
    monkeypatch.setenv("ESPACE_PRECISION", "32-true")
    assert precision.default_precision("cpu") == "32-true"


def test_the_choice_is_printed_and_the_user_has_the_last_word(shop, monkeypatch, capsys):
    machine(monkeypatch, amx=True)
    for name, trainer, expected in (("a", {}, "bf16-mixed"), ("b", {"precision": "32-true"}, "32-true")):
        experiment(shop, trainer={"max_steps": 2, **trainer}).fit(shop.folder / name, report=Report())
        assert f"precision {expected}" in " ".join(capsys.readouterr().out.split())


def test_predictions_and_metrics_are_made_in_the_precision_of_training(shop, monkeypatch):
    """And logits keep 32 bits: 16 would give few different probabilities."""
    machine(monkeypatch, amx=True)
    run = load(fit(shop, trainer={"max_steps": 20}))
    rows = shop_rows(500, 7)
    half = run.predict(rows)["p_click"].to_numpy()
    machine(monkeypatch)
    full = run.predict(rows)["p_click"].to_numpy()
    assert 0 < abs(half - full).max() < 0.02
    assert len(set(half.tolist())) > 0.9 * len(set(full.tolist()))
