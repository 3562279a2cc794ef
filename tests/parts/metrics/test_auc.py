"""AUC equals the exact one but for what one bin hides."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from espace.chain.scored import Scored
from espace.parts.metrics import logit, place
from espace.parts.metrics.auc import AUC
from tests.parts.metrics.draws import draw, judge, scored


def exact(rows: Scored) -> float:
    return float(roc_auc_score(rows.labels, logit(rows), sample_weight=rows.weights))


def rate_of(rows: int, mean: float, std: float, dtype: torch.dtype = torch.float64) -> Scored:
    torch.manual_seed(0)
    logits = mean + std * torch.randn(rows, dtype=torch.float64)
    return scored(logits.to(dtype), torch.bernoulli(logits.sigmoid()))


def test_on_scores_further_apart_than_a_bin_it_is_exact_ties_and_weights_included() -> None:
    torch.manual_seed(0)
    logits = torch.randint(-40, 40, (5000,), dtype=torch.float64) / 8
    rows = scored(logits, torch.bernoulli(logits.sigmoid()), torch.randint(1, 5, (5000,)))
    assert judge(AUC(), rows)["auc"] == pytest.approx(exact(rows), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), std=st.sampled_from([1e-6, 1e-3, 0.05, 1.0, 30.0]), bins=st.sampled_from([1, 50, 65536])
)
def test_its_error_is_at_most_the_share_of_pairs_that_meet_in_a_bin(seed: int, std: float, bins: int) -> None:
    rows = draw(400, seed=seed, std=std, mean=0.0)
    index, _ = place(rows, bins)
    positives = np.bincount(index, rows.weights * rows.labels, bins)
    negatives = np.bincount(index, rows.weights * (1 - rows.labels), bins)
    share = (positives * negatives).sum() / (positives.sum() * negatives.sum())
    assert abs(judge(AUC(bins=bins), rows)["auc"] - exact(rows)) <= share + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_a_rate_of_0_0015_it_is_exact_to_a_millionth(dtype: torch.dtype) -> None:
    rows = rate_of(400_000, -8.0, 1.6, dtype)
    assert rows.labels.mean() == pytest.approx(0.0012, abs=3e-4)
    assert judge(AUC(), rows)["auc"] == pytest.approx(exact(rows), abs=1e-6)


def test_on_logits_packed_around_minus_six_it_is_exact_to_a_hundred_thousandth() -> None:
    rows = rate_of(400_000, -6.0, 0.05)
    assert judge(AUC(), rows)["auc"] == pytest.approx(exact(rows), abs=1e-5)


def test_a_monotone_transform_of_the_scores_changes_nothing() -> None:
    rows = draw(20_000)
    stretched = scored(torch.expm1(logit(rows) / 3) * 5 - 2, rows.labels, rows.weights)
    assert judge(AUC(), stretched)["auc"] == pytest.approx(judge(AUC(), rows)["auc"], abs=1e-5)


def test_exchanging_the_classes_gives_one_minus_auc() -> None:
    rows = draw(2000)
    mirrored = scored(logit(rows), 1 - rows.labels, rows.weights)
    assert judge(AUC(), mirrored)["auc"] == pytest.approx(1 - judge(AUC(), rows)["auc"], abs=1e-12)


def test_equal_scores_are_worth_one_half() -> None:
    rows = scored(torch.full((100,), -6.1), (torch.arange(100) < 3).float())
    assert judge(AUC(), rows) == pytest.approx({"auc": 0.5}, abs=1e-12)


@pytest.mark.parametrize("size", [41.0, 1e4, 1e30])
def test_scores_beyond_the_last_bin_are_ranked_at_the_ends(size: float) -> None:
    logits = torch.tensor([-size, 0.0, size], dtype=torch.float64)
    rows = Scored(logits.clamp(max=0), -logits.clamp(min=0), torch.tensor([0.0, 1.0, 1.0]), torch.ones(3), {})
    assert judge(AUC(), rows) == {"auc": 1.0}


def test_without_positives_it_is_nan_and_not_zero() -> None:
    assert math.isnan(judge(AUC(), scored(torch.randn(10), torch.zeros(10)))["auc"])
