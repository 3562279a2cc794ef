"""Hierarchically Modeling Micro and Macro Behaviors via Multi-Task Learning (Wen et al., SIGIR 2021, arXiv 2104.09713).

y1 = P(click), y2 = P(micro | click), y3 = P(macro | micro), y5 = P(macro | no micro), y4 = P(buy | macro),
y6 = P(buy | no macro).
"""

from __future__ import annotations

import torch

from espace.chain.chain import Chain
from espace.parts.objectives.entire_space import EntireSpace
from tests.papers.plain import assert_close, coins, entropy, loss, model, rates

CHAIN = Chain.parse(
    [
        "impression -> click",
        "click -> micro else no_micro",
        "micro -> macro else no_macro",
        "no_micro -> macro else no_macro",
        "macro -> buy",
        "no_macro -> buy",
    ]
)
ESM2 = Chain.parse(["impression -> click", "click -> macro else no_macro", "macro -> buy", "no_macro -> buy"])
ESMM = Chain.parse("impression -> click -> buy")
Y = rates(6)
CLICK, SMALL, LARGE, BOUGHT = coins(4)
HAPPENED = {"click": CLICK, "micro": CLICK & SMALL, "macro": CLICK & LARGE, "buy": CLICK & BOUGHT}


def hm3(y1, y2, y3, y4, y5, y6):
    given = {"impression_to_click": y1, "click_to_micro": y2, "micro_to_macro": y3, "no_micro_to_macro": y5}
    return model(CHAIN, given | {"macro_to_buy": y4, "no_macro_to_buy": y6})


def assert_both_tails_equal(p, q):
    for stage in ("macro", "buy"):
        if stage in q.chain.stages:
            assert_close(p.log_prob(stage), q.log_prob(stage))
            assert_close(p.log_not_prob(stage), q.log_not_prob(stage))


def test_the_probabilities_of_the_paper():
    y1, y2, y3, y4, y5, y6 = Y
    p, m = hm3(*Y), y2 * y3 + (1 - y2) * y5
    assert_close(p.prob("click"), y1)
    assert_close(p.prob("micro"), y1 * y2)
    assert_close(p.prob("macro", given="click"), m)
    assert_close(p.prob("macro"), y1 * m)
    assert_close(p.prob("buy", given="click"), m * y4 + (1 - m) * y6)
    assert_close(p.prob("buy"), y1 * (m * y4 + (1 - m) * y6))


def test_the_loss_is_the_cross_entropy_of_all_four_over_all_impressions():
    y1, y2, y3, y4, y5, y6 = Y
    m = y2 * y3 + (1 - y2) * y5
    truth = {"click": y1, "micro": y1 * y2, "macro": y1 * m, "buy": y1 * (m * y4 + (1 - m) * y6)}
    expected = sum(entropy(HAPPENED[stage], p).mean() for stage, p in truth.items())
    assert_close(loss(EntireSpace(CHAIN), hm3(*Y), HAPPENED), expected)


def test_a_purchase_forgets_the_micro_behaviour_once_the_macro_behaviour_is_known():
    """First order: y4 and y6 do not depend on micro."""
    _, _, y3, y4, y5, y6 = Y
    p = hm3(*Y)
    assert_close(p.prob("buy", given="micro"), y3 * y4 + (1 - y3) * y6)
    assert_close(p.prob("buy", given="no_micro"), y5 * y4 + (1 - y5) * y6)


def test_with_macro_behaviour_alike_on_both_sides_it_is_esm2():
    y1, y2, y3, y4, _, y6 = Y
    given = {"impression_to_click": y1, "click_to_macro": y3, "macro_to_buy": y4, "no_macro_to_buy": y6}
    assert_both_tails_equal(hm3(y1, y2, y3, y4, y3, y6), model(ESM2, given))


def test_without_micro_behaviour_it_is_esm2_with_the_other_tower():
    y1, _, y3, y4, y5, y6 = Y
    given = {"impression_to_click": y1, "click_to_macro": y5, "macro_to_buy": y4, "no_macro_to_buy": y6}
    assert_both_tails_equal(hm3(y1, torch.full_like(y1, 1e-300), y3, y4, y5, y6), model(ESM2, given))


def test_with_purchases_alike_on_both_sides_it_is_esmm():
    y1, y2, y3, y4, y5, _ = Y
    assert_both_tails_equal(hm3(y1, y2, y3, y4, y5, y4), model(ESMM, {"impression_to_click": y1, "click_to_buy": y4}))
