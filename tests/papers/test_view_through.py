"""View-through conversions: a stage that follows the negation of another one.

The equation is that of AEM2TL (click, then an act or none, then an install, and installs without a click):

    P(install) = y1 (y2 (1 - y4) + y4 y5) + (1 - y1) y3

y1 = P(click), y2 = P(install | click, no act), y3 = P(install | no click), y4 = P(act | click), y5 = P(install | act).
"""

from __future__ import annotations

import torch

from espace.chain.chain import Chain
from espace.parts.objectives.entire_space import EntireSpace
from espace.parts.objectives.parent_space import ParentSpace
from tests.papers.plain import assert_close, coins, entropy, loss, model, rates

CHAIN = Chain.parse(["impression -> click else pass", "click -> conversion", "pass -> conversion"])
LONG = Chain.parse(
    [
        "impression -> click else pass",
        "click -> act else rest",
        "act -> install",
        "rest -> install",
        "pass -> install",
    ]
)
ESMM = Chain.parse("impression -> click -> conversion")
Y1, Y2, Y3, Y4, Y5 = rates(5)
CLICK, CONVERSION, ACT = coins(3)


def view_through(y1=Y1, y2=Y2, y3=Y3):
    return model(CHAIN, {"impression_to_click": y1, "click_to_conversion": y2, "pass_to_conversion": y3})


def test_aem2tl():
    given = {"impression_to_click": Y1, "rest_to_install": Y2, "pass_to_install": Y3}
    p = model(LONG, given | {"click_to_act": Y4, "act_to_install": Y5})
    assert_close(p.prob("install"), Y1 * (Y2 * (1 - Y4) + Y4 * Y5) + (1 - Y1) * Y3)
    assert_close(p.prob("install", given="click"), Y2 * (1 - Y4) + Y4 * Y5)


def test_conversion_follows_from_a_click_or_from_none():
    p = view_through()
    assert_close(p.prob("conversion"), Y1 * Y2 + (1 - Y1) * Y3)
    assert_close(p.log_not_prob("conversion").exp(), Y1 * (1 - Y2) + (1 - Y1) * (1 - Y3))
    assert_close(p.prob("conversion", given="pass"), Y3)


def test_a_conversion_without_a_click_contradicts_nothing():
    happened = {"click": CLICK, "conversion": CONVERSION}
    assert (CONVERSION & ~CLICK).any()
    expected = entropy(CLICK, Y1).mean() + entropy(CONVERSION, Y1 * Y2 + (1 - Y1) * Y3).mean()
    assert_close(loss(EntireSpace(CHAIN), view_through(), happened), expected)


def test_each_way_is_learnt_on_its_own_rows():
    happened = {"click": CLICK, "conversion": CONVERSION}
    ways = entropy(CONVERSION, Y2)[CLICK].mean() + entropy(CONVERSION, Y3)[~CLICK].mean()
    assert_close(loss(ParentSpace(CHAIN), view_through(), happened), entropy(CLICK, Y1).mean() + ways)


def test_without_view_through_it_is_esmm():
    p = view_through(y3=torch.full_like(Y3, 1e-300))
    q = model(ESMM, {"impression_to_click": Y1, "click_to_conversion": Y2})
    assert_close(p.log_prob("conversion"), q.log_prob("conversion"))
    assert_close(p.log_not_prob("conversion"), q.log_not_prob("conversion"))


def test_with_both_ways_alike_a_click_tells_nothing():
    assert_close(view_through(y3=Y2).prob("conversion"), Y2)
