"""The grammar of chains, what is refused and with which words, and the proof that parents exclude each other."""

from __future__ import annotations

import itertools
import math
import re
from random import Random

import numpy as np
import pytest
import torch

from espace.chain.chain import Chain
from espace.chain.grammar import Transition
from espace.chain.probability import Probabilities
from espace.errors import ChainError
from tests.chains import (
    CHAINS,
    MOST_STAGES,
    Enumeration,
    chain_of,
    every_chain,
    graph_of,
    lines_of,
    overlaps,
    random_logits,
    worlds,
)

ESMM = Chain.parse("impression -> click -> conversion")
GRAPHS = [graph_of(seed) for seed in range(800)]
CHOICE = Chain.parse(
    ["impression -> click", "click -> cart | wish else browse", "click -> like", "cart -> buy", "wish -> buy"]
)


# --- the grammar


@every_chain
def test_a_chain_reads_its_own_lines(seed):
    chain = Chain.parse(lines_of(chain_of(seed), Random(seed)))
    assert Chain.parse(chain.lines()) == chain
    assert Chain.parse("\n".join(chain.lines())) == chain


@every_chain
def test_the_order_of_lines_changes_no_probability(seed):
    transitions = chain_of(seed)
    lines = lines_of(transitions, Random(seed))
    logits = {n: torch.tensor(z) for n, z in random_logits(transitions, seed).items()}
    for order in range(3):
        shuffled = Random(order).sample(lines, len(lines))
        p, q = (Probabilities(Chain.parse(text), logits) for text in (lines, shuffled))
        assert set(p.chain.addresses) == set(q.chain.addresses)
        for stage, start in p.chain.addresses.values():
            torch.testing.assert_close(p.log_prob(stage, start), q.log_prob(stage, start), rtol=1e-13, atol=1e-13)
            torch.testing.assert_close(p.log_not_prob(stage, start), q.log_not_prob(stage, start), rtol=1e-12, atol=0)


@every_chain
def test_stages_stand_after_all_that_lead_to_them(seed):
    chain = Chain.parse([str(t) for t in chain_of(seed)])
    assert all(chain.stages.index(t.parent) < chain.stages.index(c) for t in chain.transitions for c in t.children)
    assert [chain.stages.index(t.parent) for t in chain.transitions] == sorted(
        chain.stages.index(t.parent) for t in chain.transitions
    )


def test_a_line_may_have_any_number_of_arrows():
    assert Chain.parse("a -> b -> c -> d") == Chain.parse(["a -> b", "b -> c", "c -> d"])


def test_spaces_do_not_matter():
    assert Chain.parse(["  a->b ", "b ->c|d  else e"]) == Chain.parse(["a -> b", "b -> c | d else e"])


def test_names_may_be_of_any_script():
    assert Chain.parse("показ -> клик -> 购买").stages == ("показ", "клик", "购买")


def test_a_transition_is_named_after_its_parent_and_outcomes():
    names = [t.name for t in CHOICE.transitions]
    assert names == ["impression_to_click", "click_to_cart_or_wish", "click_to_like", "cart_to_buy", "wish_to_buy"]
    assert CHOICE.transitions[1] == Transition("click", ("cart", "wish"), "browse")
    assert CHOICE.transitions[1].classes == ("cart", "wish", "browse")
    assert CHOICE.transitions[2].classes == ("like", None)


# --- what a chain knows about itself


@every_chain
def test_family_relations_are_those_of_the_ways_through_the_chain(seed):
    transitions = chain_of(seed)
    chain = Chain.parse([str(t) for t in transitions])
    ways = [[chain.root]]
    for way in ways:
        ways += [[*way, c] for t in transitions if t.parent == way[-1] for c in t.children]
    for stage in chain.stages:
        before = {s for way in ways if way[-1] == stage for s in way[:-1]}
        assert chain.ancestors(stage) == before
        assert {s for s in chain.stages if chain.leads(s, stage)} == before | {stage}
        assert set(chain.parents(stage)) == {way[-2] for way in ways if way[-1] == stage and len(way) > 1}
        assert set(chain.departures(stage)) == {t for t in transitions if t.parent == stage}


def test_else_stages_have_no_label():
    assert CHOICE.root == "impression"
    assert CHOICE.otherwise == {"browse"}
    assert CHOICE.labelled == ("click", "cart", "wish", "like", "buy")


