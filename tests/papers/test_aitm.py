"""Adaptive information transfer (AITM, Xi et al., KDD 2021, arXiv 2105.08489): its attention between towers, on the chain, and
its loss, with a head for P(stage) of every stage:

    L = sum_t mean_D BCE(y_t, p_t) + alpha sum_t mean_D max(p_t - p_t-1, 0)
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from random import Random

import pytest
import torch
from torch import nn

from espace.chain.chain import Chain
from espace.chain.probability import Probabilities
from espace.parts.links.aitm import AITM
from espace.parts.objectives.entire_space import EntireSpace
from espace.parts.objectives.ordered import Ordered
from espace.runs.experiment import Experiment
from espace.testing import random_labels
from tests.chains import grow, lines_of
from tests.papers.loops import assert_rows, linear, mixed, softmax
from tests.papers.plain import assert_close, coins, entropy, gradient, loss, model, rates

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


# --- the loss, on the paper's chain of five stages

STAGES = ("click", "application", "approval", "activation")
CHAIN = Chain.parse(" -> ".join(("impression", *STAGES)))
NAMES = [t.name for t in CHAIN.transitions]


def happened(seed):
    """{stage: whether it and all before it did, (rows,)}"""
    taken = coins(4, seed)
    return {stage: math.prod(taken[: n + 1]) for n, stage in enumerate(STAGES)}


def heads(p):
    """The chain with P(stage) of every stage as given, (rows,) each."""
    return model(CHAIN, dict(zip(NAMES, p, strict=True)), joint=STAGES)


def loss_in_plain_probabilities(p, y, alpha):
    """Of all rows. p, y: one (rows,) for each stage."""
    likelihood = sum(entropy(label, q).mean() for label, q in zip(y, p, strict=True))
    above = [torch.where(late > early, late - early, 0 * late) for early, late in itertools.pairwise(p)]
    return likelihood + alpha * sum(above).mean()


def test_every_head_is_the_probability_of_its_stage_whatever_the_stage_before_is_given():
    p = rates(4, seed=3)
    found = heads(p)
    for stage, expected in zip(STAGES, p, strict=True):
        assert_close(found.prob(stage), expected)
    for (early, p_early), (late, p_late) in itertools.pairwise(zip(STAGES, p, strict=True)):
        assert_close(found.prob(late, given=early), p_late / p_early)
    assert (found.prob("activation") > found.prob("approval")).any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_the_loss_and_its_gradient_are_those_of_the_paper(seed, alpha):
    p, y = torch.stack(rates(4, seed)), happened(seed)
    assert_close(
        loss(Ordered(CHAIN, penalty=alpha), heads(list(p)), y),
        loss_in_plain_probabilities(list(p), list(y.values()), alpha),
    )
    found = gradient(lambda at: loss(Ordered(CHAIN, penalty=alpha), heads(list(at)), y), p)
    assert_close(found, gradient(lambda at: loss_in_plain_probabilities(list(at), list(y.values()), alpha), p))


def test_alpha_is_that_of_the_paper_unless_it_is_said():
    p, y = rates(4), happened(1)
    assert_close(loss(Ordered(CHAIN), heads(p), y), loss_in_plain_probabilities(p, list(y.values()), 0.6))


def test_where_the_order_is_kept_there_is_nothing_to_punish():
    p = list(torch.stack(rates(4)).sort(dim=0, descending=True).values)
    y = happened(2)
    assert_close(loss(Ordered(CHAIN, penalty=5.0), heads(p), y), loss(EntireSpace(CHAIN), heads(p), y))


def test_a_stage_above_the_one_before_is_pushed_down_and_that_one_up():
    """d penalty / d p_t = alpha where p_t > p_t-1, and -alpha for p_t-1, each over the number of rows."""
    p, y = torch.stack(rates(4, seed=4)), happened(4)

    def penalty(at):
        return loss(Ordered(CHAIN), heads(list(at)), y) - loss(EntireSpace(CHAIN), heads(list(at)), y)

    found = gradient(penalty, p)
    above = (p[1:] > p[:-1]).double() * 0.6 / p.shape[1]
    nothing = torch.zeros_like(above[:1])
    assert_close(found, torch.cat([nothing, above]) - torch.cat([above, nothing]))


@every_chain
def test_heads_that_are_conditional_keep_the_order_by_themselves(seed):
    chain = Chain.parse(lines_of(grow(Random(seed)), Random(seed)))
    torch.manual_seed(seed)
    z = {t.name: 3 * torch.randn(50, len(t.outcomes), dtype=torch.float64) for t in chain.transitions}
    labels = random_labels(chain, 50)
    ordered, plain = (objective(chain)(Probabilities(chain, z), labels) for objective in (Ordered, EntireSpace))
    assert all(torch.equal(ordered[term][0], plain[term][0]) for term in plain)
    assert not any(value.any() for term, (value, _) in ordered.items() if term not in plain)
    single = [s for s in chain.labelled if len(chain.parents(s)) == 1 and chain.parents(s) != (chain.root,)]
    assert set(ordered) - set(plain) == {f"{s}_above_{chain.parents(s)[0]}" for s in single}


def test_the_example_is_the_model_of_the_paper():
    made = Experiment.from_yaml(Path(__file__).parents[2] / "examples" / "aitm.yaml")
    config = made.config.to_dict()
    assert Chain.parse(config["chain"]) == CHAIN
    assert {s: stage["head"] for s, stage in config["stages"].items()} == dict.fromkeys(STAGES, "joint")
    assert (config["link"]["type"], config["tower"]["hidden_units"]) == ("aitm", [128, 64, 32])
    assert config["objective"] == {"type": "ordered", "penalty": 0.6}
