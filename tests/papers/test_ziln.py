"""A Deep Probabilistic Model for Customer Lifetime Value Prediction (Wang et al., 2019, arXiv 1912.07753), as `ziln`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from espace.parts.stages.ziln import ZILN

ROWS = 40


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (rows, 3), and amounts of which a third are 0."""
    random = np.random.default_rng(seed)
    amounts = np.where(random.random(ROWS) < 1 / 3, 0.0, np.exp(random.normal(2, 1, ROWS)))
    return random.normal(size=(ROWS, 3)), amounts


def plain_loss(p: float, mu: float, sigma: float, x: float) -> float:
    """The cross-entropy of x > 0, and where it is the lognormal loss log(x sigma sqrt(2 pi)) + (log x - mu)^2 / (2 sigma^2)."""
    if x == 0:
        return -math.log(1 - p)
    lognormal = math.log(x * sigma * math.sqrt(2 * math.pi)) + (math.log(x) - mu) ** 2 / (2 * sigma**2)
    return -math.log(p) + lognormal


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_is_the_cross_entropy_of_paying_and_the_lognormal_loss_of_those_who_pay(seed: int) -> None:
    z, amounts = drawn(seed)
    found = -ZILN(least_sigma=1e-9).log_density(torch.tensor(z), torch.tensor(amounts))
    for row, (a, mu, s) in enumerate(z.tolist()):
        assert float(found[row]) == pytest.approx(plain_loss(sigmoid(a), mu, softplus(s), amounts[row]), rel=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_the_prediction_is_the_mean_of_the_mixture(seed: int) -> None:
    z, _ = drawn(seed)
    found = ZILN(least_sigma=1e-9).log_mean(torch.tensor(z)).exp()
    for row, (a, mu, s) in enumerate(z.tolist()):
        assert float(found[row]) == pytest.approx(sigmoid(a) * math.exp(mu + softplus(s) ** 2 / 2), rel=1e-7)


def test_the_mean_of_many_draws_is_the_prediction() -> None:
    random = np.random.default_rng(0)
    a, mu, s = 0.4, 1.5, -0.3
    amounts = np.where(random.random(10**6) < sigmoid(a), np.exp(random.normal(mu, softplus(s), 10**6)), 0)
    expected = ZILN(least_sigma=1e-9).log_mean(torch.tensor([[a, mu, s]]).double()).exp()
    assert float(expected) == pytest.approx(amounts.mean(), abs=4 * amounts.std() / 1000)


def test_amounts_of_0_leave_the_lognormal_part_without_a_gradient() -> None:
    z = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    ZILN().log_density(z, torch.zeros(5)).sum().backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert not z.grad[:, 1:].any()
    assert z.grad[:, 0].all()
