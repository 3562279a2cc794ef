"""What a row has missed, by the rule of two nodes, is the sum over the missed steps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from espace.training.missed import SPREAD, Missed

BETAS = [(0.9, 0.999), (0.9, 0.99), (0.95, 0.9999), (0.5, 0.95)]


def rate(step):
    return 1e-3 * (1.2 + math.sin(step / 40))


def missed_after(steps, betas):
    missed = Missed({"lr": 1e-3, "betas": betas}, 0)
    for step in range(1, steps + 1):
        missed.add(rate(step))
    return missed


def added_up(last, steps, betas, ratio):
    """The sum over the steps after `last`, at sqrt(v) = ratio and eps = 1."""
    j = np.arange(last + 1, steps + 1)
    lr = np.array([rate(step) for step in j])
    u = np.sqrt(betas[1] ** (j - last) / (1 - betas[1] ** j))
    return float((lr * betas[0] ** (j - last) / (1 - betas[0] ** j) / (ratio * u + 1)).sum())


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("steps", [2, 40, 300, 2_500])
def test_every_rule_is_the_sum_whether_eps_counts_or_not(betas, steps):
    missed, ruled = missed_after(steps, betas), 0
    for last in {*range(max(0, steps - 30), steps), *range(0, steps, max(1, steps // 50))}:
        a, x, b, y = missed.rules[last]
        for ratio in np.logspace(-6, 6, 13) if a >= 0 else ():
            ruled += 1
            found = a / (ratio * x + 1) + b / (ratio * y + 1)
            assert found == pytest.approx(added_up(last, steps, betas, ratio), rel=5e-5)
    assert ruled


@pytest.mark.parametrize("betas", BETAS[:1])
def test_without_eps_and_with_nothing_else_the_rule_is_exact(betas):
    missed = missed_after(300, betas)
    for last in (60, 200, 290):
        a, x, b, y = missed.rules[last]
        for ratio in (1e-12, 1e12):
            found = a / (ratio * x + 1) + b / (ratio * y + 1)
            assert found == pytest.approx(added_up(last, 300, betas, ratio), rel=3e-8)


def test_after_some_steps_all_have_a_rule_and_before_them_those_whose_steps_differ_too_much_have_none():
    missed = missed_after(1_000, BETAS[0])
    first = int(np.flatnonzero(missed.rules[:1_000, 0] >= 0)[0])
    assert 20 < first < 60
    assert missed.unruled == first - 1
    assert (missed.rules[first:1_000] >= 0).all()
    u = 1 / np.sqrt(1 - BETAS[0][1] ** np.arange(2.0, 178))
    weights = 0.9 ** np.arange(176) / u**2
    mean = np.average(u, weights=weights)
    assert np.average((u - mean) ** 2, weights=weights) > SPREAD * mean**2  # after the first step


def test_betas_under_which_missed_steps_never_fade_have_no_rule():
    missed = missed_after(20, (0.9, 0.5))
    assert (missed.rules == -1).all()
    assert missed.unruled == 20
    assert missed.window > 10**9


def test_a_rate_of_zero_moves_nothing():
    missed = Missed({"lr": 0.0, "betas": BETAS[0]}, 0)
    for _ in range(5):
        missed.add(0.0)
    assert (missed.rules[:5, [0, 2]] == 0).all()


def test_where_the_past_is_not_known_it_is_added_up_at_the_present_rate():
    missed = Missed({"lr": 0.5, "betas": BETAS[0]}, 400)
    missed.add(0.5)
    assert (missed.rules[:400] == -1).all()
    assert (missed.rules[400] > 0).any()
    assert missed.unruled == 399
    np.testing.assert_allclose(missed.sizes[1:402], 0.5 / (1 - 0.9 ** np.arange(1, 402)))
