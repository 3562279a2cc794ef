"""Entire Space Multi-Task Modeling via Post-Click Behavior Decomposition (Wen et al., SIGIR 2020, arXiv 1910.07099).

y1 = P(click), y2 = P(deterministic action | click), y3 = P(buy | that action), y4 = P(buy | any other).
"""

from __future__ import annotations

import pytest
import torch

from espace.chain.chain import Chain
from espace.parts.objectives.entire_space import EntireSpace
from espace.parts.objectives.parent_space import ParentSpace
from tests.papers.plain import assert_close, coins, entropy, gradient, loss, model, rates

CHAIN = Chain.parse(["impression -> click", "click -> action else other", "action -> buy", "other -> buy"])
ESMM = Chain.parse("impression -> click -> buy")
Y = rates(4)
CLICK, ACTED, BOUGHT = coins(3)
ACTION, BUY = CLICK & ACTED, CLICK & BOUGHT
HAPPENED = {"click": CLICK, "action": ACTION, "buy": BUY}


def esm2(y1, y2, y3, y4):
    names = ("impression_to_click", "click_to_action", "action_to_buy", "other_to_buy")
    return model(CHAIN, dict(zip(names, (y1, y2, y3, y4), strict=True)))


def entire(y1, y2, y3, y4):
    return loss(EntireSpace(CHAIN), esm2(y1, y2, y3, y4), HAPPENED)


def test_the_four_probabilities_of_the_paper():
    y1, y2, y3, y4 = Y
    p = esm2(*Y)
    assert_close(p.prob("click"), y1)
    assert_close(p.prob("action"), y1 * y2)  # pCTAVR
    assert_close(p.prob("buy", given="click"), y2 * y3 + (1 - y2) * y4)  # pCVR
    assert_close(p.prob("buy"), y1 * (y2 * y3 + (1 - y2) * y4))  # pCTCVR
    assert_close(p.prob("other"), y1 * (1 - y2))


def test_what_is_not_bought_is_the_rest():
    y1, y2, y3, y4 = Y
    miss = (1 - y1) + y1 * y2 * (1 - y3) + y1 * (1 - y2) * (1 - y4)
    assert_close(esm2(*Y).log_not_prob("buy").exp(), miss)


def test_the_loss_is_the_cross_entropy_of_click_action_and_buy_over_all_impressions():
    y1, y2, y3, y4 = Y
    expected = entropy(CLICK, y1) + entropy(ACTION, y1 * y2) + entropy(BUY, y1 * (y2 * y3 + (1 - y2) * y4))
    assert_close(entire(*Y), expected.mean())


def test_the_other_branch_is_weighted_by_1_minus_y2_and_not_by_1_minus_y2_y3():
    """A public implementation has (1 - y2 y3) y4, which is no probability: it can exceed 1."""
    _, y2, y3, y4 = Y
    wrong = y2 * y3 + (1 - y2 * y3) * y4
    assert ((esm2(*Y).prob("buy", given="click") - wrong).abs() > 1e-3).any()


def test_without_the_action_it_is_esmm_with_the_tower_of_the_other_branch():
    y1, _, y3, y4 = Y
    p, q = (
        esm2(y1, torch.full_like(y1, 1e-300), y3, y4),
        model(ESMM, {"impression_to_click": y1, "click_to_buy": y4}),
    )
    assert_close(p.log_prob("buy"), q.log_prob("buy"))
    assert_close(p.log_not_prob("buy"), q.log_not_prob("buy"))


def test_with_equal_branches_it_is_esmm_whatever_the_action_and_purchases_do_not_teach_the_action():
    y1, y2, y3, _ = Y
    p, q = esm2(y1, y2, y3, y3), model(ESMM, {"impression_to_click": y1, "click_to_buy": y3})
    assert_close(p.log_prob("buy"), q.log_prob("buy"))
    assert_close(p.log_not_prob("buy"), q.log_not_prob("buy"))
    for ask in ("log_prob", "log_not_prob"):
        assert_close(gradient(lambda y, ask=ask: getattr(esm2(y1, y, y3, y3), ask)("buy"), y2), torch.zeros_like(y2))


def test_the_loss_judges_the_two_ways_to_buy_by_their_sum_alone():
    """Move y3 and y4 so that y2 y3 + (1 - y2) y4 stays: the paper's loss stays, that of every step in its own space does not."""
    y1, y2, y3, y4 = Y
    room = torch.minimum(y3 / (1 - y2), (1 - y4) / y2) / 2
    other = (y1, y2, y3 - room * (1 - y2), y4 + room * y2)
    assert_close(entire(*other), entire(*Y))
    steps = [float(loss(ParentSpace(CHAIN), esm2(*y), HAPPENED)) for y in (Y, other)]
    assert steps[1] != pytest.approx(steps[0], rel=0.01)


def test_a_purchase_teaches_each_way_as_much_as_its_share_of_the_sum():
    y1, y2, y3, y4 = Y
    total = y2 * y3 + (1 - y2) * y4
    assert_close(gradient(lambda y: esm2(y1, y2, y, y4).log_prob("buy"), y3), y2 / total)
    assert_close(gradient(lambda y: esm2(y1, y2, y3, y).log_prob("buy"), y4), (1 - y2) / total)
