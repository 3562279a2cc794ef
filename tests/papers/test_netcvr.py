"""NetCVR: the conversion that is not refunded (arXiv 2601.19965).

p_v = P(pay | click), p_r = P(refund | pay); every row is a click.
"""

from __future__ import annotations

import torch

from espace.chain.chain import Chain
from espace.parts.objectives.entire_space import EntireSpace
from espace.parts.objectives.parent_space import ParentSpace
from tests.papers.plain import assert_close, coins, entropy, loss, model, rates

CHAIN = Chain.parse("click -> pay -> refund else keep")
P_V, P_R = rates(2)
PAID, TAKEN_BACK = coins(2)
REFUND = PAID & TAKEN_BACK


def netcvr():
    return model(CHAIN, {"click_to_pay": P_V, "pay_to_refund": P_R})


def test_net_conversion_is_payment_without_refund():
    p = netcvr()
    assert_close(p.prob("keep"), P_V * (1 - P_R))
    assert_close(p.prob("keep", given="pay"), 1 - P_R)
    assert_close(p.log_not_prob("keep").exp(), (1 - P_V) + P_V * P_R)


def test_what_is_paid_is_kept_or_refunded():
    p = netcvr()
    assert_close(p.prob("keep") + p.prob("refund"), p.prob("pay"))


def test_the_loss_is_that_of_payment_on_clicks_and_that_of_refunds_on_payments():
    expected = entropy(PAID, P_V).mean() + entropy(TAKEN_BACK, P_R)[PAID].mean()
    assert_close(loss(ParentSpace(CHAIN), netcvr(), {"pay": PAID, "refund": REFUND}), expected)


def test_the_weights_of_the_paper_are_one_where_nothing_arrives_late():
    """With l = P(the label comes after the window) they are w+ = 1 + p l and w- = (1 - p)(1 + p l) / (1 - p + p l). At l = 0
    both are 1, so the loss above is the paper's on rows whose labels are final."""

    def weighted(y, p, late):
        positive, negative = 1 + p * late, (1 - p) * (1 + p * late) / (1 - p + p * late)
        return -torch.where(y, positive * torch.log(p), negative * torch.log(1 - p))

    expected = weighted(PAID, P_V, 0.0).mean() + weighted(TAKEN_BACK, P_R, 0.0)[PAID].mean()
    assert_close(loss(ParentSpace(CHAIN), netcvr(), {"pay": PAID, "refund": REFUND}), expected)


def test_over_all_clicks_the_loss_is_that_of_payment_and_of_payment_with_refund():
    expected = entropy(PAID, P_V).mean() + entropy(REFUND, P_V * P_R).mean()
    assert_close(loss(EntireSpace(CHAIN), netcvr(), {"pay": PAID, "refund": REFUND}), expected)


def test_where_refunds_are_not_known_yet_payments_are_learnt_all_the_same():
    p = netcvr()
    known = coins(1, seed=5)[0]
    refund = torch.where(known | ~PAID, REFUND.long(), -1)
    expected = entropy(PAID, P_V).mean() + entropy(TAKEN_BACK, P_R)[PAID & known].mean()
    assert_close(loss(ParentSpace(CHAIN), p, {"pay": PAID, "refund": refund}), expected)
