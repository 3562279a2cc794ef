"""Against true probabilities: Spearman's rank correlation, predicted over true, root mean squared difference."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import root_mean_squared_error

from espace.chain.scored import Scored
from espace.errors import DataError
from espace.parts.metrics.truth import Truth
from tests.parts.metrics.draws import draw, gathered, judge, scored, take

NAMES = ("rank_correlation", "predicted_over_true", "rmse")


def known(rows: Scored) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions, truth and weights of the rows whose truth is known."""
    inside = ~rows.extras["true"].isnan()
    columns = (rows.log_prob.double().exp(), rows.extras["true"], rows.weights.double())
    return tuple(column[inside].numpy() for column in columns)


def plain_ranks(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Of each row the weight below it, and half of the weight beside it, by a loop over the rows."""
    return np.array([w[x < value].sum() + w[x == value].sum() / 2 for value in x])


def plain_correlation(a: np.ndarray, b: np.ndarray, w: np.ndarray) -> float:
    c = np.cov(a, b, aweights=w, ddof=0)
    return float(c[0, 1] / math.sqrt(c[0, 0] * c[1, 1]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(2, 400))
def test_with_equal_weights_the_rank_correlation_is_spearman_s(seed: int, rows: int) -> None:
    data = draw(rows, seed=seed, weights=False)
    data.extras["true"][::3] = data.extras["true"][::3].mul(8).round().div(8)  # ties
    p, q, _ = known(data)
    constant = len(set(p)) < 2 or len(set(q)) < 2
    expected = math.nan if constant else spearmanr(p, q).statistic
    assert judge(Truth(column="true"), data)["rank_correlation"] == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("seed", range(5))
def test_with_weights_all_of_it_equals_plain_loops(seed: int) -> None:
    data = draw(500, seed=seed)
    data = replace(data, weights=data.weights * torch.rand(500))
    p, q, w = known(data)
    expected = {
        "rank_correlation": plain_correlation(plain_ranks(p, w), plain_ranks(q, w), w),
        "predicted_over_true": (w * p).sum() / (w * q).sum(),
        "rmse": root_mean_squared_error(q, p, sample_weight=w),
    }
    assert judge(Truth(column="true"), data) == pytest.approx(expected, abs=1e-10)


def test_the_truth_itself_is_perfect_its_reverse_the_worst_and_labels_do_not_matter() -> None:
    data = draw(400, weights=False)
    p = data.log_prob.exp()
    for labels in (data.labels, 1 - data.labels):
        same = replace(data, labels=labels, extras={"true": p})
        assert judge(Truth(column="true"), same) == pytest.approx(dict(zip(NAMES, (1, 1, 0), strict=True)), abs=1e-12)
    reverse = replace(data, extras={"true": (1 - p).square()})
    assert judge(Truth(column="true"), reverse)["rank_correlation"] == pytest.approx(-1, abs=1e-12)


def test_ranks_survive_where_probabilities_round_to_one() -> None:
    logits = torch.arange(50.0, 90.0, dtype=torch.float64)
    assert logits.sigmoid().unique().numel() == 1
    rows = scored(logits, torch.ones(40), true=torch.linspace(0, 1, 40, dtype=torch.float64))
    assert judge(Truth(column="true"), rows)["rank_correlation"] == pytest.approx(1, abs=1e-12)


def test_a_ratio_above_one_is_judged_as_it_is_served() -> None:
    ratio, truth = np.array([0.5, 1.5, 3.0]), np.array([0.2, 0.9, 0.4])
    rest = torch.full((3,), math.log(1e-7), dtype=torch.float64)
    rows = Scored(torch.tensor(ratio).log(), rest, torch.ones(3), torch.ones(3), {"true": torch.tensor(truth)})
    expected = (0.5, ratio.sum() / truth.sum(), math.sqrt(((ratio - truth) ** 2).mean()))
    assert judge(Truth(column="true"), rows) == pytest.approx(dict(zip(NAMES, expected, strict=True)))


@pytest.mark.parametrize(
    ("logits", "true", "defined"),
    [
        ([0.1], [0.5], {"predicted_over_true", "rmse"}),
        ([0.1, 0.1, 0.1], [0.5, 0.4, 0.3], {"predicted_over_true", "rmse"}),
        ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5], {"predicted_over_true", "rmse"}),
        ([0.1, 0.2, 0.3], [0.0, 0.0, 0.0], {"rmse"}),
        ([0.1, 0.2, 0.3], [math.nan, math.nan, math.nan], set()),
        ([0.1, 0.2, 0.3], [math.nan, 0.5, 0.4], set(NAMES)),
    ],
)
def test_what_is_undefined_is_nan(logits: list[float], true: list[float], defined: set[str]) -> None:
    weights = torch.tensor([0.3, 0.1, 0.7])[: len(true)]
    rows = scored(torch.tensor(logits), torch.ones(len(true)), weights, true=torch.tensor(true, dtype=torch.float64))
    values = judge(Truth(column="true"), rows)
    assert {name for name, value in values.items() if not math.isnan(value)} == defined


def test_the_name_stands_before_all_three_and_is_checked() -> None:
    assert set(judge(Truth(column="true", name="do"), draw(9))) == {f"do_{name}" for name in NAMES}
    with pytest.raises(
        ValueError, match=r"^name: 'a/b' is to be part of a name\. Write letters, digits and underscores"
    ):
        Truth(column="true", name="a/b")


def test_a_missing_column_is_named_with_the_nearest_one() -> None:
    with pytest.raises(DataError, match=r"truth\.column: the rows have no extra column 'tru'\. Did you mean 'true'"):
        Truth(column="tru").update(draw(5))


# -- more rows than fit


def big(rows: int = 20_000) -> Scored:
    return draw(rows, weights=False)


def test_a_full_store_never_holds_more_than_it_may_and_only_the_rank_correlation_is_of_a_sample() -> None:
    data, metric = big(), Truth(column="true", max_rows=3000)
    for at in range(0, 20_000, 500):
        metric.update(take(data, slice(at, at + 500)))
        assert sum(map(len, metric.keys)) == metric.stored <= 3000
    assert metric.stored > 1000
    found, whole = judge(metric), judge(Truth(column="true"), data)
    assert found["rank_correlation"] != whole["rank_correlation"]
    error = 4 / math.sqrt(
        int(metric.stored)
    )  # four standard errors: 1 / sqrt(n) is that of uncorrelated ranks, the largest
    assert found["rank_correlation"] == pytest.approx(whole["rank_correlation"], abs=error)
    for name in NAMES[1:]:
        assert found[name] == pytest.approx(whole[name], rel=1e-12)


def test_ranks_that_thinned_differently_agree_on_the_sample_of_one_instance() -> None:
    data = big()
    ranks = [Truth(column="true", max_rows=3000) for _ in range(3)]
    ranks[0].update(take(data, slice(0, 14_000)))
    ranks[1].update(take(data, slice(14_000, None)))
    assert ranks[0].threshold < ranks[2].threshold
    assert gathered(ranks) == pytest.approx(judge(Truth(column="true", max_rows=3000), data), abs=1e-12)


def test_which_rows_stay_has_nothing_to_do_with_their_size() -> None:
    data, metric = big(), Truth(column="true", max_rows=3000)
    metric.update(data)
    _, log_p, q, _ = metric.kept()
    for kept, of in ((log_p, data.log_prob), (q, data.extras["true"][~data.extras["true"].isnan()])):
        assert float(kept.mean()) == pytest.approx(float(of.mean()), abs=4 * float(of.std()) / math.sqrt(len(kept)))
