"""The samplers: what they converge to on worlds whose probabilities are known, and what predictions make of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import espace
from espace.chain.chain import Chain
from espace.chain.probability import Probabilities
from espace.data.batch import Batch
from espace.data.encoding.encode import Encoder
from espace.data.encoding.labels import resolve
from espace.data.stream.sampling import times_used
from espace.parts.objectives.entire_space import EntireSpace
from espace.parts.objectives.parent_space import ParentSpace
from espace.parts.samplers.negative_downsample import NegativeDownsample
from espace.parts.samplers.oversample import Oversample
from espace.parts.samplers.rejection import Rejection
from espace.parts.samplers.unclicked_negatives import UnclickedNegatives
from espace.testing import random_labels
from espace.training.judging import Terms
from tests.chain.test_probability import assert_close, both, places
from tests.chains import Enumeration, chain_of, every_chain, random_logits
from tests.data.test_stream import same, stream

ESMM = Chain.parse(["impression -> click -> conversion"])
ESM2 = Chain.parse(
    ["impression -> click", "click -> cart | wish else browse", "cart -> buy", "wish -> buy", "browse -> buy"]
)
P = np.array([0.04, 0.1, 0.3, 0.6])  # P(click) of four kinds of rows
Q = np.array([0.5, 0.1, 0.3, 0.2])  # their P(conversion given click)
ROWS = 20_000


def random_rates(transitions, seed):
    random = np.random.default_rng(seed)
    chosen = [t for t in transitions if random.random() < 0.6]
    return {t.name: random.uniform(0.05, 3, len(t.classes)).tolist() for t in chosen}


def counted(transitions, logits, rates):
    """The enumeration in which every world counts with the product of the rates of its choices."""
    truth = Enumeration(transitions, logits)
    each = [np.prod([rates[t.name][k] for t, k in w.choices.items() if t.name in rates]) for w in truth.worlds]
    truth.weights = truth.weights * np.array(each)[:, None]
    return truth


def assert_equal(p, truth, **tolerance):
    for stage, start in places(p.chain):
        assert_close(p.log_prob(stage, start), truth.log_prob(stage, start), **tolerance)
        if stage != start:
            assert_close(p.log_not_prob(stage, start), truth.log_not_prob(stage, start), **tolerance)


# --- the algebra of the correction


@every_chain
def test_reweighted_probabilities_are_those_of_worlds_that_count_by_their_rates(seed):
    transitions = chain_of(seed)
    logits, rates = random_logits(transitions, seed), random_rates(transitions, seed)
    p, *_ = both(transitions, logits)
    assert_equal(p.reweighted(rates), counted(transitions, logits, rates))
    back = p.reweighted(rates).reweighted({name: [1 / rate for rate in each] for name, each in rates.items()})
    assert_equal(back, Enumeration(transitions, logits))


@every_chain
def test_reweighted_probabilities_hold_in_float32_where_logits_are_as_large_as_40(seed):
    transitions = chain_of(seed)
    logits, rates = random_logits(transitions, seed, values=(-40, 0, 40)), random_rates(transitions, seed)
    p, *_ = both(transitions, logits, torch.float32)
    assert_equal(p.reweighted(rates), counted(transitions, logits, rates), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("z", [-40.0, 0.0, 40.0])
def test_both_tails_of_a_corrected_probability_are_exact_in_float32(z):
    logits = {"impression_to_click": torch.tensor([[z]]), "click_to_conversion": torch.tensor([[z]])}
    corrected = Probabilities(ESMM, logits).reweighted({"impression_to_click": [1, 10.0]})
    truth = z - np.log(10)
    for ours, sign in ((corrected.log_prob("click"), 1), (corrected.log_not_prob("click"), -1)):
        assert ours.item() == pytest.approx(-np.logaddexp(0, -sign * truth), rel=1e-5)
        assert ours.item() < 0


def test_what_comes_after_a_sampled_stage_stays_to_the_bit_and_its_logit_is_shifted_by_the_log_of_the_rate():
    p, *_ = both(ESM2.transitions, random_logits(ESM2.transitions, 0))
    corrected = p.reweighted({"impression_to_click": [1, 1 / 0.1]})
    for name in ("cart", "wish", "browse", "buy"):
        assert torch.equal(corrected.log_prob(name, "click"), p.log_prob(name, "click"))
    assert_close(corrected.logit("click"), p.logit("click").detach() + np.log(0.1))


# --- what training converges to


def drawn(p, q):
    """Labels of ROWS rows of one kind, in the exact shares of its probabilities."""
    labels = np.zeros((ROWS, 2), np.int8)
    labels[: round(ROWS * p), 0] = 1
    labels[: round(ROWS * p * q), 1] = 1
    return labels


def after(sampler, labels, *score, seed=0):
    """The labels of the rows that the sampler uses, each of weight 1."""
    weights = np.ones(len(labels), np.float32)
    rows, new, *changed = sampler(labels, weights, np.random.default_rng(seed), *score)
    assert (new == 1).all()
    return changed[0] if changed else labels[rows]


def optimum(objective, labels, weights=None):
    """The best constant P, found by descent on the objective itself."""
    chain = objective.chain
    kinds, place = np.unique(labels, axis=0, return_inverse=True)
    counts = torch.tensor(np.bincount(place.reshape(-1), weights, minlength=len(kinds)))
    rows = len(kinds)
    batch = Batch(torch.empty(rows, 0), {}, torch.empty(rows, 0), torch.tensor(kinds), counts, {})
    z = {t.name: torch.zeros(1, len(t.outcomes), dtype=torch.float64, requires_grad=True) for t in chain.transitions}
    search = torch.optim.LBFGS(
        z.values(), max_iter=200, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss():
        search.zero_grad()
        p = Probabilities(chain, {name: logit.expand(rows, -1) for name, logit in z.items()})
        total = torch.stack(list(Terms.of(objective, p, batch).means().values())).sum()
        total.backward()
        return total

    search.step(loss)
    return Probabilities(chain, {name: logit.detach() for name, logit in z.items()})


def counting(sampler, labels):
    """For how many rows each stands, (rows,)."""
    return 1 / times_used(sampler.chain, torch.from_numpy(labels), sampler.rates()).double().numpy()


@pytest.mark.parametrize("objective", [EntireSpace, ParentSpace])
@pytest.mark.parametrize("keep", [{"click": 0.1}, {"click": 0.2, "conversion": 0.5}, {"conversion": 0.3}])
def test_downsampled_models_predict_the_true_probabilities(objective, keep):
    sampler = NegativeDownsample(ESMM, keep=keep)
    for p, q in zip(P, Q, strict=True):
        labels = drawn(p, q)
        chances = np.where(
            labels[:, 0] == 0, keep.get("click", 1), np.where(labels[:, 1] == 0, keep.get("conversion", 1), 1)
        )
        exact = optimum(objective(ESMM), labels, chances * counting(sampler, labels))
        assert exact.prob("click").item() == pytest.approx(p, abs=1e-6)
        assert exact.prob("conversion", "click").item() == pytest.approx(q, abs=1e-6)
        assert exact.prob("conversion").item() == pytest.approx(p * q, abs=1e-6)
        kept = after(sampler, labels)
        assert len(kept) < 0.99 * len(labels)
        found = optimum(objective(ESMM), kept, counting(sampler, kept))
        assert found.prob("click").item() == pytest.approx(p, rel=0.1)
        assert found.prob("conversion", "click").item() == pytest.approx(q, rel=0.1)


def test_downsampling_every_stage_of_a_choice_is_made_up_for():
    keep = {"click": 0.3, "cart": 0.5, "wish": 0.6, "buy": 0.4}
    sampler = NegativeDownsample(ESM2, keep=keep)
    truth = Enumeration(ESM2.transitions, random_logits(ESM2.transitions, 3, batch=1))
    labels = np.array([[s in w.reached for s in ESM2.stages[1:]] for w in truth.worlds], np.int8)
    of = dict(zip(ESM2.stages[1:], labels.T == 1, strict=True))
    chances = np.ones(len(labels))
    chances[~of["click"]] *= 0.3
    chances[of["click"] & ~of["cart"]] *= 0.5
    chances[of["click"] & ~of["wish"]] *= 0.6
    chances[of["click"] & ~of["buy"]] *= 0.4
    assert_close(torch.from_numpy(chances * counting(sampler, labels)), np.ones(len(labels)), rtol=1e-6)
    found = optimum(ParentSpace(ESM2), labels, chances * counting(sampler, labels) * truth.weights[:, 0])
    assert_equal(found, truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", [EntireSpace, ParentSpace])
def test_what_stands_beside_a_sampled_stage_keeps_its_probability_though_it_depends_on_it(objective):
    """cart and like after a click, P(both) = .15 of clicks where their product would be .06."""
    chain = Chain.parse(["i -> click", "click -> cart", "click -> like"])
    labels = np.array([[0, 0, 0], [1, 1, 1], [1, 1, 0], [1, 0, 1], [1, 0, 0]], np.int8)
    shares = np.array([0.8, 0.03, 0.01, 0.03, 0.13])
    sampler = NegativeDownsample(chain, keep={"cart": 0.1})
    chances = np.where((labels[:, 0] == 1) & (labels[:, 1] == 0), 0.1, 1.0)
    found = optimum(objective(chain), labels, shares * chances * counting(sampler, labels))
    for name, share in {"click": 0.2, "cart": 0.04, "like": 0.06}.items():
        assert found.prob(name).item() == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("objective", [EntireSpace, ParentSpace])
def test_nulls_of_a_sampled_stage_leave_the_stages_before_it_alone(objective):
    labels = np.array([[0, 0], [1, 1], [1, 0], [1, -1]], np.int8)
    shares = np.array([0.9, 0.01, 0.04, 0.05])
    sampler = NegativeDownsample(ESMM, keep={"conversion": 0.1})
    chances = np.array([1.0, 1.0, 0.1, 1.0])  # a row whose label is not known is kept
    found = optimum(objective(ESMM), labels, shares * chances * counting(sampler, labels))
    assert found.prob("click").item() == pytest.approx(0.1, abs=1e-6)


def test_a_row_is_thinned_as_often_as_it_counts_for_more_whatever_is_null():
    torch.manual_seed(0)
    drawn = random_labels(ESM2, 4_000).values.numpy()
    hidden = np.random.default_rng(0).random(drawn.shape) < 0.3
    raw = dict(zip(ESM2.stages[1:], np.where(hidden, np.int8(-1), drawn).T, strict=True))
    labels = resolve(ESM2, {s: raw[s] for s in ESM2.labelled}, "error").values
    for sampler in (
        NegativeDownsample(ESM2, keep={"click": 0.5, "cart": 0.2, "buy": 0.4}),
        Oversample(ESM2, stage="buy", factor=4),
    ):
        used = np.zeros(len(labels))
        for seed in range(60):
            rows, _ = sampler(labels, np.ones(len(labels), np.float32), np.random.default_rng(seed))
            np.add.at(used, rows, 1 / 60)
        times = times_used(ESM2, torch.from_numpy(labels), sampler.rates()).numpy()
        for rate in np.unique(times.round(4)):
            assert used[times.round(4) == rate].mean() == pytest.approx(rate, rel=0.15), rate


@pytest.mark.parametrize("objective", [EntireSpace, ParentSpace])
def test_oversampling_multiplies_the_odds_unless_copies_share_the_weight_of_their_row(objective):
    for p, q in zip(P, Q, strict=True):
        sampler = Oversample(ESMM, stage="conversion", factor=5)
        labels = after(sampler, drawn(p, q))
        assert Oversample(ESMM, stage="conversion", factor=5, correct=False).rates() == {}
        found = optimum(objective(ESMM), labels)
        assert found.logit("conversion", "click").exp().item() == pytest.approx(5 * q / (1 - q), rel=1e-5)
        corrected = optimum(objective(ESMM), labels, counting(sampler, labels))
        assert corrected.prob("conversion", "click").item() == pytest.approx(q, abs=1e-6)
        assert corrected.prob("click").item() == pytest.approx(p, abs=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_unclicked_negatives_lead_to_the_mixture_of_the_paper_and_leave_clicks_alone(rate):
    served, predicted = [], []
    for kind, (p, q) in enumerate(zip(P, Q, strict=True)):
        labels = after(UnclickedNegatives(ESMM, stage="conversion", rate=rate), drawn(p, q), seed=kind)
        found = optimum(ParentSpace(ESMM), labels)
        served.append(found.prob("conversion", "click").item())
        predicted.append(p * q / (p + rate * (1 - p)))
        assert found.prob("click").item() == pytest.approx(p, abs=1e-7)
    assert served == pytest.approx(predicted, rel=1e-6 if rate == 1 else 0.08)
    assert np.array_equal(np.argsort(served), np.argsort(predicted))


def test_unclicked_negatives_of_a_choice_count_as_none_of_its_outcomes():
    truth = Enumeration(ESM2.transitions, random_logits(ESM2.transitions, 5, batch=1))
    labels = np.array([[s in w.reached for s in ESM2.stages[1:]] for w in truth.worlds], np.int8)
    changed = after(UnclickedNegatives(ESM2, stage="wish", rate=1.0), labels)
    found = optimum(ParentSpace(ESM2), changed, truth.weights[:, 0])
    assert found.prob("cart", "click").item() == pytest.approx(truth.prob("cart").item(), abs=1e-6)
    assert found.prob("buy", "cart").item() == pytest.approx(truth.prob("buy", "cart").item(), abs=1e-6)


def test_rejection_keeps_every_optimum_and_its_rows_are_spread_as_impressions_are():
    sampler, used = Rejection(ESMM, run="runs/ctr", stage="conversion", floor=0.04), []
    for kind, (p, q) in enumerate(zip(P, Q, strict=True)):
        labels = after(sampler, drawn(p, q), lambda rows, p=p: np.full(len(rows), p), seed=kind)
        found = optimum(ParentSpace(ESMM), labels)
        used.append(((labels[:, 0] == 1) & (labels[:, 1] >= 0)).sum())
        assert found.prob("click").item() == pytest.approx(p, abs=1e-7)
        assert found.prob("conversion", "click").item() == pytest.approx(q, abs=4 * np.sqrt(q * (1 - q) / used[-1]))
    assert used == pytest.approx([0.04 * ROWS] * 4, rel=0.15)


def test_without_selection_rejection_is_the_baseline_on_fewer_rows():
    labels = drawn(0.3, 0.2)
    everything = after(
        Rejection(ESMM, run="r", stage="conversion", floor=0.3), labels, lambda rows: np.full(len(rows), 0.3)
    )
    assert np.array_equal(everything, labels)
    counts = []
    for seed in range(200):
        sampler = Rejection(ESMM, run="r", stage="conversion", floor=0.03)
        left = after(sampler, labels, lambda rows: np.full(len(rows), 0.3), seed=seed)[labels[:, 0] == 1, 1]
        counts.append([(left == 1).sum(), (left == 0).sum()])
    clicks = 0.3 * ROWS
    expected = np.array([0.2, 0.8]) * clicks * 0.1
    assert np.abs(np.mean(counts, 0) - expected).max() < 4 * np.sqrt(clicks * 0.8 * 0.1 * 0.9 / 200)


def test_a_row_below_the_floor_is_never_rejected_and_what_follows_a_rejected_one_is_not_known():
    labels = np.array([[1, 1, 0, 0, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]], np.int8)  # click, cart, wish, browse, buy
    order = [["click", "cart", "wish", "browse", "buy"].index(s) for s in ESM2.stages[1:]]
    sampler = Rejection(ESM2, run="r", stage="cart", floor=1e-9)
    changed = after(sampler, labels[:, order], lambda rows: np.array([1e-10, 1.0])[rows])
    assert changed[0].tolist() == labels[0, order].tolist()
    assert changed[1].tolist() == [1 if s == "click" else -1 for s in ESM2.stages[1:]]
    assert changed[2].tolist() == labels[2, order].tolist()


# --- in the stream


class Scored:
    """Scores rows by their number."""

    def __call__(self, batch):
        return batch.numbers[:, 0].double().numpy() / 1000


SAMPLERS = [
    NegativeDownsample(ESMM, keep={"click": 0.3}),
    Oversample(ESMM, stage="conversion", factor=3),
    UnclickedNegatives(ESMM, stage="conversion", rate=0.5),
    Rejection(ESMM, run="r", stage="conversion", floor=0.2),
]


def sampled(sampler, **options):
    scoring = Scored() if hasattr(sampler, "scored_by") else None
    return stream(sampling=sampler, scoring=scoring, **options)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_every_rank_takes_its_slice_of_one_sampled_batch_from_any_place(sampler):
    whole = list(sampled(sampler))
    ranks = [list(sampled(sampler, rank=rank, ranks=3)) for rank in range(3)]
    for batch, *slices in zip(whole, *ranks, strict=True):
        assert same(Batch.cat(slices), batch)
        assert torch.equal(Batch.cat(slices).weights, batch.weights)
    for place in (1, 7, 15):
        for batch, again in zip(whole[place:], sampled(sampler, place=lambda place=place: place), strict=True):
            assert same(batch, again)


def test_labels_that_a_sampler_changes_are_those_of_the_batch_and_scores_are_of_the_rows_asked_for():
    changed = list(sampled(SAMPLERS[3]))
    plain = list(stream(sampling=lambda labels, weights, random: (np.arange(len(labels)), weights)))
    rejected = 0
    for batch, before in zip(changed, plain, strict=True):
        row, click = batch.numbers[:, 0], before.labels[:, 0] == 1
        unknown = batch.labels[:, 1] == -1
        assert torch.equal(batch.labels[:, 0], before.labels[:, 0])
        assert torch.equal(batch.labels[~unknown, 1], before.labels[~unknown, 1])
        assert (click[unknown] & (row[unknown] >= 200)).all(), "those scored below the floor of 0.2 are accepted"
        rejected += int(unknown.sum())
    expected = sum(1 - 0.2 / (row / 1000) for row in range(201, 1000, 2))
    assert abs(rejected - expected) < 4 * np.sqrt(400 * 0.25)


def test_a_batch_of_which_nothing_is_used_has_one_row_that_does_not_count():
    for batch in stream(sampling=lambda labels, weights, random: (np.empty(0, np.int64), weights[:0])):
        assert len(batch) == 1
        assert batch.weights.tolist() == [0]


# --- in a run

DATA = {"train": "train.parquet", "validation": "validation.parquet", "batch_size": 256}


def fit(shop, run, **sections):
    trainer = {"accelerator": "cpu", "max_epochs": 1, "log_every_n_steps": 5}
    said = shop.espace("fit", shop.yaml(**{"data": DATA, "trainer": trainer, **sections}), "--run-dir", run)
    assert said.code == 0, said
    return said


@pytest.mark.parametrize("objective", ["entire_space", "parent_space"])
def test_a_run_with_downsampled_negatives_serves_and_judges_the_probabilities_of_all_rows(shop, objective):
    said = fit(shop, "run", sampler={"type": "negative_downsample", "keep": {"click": 0.2}}, objective=objective)
    told = " ".join(said.out.split())
    assert "negatives of click are kept with rate 0.2; each counts with the inverse of its rate." in told
    run, table = espace.load("run"), pq.read_table("validation.parquet")
    predicted = run.predict(table)
    click, both, given = (predicted[f"p_{n}"].to_numpy() for n in ("click", "conversion", "conversion_given_click"))
    assert both == pytest.approx(click * given, rel=1e-5)
    batch = run.encoder.encode(table, "rows", labels=True)
    results = json.loads((shop.folder / "run" / "results.json").read_text())
    observed = batch.labels[:, 0].numpy()
    assert results["val/click/predicted_over_observed"] == pytest.approx(click.mean() / observed.mean(), rel=1e-5)
    assert results["val/click/predicted_over_observed"] == pytest.approx(1, abs=0.2)
    log_loss = -np.where(observed == 1, np.log(click), np.log1p(-click)).mean()
    assert results["val/click/log_loss"] == pytest.approx(log_loss, rel=1e-5)
    last = [
        line for line in (shop.folder / "run" / "metrics.csv").read_text().splitlines() if "val/click/log_loss" in line
    ]
    assert min(float(line.rpartition(",")[2]) for line in last) == pytest.approx(log_loss, rel=0.05)


def test_a_run_goes_by_the_clicks_that_another_predicts(shop):
    fit(shop, "ctr", chain=["impression -> click"])
    sampler = {"type": "rejection", "run": "ctr", "stage": "conversion", "floor": 0.2}
    said = fit(shop, "run", sampler=sampler, objective="parent_space")
    assert "counts for conversion with probability min(1, 0.2 / P(click)), P of ctr" in " ".join(said.out.split())
    config = espace.Experiment.from_yaml("shop.yaml")
    prepared, ctr, table = config.check(), espace.load("ctr"), pq.read_table("train.parquet")
    batch = prepared.encoder.encode(table, "rows", labels=True)
    assert prepared.scoring(batch) == pytest.approx(ctr.predict(table)["p_click"].to_numpy(), rel=1e-5)


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        (
            {"sampler": {"type": "negative_downsample", "keep": {"clik": 0.1}}},
            "keep: 'clik' is no stage .* Did you mean 'click'",
        ),
        (
            {"sampler": {"type": "negative_downsample", "keep": {}}},
            r"keep: no stage is named. Write keep: \{click: 0.1\}",
        ),
        ({"sampler": {"type": "negative_downsample", "keep": {"click": 0}}}, "keep.click: 0 is not a number above 0"),
        ({"sampler": {"type": "negative_downsample", "keep": {"click": 2.0}}}, "keep.click: 2.0 is not a number"),
        (
            {"sampler": {"type": "oversample", "stage": "impression", "factor": 2}},
            "'impression' is no stage that can happen",
        ),
        (
            {"sampler": {"type": "oversample", "stage": "click", "factor": 1}},
            "factor: 1 is not a whole number of at least 2",
        ),
        (
            {"sampler": {"type": "unclicked_negatives", "stage": "conversion", "rate": 0.5}},
            "unclicked_negatives samples the rows of one conditional only, but entire_space judges marginals too, .*"
            " Set objective: parent_space.",
        ),
        (
            {"sampler": {"type": "unclicked_negatives", "stage": "click", "rate": 0.5}, "objective": "parent_space"},
            "'click' is not given one other stage. Possible: conversion",
        ),
        (
            {
                "sampler": {"type": "rejection", "stage": "conversion", "run": "r", "floor": 0.1},
                "objective": "parent_space",
            },
            "r: there is no such run folder or checkpoint",
        ),
    ],
)
def test_what_would_leave_probabilities_that_do_not_multiply_is_refused(shop, sections, problem):
    said = shop.espace("check", shop.yaml(data=DATA, **sections))
    assert said.code == 2, said
    assert re.search(problem, said.error), said.error


def test_a_run_that_reads_other_features_cannot_score(shop):
    features = {"user_id": "id", "item_id": "id"}
    fit(shop, "ctr", features=features, metrics={}, chain=["impression -> click"])
    sampler = {"type": "rejection", "run": "ctr", "stage": "conversion", "floor": 0.2}
    said = shop.espace("check", shop.yaml(data=DATA, objective="parent_space", sampler=sampler))
    assert said.code == 2
    assert "ctr reads other features than this experiment" in said.error
    fit(shop, "wrong", features=features, metrics={}, chain=["impression -> view"], labels={"view": "click"})
    said = shop.espace("check", shop.yaml(data=DATA, objective="parent_space", sampler=sampler | {"run": "wrong"}))
    assert "sampler: the chain of wrong has no stage 'click'. Train a run that predicts it." in said.error


def test_what_a_model_reads_is_what_its_features_and_what_they_learnt_say():
    encoder = stream().encoder
    given = {n: getattr(encoder, n) for n in ("features", "chain", "dim", "tables", "numbers")}
    assert Encoder(labels={}, weight="w", **given).inputs == encoder.inputs
    assert Encoder(labels={}, **given).identity != encoder.identity
    assert Encoder(labels={}, **{**given, "features": encoder.features[:2]}).inputs != encoder.inputs
    numbers = {"row": replace(encoder.numbers["row"], mean=1.0)}
    assert Encoder(labels={}, **{**given, "numbers": numbers}).inputs != encoder.inputs
