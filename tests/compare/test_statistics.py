"""Laws of the statistics: against scikit-learn, SciPy, derivatives and resampling, and intervals that cover what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from espace.compare.statistics import Ranked, difference, holm, quantile, tail


def draw(seed: int, rows: int = 300, distinct: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with ties, labels and weights of which some are 0."""
    random = np.random.default_rng(seed)
    labels = (random.random(rows) < random.uniform(0.05, 0.6)).astype(np.int8)
    scores = np.round(random.normal(size=rows) + labels, 1) if seed % 2 else random.integers(0, distinct, rows)
    return scores, labels, random.choice([0.0, 0.5, 2.0], rows)


@pytest.mark.parametrize("seed", range(20))
def test_the_auc_is_that_of_scikit_learn_with_ties_and_weights(seed):
    scores, labels, weights = draw(seed)
    assert Ranked.of(scores, labels).auc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    expected = roc_auc_score(labels, scores, sample_weight=weights)
    assert Ranked.of(scores, labels, weights).auc == pytest.approx(expected, abs=1e-12)


def test_the_auc_of_one_class_or_of_no_row_is_undefined():
    scores, labels, _ = draw(1)
    for some in (labels == 1, labels == 0, labels == 7):
        assert math.isnan(Ranked.of(scores[some], labels[some]).auc)


@pytest.mark.parametrize("seed", range(6))
def test_the_influence_of_a_row_is_the_derivative_of_the_auc_by_its_weight(seed):
    scores, labels, weights = draw(seed, 60)
    found, step = Ranked.of(scores, labels, weights), 1e-6
    for row in range(len(labels)):
        more = weights.copy()
        more[row] += step
        slope = (roc_auc_score(labels, scores, sample_weight=more) - found.auc) / step
        assert found.influence[row] == pytest.approx(weights[row] * slope, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_the_variance_of_a_difference_is_that_of_resampled_rows(seed):
    random = np.random.default_rng(seed)
    labels = (random.random(800) < 0.3).astype(np.int8)
    scores = random.normal(size=(2, 800)) + labels + random.normal(size=800)
    found = [Ranked.of(one, labels) for one in scores]
    drawn = []
    for _ in range(600):
        rows = random.integers(800, size=800)
        one, other = (roc_auc_score(labels[rows], s[rows]) for s in scores)
        drawn.append(one - other)
    variance = np.square(found[0].influence - found[1].influence).sum()
    assert variance == pytest.approx(np.var(drawn, ddof=1), rel=0.2)  # four standard errors of a variance of 600 draws


def test_rows_are_told_apart_by_labels_and_weights():
    scores, labels, weights = draw(3)
    ours = Ranked.of(scores, labels, weights).rows
    assert ours == Ranked.of(-scores, labels, weights).rows
    for other in ((labels[::-1], weights), (labels, weights[::-1])):
        assert ours != Ranked.of(scores, *other).rows


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 29, 120, 499])
def test_tails_and_quantiles_are_those_of_students_t(freedom):
    for t in (0.0, 1e-3, 0.4, 1.0, 2.5, -2.5, 6.0, 50.0):
        assert tail(t, freedom) == pytest.approx(2 * scipy.stats.t.sf(abs(t), freedom), rel=1e-9, abs=1e-13)
    for level in (0.5, 0.9, 0.95, 0.999):
        assert quantile(freedom, level) == pytest.approx(scipy.stats.t.ppf((1 + level) / 2, freedom), rel=1e-7)


@pytest.mark.parametrize("seed", range(10))
def test_without_rows_it_is_the_one_sample_t_test(seed):
    values = np.random.default_rng(seed).normal(0.5, 1, 2 + seed)
    found, expected = difference(values), scipy.stats.ttest_1samp(values, 0)
    assert found.mean == pytest.approx(values.mean())
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()), rel=1e-6)


