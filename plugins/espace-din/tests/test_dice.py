"""Dice against equation 9 of DIN, and the sums over events that all three towers stand on."""

from __future__ import annotations

import math

import pytest
import torch
from din_loops import assert_close, numbers, sigmoid, softmax
from espace_din.dice import Dice
from espace_din.segments import repeat, total
from espace_din.segments import softmax as segment_softmax

OFFSETS = torch.tensor([0, 0, 3, 4, 4, 6, 6])  # rows of 0, 3, 1, 0, 2 and 0 events


def moments(column):
    mean = sum(column) / len(column)
    return mean, sum((s - mean) ** 2 for s in column) / len(column)


def test_in_training_dice_is_equation_9_with_the_moments_of_the_mini_batch():
    torch.manual_seed(0)
    layer, s = Dice(3).double(), torch.randn(7, 3, dtype=torch.float64) * 2 + 1
    torch.nn.init.normal_(layer.alpha)
    out = layer(s)
    for unit, alpha in enumerate(numbers(layer.alpha)):
        column = numbers(s[:, unit])
        mean, var = moments(column)
        p = [sigmoid((x - mean) / math.sqrt(var + 1e-8)) for x in column]
        assert_close(out[:, unit], [q * x + (1 - q) * alpha * x for q, x in zip(p, column, strict=True)])


def test_in_eval_mode_dice_takes_running_averages_and_leaves_them():
    torch.manual_seed(0)
    layer, batches = Dice(1).double(), torch.randn(2, 5, 1, dtype=torch.float64) + 3
    mean, var = 0.0, 1.0
    for batch in batches:
        layer(batch)
        of_batch, biased = moments(numbers(batch[:, 0]))
        mean, var = 0.9 * mean + 0.1 * of_batch, 0.9 * var + 0.1 * biased * 5 / 4
    out = layer.eval()(torch.tensor([[0.5], [9.0]], dtype=torch.float64))
    assert_close(out[:, 0], [sigmoid((x - mean) / math.sqrt(var + 1e-8)) * x for x in (0.5, 9.0)])
    assert_close(torch.stack([layer.mean, layer.var])[:, 0], [mean, var])


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_for_moments_take_the_running_averages_and_leave_them(rows):
    layer = Dice(2)
    out = layer(torch.full((rows, 2), 3.0))
    out.sum().backward()
    assert torch.equal(out, torch.full((rows, 2), 3 * sigmoid(3 / math.sqrt(1 + 1e-8))))
    assert layer.alpha.grad is not None
    assert torch.equal(layer.mean, torch.zeros(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_unit_that_is_the_same_for_all_rows_gives_finite_numbers_and_gradients(dtype):
    layer, s = Dice(2), torch.full((1000, 2), 0.1, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(s)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert torch.isfinite(s.grad).all()
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("block", [4, 2**18])
def test_the_gradient_of_dice_is_that_of_equation_9_block_by_block_and_so_is_its_own(train, block, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("espace_din.dice._BLOCK", block)
    layer = Dice(2).double().train(train)
    given = (torch.randn(5, 2, dtype=torch.float64, requires_grad=True), torch.nn.init.normal_(layer.alpha))
    assert torch.autograd.gradcheck(lambda s, alpha: layer(s), given)
    assert torch.autograd.gradgradcheck(lambda s, alpha: layer(s), given)


def test_alpha_starts_at_zero_and_learns():
    layer = Dice(2)
    assert not layer.alpha.any()
    layer(torch.randn(5, 2)).sum().backward()
    assert layer.alpha.grad.all()


def test_total_and_repeat_follow_the_rows():
    events = torch.arange(12, dtype=torch.float64).view(6, 2)
    assert numbers(total(events, OFFSETS)) == [[0, 0], [6, 9], [6, 7], [0, 0], [18, 20], [0, 0]]
    assert numbers(repeat(torch.arange(6)[:, None], OFFSETS)[:, 0]) == [1, 1, 1, 2, 4, 4]


@pytest.mark.parametrize(("function", "rows"), [(total, 6), (repeat, 6)])
def test_total_and_repeat_have_the_gradients_of_their_sums(function, rows):
    x = torch.randn(rows, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: function(x, OFFSETS), x)
    assert torch.autograd.gradgradcheck(lambda x: function(x, OFFSETS).square(), x)


def test_the_softmax_is_over_the_events_of_a_row():
    scores = [1.0, -2.0, 0.5, 700.0, -800.0, -801.0]
    expected = [*softmax(scores[:3]), 1.0, *softmax([0.0, -1.0])]
    assert_close(segment_softmax(torch.tensor(scores, dtype=torch.float64), OFFSETS), expected)
