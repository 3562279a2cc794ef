"""AUC per group, averaged by impressions (Zhou et al., KDD 2018)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from espace.chain.scored import Scored
from espace.errors import DataError
from espace.parts.metrics import hashed, logit
from espace.parts.metrics.auc import AUC
from espace.parts.metrics.gauc import GAUC
from tests.parts.metrics.draws import draw, gathered, judge, scored, take


def per_group(rows: Scored) -> tuple[np.ndarray, np.ndarray]:
    """(impressions, AUC) of each group with both classes, by a plain loop."""
    users = rows.extras["user"]
    found = []
    for user in users.unique():
        group = take(rows, users == user)
        if group.labels.unique().numel() == 2:
            auc = roc_auc_score(group.labels, logit(group), sample_weight=group.weights)
            found.append((group.weights.sum().item(), auc))
    return tuple(np.array(found).reshape(-1, 2).T)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), users=st.integers(1, 200), rows=st.integers(1, 400))
def test_it_equals_a_loop_over_the_groups(seed: int, users: int, rows: int) -> None:
    data = draw(rows, seed=seed, users=users)
    impressions, auc = per_group(data)
    expected = (impressions @ auc) / impressions.sum() if len(auc) else math.nan
    values = judge(GAUC(by="user"), data)
    assert values == pytest.approx({"gauc": expected, "gauc_groups": len(auc)}, abs=1e-12, nan_ok=True)


def test_one_group_has_the_auc_of_all_rows() -> None:
    rows = draw(3000, users=1)
    assert judge(GAUC(by="user"), rows)["gauc"] == pytest.approx(judge(AUC(), rows)["auc"], abs=1e-5)


def test_what_is_added_to_all_scores_of_a_group_changes_nothing() -> None:
    rows = draw(1000)
    user = rows.extras["user"]
    moved = scored(logit(rows).float() + user % 7, rows.labels, rows.weights, user=user)
    level = scored(logit(rows).float(), rows.labels, rows.weights, user=user)
    assert judge(GAUC(by="user"), moved)["gauc"] == pytest.approx(judge(GAUC(by="user"), level)["gauc"], abs=1e-4)


def test_groups_of_one_class_are_left_out_of_both_sums() -> None:
    rows = scored(
        torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 0.0, 0.0]), user=torch.tensor([8, 8, -9, -9])
    )
    assert judge(GAUC(by="user"), rows) == {"gauc": 1.0, "gauc_groups": 1}


def test_any_int64_is_a_group_key() -> None:
    keys = torch.tensor([2**63 - 1, -(2**63), 2**53, 2**53 + 1])
    rows = scored(
        torch.tensor([0.0, 1.0]).repeat(4), torch.tensor([0.0, 1.0]).repeat(4), user=keys.repeat_interleave(2)
    )
    assert judge(GAUC(by="user"), rows) == {"gauc": 1.0, "gauc_groups": 4}


def big(users: int = 4000) -> Scored:
    """Users of 1 to 15 rows, in random order, each ranked as well as its own luck has it."""
    torch.manual_seed(0)
    user = torch.arange(users).repeat_interleave(torch.randint(1, 16, (users,)))
    user = user[torch.randperm(len(user))]
    logits = torch.randn(len(user), dtype=torch.float64)
    return scored(logits, torch.bernoulli(logits.sigmoid()), user=user * 1_000_003)


def batches(rows: Scored, size: int = 500) -> list[Scored]:
    return [take(rows, slice(i, i + size)) for i in range(0, len(rows.weights), size)]


def test_a_full_store_keeps_whole_groups_and_never_more_rows_than_it_may() -> None:
    rows = big()
    metric = GAUC(by="user", max_rows=3000)
    for part in batches(rows):
        metric.update(part)
        assert sum(map(len, metric.keys)) == metric.stored <= 3000
    kept, counts = torch.cat(metric.keys).unique(return_counts=True)
    assert torch.equal(counts, (rows.extras["user"] == kept[:, None]).sum(1))
    assert metric.stored > 1000


def test_a_sample_of_groups_agrees_with_all_groups_within_four_standard_errors() -> None:
    rows = big(1200)
    impressions, auc = per_group(rows)
    gauc = (impressions @ auc) / impressions.sum()
    values = judge(GAUC(by="user", max_rows=2000), *batches(rows))
    spread = math.sqrt(((impressions * (auc - gauc)) ** 2).mean()) / impressions.mean()
    assert 100 < values["gauc_groups"] < len(auc) / 4
    assert values["gauc"] == pytest.approx(gauc, abs=4 * spread / math.sqrt(values["gauc_groups"]))


def test_the_sample_does_not_depend_on_the_batches() -> None:
    rows = big()
    once = judge(GAUC(by="user", max_rows=3000), rows)
    assert judge(GAUC(by="user", max_rows=3000), *batches(rows)) == pytest.approx(once, abs=1e-12)


@pytest.mark.parametrize("cut", [24_000, 31_000])
def test_ranks_that_thinned_differently_agree_on_the_sample_of_one_instance(cut: int) -> None:
    rows = big()
    ranks = [GAUC(by="user", max_rows=3000) for _ in range(3)]
    ranks[0].update(take(rows, slice(0, cut)))
    ranks[1].update(take(rows, slice(cut, None)))
    assert ranks[0].threshold < ranks[2].threshold
    assert gathered(ranks) == pytest.approx(judge(GAUC(by="user", max_rows=3000), rows), abs=1e-12)


def test_a_group_larger_than_the_store_leaves_nothing_to_judge() -> None:
    values = judge(GAUC(by="user", max_rows=50), draw(100, users=1))
    assert values == pytest.approx({"gauc": math.nan, "gauc_groups": 0}, nan_ok=True)


@pytest.mark.parametrize("step", [1, 2**20, -(2**40)])
def test_hashes_of_regular_keys_are_spread_evenly(step: int) -> None:
    hashes = hashed(torch.arange(100_000) * step)
    assert hashes.min() >= 0
    assert hashes.unique().numel() == 100_000
    shares = torch.histc(hashes.double() / 2**62, bins=16, min=0, max=1) / 100_000
    assert shares.numpy() == pytest.approx(1 / 16, abs=5 * math.sqrt(1 / 16 / 100_000))


def test_a_missing_column_is_named_with_the_nearest_one() -> None:
    with pytest.raises(DataError, match=r"no extra column 'usr'\. Did you mean 'user'"):
        GAUC(by="usr").update(draw(5))


def test_a_column_of_fractions_is_no_group() -> None:
    with pytest.raises(DataError, match=r"'price' is a column of torch\.float32"):
        GAUC(by="price").update(scored(torch.zeros(5), torch.zeros(5), price=torch.rand(5)))
