"""MARCO's mixture over exclusive intents of a click: P(v) = sum_k lambda_k mu_k with lambda a softmax and mu_k = P(v | k).

And the exclusive choice itself, with and without a rest.
"""

from __future__ import annotations

import torch

from espace.chain.chain import Chain
from espace.chain.probability import Probabilities
from espace.parts.objectives.entire_space import EntireSpace
from espace.parts.objectives.parent_space import ParentSpace
from tests.papers.plain import assert_close, coins, entropy, loss, model, rates

CHOICE = Chain.parse(["impression -> click", "click -> cart | wish | share"])
MIXTURE = Chain.parse(["impression -> a | b else c", "a -> buy", "b -> buy", "c -> buy"])
CTR, *MU = rates(4)
_RAW = torch.stack(rates(4, seed=3), 1)
SHARES = _RAW / _RAW.sum(1, keepdim=True)  # cart, wish, share, none of them
CLICK, FIRST, SECOND, THIRD = coins(4)
CART, WISH, SHARE = CLICK & FIRST, CLICK & ~FIRST & SECOND, CLICK & ~FIRST & ~SECOND & THIRD
HAPPENED = {"click": CLICK, "cart": CART, "wish": WISH, "share": SHARE}


def choice():
    return model(CHOICE, {"impression_to_click": CTR, "click_to_cart_or_wish_or_share": SHARES[:, :3]})


def test_lambda_is_a_softmax_with_one_logit_at_zero():
    z = torch.log(_RAW)
    logits = {
        "impression_to_click": torch.zeros(len(z), 1).double(),
        "click_to_cart_or_wish_or_share": z[:, :3] - z[:, 3:],
    }
    p = Probabilities(CHOICE, logits)
    expected = torch.exp(z) / torch.exp(z).sum(1, keepdim=True)
    assert_close(torch.stack([p.prob(s, given="click") for s in ("cart", "wish", "share")], 1), expected[:, :3])


def test_the_mixture_is_the_sum_over_intents():
    shares = SHARES[:, :2] / SHARES[:, :3].sum(1, keepdim=True)
    p = model(MIXTURE, {"impression_to_a_or_b": shares} | {f"{k}_to_buy": mu for k, mu in zip("abc", MU, strict=True)})
    weights = torch.cat([shares, 1 - shares.sum(1, keepdim=True)], 1)
    assert_close(p.prob("buy"), (weights * torch.stack(MU, 1)).sum(1))
    assert_close(p.log_not_prob("buy").exp(), (weights * (1 - torch.stack(MU, 1))).sum(1))


def test_one_of_the_three_or_none_follows_a_click():
    p = choice()
    none = p.log_nothing(CHOICE.transitions[1]).exp()
    assert_close(none, SHARES[:, 3])
    assert_close(sum(p.prob(s) for s in ("cart", "wish", "share")) + p.prob("click") * none, p.prob("click"))


def test_over_all_impressions_the_loss_is_one_entropy_for_each_action():
    expected = entropy(CLICK, CTR).mean()
    for k, stage in enumerate(("cart", "wish", "share")):
        expected = expected + entropy(HAPPENED[stage], CTR * SHARES[:, k]).mean()
    assert_close(loss(EntireSpace(CHOICE), choice(), HAPPENED), expected)


def test_on_clicks_the_loss_is_the_entropy_of_the_choice():
    chosen = torch.stack([CART, WISH, SHARE, CLICK & ~(CART | WISH | SHARE)], 1)
    picked = -(torch.log(SHARES) * chosen).sum(1)[CLICK].mean()
    assert_close(loss(ParentSpace(CHOICE), choice(), HAPPENED), entropy(CLICK, CTR).mean() + picked)


def test_two_follow_ups_are_independent_where_a_choice_is_not():
    chain = Chain.parse(["impression -> click", "click -> like", "click -> share"])
    like, share = MU[:2]
    p = model(chain, {"impression_to_click": CTR, "click_to_like": like, "click_to_share": share})
    assert_close(p.prob("like"), CTR * like)
    assert_close(p.prob("share"), CTR * share)
    liked, shared = CLICK & FIRST, CLICK & SECOND
    assert (liked & shared).any()
    expected = entropy(CLICK, CTR).mean() + entropy(liked, CTR * like).mean() + entropy(shared, CTR * share).mean()
    assert_close(loss(EntireSpace(chain), p, {"click": CLICK, "like": liked, "share": shared}), expected)
