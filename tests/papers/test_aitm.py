"""Adaptive information transfer (AITM, Xi et al., KDD 2021, arXiv 2105.08489): its attention between towers, on the chain."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from torch import nn

from espace.chain import Chain
from espace.links.aitm import AITM
from tests.chains import grow, lines_of
from tests.papers.loops import assert_rows, linear, mixed, softmax

every_chain = pytest.mark.parametrize("seed", range(40))


def drawn(seed, dropout=0.0):
    """A random chain, its link in float64, and the vectors of its towers."""
    random = Random(seed)
    torch.manual_seed(seed)
    chain = Chain.parse(lines_of(grow(random), random))
    widths = {t.name: random.randint(1, 4) for t in chain.transitions}
    link = AITM(chain, widths, dropout=dropout).double()
    return chain, link, {n: torch.randn(3, w, dtype=torch.float64, requires_grad=True) for n, w in widths.items()}


def open_relus(chain, link, vectors):
    """The same, with nothing of what is handed down hidden behind a relu."""
    for hop in link.hops.values():
        for g in hop.handed:
            nn.init.constant_(g[0].bias, 10.0)
    return chain, link, vectors


def z_in_loops(chain, link, row, transition):
    """z_t of one row; row: `{transition: q_t}`."""
    own, before = row[transition.name], [t for t in chain.transitions if transition.parent in t.children]
    if not before:
        return own
    hop, u = link.hops[transition.name], [own]
    for g, parent in zip(hop.handed, before, strict=True):
        z = z_in_loops(chain, link, row, parent)
        u.append([max(v, 0.0) for v in linear(g[0], z)])  # p = relu(G z + b)
    scores = [sum(a * b for a, b in zip(linear(hop.h2, v), linear(hop.h3, v), strict=True)) for v in u]
    weights = softmax([score / math.sqrt(len(own)) for score in scores])
    return mixed(weights, [linear(hop.h1, v) for v in u])


@every_chain
def test_every_transition_attends_to_its_own_vector_and_to_those_of_the_transitions_before_it(seed):
    chain, link, vectors = drawn(seed)
    found = link(vectors)
    for t in chain.transitions:
        rows = [{n: v[i].tolist() for n, v in vectors.items()} for i in range(3)]
        assert_rows(found[t.name].detach(), [z_in_loops(chain, link, row, t) for row in rows])
        assert found[t.name].shape == (3, link.widths[t.name])


@every_chain
def test_transitions_that_leave_the_root_keep_their_vector_and_have_no_parameters(seed):
    chain, link, vectors = drawn(seed)
    leave = {t.name for t in chain.departures(chain.root)}
    assert set(link.hops) == {t.name for t in chain.transitions} - leave
    assert all(link(vectors)[name] is vectors[name] for name in leave)


@every_chain
def test_information_flows_along_the_chain_only(seed):
    """z_t depends on q_a if and only if a is t or lies before it on some path."""
    chain, link, vectors = open_relus(*drawn(seed))
    found = link(vectors)
    for t in chain.transitions:
        value = found[t.name].sin().sum()
        gradients = torch.autograd.grad(value, list(vectors.values()), allow_unused=True, retain_graph=True)
        reached = {n for n, g in zip(vectors, gradients, strict=True) if g is not None and g.any()}
        before = {a.name for a in chain.transitions if any(chain.leads(c, t.parent) for c in a.children)}
        assert reached == {t.name, *before}


def two_steps():
    """ESMM's chain, the one hop of its link, and the vectors of its two towers."""
    torch.manual_seed(0)
    chain = Chain.parse("impression -> click -> conversion")
    link = AITM(chain, {t.name: 4 for t in chain.transitions}).double()
    return link, link.hops["click_to_conversion"], *torch.randn(2, 6, 4, dtype=torch.float64)


def test_queries_of_zeros_give_the_mean():
    link, hop, q1, q2 = two_steps()
    for parameter in hop.h2.parameters():
        nn.init.zeros_(parameter)
    found = link({"impression_to_click": q1, "click_to_conversion": q2})["click_to_conversion"]
    assert torch.allclose(found, (hop.h1(q2) + hop.h1(hop.handed[0](q1))) / 2)


def test_where_the_own_vector_is_what_is_handed_down_attention_changes_nothing():
    link, hop, q1, _ = two_steps()
    q2 = hop.handed[0](q1)
    found = link({"impression_to_click": q1, "click_to_conversion": q2})["click_to_conversion"]
    assert torch.allclose(found, hop.h1(q2))


@every_chain
def test_dropout_acts_on_what_is_handed_down_in_training_only(seed):
    chain, link, vectors = open_relus(*drawn(seed, dropout=0.9))
    _, plain, _ = open_relus(*drawn(seed))
    one, other = link.eval()(vectors), plain(vectors)
    assert all(torch.equal(one[name], other[name]) for name in one)
    trained = [link.train()(vectors) for _ in range(20)]
    changed = {
        t.name for t in chain.transitions if any(not torch.equal(found[t.name], one[t.name]) for found in trained)
    }
    assert changed == {t.name for t in chain.transitions if t.parent != chain.root}
