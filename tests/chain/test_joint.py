"""Joint heads, P(stage) by a head of its own: against the list of all that can happen, and from the YAML to the prediction."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, localcontext
from random import Random

import numpy as np
import pytest
import torch

import espace
from espace.chain.chain import Chain
from espace.chain.grammar import Transition
from espace.chain.probability import Probabilities
from espace.chain.spaces import Space
from espace.data.batch import Batch
from espace.errors import ChainError, ConfigError
from espace.parts.metrics.auc import AUC
from espace.parts.metrics.calibration import Calibration
from espace.parts.metrics.gauc import GAUC
from espace.parts.metrics.log_loss import LogLoss
from espace.parts.objectives.entire_space import EntireSpace
from espace.runs.experiment import Experiment
from espace.runs.show import describe
from espace.training.judging import Judge, TermMeans
from tests.chains import Enumeration, chain_of, every_chain, overlaps, random_logits, root_of
from tests.shop import rows

ESMM = Chain.parse("impression -> click -> conversion")
CLICK, CONVERSION = (t.name for t in ESMM.transitions)
some_chains = pytest.mark.parametrize("seed", range(50))


def rerooted(transitions, joint):
    """The chain in which a joint stage may happen whatever else does: its transition leaves the root."""
    root = root_of(transitions)
    return [Transition(root, t.outcomes, t.otherwise) if t.outcomes[0] in joint else t for t in transitions]


def may_be_joint(transitions):
    """Stages with a head of their own: the one outcome of the one transition that leads to them."""
    reached = [c for t in transitions for c in t.children]
    return [t.outcomes[0] for t in transitions if len(t.children) == 1 and reached.count(t.outcomes[0]) == 1]


def longer_chain_of(seed):
    """A random chain, every other one behind two more stages, so that merges lie behind stages that may be joint."""
    transitions = chain_of(seed)
    first = [Transition("start", ("entry",)), Transition("entry", (root_of(transitions),))]
    return first + transitions if seed % 2 else transitions


def with_joint(seed):
    """Such a chain, and a random set of its stages that may be joint, two or more where there are."""
    transitions, random = longer_chain_of(seed), Random(seed)
    chain = Chain.parse([str(t) for t in transitions])
    allowed = [s for s in may_be_joint(transitions) if chain.why_not_joint(s) is None]
    return transitions, chain, random.sample(allowed, random.randint(min(2, len(allowed)), len(allowed)))


def both(seed, values=None, dtype=torch.float64):
    """espace with joint heads, the list of all that can happen in the chain that has them at the root, the logits as leaves."""
    transitions, chain, joint = with_joint(seed)
    logits = random_logits(transitions, seed, values=values)
    leaves = {name: torch.tensor(z, dtype=dtype, requires_grad=True) for name, z in logits.items()}
    moved = rerooted(transitions, joint)
    renamed = {new.name: logits[old.name] for old, new in zip(transitions, moved, strict=True)}
    names = {old.name: new.name for old, new in zip(transitions, moved, strict=True)}
    return Probabilities(chain, leaves, joint=joint), Enumeration(moved, renamed), leaves, names


def assert_close(found, truth, rtol=1e-10, atol=1e-10):
    expected = torch.as_tensor(truth, dtype=torch.float64)
    torch.testing.assert_close(found.detach().double(), expected, rtol=rtol, atol=atol)


def assert_marginals(seed, values=None, dtype=torch.float64, **tolerance):
    p, truth, leaves, names = both(seed, values, dtype)
    for stage, tail in itertools.product(p.chain.stages[1:], ("log_prob", "log_not_prob")):
        value = getattr(p, tail)(stage)
        assert value.dtype == dtype
        assert_close(value, getattr(truth, tail)(stage), **tolerance)
        expected = getattr(truth, f"{tail}_gradient")(stage)
        found = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True, retain_graph=True)
        for (name, z), gradient in zip(leaves.items(), found, strict=True):
            assert_close(torch.zeros_like(z) if gradient is None else gradient, expected[names[name]], **tolerance)


# --- which stages may be joint


@every_chain
def test_a_stage_with_a_head_of_its_own_may_be_joint_unless_two_ways_into_a_later_stage_could_then_both_be_taken(seed):
    transitions = longer_chain_of(seed)
    chain = Chain.parse([str(t) for t in transitions])
    own = may_be_joint(transitions)
    for stage in chain.stages:
        refused = stage not in own or overlaps(rerooted(transitions, [stage]))
        assert (chain.why_not_joint(stage) is not None) == refused


@some_chains
def test_stages_that_may_be_joint_may_be_so_together(seed):
    transitions, _, joint = with_joint(seed)
    assert not overlaps(rerooted(transitions, joint))


def test_the_random_chains_have_joint_stages_of_every_kind():
    drawn = [with_joint(seed) for seed in range(200)]
    assert sum(len(joint) > 1 for _, _, joint in drawn) > 40
    behind = [(chain, s) for _, chain, joint in drawn for s in joint if chain.root not in chain.parents(s)]
    assert sum(len(chain.parents(u)) > 1 for chain, s in behind for u in chain.parents(s)) > 5, "behind a merge"
    assert sum(bool(chain.departures(s)) for chain, s in behind) > 10, "with stages behind them"
    assert (
        sum(len(chain.parents(w)) > 1 for chain, s in behind for w in chain.stages if chain.leads(s, w) and w != s) > 2
    )


@pytest.mark.parametrize("stage", ["impression", "cart", "browse", "buy", "note"])
def test_probabilities_refuse_what_cannot_be_joint(stage):
    chain = Chain.parse(
        [
            "impression -> click -> note",
            "click -> cart | wish else browse",
            "cart -> buy",
            "wish -> buy",
            "note -> a else b",
        ]
    )
    logits = {t.name: torch.zeros(2, len(t.outcomes)) for t in chain.transitions}
    if stage == "note":
        assert Probabilities(chain, logits, joint=["note"]).prob("note").tolist() == [0.5, 0.5]
        return
    with pytest.raises(ChainError, match=rf"joint head: .*\b{stage}\b.*Remove the line"):
        Probabilities(chain, logits, joint=[stage])


# --- marginals: both tails, values and gradients


@every_chain
def test_marginals_and_their_gradients_are_the_sums_over_all_that_can_happen(seed):
    assert_marginals(seed)


@some_chains
def test_marginals_are_exact_where_logits_are_as_large_as_40(seed):
    assert_marginals(seed, (-40, 0, 40))


@some_chains
def test_marginals_hold_in_float32(seed):
    assert_marginals(seed, (-40, 0, 40), torch.float32, rtol=2e-5, atol=2e-5)


@some_chains
def test_the_head_of_a_joint_stage_is_its_probability_and_no_other_head_changes_it(seed):
    p, _, leaves, _ = both(seed)
    for stage in p.joint:
        (own,) = p.chain.arrivals(stage)
        z = leaves[own.name]
        assert torch.equal(
            p.logit(stage), torch.nn.functional.logsigmoid(z[:, 0]) - torch.nn.functional.logsigmoid(-z[:, 0])
        )
        found = torch.autograd.grad(
            p.log_prob(stage).sum(), list(leaves.values()), allow_unused=True, retain_graph=True
        )
        assert {n for n, g in zip(leaves, found, strict=True) if g is not None} == {own.name}


@some_chains
def test_at_the_root_a_joint_head_is_a_conditional_one(seed):
    transitions = longer_chain_of(seed)
    chain = Chain.parse([str(t) for t in transitions])
    z = {n: torch.tensor(v) for n, v in random_logits(transitions, seed).items()}
    first = [s for s in may_be_joint(transitions) if chain.parents(s) == (chain.root,)]
    joint, conditional = Probabilities(chain, z, joint=first), Probabilities(chain, z)
    for stage, given in places(chain):
        assert torch.equal(joint.log_prob(stage, given), conditional.log_prob(stage, given))
        assert torch.equal(joint.log_not_prob(stage, given), conditional.log_not_prob(stage, given))
        assert not joint.is_ratio(stage, given)


# --- conditionals: ratios


def places(chain):
    return [(s, g) for s in chain.stages[1:] for g in (None, *sorted(chain.ancestors(s)))]


def ratio(p, truth, shares, stage, start):
    """P(stage given start) in plain numbers: step by step, the step into a joint stage being P(stage) / P(parent)."""
    if stage == start:
        return np.ones(3)
    total = np.zeros(3)
    for t in p.chain.arrivals(stage):
        if p.chain.leads(start, t.parent):
            joint = stage in p.joint and t.parent != p.chain.root
            step = truth.prob(stage) / truth.prob(t.parent) if joint else shares[t.name][:, t.classes.index(stage)]
            total += ratio(p, truth, shares, t.parent, start) * step
    return total


@every_chain
def test_a_conditional_is_the_product_of_its_steps_and_the_step_into_a_joint_stage_is_a_ratio_of_marginals(seed):
    p, truth, _, names = both(seed)
    shares = {old: truth.shares[t] for old, new in names.items() for t in truth.shares if t.name == new}
    for stage, start in places(p.chain):
        if start in (None, p.chain.root):
            continue
        r = ratio(p, truth, shares, stage, start)
        assert_close(p.prob(stage, start), r, rtol=1e-9)
        assert_close(p.log_prob(stage, start), np.log(r), rtol=1e-9, atol=1e-9)
        if p.is_ratio(stage, start):
            rest = np.maximum(1 - r, 0)
            assert_close(p.log_not_prob(stage, start).exp(), rest, rtol=1e-9, atol=1e-12)
            assert torch.equal(p.log_not_prob(stage, start).isneginf(), torch.tensor(r >= 1))
        else:
            assert (r <= 1 + 1e-12).all()
            assert_close(p.log_not_prob(stage, start).exp(), 1 - r, rtol=1e-9)
        everywhere = all(
            start in w.reached
            for w in Enumeration(list(p.chain.transitions), _zeros(p.chain)).worlds
            if stage in w.reached
        )
        if everywhere:
            assert_close(p.log_prob(stage, start), (p.log_prob(stage) - p.log_prob(start)).detach(), rtol=1e-9)


def _zeros(chain):
    return {t.name: np.zeros((1, len(t.outcomes))) for t in chain.transitions}


def test_some_ratios_exceed_one_and_some_do_not():
    found = [both(seed) for seed in range(50)]
    above = [p.prob(s, g) > 1 for p, *_ in found for s, g in places(p.chain) if g and p.is_ratio(s, g)]
    assert 0.1 < torch.cat(above).double().mean() < 0.9


@some_chains
def test_nothing_is_what_an_outcome_leaves(seed):
    p, _, _, _ = both(seed)
    for t in p.chain.transitions:
        if len(t.outcomes) == 1 and t.otherwise is None:
            assert torch.equal(p.log_nothing(t), p.log_not_prob(t.outcomes[0], t.parent))


def rest_in_decimals(a, b):
    """log(1 - s(b) / s(a)) and what a and b change of it, to 60 digits; None where the ratio is 1 or more."""
    with localcontext() as context:
        context.prec = 60
        s_a, s_b = (1 / (1 + (-Decimal(z)).exp()) for z in (a, b))
        r = s_b / s_a
        if r >= 1:
            return None
        return float((1 - r).ln()), float(r / (1 - r) * (1 - s_a)), float(-r / (1 - r) * (1 - s_b))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
def test_what_a_ratio_leaves_of_one_is_exact_in_both_corners_and_so_is_its_gradient(dtype, tolerance):
    grid = (-40.0, -20.0, -5.0, -0.5, 0.0, 0.5, 5.0, 19.0, 20.0, 40.0)
    pairs = list(itertools.product(grid, grid))
    a, b = (torch.tensor([pair[i] for pair in pairs], dtype=dtype)[:, None].requires_grad_() for i in (0, 1))
    found = Probabilities(ESMM, {CLICK: a, CONVERSION: b}, joint=["conversion"]).log_not_prob("conversion", "click")
    by_a, by_b = torch.autograd.grad(found.sum(), [a, b])
    for n, pair in enumerate(pairs):
        expected = rest_in_decimals(*pair)
        if expected is None:
            assert (found[n].item(), by_a[n].item(), by_b[n].item()) == (-math.inf, 0, 0)
        else:
            assert (found[n].item(), by_a[n].item(), by_b[n].item()) == pytest.approx(
                expected, rel=tolerance, abs=1e-35
            )


# --- metrics of a ratio


def judged(count=4000, seed=0):
    """Every metric of conversion given click, where many ratios exceed one; the ratios, labels and groups."""
    random = np.random.default_rng(seed)
    click, p_conversion = random.normal(0, 1.5, count), random.normal(-0.5, 2, count)
    z = {CLICK: torch.tensor(click)[:, None], CONVERSION: torch.tensor(p_conversion)[:, None]}
    labels, group = (random.random(count) < 0.3).astype(np.int8), random.integers(0, 20, count)
    every = torch.tensor(np.stack([np.ones_like(labels), labels], axis=1))
    batch = Batch(
        torch.empty(count, 0), {}, torch.empty(count, 0), every, torch.ones(count), {"user": torch.tensor(group)}
    )
    metrics = {"auc": AUC(), "log_loss": LogLoss(), "calibration": Calibration(), "gauc": GAUC(by="user")}
    terms = TermMeans(["click", "conversion"], lambda found: torch.stack(list(found.values())).sum())
    space = {"conversion_given_click": Space("conversion", "click")}
    judge = Judge(ESMM, space, {"conversion_given_click": metrics}, terms)
    judge.update(Probabilities(ESMM, z, joint=["conversion"]), batch, EntireSpace(ESMM))
    sigmoid = [1 / (1 + np.exp(-v)) for v in (click, p_conversion)]
    found = {n.removeprefix("conversion_given_click/"): v for n, v in judge.compute().items()}
    return found, sigmoid[1] / sigmoid[0], labels, group


def auc_of(score, labels):
    positive, negative = score[labels == 1], score[labels == 0]
    return ((positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2).item()


def test_metrics_judge_the_ratio_and_clip_it_only_where_a_probability_is_asked_for():
    found, r, labels, group = judged()
    assert 0.2 < (r > 1).mean() < 0.8
    assert found["auc"] == pytest.approx(auc_of(r, labels), abs=1e-4)
    inside = [(auc_of(r[group == g], labels[group == g]), (group == g).sum()) for g in range(20)]
    assert found["gauc"] == pytest.approx(np.average([a for a, _ in inside], weights=[n for _, n in inside]), abs=1e-9)
    assert found["predicted_over_observed"] == pytest.approx(r.sum() / labels.sum(), rel=1e-9)
    clipped = np.minimum(r, 1 - 1e-7)
    entropy = -np.where(labels == 1, np.log(np.minimum(r, 1)), np.log(1 - clipped)).mean()
    assert found["log_loss"] == pytest.approx(entropy, rel=1e-6)


# --- from the YAML to the prediction


JOINT = {"conversion": {"head": "joint"}}


def experiment(shop, stages, *overrides, **sections):
    return Experiment.from_yaml(shop.yaml(stages=stages, **sections), overrides)


def test_a_joint_head_trains_starts_at_the_rate_over_all_impressions_and_serves_the_ratio(shop):
    made = experiment(shop, JOINT)
    tally = made.check().scans["train"].tally
    rate = tally.stages["conversion"].positives / tally.stages["conversion"].known
    assert rate < 0.5 * tally.stages["conversion"].positives / tally.stages["click"].positives
    p_start = tally.starts(ESMM, ["conversion"])[CONVERSION]
    assert p_start[0] / sum(p_start) == pytest.approx(rate)
    run = made.fit(shop.folder / "run")
    table = run.predict(rows(400, 7))
    p = {name: table[name].to_numpy() for name in table.column_names}
    assert np.allclose(p["p_conversion_given_click"], p["p_conversion"] / p["p_click"], rtol=1e-5)
    assert abs(p["p_conversion"].mean() - rows(400, 7)["conversion"].to_numpy().mean()) < 0.05
    assert espace.load(shop.folder / "run").predict(rows(400, 7)).equals(table)


def test_the_bias_of_a_joint_head_is_the_log_odds_over_all_impressions(shop):
    made = experiment(shop, JOINT, "trainer.max_steps=1", "optimizer.lr=1e-9")
    tally = made.check().scans["train"].tally.stages
    head = made.fit(shop.folder / "run").model.heads[CONVERSION]
    positives, known = tally["conversion"].positives, tally["conversion"].known
    assert head.bias.item() == pytest.approx(math.log((positives + 1) / (known - positives + 1)), abs=1e-4)


def test_what_is_served_is_shown(shop):
    text = describe(experiment(shop, JOINT))
    assert "    P(conversion) = sigmoid(z[click_to_conversion])\n        all rows; label conversion" in text
    ratio = "P(conversion given click) = P(conversion) / P(click)"
    served = f"{ratio}\n        rows with click = 1, a ratio of two heads that may exceed 1"
    assert served in text


def test_without_it_the_configuration_says_that_heads_are_conditional(shop):
    made = experiment(shop, {"conversion": {"weight": 2.0}})
    assert made.config.to_dict()["stages"]["conversion"]["head"] == "conditional"
    assert "may exceed 1" not in describe(made)


def test_a_stage_kind_gives_the_probability_over_all_impressions_where_the_head_is_joint():
    class Halved:
        logits = 1

        def __call__(self, z):
            p = 0.5 * torch.sigmoid(z[:, 0])
            return p.log(), (1 - p).log()

    z = {name: torch.randn(5, 1, generator=torch.Generator().manual_seed(0)).double() for name in (CLICK, CONVERSION)}
    p = Probabilities(ESMM, z, {CONVERSION: Halved()}, ["conversion"])
    assert torch.allclose(p.prob("conversion"), 0.5 * torch.sigmoid(z[CONVERSION][:, 0]))
    assert torch.allclose(p.prob("conversion", "click"), p.prob("conversion") / torch.sigmoid(z[CLICK][:, 0]))


@pytest.mark.parametrize(
    ("chain", "stage", "problem"),
    [
        (["impression -> click -> conversion"], "impression", "every row is one 'impression', so it has no head"),
        (
            ["impression -> click -> conversion else leave"],
            "conversion",
            "shares 'click' out.*let 'click -> conversion' be a line",
        ),
        (["impression -> click -> conversion else leave"], "leave", "'leave' is what 'conversion' leaves"),
        (["impression -> click", "click -> conversion | leave"], "conversion", "shares 'click' out"),
        (
            ["impression -> click else pass", "click -> conversion", "pass -> conversion"],
            "conversion",
            "reached in 2 ways",
        ),
        (
            ["impression -> click else pass", "click -> visit", "visit -> conversion", "pass -> conversion"],
            "visit",
            r"'conversion' is also reached from 'pass', and the sum of P\(visit\) and P\(pass\) could exceed 1",
        ),
    ],
)
def test_what_cannot_be_joint_is_refused_with_the_way_out(shop, chain, stage, problem):
    with pytest.raises(ConfigError, match=rf"stages\.{stage}\.head: .*{problem}.*"):
        experiment(shop, {stage: {"head": "joint"}}, chain=chain)


def test_an_objective_that_takes_the_ratio_for_a_probability_is_refused(shop):
    with pytest.raises(
        ConfigError, match=r"'conversion_given_click' of parent_space .* may exceed 1.*Set objective: entire_space"
    ):
        experiment(shop, JOINT, objective="parent_space")
    experiment(shop, {"click": {"head": "joint"}}, objective="parent_space")


def test_a_misspelt_head_is_refused(shop):
    with pytest.raises(ConfigError, match=r"stages\.conversion\.head"):
        experiment(shop, {"conversion": {"head": "marginal"}})
