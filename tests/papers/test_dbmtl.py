"""Deep Bayesian multi-target learning (DBMTL, Wang et al., 2019, arXiv 1902.09154): its relation layers, on the chain."""

from __future__ import annotations

from random import Random

import pytest
import torch

from espace.chain.chain import Chain
from espace.parts.links.relation import Relation
from tests.chains import grow, lines_of
from tests.papers.loops import assert_rows, tanh_layers

every_chain = pytest.mark.parametrize("seed", range(40))


def drawn(seed, hidden_units=None):
    """A random chain, its link in float64, and the vectors of its towers."""
    random = Random(seed)
    torch.manual_seed(seed)
    chain = Chain.parse(lines_of(grow(random), random))
    widths = {t.name: random.randint(1, 4) for t in chain.transitions}
    units = [random.randint(1, 4) for _ in range(random.randint(1, 2))] if hidden_units is None else hidden_units
    link = Relation(chain, widths, hidden_units=units, activation="tanh").double()
    return chain, link, {n: torch.randn(3, w, dtype=torch.float64) for n, w in widths.items()}


def r_in_loops(chain, link, row, transition):
    """r_t of one row; row: `{transition: q_t}`."""
    parents = [t for t in chain.transitions if transition.parent in t.children]
    if not parents:
        return row[transition.name]
    beside = [v for parent in parents for v in r_in_loops(chain, link, row, parent)]
    return tanh_layers(link.layers[transition.name], [*row[transition.name], *beside])


@every_chain
@pytest.mark.parametrize("hidden_units", [None, []])
def test_every_transition_sees_its_own_vector_beside_those_of_the_transitions_before_it(seed, hidden_units):
    chain, link, vectors = drawn(seed, hidden_units)
    found = link(vectors)
    for t in chain.transitions:
        rows = [{n: v[i].tolist() for n, v in vectors.items()} for i in range(3)]
        assert_rows(found[t.name], [r_in_loops(chain, link, row, t) for row in rows])
        assert found[t.name].shape == (3, link.widths[t.name])


@every_chain
def test_transitions_that_leave_the_root_keep_their_vector_and_have_no_parameters(seed):
    chain, link, vectors = drawn(seed)
    leave = {t.name for t in chain.departures(chain.root)}
    assert set(link.layers) == {t.name for t in chain.transitions} - leave
    assert all(link(vectors)[name] is vectors[name] for name in leave)