def test_addresses_name_every_stage_and_every_edge_that_does_not_leave_the_root():
    assert dict(ESMM.addresses) == {
        "click": ("click", None),
        "conversion": ("conversion", None),
        "conversion_given_click": ("conversion", "click"),
    }
    edges = {f"{s}_given_{p}" for p, s in CHOICE.edges}
    assert set(CHOICE.addresses) == {*CHOICE.stages[1:], *edges}
    assert {"buy_given_cart", "buy_given_wish", "like_given_click"} <= edges


def test_the_formulas_of_esmm_are_eq_1_of_its_paper():
    assert ESMM.formulas() == {
        "click": "P(click) = sigmoid(z[impression_to_click])",
        "conversion": "P(conversion) = P(click) P(conversion given click)",
        "conversion_given_click": "P(conversion given click) = sigmoid(z[click_to_conversion])",
    }


@every_chain
def test_every_formula_is_true(seed):
    transitions = chain_of(seed)
    logits = random_logits(transitions, seed, batch=1)
    truth = Enumeration(transitions, logits)
    chain = Chain.parse([str(t) for t in transitions])
    for address, formula in chain.formulas().items():
        left, right = formula.split(" = ")
        stage, start = chain.addresses[address]
        assert left == f"P({stage}{f' given {start}' if start else ''})"
        assert _value(right, truth, logits, chain) == pytest.approx(truth.prob(stage, start)[0], abs=1e-12)


def _value(text, truth, logits, chain):
    if found := re.fullmatch(r"sigmoid\((-?)z\[(\w+)\]\)", text):
        z = logits[found[2]][0, 0]
        return 1 / (1 + math.exp(z if found[1] else -z))
    if found := re.fullmatch(r"softmax\(z\[(\w+)\], 0\)\[(\w+)\]", text):
        classes = next(t.classes for t in chain.transitions if t.name == found[1])
        e = np.exp([*logits[found[1]][0], 0.0])
        return e[classes.index(found[2])] / e.sum()
    pattern = r"P\((\w+)(?: given (\w+))?\)"
    assert re.fullmatch(rf"{pattern} {pattern}( \+ {pattern} {pattern})*", text)
    products = [[truth.prob(*f.groups())[0] for f in re.finditer(pattern, part)] for part in text.split(" + ")]
    return sum(math.prod(factors) for factors in products)


@every_chain
def test_the_drawing_has_every_arrow_once_and_dashed_where_it_leads_to_an_else_stage(seed):
    chain = Chain.parse([str(t) for t in chain_of(seed)])
    head, *arrows = chain.mermaid().splitlines()
    arrow = re.compile(r"""    (\w+) (-->|-\.->)(?:\|"?[\w ]+"?\|)? (\w+)""")
    found = [arrow.fullmatch(a).groups() for a in arrows]
    expected = [(t.parent, "-.->" if c == t.otherwise else "-->", c) for t in chain.transitions for c in t.children]
    assert head == "flowchart LR"
    assert sorted(found) == sorted(expected)


@every_chain
def test_the_tree_has_every_step_once_and_says_what_excludes_what(seed):
    chain = Chain.parse([str(t) for t in chain_of(seed)])
    root, *lines = chain.tree().splitlines()
    assert root == chain.root
    path, found = {0: root}, []
    for line in lines:
        margin, name = re.fullmatch(r"((?:[│ ]  )*[├└]─ )(.+)", line).groups()
        depth = len(margin) // 3
        path[depth] = re.sub(r"(, else)?( \(as above\))?$", "", name)
        group = path[depth - 1] if path[depth - 1] in ("one of", "at most one of") else None
        parent = path[depth - 2] if group else path[depth - 1]
        found += [] if name in ("one of", "at most one of") else [(parent, group, path[depth], ", else" in name)]
    assert sorted(found, key=str) == sorted((step for t in chain.transitions for step in _steps(t)), key=str)


def _steps(t):
    group = "one of" if t.otherwise else "at most one of" if len(t.outcomes) > 1 else None
    return [(t.parent, group, c, c == t.otherwise) for c in t.children]


@every_chain
def test_the_sources_of_a_stage_say_whether_it_happened(seed):
    transitions = chain_of(seed)
    chain = Chain.parse([str(t) for t in transitions])
    for stage in chain.stages:
        sources = frozenset(chain.sources(stage))
        assert sources <= set(chain.labelled)
        told = {(w.reached & sources, stage in w.reached) for w in worlds(transitions)}
        assert len(told) == len({labels for labels, _ in told})


