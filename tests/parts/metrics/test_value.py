"""Metrics of values against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from espace.chain.scored import ScoredValue
from espace.errors import NonFiniteError
from espace.parts.metrics.value import ValueMetric
from tests.parts.metrics.draws import judge, take


def draw(rows: int, seed: int, *, negative: bool = False) -> ScoredValue:
    """Expectations over some decades, amounts around them of which a third are 0, whole weights."""
    random = np.random.default_rng(seed)
    expected = np.exp(random.normal(1, 1.5, rows))
    amounts = np.where(random.random(rows) < 0.3, 0.0, expected * np.exp(random.normal(0, 1, rows)))
    if negative:
        expected, amounts = expected - 5, amounts - 5
    expected[::7] = expected[0]  # ties
    columns = (torch.tensor(c, dtype=torch.float32) for c in (expected, amounts, random.integers(1, 4, rows)))
    return ScoredValue(*columns, {})


def plain_covariance(amounts: np.ndarray, by: np.ndarray, weights: np.ndarray) -> float:
    """sum_i w_i (x_i - mean x) F_i, where F_i is the weight below i and half of that beside it."""
    total, mean = weights.sum(), np.average(amounts, weights=weights)
    places = [(weights[by < b].sum() + weights[by == b].sum() / 2) / total for b in by]
    return float((weights * (amounts - mean) * np.array(places)).sum())


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_all_of_it_equals_plain_loops(seed: int, negative: bool) -> None:
    rows = draw(2000, seed, negative=negative)
    e, x, w = (t.double().numpy() for t in (rows.predicted, rows.labels, rows.weights))
    found = judge(ValueMetric(), rows)
    assert found["rows"] == 2000
    assert found["mae"] == pytest.approx(np.average(np.abs(e - x), weights=w))
    assert found["predicted_over_observed"] == pytest.approx((w * e).sum() / (w * x).sum())
    gini = plain_covariance(x, e, w) / plain_covariance(x, x, w)
    assert found["gini"] == pytest.approx(gini, abs=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e6])
def test_expectations_that_hardly_differ_are_ranked_all_the_same(scale: float) -> None:
    """Of 1 + 1e-5 and the like; a number in 32 bits tells some hundreds of these apart."""
    rows, random = draw(2000, 3), np.random.default_rng(3)
    close = torch.tensor(1 + scale * 1e-5 * random.normal(size=2000) + 1e-5 * scale * rows.labels.log1p().numpy())
    near = replace(rows, predicted=close.float())
    x, w = rows.labels.double().numpy(), rows.weights.double().numpy()
    gini = plain_covariance(x, near.predicted.double().numpy(), w) / plain_covariance(x, x, w)
    assert judge(ValueMetric(), near)["gini"] == pytest.approx(gini, abs=1e-9)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_beyond_the_rows_that_fit_the_gini_is_off_by_less_than_a_thousandth(shift: float) -> None:
    rows = draw(30_000, 11)
    rows = replace(rows, labels=rows.labels + shift, predicted=rows.predicted + shift)
    metric = ValueMetric(max_rows=1000, bins=2000)
    for part in torch.arange(30_000).split(777):
        metric.update(take(rows, part))
    assert judge(metric)["gini"] == pytest.approx(judge(ValueMetric(), rows)["gini"], abs=1e-3)


def test_the_order_of_the_amounts_has_a_gini_of_1_its_reverse_of_minus_1_and_one_expectation_of_0() -> None:
    rows = draw(3000, 7)
    for predicted, gini in ((rows.labels, 1), (rows.labels * 3 + 1, 1), (-rows.labels, -1), (rows.weights * 0 + 4, 0)):
        found = judge(ValueMetric(), ScoredValue(predicted, rows.labels, rows.weights, {}))
        assert found["gini"] == pytest.approx(gini, abs=1e-9)


def test_the_gini_of_labels_of_0_and_1_is_twice_the_auc_minus_1() -> None:
    from sklearn.metrics import roc_auc_score

    rows = draw(4000, 3)
    bought = (rows.labels > rows.labels.median()).float()
    found = judge(ValueMetric(), ScoredValue(rows.predicted, bought, torch.ones(4000), {}))
    assert found["gini"] == pytest.approx(2 * roc_auc_score(bought, rows.predicted) - 1, abs=1e-9)


def test_amounts_that_are_all_the_same_have_no_gini_and_all_0_no_ratio() -> None:
    rows = draw(100, 1)
    for amount in (0.0, 12.3):
        found = judge(ValueMetric(), ScoredValue(rows.predicted, torch.full((100,), amount), rows.weights, {}))
        assert math.isnan(found["gini"])
        assert math.isnan(found["predicted_over_observed"]) == (amount == 0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_an_expectation_that_is_not_finite_stops_it(wrong: float) -> None:
    rows = draw(100, 1)
    rows.predicted[3] = wrong
    with pytest.raises(NonFiniteError, match="1 of 100 expectations are NaN or infinite"):
        ValueMetric().update(rows)
