"""Weights far worse than base rates alone are a stated outcome: a message, exit code 3, and a complete run folder."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

import espace
from espace.errors import DivergedError
from espace.runs.build import build_model, build_objective
from espace.runs.diverging import base_terms, refuse_diverged
from espace.runs.experiment import Experiment
from tests.shop import Shop

ONE = ("trainer.max_epochs=1", "data.test=null")


def test_training_that_diverges_ends_with_a_message_and_keeps_all_it_has(shop: Shop) -> None:
    said = shop.espace("fit", shop.yaml(), *ONE, "optimizer.lr=1e4", "--run-dir", "run")
    assert said.code == 3, said
    assert (
        "espace: run: training has diverged. On the validation rows the best weights have a loss far above"
        in said.error
    )
    assert "Lower optimizer.lr" in said.error
    results = json.loads((shop.folder / "run" / "results.json").read_text())
    assert results["val/loss"] > 3
    assert (shop.folder / "run" / "checkpoints" / "best.ckpt").exists()
    espace.load(shop.folder / "run")
    again = shop.espace("fit", "--resume", "run", "--quiet")
    assert (again.code, "training has diverged" in again.error) == (3, True)


@pytest.mark.parametrize("objective", ["entire_space", "parent_space"])
def test_the_loss_of_base_rates_is_their_entropy(shop: Shop, objective: str) -> None:
    """Of validation rows that are the training rows, without weights; the head's start adds one row to each class."""
    data = {"train": "train.parquet", "validation": "train.parquet", "batch_size": 256}
    experiment = Experiment.from_yaml(shop.yaml(data=data, objective=objective))
    prepared = experiment.check()
    model = build_model(experiment.config, experiment.registry, prepared.encoder.layout)
    tally = prepared.scans["train"].tally
    model.start_at(tally.starts(model.chain, model.joint))
    stream = prepared.stream(experiment.config, "validation")
    found = base_terms(model, model.starts(), build_objective(experiment.config, experiment.registry), stream)
    click = tally.stages["click"].positives / tally.rows
    buy = tally.stages["conversion"].positives / tally.stages["click"].positives
    second = {"conversion": entropy(click * buy)}
    if objective == "parent_space":
        second = {"conversion_given_click": entropy(buy)}
    assert found == pytest.approx({"click": entropy(click), **second}, rel=1e-3)


def entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


@pytest.mark.parametrize("base", [0.01, 0.7, 12.0, -4.0])
@pytest.mark.parametrize("above", [-1.0, 0.0, 2.9, 20.0, 1e18])
def test_only_a_loss_far_above_in_nats_and_in_its_own_size_has_diverged(tmp_path, base: float, above: float) -> None:
    far = above > max(3, 3 * abs(base))
    if not far:
        refuse_diverged({"loss/click": base + above}, {"click": base}, "validation", tmp_path)
        return
    with pytest.raises(DivergedError, match=f"of click where they have {base:.4g}"):
        refuse_diverged({"loss/click": base + above}, {"click": base}, "validation", tmp_path)


def test_amounts_in_any_currency_do_not_diverge_by_being_large(shop: Shop) -> None:
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    happened = (random.random(400) < 0.5).astype(int)
    amounts = np.where(happened, 1e9 * random.lognormal(size=400), np.nan)
    shop.write(pa.table({"x": random.normal(size=400), "click": happened, "paid": amounts}))
    path = shop.yaml(
        chain=["impression -> click", "click => paid"],
        data={"train": "train.parquet", "validation": "train.parquet"},
        features={"x": "number"},
        metrics=None,
    )
    assert shop.espace("fit", path, "--quiet", "--run-dir", "run").code == 0