def test_the_random_chains_hold_every_kind():
    chains = [Chain.parse([str(t) for t in chain_of(seed)]) for seed in range(CHAINS)]
    kinds = {
        "eight stages": lambda c: len(c.stages) == MOST_STAGES,
        "a choice of three": lambda c: any(len(t.outcomes) > 2 for t in c.transitions),
        "an else": lambda c: bool(c.otherwise),
        "independent follow-ups": lambda c: any(len(c.departures(s)) > 1 for s in c.stages),
        "a merge": lambda c: any(len(c.parents(s)) > 1 for s in c.stages),
        "a merge of three": lambda c: any(len(c.parents(s)) > 2 for s in c.stages),
        "a merge behind a merge": lambda c: any(
            len(c.parents(s)) > 1 and any(len(c.parents(u)) > 1 for u in c.ancestors(s)) for s in c.stages
        ),
        "five stages in a row": lambda c: any(len(c.ancestors(s)) > 4 for s in c.stages),
    }
    counts = {kind: sum(map(holds, chains)) for kind, holds in kinds.items()}
    assert min(counts.values()) >= 10, counts
    assert len(chains) == CHAINS >= 200


# --- parents exclude each other: the proof against all that can happen


def test_a_merge_is_refused_exactly_when_two_of_its_parents_can_both_happen():
    for graph in GRAPHS:
        lines = [str(t) for t in graph]
        if overlaps(graph):
            with pytest.raises(ChainError, match="would be counted twice"):
                Chain.parse(lines)
        else:
            assert set(Chain.parse(lines).transitions) == set(graph)


@pytest.mark.parametrize("other", ["z", "y"])
def test_a_merge_excludes_what_all_its_parents_exclude(other):
    lines = ["i -> x | y | z", "x -> m", "y -> m", f"{other} -> d", "m -> v", "d -> v"]
    if other == "z":
        assert set(Chain.parse(lines).parents("v")) == {"m", "d"}
    else:  # y leads to both m and d
        with pytest.raises(ChainError, match="'v' is reached from"):
            Chain.parse(lines)


def test_the_random_graphs_hold_both_kinds():
    assert 200 < sum(map(overlaps, GRAPHS)) < 600


def test_the_two_parents_named_in_a_refusal_can_both_happen():
    for graph in filter(overlaps, GRAPHS):
        with pytest.raises(ChainError, match="would be counted twice") as refusal:
            Chain.parse([str(t) for t in graph])
        stage, one, other = re.match(
            r"chain: '(\w+)' is reached from '(\w+)' and from '(\w+)'", str(refusal.value)
        ).groups()
        assert {one, other} <= {t.parent for t in graph if stage in t.children}
        assert any({one, other} <= w.reached for w in worlds(graph))


def test_independent_parents_are_refused_with_the_choice_that_mends_it():
    with pytest.raises(ChainError, match=r"'buy' is reached from 'cart' and from 'wish', .* click -> cart \| wish\."):
        Chain.parse(["imp -> click", "click -> cart", "click -> wish", "cart -> buy", "wish -> buy"])


def test_the_choice_that_mends_it_is_where_the_ways_part():
    lines = ["imp -> click -> cart", "imp -> wish", "cart -> buy", "wish -> buy"]
    with pytest.raises(ChainError, match=r"from 'wish' and from 'cart', .* imp -> wish \| click\."):
        Chain.parse(lines)
    assert Chain.parse(["imp -> click | wish", "click -> cart", *lines[2:]]).parents("buy") == ("wish", "cart")


@pytest.mark.parametrize(
    ("lines", "early", "late"),
    [(["i -> a -> b", "i -> b"], "i", "a"), (["r -> i -> a -> c -> b", "i -> b"], "i", "c")],
)
def test_a_parent_that_comes_before_another_is_refused_with_the_else_that_mends_it(lines, early, late):
    message = rf"from '{early}' and from '{late}', but whoever reaches '{late}' has passed '{early}', .* else rest"
    with pytest.raises(ChainError, match=message):
        Chain.parse(lines)
    mended = [line.replace("i -> a", "i -> a else rest") for line in lines[:-1]]
    mended = [*itertools.chain.from_iterable(_cut(line) for line in mended), "rest -> b"]
    assert set(Chain.parse(mended).parents("b")) == {late, "rest"}


