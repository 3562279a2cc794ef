"""Probabilities against the list of all that can happen, in value and gradient, and at the corners of the logits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from espace.chain.chain import Chain
from espace.chain.grammar import Transition
from espace.chain.probability import Probabilities
from espace.errors import ChainError
from tests.chains import Enumeration, chain_of, every_chain, random_logits, root_of

ESMM = Chain.parse("impression -> click -> conversion")
ESM2 = Chain.parse(["impression -> click", "click -> action else other", "action -> buy", "other -> buy"])
VIEW_THROUGH = Chain.parse(["impression -> click else pass", "click -> install", "pass -> install"])
REFUND = Chain.parse(["impression -> click -> pay", "pay -> refund else keep"])
CHOICE = Chain.parse(["impression -> click", "click -> cart | wish else browse", "cart -> buy", "wish -> buy"])
EXAMPLES = [ESMM, ESM2, VIEW_THROUGH, REFUND, CHOICE]


def both(transitions, logits, dtype=torch.float64):
    """The same logits for espace, as leaves, and for the enumeration."""
    leaves = {name: torch.tensor(z, dtype=dtype, requires_grad=True) for name, z in logits.items()}
    chain = Chain.parse([str(t) for t in transitions])
    return Probabilities(chain, leaves), Enumeration(transitions, logits), leaves


def places(chain):
    """Every stage, on its own and given each of its ancestors."""
    return [(s, g) for s in chain.stages[1:] for g in (None, *sorted(chain.ancestors(s)))]


def gradients(value, leaves):
    found = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True, retain_graph=True)
    return {n: torch.zeros_like(z) if g is None else g for (n, z), g in zip(leaves.items(), found, strict=True)}


def assert_close(ours, truth, rtol=1e-10, atol=1e-10):
    torch.testing.assert_close(
        ours.detach().double(), torch.as_tensor(truth, dtype=torch.float64), rtol=rtol, atol=atol
    )


def assert_equal_in_value_and_gradient(transitions, logits, dtype=torch.float64, **tolerance):
    p, truth, leaves = both(transitions, logits, dtype)
    for stage, start in places(p.chain):
        for name in ("log_prob", "log_not_prob"):
            if (name, start) == ("log_not_prob", stage):
                continue
            value = getattr(p, name)(stage, start)
            assert value.dtype == dtype
            assert_close(value, getattr(truth, name)(stage, start), **tolerance)
            expected = getattr(truth, f"{name}_gradient")(stage, start)
            for transition, gradient in gradients(value, leaves).items():
                assert_close(gradient, expected[transition], **tolerance)


# --- laws of every chain


@every_chain
def test_every_probability_and_its_gradient_is_the_sum_over_all_that_can_happen(seed):
    transitions = chain_of(seed)
    assert_equal_in_value_and_gradient(transitions, random_logits(transitions, seed))


@every_chain
def test_both_tails_and_their_gradients_are_exact_where_logits_are_as_large_as_40(seed):
    transitions = chain_of(seed)
    assert_equal_in_value_and_gradient(transitions, random_logits(transitions, seed, values=(-40, 0, 40)))


@every_chain
def test_both_tails_and_their_gradients_hold_in_float32(seed):
    transitions = chain_of(seed)
    logits = random_logits(transitions, seed, values=(-40, 0, 40))
    assert_equal_in_value_and_gradient(transitions, logits, torch.float32, rtol=2e-5, atol=2e-5)


@every_chain
def test_leaves_that_exclude_each_other_sum_to_one(seed):
    transitions = exhaustive(chain_of(seed))
    p, _, _ = both(transitions, random_logits(transitions, seed))
    leaves = [s for s in p.chain.stages if not p.chain.departures(s)]
    assert_close(sum(p.prob(s) for s in leaves), np.ones(3))


def exhaustive(transitions):
    """The same chain with one transition a stage at most, and an else stage in every one, so that it ends in one leaf."""
    single = {t.parent: t for t in transitions}
    closed = {p: t if t.otherwise else Transition(p, t.outcomes, f"not_{t.name}") for p, t in single.items()}
    found, stages = [], [root_of(transitions)]
    for stage in stages:
        if stage in closed:
            found.append(closed[stage])
            stages += [s for s in closed[stage].children if s not in stages]
    return found


@every_chain
def test_a_stage_is_no_likelier_than_the_stages_it_comes_through(seed):
    transitions = chain_of(seed)
    p, _, _ = both(transitions, random_logits(transitions, seed, values=(-40, -3, 0, 3, 40)))
    for stage in p.chain.stages[1:]:
        parents = p.chain.parents(stage)
        assert (p.log_prob(stage) <= torch.logsumexp(torch.stack([p.log_prob(u) for u in parents]), 0) + 1e-12).all()


@every_chain
def test_a_conditional_is_the_ratio_of_marginals_where_one_stage_lies_on_every_way_to_the_other(seed):
    transitions = chain_of(seed)
    p, truth, _ = both(transitions, random_logits(transitions, seed))
    for stage, start in places(p.chain):
        if start and all(start in w.reached for w in truth.worlds if stage in w.reached):
            assert_close(p.log_prob(stage, start), (p.log_prob(stage) - p.log_prob(start)).detach())


@every_chain
def test_a_probability_and_its_complement_sum_to_one(seed):
    transitions = chain_of(seed)
    p, _, _ = both(transitions, random_logits(transitions, seed, values=(-40, -3, 0, 3, 40)))
    for stage, start in places(p.chain):
        if stage != start:
            assert_close(p.prob(stage, start) + p.log_not_prob(stage, start).exp(), np.ones(3))
            assert_close(p.logit(stage, start), (p.log_prob(stage, start) - p.log_not_prob(stage, start)).detach())


def test_the_root_is_certain():
    p = Probabilities(ESMM, {t.name: torch.zeros(2, 1) for t in ESMM.transitions})
    assert p.prob("impression").tolist() == [1, 1]
    assert p.log_prob("click", given="click").tolist() == [0, 0]


# --- what it costs


def layered(depth):
    """Two lanes that cross at every layer: merges of merges."""
    lines = ["s -> a0 else b0"]
    for n in range(depth):
        lines += [f"{lane}{n} -> a{n + 1} else b{n + 1}" for lane in "ab"]
    return Chain.parse(lines)


def nodes_of(chain):
    """How many operations both tails of every stage take, counted in the graph that autograd keeps."""
    p = Probabilities(chain, {t.name: torch.zeros(1, 1, requires_grad=True) for t in chain.transitions})
    waiting = [ask(s).grad_fn for s in chain.stages[1:] for ask in (p.log_prob, p.log_not_prob)]
    seen = set(waiting)
    while waiting:
        fresh = {node for node, _ in waiting.pop().next_functions if node is not None} - seen
        seen |= fresh
        waiting += fresh
    return len(seen)


@pytest.mark.parametrize("make", [lambda n: Chain.parse(" -> ".join(f"s{i}" for i in range(n + 1))), layered])
def test_both_tails_of_all_stages_take_operations_in_proportion_to_the_transitions(make):
    small, double, fourfold = (nodes_of(make(n)) for n in (8, 16, 32))
    assert fourfold - double == 2 * (double - small)


# --- the corners of the logits


def both_signs(depth, size):
    return list(itertools.product((-size, size), repeat=depth))


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def straight(depth):
    return Chain.parse(" -> ".join(f"s{i}" for i in range(depth + 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("depth", [1, 2, 3, 5, 8])
def test_bce_on_the_last_marginal_has_its_closed_form_gradient_at_every_corner(depth, dtype):
    """-log P = -sum_i log s(z_i) and 1 - P = sum_i s(z_1) .. s(z_i-1) s(-z_i), a sum of positive numbers."""
    corners = both_signs(depth, 40.0)
    leaves = [torch.tensor([c[i] for c in corners], dtype=dtype)[:, None].requires_grad_() for i in range(depth)]
    chain = straight(depth)
    p = Probabilities(chain, {t.name: z for t, z in zip(chain.transitions, leaves, strict=True)})
    losses = -p.log_prob(chain.stages[-1]), -p.log_not_prob(chain.stages[-1])
    for loss, expected in zip(losses, (_positive_gradient, _negative_gradient), strict=True):
        assert loss.isfinite().all()
        found = torch.cat(torch.autograd.grad(loss.sum(), leaves, retain_graph=True), 1)
        assert_close(found, [expected(c) for c in corners], rtol=2e-5, atol=1e-7 if dtype == torch.float32 else 1e-12)


def _positive_gradient(z):
    return [-sigmoid(-x) for x in z]


def _negative_gradient(z):
    """d -log(1 - P) / dz_i = P s(-z_i) / (1 - P)."""
    miss = sum(math.prod(map(sigmoid, z[:i])) * sigmoid(-z[i]) for i in range(len(z)))
    return [math.prod(map(sigmoid, z)) * sigmoid(-x) / miss for x in z]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("logits", "happened", "expected"),
    [
        ((-5, -5), True, (-0.99331, -0.99331)),
        ((-9, -9), True, (-0.99988, -0.99988)),
        ((-20, -20), True, (-1.0, -1.0)),
        ((16, 17), False, (0.73106, 0.26894)),
        ((20, 20), False, (0.5, 0.5)),
        ((40, 40), False, (0.5, 0.5)),
        ((-40, -40), False, (0.0, 0.0)),
    ],
)
def test_the_gradients_that_other_libraries_lose(logits, happened, expected, dtype):
    leaves = [torch.full((1, 1), float(z), dtype=dtype, requires_grad=True) for z in logits]
    p = Probabilities(ESMM, dict(zip(("impression_to_click", "click_to_conversion"), leaves, strict=True)))
    loss = -(p.log_prob("conversion") if happened else p.log_not_prob("conversion"))
    found = torch.autograd.grad(loss.sum(), leaves)
    assert [g.item() for g in found] == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("chain", EXAMPLES, ids=lambda chain: " , ".join(chain.lines()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_probability_of_the_examples_is_right_at_every_corner(chain, dtype):
    width = sum(len(t.outcomes) for t in chain.transitions)
    corners = np.array(both_signs(width, 40.0))
    ends = np.cumsum([len(t.outcomes) for t in chain.transitions])[:-1]
    logits = dict(zip((t.name for t in chain.transitions), np.split(corners, ends, axis=1), strict=True))
    tolerance = 2e-5 if dtype == torch.float32 else 1e-10
    assert_equal_in_value_and_gradient(chain.transitions, logits, dtype, rtol=tolerance, atol=tolerance)


# --- precision


def half_logits(chain, dtype, seed=0):
    return {n: torch.tensor(z).to(dtype) for n, z in random_logits(chain.transitions, seed, batch=20).items()}


def every_value(p):
    found = [p.log_prob(s, g) for s, g in places(p.chain)]
    return torch.stack(found + [p.log_not_prob(s, g) for s, g in places(p.chain) if s != g])


@pytest.mark.parametrize("chain", EXAMPLES, ids=lambda chain: " , ".join(chain.lines()))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_widened_first(chain, dtype):
    z = half_logits(chain, dtype)
    found = every_value(Probabilities(chain, z))
    assert found.dtype == torch.float32
    assert torch.equal(found, every_value(Probabilities(chain, {n: v.float() for n, v in z.items()})))


@pytest.mark.parametrize("chain", EXAMPLES, ids=lambda chain: " , ".join(chain.lines()))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_changes_nothing(chain, dtype):
    z = half_logits(chain, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = every_value(Probabilities(chain, z))
    assert found.dtype == torch.float32
    assert torch.equal(found, every_value(Probabilities(chain, {n: v.float() for n, v in z.items()})))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_get_the_gradient_of_float32(dtype):
    z = torch.tensor([[-20.0], [16.0], [20.0]], dtype=dtype, requires_grad=True)
    p = Probabilities(ESMM, {"impression_to_click": z, "click_to_conversion": z})
    (found,) = torch.autograd.grad(-p.log_not_prob("conversion").sum(), z)
    assert found.dtype == dtype
    assert found.flatten().tolist() == pytest.approx([0.0, 1.0, 1.0], abs=1e-6)


def test_an_empty_batch_has_no_probabilities():
    p = Probabilities(CHOICE, {t.name: torch.zeros(0, len(t.outcomes)) for t in CHOICE.transitions})
    assert p.log_prob("buy").shape == p.log_not_prob("buy").shape == (0,)


# --- refusals


def probabilities(chain=ESMM, **changed):
    return Probabilities(chain, {t.name: torch.zeros(2, len(t.outcomes)) for t in chain.transitions} | changed)


def test_a_transition_without_logits_is_named():
    with pytest.raises(ChainError, match=r"none for 'click_to_conversion'.* Did you mean 'click_to_conversoin'"):
        Probabilities(ESMM, {"impression_to_click": torch.zeros(2, 1), "click_to_conversoin": torch.zeros(2, 1)})


@pytest.mark.parametrize("shape", [(2,), (2, 2), (2, 1, 1)])
def test_logits_of_another_shape_are_refused(shape):
    with pytest.raises(ChainError, match=r"'click_to_conversion' has shape .*; it has to be \(batch, 1\)"):
        probabilities(click_to_conversion=torch.zeros(shape))


def test_an_unknown_stage_is_refused_with_the_nearest_name():
    with pytest.raises(ChainError, match=r"no stage 'clik'\. Did you mean 'click'"):
        probabilities().log_prob("clik")
    with pytest.raises(ChainError, match=r"no stage 'clik'\. Did you mean 'click'"):
        probabilities().log_not_prob("conversion", given="clik")


def test_a_condition_that_does_not_come_before_is_refused():
    with pytest.raises(ChainError, match=r"'conversion' does not come before 'click'.* earlier stages are impression"):
        probabilities().log_prob("click", given="conversion")
    with pytest.raises(ChainError, match="'wish' does not come before 'cart'"):
        probabilities(CHOICE).log_prob("cart", given="wish")


def test_the_complement_of_a_certainty_is_refused():
    with pytest.raises(ChainError, match="is certain"):
        probabilities().log_not_prob("click", given="click")
    with pytest.raises(ChainError, match="is certain"):
        probabilities().log_not_prob("impression")
