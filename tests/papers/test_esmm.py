"""Entire Space Multi-Task Model (Ma et al., SIGIR 2018, arXiv 1804.07931): y = click, z = conversion."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from espace.chain.chain import Chain
from espace.chain.probability import Probabilities

CHAIN = Chain.parse("impression -> click -> conversion")
GRID = (0.001, 0.04, 0.3, 0.5, 0.9, 0.999)
P, Q = torch.tensor(list(itertools.product(GRID, GRID)), dtype=torch.float64).unbind(1)  # pCTR and pCVR


def model(ctr=P, cvr=Q):
    """The chain with pCTR = ctr and pCVR = cvr, and the logits of both: (batch, 1) each."""
    z = {"impression_to_click": ctr.logit()[:, None], "click_to_conversion": cvr.logit()[:, None]}
    z = {name: v.requires_grad_() for name, v in z.items()}
    return Probabilities(CHAIN, z), *z.values()


def bce(p, stage, label):
    return -p.log_prob(stage) if label else -p.log_not_prob(stage)


def loss(p, y, z):
    """Eq. (3) of one impression: the entropy of click and of click & conversion, both over all impressions."""
    return bce(p, "click", y) + bce(p, "conversion", y & z)


def gradient(y, z):
    """d loss / d pCTR and d loss / d pCVR, (batch,) each: the gradient in a logit divided by s(1 - s)."""
    p, *logits = model()
    by_ctr, by_cvr = torch.autograd.grad(loss(p, y, z).sum(), logits)
    return by_ctr[:, 0] / (P * (1 - P)), by_cvr[:, 0] / (Q * (1 - Q))


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_pctcvr_is_pctr_times_pcvr_eq_1():
    p, _, _ = model()
    assert_close(p.prob("click"), P)
    assert_close(p.prob("conversion", given="click"), Q)
    assert_close(p.prob("conversion"), P * Q)


def test_pcvr_lies_between_0_and_1_where_a_quotient_of_two_estimates_would_not():
    """Section 2.3: dividing pCTCVR by pCTR, each estimated on its own, can exceed 1; a factor cannot."""
    p, _, _ = model()
    assert (p.prob("conversion", given="click") <= 1).all()
    assert (p.prob("conversion") <= p.prob("click")).all()


@pytest.mark.parametrize(("y", "z"), [(0, 0), (1, 0), (1, 1)])
def test_the_loss_is_the_cross_entropy_of_both_tasks_over_all_impressions_eq_3(y, z):
    p, _, _ = model()
    clicked, bought = torch.full_like(P, y), torch.full_like(P, y * z)
    expected = F.binary_cross_entropy(P, clicked, reduction="none")
    expected = expected + F.binary_cross_entropy(P * Q, bought, reduction="none")
    assert_close(loss(p, y, z), expected)


def test_an_impression_without_a_click_pushes_both_down():
    by_ctr, by_cvr = gradient(y=0, z=0)
    assert_close(by_ctr, 1 / (1 - P) + Q / (1 - P * Q))
    assert_close(by_cvr, P / (1 - P * Q))


def test_a_click_without_conversion_pushes_pcvr_down_less_than_training_on_clicks_would():
    by_ctr, by_cvr = gradient(y=1, z=0)
    assert_close(by_ctr, -1 / P + Q / (1 - P * Q))
    assert_close(by_cvr, P / (1 - P * Q))
    assert (by_cvr < 1 / (1 - Q)).all()  # what BASE, trained on clicks, would give


def test_a_click_without_conversion_pushes_pctr_down_where_pctcvr_is_above_one_half():
    by_ctr, _ = gradient(y=1, z=0)
    assert torch.equal(by_ctr > 0, P * Q > 0.5)


def test_a_conversion_pushes_both_up():
    by_ctr, by_cvr = gradient(y=1, z=1)
    assert_close(by_ctr, -2 / P)
    assert_close(by_cvr, -1 / Q)


def test_impressions_that_are_seldom_clicked_barely_inform_pcvr():
    """In logits the push of a row without conversion is p q (1 - q) / (1 - p q): it vanishes with p."""
    p, _, z = model()
    (push,) = torch.autograd.grad(-p.log_not_prob("conversion").sum(), z)
    assert_close(push[:, 0], P * Q * (1 - Q) / (1 - P * Q))


def test_pcvr_has_no_loss_of_its_own():
    """Only through pCTCVR does the second tower learn: its gradient is that of the pCTCVR term."""
    p, _, z = model()
    whole, second = (
        torch.autograd.grad(x.sum(), z, retain_graph=True)[0] for x in (loss(p, 1, 0), bce(p, "conversion", 0))
    )
    assert torch.equal(whole, second)