def test_rows_widen_the_interval_and_lower_no_p_value():
    random = np.random.default_rng(0)
    for _ in range(50):
        seeds, variance = random.normal(0.3, 1, 6), random.uniform(0.01, 0.5)
        found, error = difference(seeds, variance), math.sqrt(seeds.var(ddof=1) / 6 + variance)
        assert found.mean == seeds.mean()
        assert found.high - found.mean == pytest.approx(scipy.stats.t.ppf(0.975, 5) * error, rel=1e-6)
        assert found.p >= difference(seeds).p


@pytest.mark.parametrize("between_rows", [0.0, 0.05, 0.1, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("seeds", [1, 2, 3, 5, 10])
def test_where_nothing_differs_at_most_5_of_100_comparisons_say_that_something_does(seeds, between_rows):
    """between_rows: the variance over draws of the rows, in units of that of the mean over seeds."""
    random, trials = np.random.default_rng(seeds), 1500
    spread = 0.0 if seeds == 1 else 1.0  # what one seed adds is not told by one seed
    variance = between_rows / seeds
    drawn = spread * random.normal(size=(trials, seeds)) + math.sqrt(variance) * random.normal(size=(trials, 1))
    alarms = sum(difference(row, variance).p < 0.05 for row in drawn)
    assert alarms / trials < 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_no_difference_at_all_is_zero_with_certainty():
    for seeds, variance in ((np.zeros(3), 0.0), (np.zeros(1), 0.0), (np.zeros(2), None)):
        found = difference(seeds, variance)
        assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_one_seed_without_rows_tells_nothing():
    found = difference(np.array([0.1]))
    assert found.mean == 0.1
    assert all(math.isnan(v) for v in (found.low, found.high, found.p))


def binormal(random: np.random.Generator, labels: np.ndarray, shared: np.ndarray, mean: float) -> Ranked:
    """Scores whose AUC over all rows there could be is Phi(mean / sqrt 2)."""
    own = random.normal(size=len(labels))
    return Ranked.of(mean * labels + math.sqrt(0.6) * shared + math.sqrt(0.4) * own, labels)


@pytest.mark.parametrize(("seeds", "spread", "most"), [(1, 0.0, 0.995), (4, 0.0, 1.0), (4, 0.15, 1.0)])
def test_intervals_cover_a_known_difference_at_least_as_often_as_they_say(seeds, spread, most):
    """spread: deviation of what a seed adds to one of the two; over its normal distribution the mean AUC is known too.
    With several seeds the certainty about the rows is given away."""
    random, hits, trials = np.random.default_rng(7), 0, 200
    truth = scipy.stats.norm.cdf(1.0 / math.sqrt(2 + spread**2)) - scipy.stats.norm.cdf(0.7 / math.sqrt(2))
    for _ in range(trials):
        labels = (random.random(500) < 0.3).astype(np.int8)
        shared = random.normal(size=500)
        means = 1.0 + spread * random.normal(size=seeds)
        pairs = [binormal(random, labels, shared, m) for mean in means for m in (mean, 0.7)]
        aucs, influence = np.array([one.auc for one in pairs]), np.stack([one.influence for one in pairs])
        between = np.square((influence[::2] - influence[1::2]).mean(0)).sum()
        found = difference(aucs[::2] - aucs[1::2], float(between))
        hits += found.low <= truth <= found.high
    assert 0.91 <= hits / trials <= most


def test_holms_correction_by_hand():
    """Four p-values: 4 x 0.005, 3 x 0.01, 2 x 0.03, then no less than the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("seed", range(10))
def test_holms_correction_keeps_the_order_and_lies_between_none_and_bonferronis(seed):
    ps = np.random.default_rng(seed).random(7) ** 3
    found = np.array(holm(ps.tolist()))
    assert (found[np.argsort(ps)] == np.sort(found)).all()
    assert (ps <= found).all()
    assert (found <= np.minimum(1, 7 * ps) + 1e-15).all()
