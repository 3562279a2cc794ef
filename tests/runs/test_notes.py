"""Notes after training: what is off by more than chance, which term rules, and training that was too short."""

from __future__ import annotations

from typing import Any

import pytest

import espace
from espace.config import Config
from espace.runs.tables import suspicious
from tests.shop import CONFIG, Shop


def config(shop: Shop, **sections: Any) -> Config:
    return espace.Experiment.from_yaml(shop.yaml(**sections)).config


@pytest.mark.parametrize(
    ("ratio", "positives", "told"),
    [
        (1.15, 40_000, True),
        (0.85, 40_000, True),
        (1.08, 40_000, False),  # real, and small
        (1.3, 20, False),  # 22 % is one standard error
        (1.8, 20, True),
        (1.0, 40_000, False),
    ],
)
def test_a_probability_is_told_when_it_is_off_by_more_than_a_tenth_and_than_chance(
    shop: Shop, ratio: float, positives: int, told: bool
) -> None:
    metrics = {"click/predicted_over_observed": ratio, "click/positives": positives, "click/rows": 10 * positives}
    lines = suspicious(config(shop), metrics)
    assert bool(lines) == told
    assert all(line.startswith(f"'click' predicts {ratio:.2f} times what was observed; chance") for line in lines)


def test_potential_outcomes_may_be_further_off(shop: Shop) -> None:
    data = CONFIG["data"] | {"potential": {"conversion_given_click": "p"}}
    space = "conversion_given_click_entire_space"
    for ratio, told in ((1.3, False), (1.6, True)):
        numbers = {"predicted_over_observed": ratio, "positives": 40_000, "rows": 400_000}
        lines = suspicious(config(shop, data=data), {f"{space}/{name}": value for name, value in numbers.items()})
        assert bool(lines) == told


@pytest.mark.parametrize(("spend", "weight", "told"), [(8.0, 1.0, True), (0.4, 1.0, False), (8.0, 0.01, False)])
def test_the_term_of_a_value_is_told_when_it_is_most_of_the_loss(
    shop: Shop, spend: float, weight: float, told: bool
) -> None:
    chain = ["impression -> click -> conversion => spend"]
    losses = {"loss/click": 0.4, "loss/conversion": 0.1, "loss/spend_given_conversion": spend}
    lines = suspicious(config(shop, chain=chain, stages={"spend": {"weight": weight}}), losses)
    assert [line.partition(" of the loss")[0] for line in lines] == ["the term of 'spend' is 94%"] * told


def test_training_that_was_still_getting_better_is_told(shop: Shop) -> None:
    trainer = CONFIG["trainer"] | {"max_epochs": 1}
    short = shop.espace("fit", shop.yaml(optimizer={"lr": 0.1, "average": 0.0}, trainer=trainer), "--run-dir", "short")
    assert "steps; val/loss was still getting better at the end, by" in short.out
    still = shop.espace("fit", shop.yaml(optimizer={"lr": 1e-6}, trainer=trainer), "--run-dir", "still")
    assert "still getting better" not in still.out
