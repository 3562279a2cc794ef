"""Predicted probabilities against the rates that occur."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from espace.parts.metrics import logit
from espace.parts.metrics.calibration import Calibration
from tests.parts.metrics.draws import draw, gathered, judge, scored, take


def test_labels_drawn_from_the_predictions_give_a_ratio_of_one_within_four_standard_errors() -> None:
    rows = draw(100_000, mean=-6.0, weights=False)
    p = rows.log_prob.exp()
    error = (p * (1 - p)).sum().sqrt() / p.sum()
    assert judge(Calibration(), rows)["predicted_over_observed"] == pytest.approx(1, abs=4 * error.item())


def test_the_ratio_is_the_weighted_sum_of_predictions_over_that_of_events() -> None:
    rows = draw(3000)
    expected = (rows.weights * rows.log_prob.exp()).sum() / (rows.weights * rows.labels).sum()
    assert judge(Calibration(), rows)["predicted_over_observed"] == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize(
    ("logits", "points"), [("spread", 20), ("spread", 7), ("packed", 20), ("at one point", 20), ("far out", 20)]
)
def test_ece_is_the_definition_over_sorted_rows_cut_into_equal_shares(logits: str, points: int) -> None:
    std = {"spread": 2.0, "packed": 0.05, "at one point": 1e-6, "far out": 2.0}[logits]
    torch.manual_seed(0)
    z = -6 + std * torch.linspace(-2, 2, 70_000, dtype=torch.float64)[torch.randperm(70_000)]
    labels = torch.bernoulli((-6 + 2 * (z + 6) / std + 1).sigmoid())  # as if the logits were spread
    rows = scored(z - 60 * (logits == "far out"), labels)
    gap = (rows.log_prob.exp() - rows.labels)[logit(rows).argsort()].numpy()
    expected = sum(abs(part.sum()) for part in np.array_split(gap, points)) / len(gap)
    assert judge(Calibration(points=points), rows)["ece"] == pytest.approx(expected, rel=0.02)


def test_a_constant_prediction_has_an_ece_of_its_distance_to_the_rate() -> None:
    rows = scored(torch.full((1000,), -2.0, dtype=torch.float64), (torch.arange(1000) < 300).float())
    assert judge(Calibration(), rows)["ece"] == pytest.approx(0.3 - torch.sigmoid(torch.tensor(-2.0)).item(), abs=1e-7)


def test_ece_is_never_below_the_bias_of_the_whole() -> None:
    for seed in range(20):
        rows = draw(200, seed=seed)
        bias = (rows.weights * (rows.log_prob.exp() - rows.labels)).sum().abs() / rows.weights.sum()
        assert judge(Calibration(), rows)["ece"] >= bias.item() - 1e-12


def test_perfect_certainty_is_perfectly_calibrated() -> None:
    labels = (torch.arange(100) < 40).double()
    values = judge(Calibration(), scored(60 * (2 * labels - 1), labels))
    assert values == pytest.approx({"predicted_over_observed": 1, "ece": 0}, abs=1e-12)


def test_the_curve_adds_up_to_the_whole_and_rises() -> None:
    rows = draw(20_000)
    metric = Calibration()
    metric.update(rows)
    curve = metric.curve(10)
    assert curve["rows"].sum() == rows.weights.sum()
    assert (curve["predicted"] @ curve["rows"]).item() == pytest.approx(
        (rows.weights.double() @ rows.log_prob.exp()).item()
    )
    assert (curve["observed"] @ curve["rows"]).item() == pytest.approx((rows.weights @ rows.labels).item())
    assert (curve["predicted"].diff() > 0).all()


def test_the_bins_of_the_curve_hold_equal_mass_where_rows_do_not_tie() -> None:
    torch.manual_seed(0)
    metric = Calibration()
    metric.update(scored(torch.randn(100_000, dtype=torch.float64) - 7, torch.zeros(100_000)))
    assert metric.curve(20)["rows"].numpy() == pytest.approx(5000, rel=0.05)


def test_rows_of_one_logit_stay_in_one_bin() -> None:
    metric = Calibration()
    metric.update(scored(torch.tensor([-3.0, 1.0]).repeat(500), torch.zeros(1000)))
    assert metric.curve()["rows"].tolist() == [500, 500]


def test_the_curve_of_all_ranks_is_that_of_all_rows() -> None:
    rows = draw(2000)
    one, other, whole = Calibration(), Calibration(), Calibration()
    one.update(take(rows, slice(0, 1500)))
    other.update(take(rows, slice(1500, 2000)))
    whole.update(rows)
    assert gathered([one, other])["ece"] == pytest.approx(judge(whole)["ece"], abs=1e-12)


def test_an_empty_curve_has_no_points() -> None:
    metric = Calibration()
    metric.update(draw(0))
    assert {name: len(points) for name, points in metric.curve().items()} == {"predicted": 0, "observed": 0, "rows": 0}


def test_beyond_its_rows_it_merges_neighbours_and_the_error_stays() -> None:
    rows = draw(40_000, mean=-3.0)
    rows = scored(logit(rows) + 0.3, rows.labels, rows.weights)
    small, whole = Calibration(max_rows=2_000, bins=1_000), Calibration()
    for start in range(0, 40_000, 500):
        small.update(take(rows, slice(start, start + 500)))
    whole.update(rows)
    one, other = judge(small), judge(whole)
    assert one["predicted_over_observed"] == pytest.approx(other["predicted_over_observed"], rel=1e-9)
    assert one["ece"] == pytest.approx(other["ece"], rel=0.02)
    curves = small.curve(), whole.curve()
    assert (curves[0]["predicted"] / curves[1]["predicted"]).numpy() == pytest.approx(1, rel=0.05)
