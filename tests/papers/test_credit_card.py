"""The chain of Adaptive Information Transfer (AITM; Xi et al., KDD 2021, arXiv 2105.08489): a credit card's five stages.

AITM predicts the end-to-end probability of every stage by a head of its own, and punishes those above the stage before:

    L = sum_t mean_D BCE(y_t, p_t) + alpha mean_D sum_t max(p_t - p_t-1, 0)

Here p_t is a product along the chain. The paper's transfer between towers is the link `aitm` (test_aitm.py).
"""

from __future__ import annotations

import itertools
import math

from espace.chain.chain import Chain
from espace.parts.objectives.entire_space import EntireSpace
from tests.papers.plain import assert_close, coins, entropy, loss, model, rates

STAGES = ("click", "application", "approval", "activation")
CHAIN = Chain.parse(" -> ".join(("impression", *STAGES)))
STEPS = rates(4)
TAKEN = coins(4)
P = [math.prod(STEPS[:n]) for n in range(1, 5)]
HAPPENED = {stage: math.prod(TAKEN[: n + 1]) for n, stage in enumerate(STAGES)}


def credit_card():
    return model(CHAIN, dict(zip((t.name for t in CHAIN.transitions), STEPS, strict=True)))


def test_every_stage_is_the_product_of_the_steps_to_it():
    p = credit_card()
    for stage, expected in zip(STAGES, P, strict=True):
        assert_close(p.prob(stage), expected)
        assert_close(p.log_not_prob(stage).exp(), 1 - expected)


def test_the_loss_is_that_of_the_paper_and_its_calibrator_has_nothing_to_punish():
    p = credit_card()
    alpha, found = 0.6, [p.prob(stage) for stage in STAGES]
    calibrator = sum((later - earlier).clamp(min=0) for earlier, later in itertools.pairwise(found)).mean()
    assert float(calibrator) == 0
    entropies = sum(entropy(HAPPENED[stage], q).mean() for stage, q in zip(STAGES, P, strict=True))
    assert_close(loss(EntireSpace(CHAIN), p, HAPPENED), entropies + alpha * calibrator)


def test_a_conditional_over_several_steps_is_the_ratio_of_marginals():
    p = credit_card()
    for early in range(3):
        for late in range(early + 1, 4):
            assert_close(p.prob(STAGES[late], given=STAGES[early]), P[late] / P[early])
