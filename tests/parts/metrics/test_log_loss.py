"""Log loss from both exact tails; normalised entropy (He et al., ADKDD 2014)."""

from __future__ import annotations

import math

import pytest
import sklearn.metrics
import torch

from espace.parts.metrics.log_loss import LogLoss
from tests.parts.metrics.draws import draw, judge, scored


def test_it_equals_sklearn_on_weighted_rows() -> None:
    rows = draw(5000)
    expected = sklearn.metrics.log_loss(rows.labels, rows.log_prob.exp(), sample_weight=rows.weights)
    assert judge(LogLoss(), rows)["log_loss"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [40.0, 100.0, 5000.0])
def test_a_sure_mistake_costs_its_logit_and_no_less(size: float) -> None:
    logits = torch.tensor([-size, size], dtype=torch.float64)
    assert judge(LogLoss(), scored(logits, torch.tensor([1.0, 0.0])))["log_loss"] == pytest.approx(size, rel=1e-15)


@pytest.mark.parametrize("rate", [0.001, 0.3, 0.9])
def test_predicting_the_observed_rate_has_normalized_entropy_one(rate: float) -> None:
    labels = (torch.arange(1000) < 1000 * rate).float()
    logits = torch.full((1000,), math.log(rate / (1 - rate)), dtype=torch.float64)
    assert judge(LogLoss(), scored(logits, labels))["normalized_entropy"] == pytest.approx(1, abs=1e-12)


def test_no_constant_prediction_beats_the_observed_rate() -> None:
    labels = (torch.arange(1000) < 100).float()
    for value in torch.linspace(-6, 3, 10, dtype=torch.float64):
        assert judge(LogLoss(), scored(value.expand(1000), labels))["normalized_entropy"] >= 1
