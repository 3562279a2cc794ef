"""Customized gate control and progressive layered extraction (Tang et al., RecSys 2020)."""

from __future__ import annotations

import pytest
import torch

from espace.model.features import Features
from espace.parts.sharing.cgc import CGC
from espace.parts.sharing.mmoe import MMoE
from espace.parts.sharing.ple import PLE
from tests.papers.loops import assert_rows, drawn, gated, tanh_layers

every_case = pytest.mark.parametrize("seed", range(20))


def numbers(random):
    """How many experts each transition has, and how many are shared: not none of both."""
    return random.choice([(own, shared) for own in range(3) for shared in range(3) if own + shared])


def level_in_loops(level, inputs):
    """`{place: one row}` after one level: each expert reads what its place gives, each gate what its own place gives."""
    vectors = {place: [tanh_layers(e.layers, inputs[place]) for e in group] for place, group in level.experts.items()}
    found = {}
    for place, gate in level.gates.items():
        if place == "shared":
            seen = [v for group in vectors.values() for v in group]  # all there are
        else:
            seen = [*vectors[place], *vectors.get("shared", [])]
        found[place] = gated(gate, inputs[place], seen)
    return found


def build_cgc(seed, **options):
    random, spec, expert, names, features = drawn(seed)
    own, shared = numbers(random)
    return CGC(spec, names, expert, **{"own": own, "shared": shared, **options}).double(), names, features


@every_case
def test_a_transition_sees_its_own_experts_and_the_shared_ones_mixed_by_its_gate(seed):
    """f^k = sum over j of softmax(W_k x)_j [own_k ; shared]_j"""
    cgc, names, features = build_cgc(seed)
    found, rows = cgc(features), features.flat().tolist()
    expected = [level_in_loops(cgc.level, dict.fromkeys(cgc.places, x)) for x in rows]
    assert set(found) == set(names)
    for name in names:
        assert_rows(found[name].flat(), [row[name] for row in expected])


@every_case
def test_levels_stand_one_behind_the_other(seed):
    """f^{k,l} and f^{s,l} of the module's docstring, from level to level."""
    random, spec, expert, names, features = drawn(seed)
    own, shared = numbers(random)
    ple = PLE(spec, names, expert, levels=random.randint(1, 4), own=own, shared=shared).double()
    expected = []
    for x in features.flat().tolist():
        row = dict.fromkeys(ple.places, x)
        for level in ple.levels:
            row = level_in_loops(level, row)
        expected.append(row)
    found = ple(features)
    assert set(found) == set(names)
    for name in names:
        assert_rows(found[name].flat(), [row[name] for row in expected])


@every_case
def test_the_gate_of_what_is_shared_mixes_all_experts_of_its_level_and_the_last_level_has_none(seed):
    random, spec, expert, names, _ = drawn(seed)
    own, shared, levels = random.randint(0, 2), random.randint(1, 2), random.randint(2, 4)
    ple = PLE(spec, names, expert, levels=levels, own=own, shared=shared)
    gates = [dict(level.gates.items()) for level in ple.levels]
    assert [set(found) for found in gates] == [{*names, "shared"}] * (levels - 1) + [{*names}]
    assert {len(found["shared"].names) for found in gates[:-1]} == {own * len(names) + shared}
    assert {len(found[name].names) for found in gates for name in names} == {own + shared}


@every_case
def test_one_level_is_cgc(seed):
    random, spec, expert, names, features = drawn(seed)
    own, shared = numbers(random)
    ple = PLE(spec, names, expert, levels=1, own=own, shared=shared).double()
    cgc = CGC(spec, names, expert, own=own, shared=shared).double()
    cgc.level.load_state_dict(ple.levels[0].state_dict())
    for name in names:
        assert torch.equal(ple(features)[name].flat(), cgc(features)[name].flat())


@every_case
def test_without_own_experts_it_is_mmoe(seed):
    cgc, names, features = build_cgc(seed, own=0, shared=3)
    _, spec, expert, _, _ = drawn(seed)
    mmoe = MMoE(spec, names, expert, experts=3).double()
    mmoe.experts.load_state_dict(cgc.level.experts["shared"].state_dict())
    mmoe.gates.load_state_dict(cgc.level.gates.state_dict())
    for name in names:
        assert torch.equal(cgc(features)[name].flat(), mmoe(features)[name].flat())


@every_case
def test_with_one_own_expert_and_none_shared_every_transition_is_on_its_own(seed):
    cgc, names, features = build_cgc(seed, own=1, shared=0)
    assert not list(cgc.level.gates.parameters()), "there is nothing to weigh"
    for name in names:
        (expert,) = cgc.level.experts[name]
        assert torch.equal(cgc(features)[name].flat(), expert(features))


@every_case
def test_own_experts_learn_from_their_transition_only_and_shared_ones_from_all(seed):
    cgc, names, features = build_cgc(seed, own=2, shared=1)
    for name in names:
        cgc.zero_grad()
        cgc(features)[name].flat().square().sum().backward()
        learnt = {n for n, group in cgc.level.experts.items() if any(p.grad is not None for p in group.parameters())}
        assert learnt == {name, "shared"}


@every_case
def test_behind_the_first_level_own_experts_learn_from_all_through_what_is_shared(seed):
    """Progressive separation: the shared gate of level 1 sees every transition's experts."""
    _, spec, expert, names, features = drawn(seed)
    ple = PLE(spec, names, expert, levels=2, own=1, shared=1).double()
    ple(features)[names[0]].flat().square().sum().backward()
    first, second = (
        {n for n, group in level.experts.items() if any(p.grad is not None for p in group.parameters())}
        for level in ple.levels
    )
    assert first == {*names, "shared"}
    assert second == {names[0], "shared"}


@pytest.mark.parametrize("sharing", [CGC, PLE])
def test_no_expert_at_all_is_refused(sharing):
    _, spec, expert, names, _ = drawn(0)
    with pytest.raises(ValueError, match=r"own and shared are both 0.*Set one of them to 1 or more"):
        sharing(spec, names, expert, own=0, shared=0)


def test_only_the_first_level_sees_histories():
    """Experts behind it are built for, and given, one plain vector."""
    _, spec, expert, names, features = drawn(1)
    seen = []

    def noted(layout):
        seen.append(layout)
        return expert(layout)

    ple = PLE(spec, names, noted, levels=3, own=1, shared=1).double()
    each = len(names) + 1
    assert all(layout is spec for layout in seen[:each])
    assert [f.kind for layout in seen[each:] for f in layout.fields] == ["vector"] * 2 * each
    assert all(isinstance(out, Features) and out.spec == ple.specs[name] for name, out in ple(features).items())
