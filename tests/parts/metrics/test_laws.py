"""What holds for every built-in metric besides the laws that plugins inherit (tests/registry/test_builtins.py)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from espace.errors import NonFiniteError
from tests.parts.metrics.draws import METRICS, build, draw, judge, take

NEED_BOTH = {"auc", "normalized_entropy", "gauc"}

every_metric = pytest.mark.parametrize("name", sorted(METRICS))
every_judge = pytest.mark.parametrize("name", sorted(set(METRICS) - {"count"}))


def close(values: dict[str, float]) -> object:
    return pytest.approx(values, rel=1e-12, abs=1e-14, nan_ok=True)


@every_metric
def test_merging_two_instances_equals_one(name: str) -> None:
    rows = draw(300)
    one, other = build(name), build(name)
    one.update(take(rows, slice(0, 100)))
    other.update(take(rows, slice(100, 300)))
    one.merge_state(other)
    assert judge(one) == close(judge(build(name), rows))


@every_metric
def test_what_is_predicted_for_rows_of_weight_zero_is_not_even_looked_at(name: str) -> None:
    rows = draw(300)
    hidden = torch.arange(300) % 3 == 0
    padded = replace(rows, weights=torch.where(hidden, 0.0, rows.weights))
    broken = replace(padded, log_prob=torch.where(hidden, torch.nan, rows.log_prob))
    assert judge(build(name), broken) == close(judge(build(name), padded))


@every_judge
def test_weight_two_is_the_row_twice(name: str) -> None:
    rows = draw(300, weights=False)
    twice = torch.rand(300) < 0.5
    heavy = replace(rows, weights=1.0 + twice.float())
    assert judge(build(name), heavy) == close(judge(build(name), rows, take(rows, twice)))


@every_metric
def test_float32_predictions_are_summed_in_float64(name: str) -> None:
    rows = draw(300)
    single = replace(rows, log_prob=rows.log_prob.float(), log_not_prob=rows.log_not_prob.float())
    assert judge(build(name), single) == pytest.approx(judge(build(name), rows), abs=1e-5)


@every_metric
def test_every_value_is_a_float64_scalar(name: str) -> None:
    metric = build(name)
    metric.update(draw(50))
    assert all(v.dtype == torch.float64 and v.shape == () for v in metric.compute().values())


@every_metric
def test_computing_midway_changes_nothing(name: str) -> None:
    rows = draw(300)
    metric = build(name)
    judge(metric, take(rows, slice(0, 100)))
    assert judge(metric, take(rows, slice(100, 300))) == close(judge(build(name), rows))


@every_metric
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_with_one_class_what_needs_two_is_nan_and_the_rest_is_finite(name: str, label: float) -> None:
    rows = draw(100)
    values = judge(build(name), replace(rows, labels=torch.full((100,), label)))
    undefined = NEED_BOTH | ({"predicted_over_observed"} if label == 0 else set())
    assert {k for k, v in values.items() if not math.isfinite(v)} == set(values) & undefined


@every_judge
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_prediction_that_is_not_finite_is_refused_with_its_count(name: str, bad: float) -> None:
    rows = draw(1500)
    broken = replace(rows, log_prob=torch.where(torch.arange(1500) < 2, bad, rows.log_prob))
    with pytest.raises(NonFiniteError, match="2 of 1,500 predictions are NaN or infinite"):
        build(name).update(broken)


@every_metric
def test_nothing_of_a_metric_lands_in_a_checkpoint(name: str) -> None:
    metric = build(name)
    metric.update(draw(100))
    assert metric.state_dict() == {}