def _cut(line):
    """One line an arrow, as a line cannot go on after an else."""
    names = [part.strip() for part in line.split("->")]
    return [f"{a.split(' else ')[0]} -> {b}" for a, b in itertools.pairwise(names)]


# --- refusals


@every_chain
def test_a_way_back_is_refused_as_a_cycle_of_arrows_that_are_there(seed):
    transitions = chain_of(seed)
    chain = Chain.parse([str(t) for t in transitions])
    random = Random(seed)
    late = random.choice(chain.stages[1:])
    early = random.choice([*sorted(chain.ancestors(late) - {chain.root}), late])
    arrows = {(t.parent, c) for t in transitions for c in t.children} | {(late, early)}
    with pytest.raises(ChainError, match="is a cycle, and a stage cannot come before itself") as refusal:
        Chain.parse([*(str(t) for t in transitions), f"{late} -> {early}"])
    cycle = str(refusal.value).removeprefix("chain: ").split(" is a cycle")[0].split(" -> ")
    assert cycle[0] == cycle[-1]
    assert set(itertools.pairwise(cycle)) <= arrows


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a -> a", "a -> a is a cycle"),
        ("a -> b -> a", "a -> b -> a is a cycle.* such as second_click"),
        (["i -> a -> b -> c", "c -> a"], "a -> b -> c -> a is a cycle"),
        (["i -> a", "b -> c"], "2 roots, 'i' and 'b', .* Add a line that leads to 'b'"),
        (["imp -> click", "clik -> buy"], r"2 roots, 'imp' and 'clik'.* Did you mean 'click'\?"),
        (["i -> b", "i -> b"], "'b' is reached twice from 'i'. Write i -> b once"),
        ("i -> b | b", "'b' is reached twice from 'i'"),
        ("i -> b else b", "'b' is reached twice from 'i'"),
        (["i -> b | c", "i -> b | d"], "'b' is reached twice from 'i'"),
        (["i -> x else y", "x -> s", "y -> s | s"], "'s' is reached twice from 'y'"),
        (["i -> a else r", "a -> b | r"], "'r' is an else stage in one transition and an outcome in another"),
        ("i -> a_given_b", "contains '_given'"),
        ("i -> a_given", "contains '_given'"),
        (["i -> a | b", "i -> a_or_b"], "both called i_to_a_or_b"),
        (["i -> b_to_c", "i -> i_to_b", "i_to_b -> c"], "both called i_to_b_to_c"),
        ([], "no transition was given. Write a line"),
        ("", "no transition was given. Write a line"),
        (["a -> b", "i"], "line 2: 'i' has no arrow. Write parent -> child"),
        ("i ->", "'' in 'i ->' is not a name of a stage"),
        ("-> i", "'' in '-> i' is not a name of a stage"),
        ("i -> -> a", "is not a name of a stage"),
        ("i -> a-b", "'a-b' in 'i -> a-b' is not a name of a stage"),
        ("i -> 2nd", "'2nd' in 'i -> 2nd' is not a name of a stage"),
        ("i -> a b", "'a b' in 'i -> a b' is not a name of a stage"),
        ("i -> a |", "is not a name of a stage"),
        ("i -> a | else b", "is not a name of a stage"),
        ("i -> else b", "is not a name of a stage"),
        ("i -> a else", "is not a name of a stage"),
        ("i -> a else b | c", r"'b \| c' in .* is not a name of a stage"),
        ([True], "line 1: True is not text"),
        (["i -> a", {"a": "b"}], "line 2: {'a': 'b'} is not text"),
        ("i -> a else b else c", "has two 'else'. One stage takes all that is left"),
        ("i -> a | b -> c", "goes on after a choice of a and b, .* as in a -> ..."),
        ("i -> a else b -> c", "goes on after a choice of a and b"),
        ("i | j -> a", "goes on after a choice of i and j"),
    ],
)
def test_a_chain_that_contradicts_itself_is_refused_with_the_way_out(lines, message):
    with pytest.raises(ChainError, match=message):
        Chain.parse(lines)


@pytest.mark.parametrize("ask", ["arrivals", "parents", "departures", "ancestors", "sources", "check"])
def test_an_unknown_stage_is_refused_with_the_nearest_name(ask):
    with pytest.raises(ChainError, match=r"no stage 'clik'\. Did you mean 'click'\?"):
        getattr(ESMM, ask)("clik")
