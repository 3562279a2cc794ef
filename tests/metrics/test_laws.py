"""What holds for every metric."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espace.errors import NonFiniteError
from espace.probability import Scored
from tests.metrics.draws import METRICS, build, draw, gathered, judge, take

COUNTS = {"rows", "positives", "gauc_groups"}
NEED_BOTH = {"auc", "normalized_entropy", "gauc"}

every_metric = pytest.mark.parametrize("name", sorted(METRICS))
every_judge = pytest.mark.parametrize("name", sorted(set(METRICS) - {"count"}))


def close(values: dict[str, float]) -> object:
    return pytest.approx(values, rel=1e-12, abs=1e-14, nan_ok=True)


@every_metric
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 200), max_size=4))
def test_updating_in_any_split_equals_updating_at_once(name: str, seed: int, cuts: list[int]) -> None:
    rows = draw(200, seed=seed)
    edges = [0, *sorted(cuts), 200]
    parts = [take(rows, slice(a, b)) for a, b in itertools.pairwise(edges)]
    assert judge(build(name), *parts) == close(judge(build(name), rows))


@every_metric
def test_the_order_of_rows_does_not_matter(name: str) -> None:
    rows = draw(500)
    assert judge(build(name), take(rows, torch.randperm(500))) == close(judge(build(name), rows))


@every_metric
def test_ranks_together_compute_what_one_instance_computes(name: str) -> None:
    rows = draw(300)
    ranks = [build(name) for _ in range(3)]
    ranks[0].update(take(rows, slice(0, 250)))
    ranks[1].update(take(rows, slice(250, 300)))
    ranks[2].update(take(rows, slice(0, 0)))
    assert gathered(ranks) == close(judge(build(name), rows))


@every_metric
def test_a_rank_that_saw_no_batch_takes_part(name: str) -> None:
    rows = draw(300)
    full, idle = build(name), build(name)
    full.update(rows)
    assert gathered([full, idle]) == close(judge(build(name), rows))


@every_metric
def test_merging_two_instances_equals_one(name: str) -> None:
    rows = draw(300)
    one, other = build(name), build(name)
    one.update(take(rows, slice(0, 100)))
    other.update(take(rows, slice(100, 300)))
    one.merge_state(other)
    assert judge(one) == close(judge(build(name), rows))


@every_metric
def test_rows_of_weight_zero_are_invisible_whatever_they_predict(name: str) -> None:
    rows = draw(300)
    hidden = torch.arange(300) % 3 == 0
    nothing = torch.full_like(rows.log_prob, torch.nan)
    padded = replace(
        rows, log_prob=torch.where(hidden, nothing, rows.log_prob), weights=torch.where(hidden, 0.0, rows.weights)
    )
    assert judge(build(name), padded) == close(judge(build(name), take(rows, ~hidden)))


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
def test_reset_forgets_and_a_copy_lives_on_its_own(name: str) -> None:
    rows, more = draw(200, seed=1), draw(100, seed=2)
    metric = build(name)
    metric.update(rows)
    twin = copy.deepcopy(metric)
    metric.reset()
    assert judge(metric, more) == close(judge(build(name), more))
    assert judge(twin) == close(judge(build(name), rows))


@every_metric
def test_computing_midway_changes_nothing(name: str) -> None:
    rows = draw(300)
    metric = build(name)
    judge(metric, take(rows, slice(0, 100)))
    assert judge(metric, take(rows, slice(100, 300))) == close(judge(build(name), rows))


@every_metric
def test_no_rows_give_nan_and_never_a_warning(name: str) -> None:
    values = judge(build(name), draw(0))
    assert values == pytest.approx({k: 0 if k in COUNTS else math.nan for k in values}, nan_ok=True)


@every_metric
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_with_one_class_what_needs_two_is_nan_and_the_rest_is_finite(name: str, label: float) -> None:
    rows = draw(100)
    values = judge(build(name), replace(rows, labels=torch.full((100,), label)))
    undefined = NEED_BOTH | ({"predicted_over_observed"} if label == 0 else set())
    assert {k for k, v in values.items() if math.isnan(v)} == set(values) & undefined
    assert not any(math.isinf(v) for v in values.values())


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


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"gauc"}))
def test_memory_does_not_grow_with_the_rows(name: str) -> None:
    def size(*parts: Scored) -> int:
        metric = build(name)
        judge(metric, *parts)
        return sum(state.nbytes for state in metric.metric_state.values())

    assert size(draw(10)) == size(*[draw(1000, seed=s) for s in range(5)])
