"""Labels that are not known: objectives and metrics give the truth on average, whichever labels are known.

A population is listed row by row, with a weight for each way in which labels can be null, and so has no noise: what
minimises the expected loss has to be the truth, and what is judged has to be the share that happened.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from random import Random

import numpy as np
import pyarrow as pa
import pytest
import torch

from espace.chain.chain import Chain
from espace.chain.labels import Labels, counted
from espace.chain.probability import Probabilities
from espace.data.auditing.tally import Tally
from espace.data.batch import Batch
from espace.data.encoding.labels import resolve
from espace.parts.objectives.entire_space import EntireSpace
from espace.parts.objectives.parent_space import ParentSpace
from espace.parts.samplers.unclicked_negatives import UnclickedNegatives
from espace.training.judging import scored
from tests.chains import Enumeration, chain_of, random_logits

Row = tuple[Mapping[str, int], str | None, float]  # labels, stratum, weight
Null = Callable[[Mapping[str, int], str | None], Mapping[str, float]]  # labels, stratum -> P(label is null)
COPIES = 60_000  # rows that a weight of 1 is made of, where rows are counted


def people(chain: Chain, seed: int, strata: Sequence[str | None] = (None,)) -> list[Row]:
    """Every way in which everything can turn out, with its probability; another one in each stratum."""
    found: list[Row] = []
    for n, stratum in enumerate(strata):
        worlds = Enumeration(chain.transitions, random_logits(chain.transitions, seed + n, 1, (-0.7, 0.2, 0.9)))
        for world, weight in zip(worlds.worlds, worlds.weights[:, 0], strict=True):
            labels = {s: int(s in world.reached) for s in chain.labelled}
            found.append((labels, stratum, float(weight) / len(strata)))
    return found


def forgotten(chain: Chain, rows: Sequence[Row], null: Null) -> list[Row]:
    """The same rows once for each set of labels that may be null, each label for itself."""
    found: list[Row] = []
    for labels, stratum, weight in rows:
        chances = null(labels, stratum)
        open_ = [s for s in chain.labelled if chances.get(s)]
        for gone in itertools.product((False, True), repeat=len(open_)):
            share = np.prod([chances[s] if g else 1 - chances[s] for s, g in zip(open_, gone, strict=True)])
            if share > 0:
                nulls = {s: -1 for s, g in zip(open_, gone, strict=True) if g}
                found.append(({**labels, **nulls}, stratum, weight * float(share)))
    return found


def known(chain: Chain, rows: Sequence[Row]) -> tuple[Labels, torch.Tensor, Tally]:
    """What espace makes of the rows: labels with counts, and weights, (rows,).

    Shares are counted on copies of each row, as many as its weight says.
    """
    copies = [round(weight * COPIES) for *_, weight in rows]
    raw = {s: np.repeat(np.array([labels[s] for labels, *_ in rows], np.int8), copies) for s in chain.labelled}
    strata = [stratum for (_, stratum, _), n in zip(rows, copies, strict=True) for _ in range(n)]
    by = None if set(strata) == {None} else pa.array(strata, pa.string())
    resolved, tally = resolve(chain, raw, "error"), Tally()
    tally.add(chain, resolved, False, np.arange(len(strata)), "here", by)
    counts = tally.known.counts(chain)
    matrix = None if counts is None else torch.from_numpy(counts.of(chain, resolved, by)).double()
    return Labels(chain, torch.from_numpy(resolved.values), None, matrix), torch.ones(len(strata)).double(), tally


def learnt(chain: Chain, objective: EntireSpace | ParentSpace, labels: Labels, weights: torch.Tensor) -> Probabilities:
    """What minimises the expected loss of a model without features."""
    torch.manual_seed(0)
    z = {t.name: torch.zeros(1, len(t.outcomes), dtype=torch.float64, requires_grad=True) for t in chain.transitions}
    options = {"max_iter": 300, "tolerance_grad": 1e-10, "tolerance_change": 1e-14, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(list(z.values()), **options)
    unique, place = torch.unique(
        torch.cat([labels.values.double(), labels_counts(labels)], dim=1), dim=0, return_inverse=True
    )
    of = torch.zeros(len(unique), dtype=torch.float64).index_add(0, place, weights)
    stages = labels.values.shape[1]
    merged = Labels(chain, unique[:, :stages].to(torch.int8), None, unique[:, stages:])

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        p = Probabilities(chain, {name: v.expand(len(unique), -1) for name, v in z.items()})
        total = sum((v * of).sum() / (r * of).sum() for v, r in objective(p, merged).values())
        total.backward()
        return total

    for _ in range(4):
        optimizer.step(loss)
    return Probabilities(chain, {name: v.detach() for name, v in z.items()})


def labels_counts(labels: Labels) -> torch.Tensor:
    """The counts of labels, made where there are none."""
    if labels.counts is not None:
        return labels.counts
    chain = labels.chain
    found = [labels.known(s, g) for s, g in chain.addresses.values()]
    several = [labels.known_class(t) for t in chain.transitions if len(t.outcomes) > 1]
    assert len(found) + len(several) == len(counted(chain))
    return torch.stack([*found, *several], dim=1).double()


def observed(chain: Chain, labels: Labels, weights: torch.Tensor, stage: str, given: str | None) -> float:
    """The mean label among the rows on which a metric judges P(stage given ...)."""
    none = torch.empty(len(weights), 0)
    batch = Batch(none, {}, none, labels.values, weights, {}, counts=labels_counts(labels))
    p = Probabilities(chain, {t.name: torch.zeros(len(weights), len(t.outcomes)) for t in chain.transitions})
    found = scored(p, batch, Labels(chain, labels.values, None, batch.counts), stage, given)
    return float((found.weights * found.labels).sum() / found.weights.sum())


def truth(rows: Sequence[Row], chain: Chain, stage: str, given: str | None) -> float:
    def share(*stages: str) -> float:
        raw = {s: np.array([labels[s] for labels, *_ in rows], np.int8) for s in chain.labelled}
        found = resolve(chain, raw, "error").values
        inside = np.all([found[:, chain.stages.index(s) - 1] == 1 for s in stages], axis=0)
        copies = np.array([round(weight * COPIES) for *_, weight in rows])
        return float((copies * inside).sum() / copies.sum())

    return (
        share(stage) / (1.0 if given is None else share(given)) if given is None else share(stage, given) / share(given)
    )


def check(chain: Chain, rows: Sequence[Row], tolerance: float) -> None:
    """Both objectives and every metric find what is true of the rows before labels were forgotten."""
    whole, part = rows
    labels, weights, tally = known(chain, part)
    true = {name: truth(whole, chain, *address) for name, address in chain.addresses.items()}
    for objective in (EntireSpace(chain), ParentSpace(chain)):
        p = learnt(chain, objective, labels, weights)
        told = {n for n, (s, given) in chain.addresses.items() if given is None or len(chain.parents(s)) == 1}
        names = told if isinstance(objective, EntireSpace) else set(true)  # of a merge a marginal tells the sum only
        found = {name: float(p.prob(*chain.addresses[name])) for name in names}
        assert found == pytest.approx({name: true[name] for name in names}, abs=tolerance), type(objective).__name__
    judged = {name: observed(chain, labels, weights, *address) for name, address in chain.addresses.items()}
    assert judged == pytest.approx(true, abs=tolerance)
    told = {s: tally.rate(chain, s) for s in chain.stages[1:]}
    assert told == pytest.approx({s: true[s] for s in told}, abs=tolerance)


def small(seed: int) -> bool:
    transitions = chain_of(seed)
    return len(transitions) > 1 and len(Enumeration(transitions, random_logits(transitions, seed)).worlds) < 14


SEEDS = [seed for seed in range(60) if small(seed)][:10]


def a_chain(seed: int) -> Chain:
    return Chain.parse([str(t) for t in chain_of(seed)])


@pytest.mark.parametrize("seed", SEEDS)
def test_nulls_at_random_in_all_rows_change_nothing(seed: int) -> None:
    chain, random = a_chain(seed), Random(seed)
    chances = {s: random.choice([0.0, 0.3, 0.6]) for s in chain.labelled}
    rows = people(chain, seed)
    check(chain, (rows, forgotten(chain, rows, lambda labels, stratum: chances)), 0.005)


@pytest.mark.parametrize("below", [0.0, 1.0], ids=["a 0 below a 0", "null below a 0"])
@pytest.mark.parametrize("seed", SEEDS)
def test_nulls_only_where_a_parent_happened_change_nothing(seed: int, below: float) -> None:
    chain, random = a_chain(seed), Random(seed)
    chances = {t: random.choice([0.2, 0.5]) for t in chain.transitions}

    def null(labels: Mapping[str, int], stratum: str | None) -> dict[str, float]:
        happened = resolved_of(chain, labels)
        found = {}
        for stage in chain.labelled:
            active = [t for t in chain.arrivals(stage) if happened[t.parent]]
            found[stage] = chances[active[0]] if active else below
        return found

    rows = people(chain, seed)
    check(chain, (rows, forgotten(chain, rows, null)), 0.005)


def resolved_of(chain: Chain, labels: Mapping[str, int]) -> dict[str, int]:
    values = resolve(chain, {s: np.array([labels[s]], np.int8) for s in chain.labelled}, "error").values[0]
    return {chain.root: 1, **dict(zip(chain.stages[1:], values.tolist(), strict=True))}


def test_nulls_that_come_with_a_column_change_nothing_where_known_by_names_it() -> None:
    chain = Chain.parse("i -> a -> b")
    share = {"new": 0.8, "old": 0.1, "older": 0.0}

    def null(labels: Mapping[str, int], stratum: str | None) -> dict[str, float]:
        return {"b": share[str(stratum)] if labels["a"] else 0.0}

    rows = people(chain, 3, list(share))
    part = forgotten(chain, rows, null)
    check(chain, (rows, part), 0.01)
    blind = [(labels, None, weight) for labels, _, weight in part]
    labels, weights, _ = known(chain, blind)
    assert observed(chain, labels, weights, "b", "a") != pytest.approx(truth(rows, chain, "b", "a"), abs=0.02)


def test_of_a_choice_with_one_label_unknown_the_classes_still_possible_are_judged() -> None:
    """cart | wish with P(cart) = .2, P(wish) = .1, and wish null half of the time: cart=0 with wish null is no cart."""
    chain = Chain.parse(["i -> click", "click -> cart | wish"])
    rows: list[Row] = [({"click": 0, "cart": 0, "wish": 0}, None, 0.5)]
    for outcome, share in (("cart", 0.2), ("wish", 0.1), ("", 0.7)):
        rows.append(({"click": 1, "cart": int(outcome == "cart"), "wish": int(outcome == "wish")}, None, 0.5 * share))
    check(chain, (rows, forgotten(chain, rows, lambda labels, _: {"wish": 0.5 * labels["click"]})), 0.002)


def test_a_label_that_follows_from_a_later_one_is_filled_in_and_judges_nothing() -> None:
    chain = Chain.parse("i -> a -> b")
    resolved = resolve(chain, {"a": np.array([-1, -1, 1], np.int8), "b": np.array([1, 0, 0], np.int8)}, "error")
    assert resolved.values.tolist() == [[1, 1], [-1, 0], [1, 0]]
    assert resolved.inferred.tolist() == [True, False, False]
    tally = Tally()
    tally.add(chain, resolved, False, np.arange(3), "here")
    counts = tally.known.counts(chain)
    assert counts is not None
    assert counts.of(chain, resolved, None)[:, counted(chain).index("a")].tolist() == [0, 0, 1]


def test_of_a_choice_whose_one_outcome_happened_the_others_did_not_and_two_contradict_each_other() -> None:
    chain = Chain.parse(["i -> a", "a -> b | c else d", "d -> e"])
    raw = {"a": [-1, 1, -1, 1], "b": [1, -1, -1, 1], "c": [-1, -1, -1, -1], "e": [-1, 1, 1, 1]}
    resolved = resolve(chain, {s: np.array(v, np.int8) for s, v in raw.items()}, "error")
    found = dict(zip(chain.stages[1:], resolved.values.T.tolist(), strict=True))
    assert found["a"] == [1, 1, 1, 1]
    assert (found["b"][:3], found["c"][:3], found["d"][:3]) == ([1, -1, -1], [0, -1, -1], [0, -1, -1]), "e says no more"
    assert resolved.broken.tolist() == [False, False, False, True]


def test_amounts_that_are_null_in_one_stratum_more_than_in_another_keep_their_mean() -> None:
    chain = Chain.parse("i -> a => x")
    strata = np.repeat(["new", "old"], 30_000)
    happened = np.tile([0, 1, 1], 20_000).astype(np.int8)
    amounts = np.where(happened == 1, np.where(strata == "new", 10.0, 50.0), np.nan)
    told = np.tile([True, True, False, False, True, False], 10_000) | (strata == "old")
    raw, by = {"a": happened}, pa.array(strata.tolist(), pa.string())
    resolved = resolve(chain, raw, "error", {"x": np.where(told, amounts, np.nan)}, {"x": (0.0, 1e9)})
    tally = Tally()
    tally.add(chain, resolved, False, np.arange(60_000), "here", by)
    counts = tally.known.counts(chain)
    assert counts is not None
    matrix = torch.from_numpy(counts.of(chain, resolved, by))
    labels = Labels(chain, torch.from_numpy(resolved.values), torch.from_numpy(resolved.amounts), matrix)
    for given, mean in (("a", 30.0), (None, 20.0)):
        weights, seen = labels.known("x", given), labels.amount("x", given)
        assert float((weights * seen.nan_to_num()).sum() / weights.sum()) == pytest.approx(mean, rel=1e-4)


def test_a_choice_with_labels_that_are_null_in_other_strata_keeps_its_shares() -> None:
    chain = Chain.parse(["i -> a | b"])
    rows: list[Row] = []
    for stratum, share in (("o", 0.6), ("n", 0.1)):
        for labels, weight in (((1, 0), share), ((0, 1), 0.2), ((0, 0), 0.8 - share)):
            rows.append((dict(zip("ab", labels, strict=True)), stratum, weight / 2))
    gone = {"o": {"a": 0.8}, "n": {"b": 0.8}}
    part = forgotten(chain, rows, lambda labels, stratum: gone[str(stratum)])
    labels, weights, _ = known(chain, part)
    p = learnt(chain, ParentSpace(chain), labels, weights)
    assert [float(p.prob(s)) for s in "ab"] == pytest.approx([0.35, 0.2], abs=0.002)
    check(chain, (rows, part), 0.002)


def test_rates_stand_for_all_strata_also_where_the_parent_is_known_more_in_one() -> None:
    chain = Chain.parse("i -> a -> b")
    rows: list[Row] = []
    for stratum, share in (("o", 0.6), ("n", 0.2)):
        rows += [({"a": 0, "b": 0}, stratum, 0.25), ({"a": 1, "b": 1}, stratum, 0.25 * share)]
        rows += [({"a": 1, "b": 0}, stratum, 0.25 * (1 - share))]
    null = {"o": {"a": 0.0, "b": 0.5}, "n": {"a": 0.8, "b": 0.5}}
    part = forgotten(chain, rows, lambda labels, stratum: {"a": null[str(stratum)]["a"], "b": 0.5 * labels["a"]})
    check(chain, (rows, part), 0.002)
    assert known(chain, part)[2].known.rate(chain, "b", chain.transitions[1]) == pytest.approx(0.4, abs=0.002)


def test_a_stage_of_which_no_label_is_known_below_its_parent_is_not_judged() -> None:
    chain = Chain.parse("i -> a -> b")
    raw = {"a": np.array([0, 0, 1, 1], np.int8), "b": np.array([0, -1, -1, -1], np.int8)}
    resolved, tally = resolve(chain, raw, "error"), Tally()
    tally.add(chain, resolved, False, np.arange(4), "here")
    counts = tally.known.counts(chain)
    assert counts is not None
    assert not counts.of(chain, resolved, None)[:, counted(chain).index("b")].any()


@pytest.mark.parametrize("policy", ["error", "drop", "zero", "promote"])
def test_whatever_is_done_with_violations_nulls_stay_nulls(policy: str) -> None:
    chain = Chain.parse(["i -> cart | wish", "cart -> pay"])
    raw = {"cart": [-1, -1, 1, 0], "wish": [0, 1, -1, 0], "pay": [1, 0, 0, 0]}
    found = resolve(chain, {s: np.array(v, np.int8) for s, v in raw.items()}, policy)  # type: ignore[arg-type]
    assert found.values.tolist() == [[-1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_rows_of_weight_0_have_no_say_in_what_known_rows_stand_for() -> None:
    chain = Chain.parse("i -> a -> b")
    raw = {"a": np.array([0, 1, 1, 1, 1], np.int8), "b": np.array([0, 1, 0, -1, -1], np.int8)}
    resolved, tally = resolve(chain, raw, "error"), Tally()
    tally.add(chain, resolved, False, np.arange(5), "here", None, np.array([1, 1, 1, 0, 0], np.bool_))
    assert tally.known.counts(chain) is None, "all that count are known"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("strata", [(None,), ("old", "new", "none")])
def test_known_rows_weigh_as_much_as_all_whose_parent_happened_in_every_stratum(seed, strata) -> None:
    """Whatever weights have to do with what is known: here the heavy rows are known most."""
    chain, random, count = Chain.parse("i -> a -> b -> c"), np.random.default_rng(seed), 600
    weights = random.choice([0.0, 0.5, 3.0], count).astype(np.float32)
    a, by = random.integers(0, 2, count), random.choice(np.array(strata, object), count)
    b = a * random.integers(0, 2, count)
    seen = random.random(count) < np.where(weights > 1, 0.9, 0.3)
    raw = {"a": a, "b": np.where(seen | (a == 0), b, -1), "c": np.where(seen | (a == 0), 0, -1)}
    resolved, tally = resolve(chain, {s: v.astype(np.int8) for s, v in raw.items()}, "error"), Tally()
    column = None if strata == (None,) else pa.array(by, pa.string())
    halves = [slice(0, 250), slice(250, count)]
    for half in halves:
        part = resolve(chain, {s: v[half].astype(np.int8) for s, v in raw.items()}, "error")
        some = None if column is None else column[half]
        tally.add(chain, part, False, np.arange(len(part.values)), "here", some, weights[half])
    tally = Tally.from_dict(json.loads(json.dumps(tally.to_dict())))
    counts = tally.known.counts(chain)
    assert counts is not None
    each = counts.of(chain, resolved, column)[:, counted(chain).index("b_given_a")]
    for stratum in strata:
        inside = (a == 1) & ((by == stratum) if stratum else True)
        assert (weights * each)[inside].sum() == pytest.approx(weights[inside].sum(), rel=1e-5)


@pytest.mark.parametrize("rate", [0.1, 1.0])
@pytest.mark.parametrize("strata", [(None,), ("old", "new")])
def test_negatives_that_a_sampler_adds_stand_for_as_many_rows_as_those_it_adds_to(rate, strata) -> None:
    """With labels of the click that are null, both as many as there are in all rows."""
    chain = Chain.parse("i -> a -> b")
    rows = people(chain, 3, strata)
    chances = {None: 0.4, "old": 0.2, "new": 0.7}
    part = forgotten(chain, rows, lambda labels, stratum: {"a": chances[stratum]})
    labels, weights, _ = known(
        chain, [({**found, "b": found["b"] if found["a"] != -1 else -1}, s, w) for found, s, w in part]
    )
    sampler = UnclickedNegatives(chain, stage="b", rate=rate)
    _, _, changed = sampler(labels.values.numpy(), np.ones(len(weights), np.float32), np.random.default_rng(0))
    made = Labels(chain, torch.from_numpy(changed), None, labels.counts)
    negative, clicked = made.added("b", "a"), made.known("b", "a")
    share = float(negative.sum() / clicked.sum())
    without = sum(w for found, _, w in rows if found["a"] == 0) / sum(w for found, _, w in rows if found["a"] == 1)
    assert labels.counts is not None
    assert share == pytest.approx(rate * without, rel=0.05)
