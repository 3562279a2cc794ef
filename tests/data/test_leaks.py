"""The audit's AUC of one feature: scikit-learn's, and for a category that of its mean label in rows that are not judged."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from espace.data.auditing.leaks import _auc, auc_of_category, auc_of_number


def draw(seed: int, rows: int = 2_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Categories, numbers with ties that tell something, labels of which some are unknown."""
    random = np.random.default_rng(seed)
    label = random.choice(np.int8([-1, 0, 1]), rows, p=[0.1, 0.7, 0.2])
    codes = np.where(random.random(rows) < 0.3, label + 1, random.integers(0, 40, rows)).astype(np.int32)
    return codes, np.round(random.normal(size=rows) - label, 1), label


@pytest.mark.parametrize("seed", range(5))
def test_a_number_has_the_auc_of_scikit_learn_either_way_round(seed):
    _, numbers, label = draw(seed)
    known = label >= 0
    expected = roc_auc_score(label[known], -numbers[known])
    assert expected > 0.6
    assert auc_of_number(numbers, label) == pytest.approx(expected, abs=1e-12)
    assert auc_of_number(-numbers, label) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_category_has_the_auc_of_its_mean_label_in_the_other_half(seed):
    codes, _, label = draw(seed)
    codes, label = codes[label >= 0], label[label >= 0]
    learns = np.random.default_rng(0).random(len(codes)) < 0.5
    sums = {code: label[learns & (codes == code)] for code in set(codes.tolist())}
    prior = label[learns].mean()
    scores = [(sums[code].sum() + prior) / (len(sums[code]) + 1) for code in codes[~learns].tolist()]
    expected = roc_auc_score(label[~learns], scores)
    assert expected > 0.6
    assert auc_of_category(codes, label) == pytest.approx(expected, abs=1e-12)


def test_labels_that_are_unknown_count_for_nothing():
    codes, numbers, label = draw(0)
    known = label >= 0
    assert auc_of_number(numbers, label) == auc_of_number(numbers[known], label[known])
    assert auc_of_category(codes, label) == auc_of_category(codes[known], label[known])


def test_a_category_of_its_own_for_every_row_tells_nothing():
    label = np.random.default_rng(0).integers(0, 2, 50_000).astype(np.int8)
    assert auc_of_category(np.arange(50_000, dtype=np.int32), label) == 0.5


def test_few_positives_or_no_row_tell_nothing():
    label = np.zeros(1_000, np.int8)
    label[:19] = 1
    assert auc_of_number(label.astype(np.float64), label) == 0.5
    assert auc_of_category(label.astype(np.int32), label) == 0.5
    assert auc_of_category(np.empty(0, np.int32), np.empty(0, np.int8)) == 0.5
    label[:20] = 1
    assert auc_of_number(label.astype(np.float64), label) == 1


def test_rows_counted_together_have_the_auc_of_rows_one_by_one():
    _, numbers, label = draw(3)
    scores, place = np.unique(numbers, return_inverse=True)
    ups, downs = np.bincount(place, label == 1), np.bincount(place, label != 1)
    assert _auc(scores, ups, downs) == pytest.approx(_auc(numbers, label == 1, label != 1), abs=1e-12)
