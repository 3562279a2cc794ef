"""Multi-gate mixture of experts, beside the shared bottom it is measured against (Ma et al., KDD 2018)."""

from __future__ import annotations

import pytest
import torch

from espace.parts.sharing.mmoe import MMoE
from espace.parts.sharing.shared_bottom import SharedBottom
from tests.papers.loops import assert_rows, drawn, gated, mixed, tanh_layers

every_case = pytest.mark.parametrize("seed", range(20))


def build(seed, experts=None):
    random, spec, expert, names, features = drawn(seed)
    mmoe = MMoE(spec, names, expert, experts=experts or random.randint(1, 4)).double()
    return mmoe, names, features, features.flat().tolist()


@every_case
def test_a_transition_sees_the_experts_mixed_by_its_own_gate(seed):
    """f^k = sum over i of softmax(W_k x)_i f_i(x)"""
    mmoe, names, features, rows = build(seed)
    found = mmoe(features)
    for name in names:
        vectors = [[tanh_layers(expert.layers, x) for expert in mmoe.experts] for x in rows]
        expected = [gated(mmoe.gates[name], x, seen) for x, seen in zip(rows, vectors, strict=True)]
        assert_rows(found[name].flat(), expected)


@every_case
def test_a_gate_is_one_matrix_on_the_flat_vector(seed):
    mmoe, _, features, _ = build(seed, experts=3)
    assert [tuple(p.shape) for p in mmoe.gates.parameters()] == [(3, features.spec.width)] * len(mmoe.gates)


@every_case
def test_the_shared_bottom_gives_every_transition_the_same(seed):
    """f^k = f(x)"""
    _, spec, expert, names, features = drawn(seed)
    bottom = SharedBottom(spec, names, expert).double()
    expected = [tanh_layers(bottom.expert.layers, x) for x in features.flat().tolist()]
    for name, seen in bottom(features).items():
        assert name in names
        assert_rows(seen.flat(), expected)


@every_case
def test_with_one_expert_it_is_the_shared_bottom(seed):
    mmoe, names, features, _ = build(seed, experts=1)
    _, spec, expert, _, _ = drawn(seed)
    bottom = SharedBottom(spec, names, expert).double()
    bottom.expert.load_state_dict(mmoe.experts[0].state_dict())
    assert sum(p.numel() for p in mmoe.parameters()) == sum(p.numel() for p in bottom.parameters())
    for name in names:
        assert torch.equal(mmoe(features)[name].flat(), bottom(features)[name].flat())


@every_case
def test_gates_of_zeros_give_the_mean_of_the_experts(seed):
    mmoe, names, features, rows = build(seed, experts=4)
    for gate in mmoe.gates.values():
        torch.nn.init.zeros_(gate.layer.weight)
    vectors = [[tanh_layers(expert.layers, x) for expert in mmoe.experts] for x in rows]
    for name in names:
        assert_rows(mmoe(features)[name].flat(), [mixed([0.25] * 4, seen) for seen in vectors])


@every_case
def test_a_gate_learns_from_its_own_transition_only_and_the_experts_from_all(seed):
    mmoe, names, features, _ = build(seed, experts=3)
    for name in names:
        mmoe.zero_grad()
        mmoe(features)[name].flat().square().sum().backward()
        assert {n for n, gate in mmoe.gates.items() if gate.layer.weight.grad is not None} == {name}
        assert all(p.grad is not None for p in mmoe.experts.parameters())
