"""Values: amounts at the end of a chain, from the grammar to the prediction."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from random import Random

import numpy as np
import pyarrow as pa
import pytest
import torch

import espace
from espace.chain.chain import Chain
from espace.chain.labels import Labels
from espace.chain.probability import Probabilities
from espace.config import load
from espace.data.batch import Batch
from espace.data.encoding.encode import Encoder
from espace.data.encoding.encoded import _read, _write
from espace.data.encoding.labels import resolve
from espace.data.simulator.simulator import Simulator
from espace.errors import ChainError, ConfigError, DataError
from espace.parts.objectives.entire_space import EntireSpace
from espace.parts.objectives.parent_space import ParentSpace
from espace.parts.stages.lognormal import LogNormal
from espace.parts.stages.normal import Normal
from espace.runs.build import build_objective, term_weights
from espace.runs.experiment import Experiment
from espace.runs.fitting import Fitting
from espace.runs.opening import prepare
from espace.runs.report import Report
from espace.runs.show import describe
from espace.testing import random_labels
from espace.training.judging import Terms
from tests.chains import CHAINS, Enumeration, chain_of, random_logits
from tests.processes import PATIENCE
from tests.shop import put, rows

FUNNEL = Chain.parse("impression -> click -> conversion => revenue")
DEEP = ["impression -> click -> conversion => revenue", "click => dwell", "impression => mood"]

DWELL = '''"""Dwell time: how long until a visitor leaves, when leaving is as likely at any moment (exponential)."""
import math

from torch import nn
import espace


class Dwell(nn.Module):
    logits = 1

    def __init__(self, *, longest: float = 3600.0):
        super().__init__()
        self.limits = (0.0, longest)

    def log_density(self, z, x):
        return -z[:, 0] - x * (-z[:, 0]).exp()

    def log_mean(self, z):
        return z[:, 0]

    def start(self, mean, variance, zeros):
        return [math.log(mean)]


@espace.hookimpl
def register_stages(register):
    register("dwell", Dwell)
'''


def with_values(seed: int) -> Chain:
    """A random chain with one to three values at random stages, the root included."""
    random, transitions = Random(seed), chain_of(seed)
    stages = Chain.parse([str(t) for t in transitions]).stages
    found = [f"{random.choice(stages)} => value_{n}" for n in range(random.randint(1, 3))]
    lines = [*map(str, transitions), *found]
    random.shuffle(lines)
    return Chain.parse(lines)


def amounts_of(table: pa.Table, seed: int = 0, stage: str = "conversion") -> pa.Array:
    """Lognormal amounts where the stage happened, which hang on the user; one in ten is not known."""
    random = np.random.default_rng(seed)
    log = 2 + np.sin(table["user_id"].to_numpy()) + 0.4 * random.normal(size=table.num_rows)
    missing = (table[stage].to_numpy() == 0) | (random.random(table.num_rows) < 0.1)
    return pa.array(np.exp(log), mask=missing)


@pytest.fixture
def store(shop):
    """The shop, with a revenue."""
    for seed, split in enumerate(("train", "validation", "test")):
        table = rows(600, seed)
        shop.write(put(table, revenue=amounts_of(table, seed)), f"{split}.parquet")
    return shop


def experiment(store, *overrides, **sections):
    return Experiment.from_yaml(store.yaml(**{"chain": FUNNEL.lines(), **sections}), overrides)


# -- grammar


@pytest.mark.parametrize("seed", range(0, CHAINS, 4))
def test_a_chain_with_values_is_read_back_from_its_lines(seed):
    chain = with_values(seed)
    assert Chain.parse(chain.lines()) == chain
    assert [v for v in chain.heads if v in chain.values] == list(chain.values)
    assert len({t.name for t in chain.heads}) == len(chain.heads)
    drawn = chain.tree() + chain.mermaid()
    assert all(f"{v.amount}, a value" in drawn and f"{v.parent} ==> {v.amount}" in drawn for v in chain.values)


def test_a_value_ends_a_line_or_stands_on_its_own():
    apart = Chain.parse(["impression -> click -> conversion", "conversion => revenue"])
    assert apart == FUNNEL
    assert FUNNEL.stages == ("impression", "click", "conversion")
    assert [t.name for t in FUNNEL.heads] == ["impression_to_click", "click_to_conversion", "conversion_to_revenue"]
    assert list(Chain.parse(DEEP).expectations) == [
        *("mood", "dwell", "dwell_given_click", "revenue", "revenue_given_conversion")
    ]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["a -> b => x => y"], "line 1: 'a -> b => x => y' goes on after a value, which nothing follows"),
        (["a -> b => x -> c"], "goes on after a value"),
        (["a -> b => x", "x -> c"], "'x' is a value, so nothing follows it and no -> leads to it"),
        (["a -> b => x", "x => y"], "'x' is a value, so nothing follows it"),
        (["a -> b => b"], "'b' is a value, so nothing"),
        (["a -> click", "clik => x"], "'clik => x' measures 'x' at a stage.* Did you mean 'click'"),
        (["a -> b => x", "a => x"], "there are two values 'x'"),
        (["a -> b | c => x"], "goes on after a choice of b and c"),
        (["a -> b => x | y"], "has more than one value. Write a line for each"),
        (["a -> b => x else y"], "has more than one value"),
        (["a -> b => x_given_b"], "'x_given_b' contains '_given'"),
        (["a => x"], "no transition was given"),
        (["a -> b => 9x"], "'9x' in 'a -> b => 9x' is not a name"),
    ],
)
def test_what_is_no_chain_with_a_value_is_refused(lines, problem):
    with pytest.raises(ChainError, match=problem):
        Chain.parse(lines)


def test_a_value_has_no_probability_and_a_stage_no_expectation():
    p = Probabilities(FUNNEL, logits_of(FUNNEL, 0), kinds_of(FUNNEL))
    with pytest.raises(ChainError, match="'revenue' is a value, which has an expectation and no probability"):
        p.prob("revenue")
    with pytest.raises(ChainError, match=r"there is no value 'revenu'\. Did you mean 'revenue'"):
        p.value("revenu")
    with pytest.raises(ChainError, match="kinds: none for the value 'conversion_to_revenue'"):
        Probabilities(FUNNEL, logits_of(FUNNEL, 0))
    with pytest.raises(ChainError, match=r"'conversion_to_revenue' has shape \(3, 1\); it has to be \(batch, 2\)"):
        Probabilities(FUNNEL, logits_of(FUNNEL, 0) | {"conversion_to_revenue": torch.zeros(3, 1)}, kinds_of(FUNNEL))


# -- expectations and densities


def logits_of(chain, seed):
    torch.manual_seed(seed)
    found = {n: torch.tensor(z) for n, z in random_logits(chain.transitions, seed).items()}
    return found | {v.name: torch.randn(3, 2, dtype=torch.float64) for v in chain.values}


def kinds_of(chain):
    """Lognormal and normal, in turn."""
    return {v.name: (LogNormal() if n % 2 else Normal().double()) for n, v in enumerate(chain.values)}


@pytest.mark.parametrize("seed", range(CHAINS))
def test_an_expectation_is_the_sum_over_all_that_can_happen(seed):
    chain = with_values(seed)
    kinds, logits = kinds_of(chain), logits_of(chain, seed)
    p = Probabilities(chain, logits, kinds)
    plain = Enumeration(chain.transitions, {t.name: logits[t.name].numpy() for t in chain.transitions})
    for v in chain.values:
        kind, z = kinds[v.name], logits[v.name]
        mean = (kind.log_mean(z).exp() if isinstance(kind, LogNormal) else kind.mean(z)).numpy()
        for given in (None, v.parent, *chain.ancestors(v.parent)):
            reached = 1.0 if v.parent in (given, chain.root) else plain.prob(v.parent, given)
            np.testing.assert_allclose(p.value(v.amount, given).numpy(), mean * reached, rtol=1e-9)


def test_a_small_probability_of_a_large_amount_is_not_lost():
    """The mean overflows float32 and P underflows; their product is 1."""
    z = {"impression_to_click": torch.tensor([[-50.0]]), "click_to_conversion": torch.tensor([[-50.0]])}
    p = Probabilities(FUNNEL, z | {"conversion_to_revenue": torch.tensor([[100.0, -30.0]])}, kinds_of_lognormal())
    assert torch.isinf(p.value("revenue", "conversion")).all()
    torch.testing.assert_close(p.value("revenue"), torch.ones(1), rtol=1e-3, atol=0)


def kinds_of_lognormal():
    return {"conversion_to_revenue": LogNormal()}


def test_a_density_of_nothing_is_0_with_no_gradient():
    z = logits_of(FUNNEL, 1)
    leaf = z["conversion_to_revenue"].requires_grad_()
    p = Probabilities(FUNNEL, z, kinds_of_lognormal())
    found = p.log_density("revenue", torch.tensor([torch.nan, 2.0, torch.nan]))
    alone = LogNormal().log_density(leaf[1:2], torch.tensor([2.0]).double())
    assert torch.equal(found.detach(), torch.stack([alone[0] * 0, alone[0], alone[0] * 0]).detach())
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert gradient[1].all()
    assert not gradient[[0, 2]].any()


@pytest.mark.parametrize("divide_by", ["rows", "impressions"])
def test_a_term_is_the_likelihood_on_the_rows_of_the_parent(divide_by):
    torch.manual_seed(0)
    chain, count = Chain.parse(DEEP), 200
    labels, kinds = random_labels(chain, count), {v.name: LogNormal() for v in chain.values}
    shapes = {t.name: 2 if t in chain.values else 1 for t in chain.heads}
    z = {name: torch.randn(count, width, dtype=torch.float64) for name, width in shapes.items()}
    weights = torch.randint(0, 3, (count,)).float()
    objectives = [ParentSpace(chain, divide_by=divide_by)] + ([EntireSpace(chain)] if divide_by == "rows" else [])
    batch = Batch(torch.empty(count, 0), {}, torch.empty(count, 0), labels.values, weights, {}, labels.amounts)
    for objective in objectives:
        means = Terms.of(objective, Probabilities(chain, z, kinds), batch).means()
        for place, (v, term) in enumerate(
            zip(chain.values, ("mood", "dwell_given_click", "revenue_given_conversion"), strict=True)
        ):
            total = divisor = 0.0
            for row in range(count):
                x = float(labels.amounts[row, place])
                judged = not math.isnan(x)
                assert judged == bool(labels.of(v.parent)[row] == 1)
                divisor += float(weights[row]) * (judged or divide_by == "impressions")
                if judged:
                    mu, s = z[v.name][row].tolist()
                    sigma = 0.01 + math.log1p(math.exp(s))
                    density = math.exp(-((math.log(x) - mu) ** 2) / (2 * sigma**2)) / (
                        x * sigma * math.sqrt(2 * math.pi)
                    )
                    total -= float(weights[row]) * math.log(density)
            assert float(means[term]) == pytest.approx(total / divisor, rel=1e-5)


def test_a_weight_of_the_yaml_weighs_the_term(store):
    made = experiment(store, stages={"revenue": {"weight": 2.5}})
    weights = term_weights(made.config, build_objective(made.config, made.registry))
    assert weights == {"click": 1.0, "conversion": 1.0, "revenue_given_conversion": 2.5}


# -- labels


def test_amounts_are_known_where_their_parent_happened_and_0_where_it_is_known_not_to():
    nan = torch.nan
    labels = Labels(
        FUNNEL,
        torch.tensor([[1, 1], [1, 1], [1, 0], [0, 0], [1, -1]], dtype=torch.int8),
        torch.tensor([[3.0], [nan], [nan], [nan], [nan]]),
    )
    torch.testing.assert_close(
        labels.amount("revenue", "conversion"), torch.tensor([3.0, nan, nan, nan, nan]), equal_nan=True
    )
    torch.testing.assert_close(labels.amount("revenue"), torch.tensor([3.0, nan, 0.0, 0.0, nan]), equal_nan=True)


RAW = {  # click, conversion, revenue: what is wrong
    "a sale": (1, 1, 5.0, None),
    "no amount yet": (1, 1, math.nan, None),
    "no sale": (1, 0, math.nan, None),
    "no sale, 0": (1, 0, 0.0, None),
    "no click": (0, math.nan, math.nan, None),
    "not known whether sold": (1, math.nan, 4.0, None),
    "an amount without a sale": (1, 0, 7.0, "revenue"),
    "an amount without a click": (0, math.nan, 7.0, "revenue"),
    "a sale for nothing": (1, 1, 0.0, "conversion_to_revenue"),
    "a sale for less": (1, 1, -1.0, "conversion_to_revenue"),
}


@pytest.mark.parametrize("policy", ["error", "drop", "zero", "promote"])
@pytest.mark.parametrize("case", RAW)
def test_every_policy_deals_with_amounts(case, policy):
    click, conversion, revenue, wrong = RAW[case]
    raw = {
        s: np.array([-1 if math.isnan(y) else y], np.int8) for s, y in (("click", click), ("conversion", conversion))
    }
    limits = {"revenue": LogNormal.limits}
    found = resolve(FUNNEL, raw, policy, {"revenue": np.array([revenue])}, limits)
    told = {name for name, mask in {**found.orphans, **found.clashes}.items() if mask.any()}
    assert told == ({wrong} if wrong else set())
    mended = wrong is None or (wrong == "revenue" and policy in ("zero", "promote"))
    assert found.broken.any() == (not mended)
    amount, sold = float(found.amounts[0, 0]), int(found.values[0, 1])
    if wrong == "revenue" and policy == "promote":
        assert (found.values[0].tolist(), amount) == ([1, 1], 7.0)
    elif mended:
        assert math.isnan(amount) == (math.isnan(revenue) or sold != 1)


def columns_at(table, **values):
    """The table with other values in its first rows."""
    for name, first in values.items():
        table = put(table, **{name: [*first, *table[name].to_pylist()[len(first) :]]})
    return table


@pytest.mark.parametrize(
    ("first", "stages", "problem"),
    [
        (
            {"click": [1, 0], "conversion": [0, 0], "revenue": [7.5, 3.0]},
            {},
            "train: 2 of 600 rows have revenue other than 0 but conversion = 0; in this chain revenue is measured where"
            r" conversion happened \(such as .*train.parquet, row group 0, row 0; .*row 1\)",
        ),
        (
            {"click": [1, 1], "conversion": [1, 1], "revenue": [0.0, -2.0]},
            {},
            r"train: 2 of 600 rows have revenue of 0 or less, which its distribution does not have \(such as .*row 0;"
            r" .*row 1\)\. Choose another stages.revenue.kind",
        ),
        (
            {"click": [1, 1], "conversion": [1, 1], "revenue": [0.0, -2.0]},
            {"revenue": {"kind": "ziln"}},
            r"train: 1 of 600 rows have revenue below 0, which",
        ),
        (
            {"revenue": [math.inf]},
            {},
            r"row group 0, row 0: revenue = inf, which is not finite in 32 bits",
        ),
    ],
)
def test_the_audit_finds_amounts_that_cannot_be(store, first, stages, problem):
    store.write(columns_at(put(rows(600), revenue=amounts_of(rows(600))), **first))
    with pytest.raises(DataError, match=problem):
        experiment(store, stages=stages).check()
    if "inf" not in problem and not stages:
        dropped = experiment(store, "data.violations=drop").check()
        assert dropped.scans["train"].tally.kept == 598
        assert sum(map(len, dropped.stream(experiment(store, "data.violations=drop").config, "train"))) == 598


@pytest.mark.parametrize("kind", ["gamma", "normal"])
def test_amounts_that_the_kind_has_are_no_violation(store, kind):
    amount = -2.0 if kind == "normal" else 0.01
    first = {"click": [1], "conversion": [1], "revenue": [amount]}
    store.write(columns_at(put(rows(600), revenue=amounts_of(rows(600))), **first))
    experiment(store, stages={"revenue": {"kind": kind}}).check()


def test_a_value_that_is_never_known_is_refused(store):
    store.write(put(rows(600), revenue=pa.nulls(600, pa.float64())))
    with pytest.raises(
        DataError, match="'revenue', column 'revenue', is not known in any row where conversion happened"
    ):
        experiment(store).check()


def test_text_is_no_amount(store):
    store.write(put(rows(600), revenue=["much"] * 600))
    with pytest.raises(DataError, match="'revenue' is of type string, and an amount is a number or null"):
        experiment(store).check()


def test_the_column_of_a_value_is_under_labels_and_is_no_feature(store):
    for split in ("train", "validation", "test"):
        table = rows(600)
        store.write(put(table, gmv=amounts_of(table)), f"{split}.parquet")
    experiment(store, labels={"revenue": "gmv"}).check()
    with pytest.raises(DataError, match=r"labels\.revenue: .* have no column 'revenue'"):
        experiment(store).check()
    with pytest.raises(
        ConfigError, match="the column 'gmv' is the label of 'revenue', which a prediction has not seen"
    ):
        experiment(store, labels={"revenue": "gmv"}, features={"gmv": "number", "user_id": "id"})


def test_encoded_amounts_are_kept_and_taken_along(store, tmp_path):
    made = experiment(store)
    batch = next(iter(prepare(made.config, made.registry, Report(quiet=True)).stream(made.config, "train")))
    assert batch.amounts.dtype == torch.float32
    assert batch.amounts.shape == (len(batch), 1)
    _write(batch, tmp_path / "batch", "key")
    order = torch.arange(len(batch)).flip(0)
    for same in (_read(tmp_path / "batch", "key"), batch.to("cpu"), batch.take(order).take(order), Batch.cat([batch])):
        torch.testing.assert_close(same.amounts, batch.amounts, equal_nan=True)
    both = Batch.cat([batch, batch.take(order)]).amounts
    torch.testing.assert_close(both, torch.cat([batch.amounts, batch.amounts.flip(0)]), equal_nan=True)


def test_without_labels_nothing_is_known():
    encoder = Encoder([], FUNNEL, {}, dim=1, tables={}, numbers={})
    batch = encoder.encode(pa.table({"x": [1, 2]}), "here", labels=False)
    assert batch.amounts.isnan().all()
    assert batch.amounts.shape == (2, 1)


# -- configuration


def test_a_value_is_lognormal_unless_the_yaml_says_otherwise(store):
    config = experiment(store).config
    assert config.to_dict()["stages"] == {
        "revenue": {"weight": 1.0, "kind": {"type": "lognormal", "least_sigma": 0.01}, "head": "conditional"}
    }
    text = describe(experiment(store, stages={"revenue": {"kind": "ziln"}}))
    assert "E[revenue] = P(conversion) E[revenue given conversion]" in text
    assert "E[revenue given conversion] = mean of ziln(z[conversion_to_revenue])" in text
    assert "rows with conversion = 1; labels conversion, revenue" in text
    assert "conversion_to_revenue: tower mlp" in text
    assert "3 logits" in text


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        (
            {"stages": {"revenue": {"kind": "binary"}}},
            "stages.revenue.kind: 'binary' is not the distribution of an amount.* Known: gamma, lognormal, normal, ziln",
        ),
        (
            {"stages": {"conversion": {"kind": "gamma"}}},
            "stages.conversion.kind: 'gamma' is not the distribution of what happens or not.* Known: binary",
        ),
        (
            {"stages": {"revenue": {"head": "joint"}}},
            "stages.revenue.head: 'revenue' is a value, and has no probability",
        ),
        ({"stages": {"revenu": {}}}, "stages.revenu: the chain has no such stage. Did you mean 'revenue'"),
        ({"labels": {"revenu": "gmv"}}, "labels.revenu: the chain has no such stage. Did you mean 'revenue'"),
        ({"labels": {"revenue": "click"}}, "'click' and 'revenue' have one label column, 'click'"),
        ({"stages": {"revenue": {"kind": {"type": "normal", "least_deviation": 2.0}}}}, "least_deviation"),
    ],
)
def test_what_a_value_cannot_be_is_refused(store, sections, problem):
    with pytest.raises(ConfigError, match=problem):
        experiment(store, **sections)


DEAF = """import espace
from espace.parts.objectives.entire_space import EntireSpace


class Deaf(EntireSpace):
    def __init__(self, chain):
        super().__init__(espace.Chain.parse([str(t) for t in chain.transitions]))


@espace.hookimpl
def register_objectives(register):
    register("deaf", Deaf)
"""


def test_an_objective_that_knows_no_values_is_refused(store):
    (store.folder / "deaf.py").write_text(DEAF)
    with pytest.raises(ConfigError, match=r"objective: deaf has no term for the value 'revenue'.* espace\.ValueTerms"):
        experiment(store, objective="deaf", plugins=["./deaf.py"])


# -- training


@pytest.mark.parametrize("sharing", ["separate", "mmoe", "ple"])
@pytest.mark.parametrize("link", ["none", "aitm", "relation"])
def test_a_value_has_a_tower_under_every_sharing_and_link(store, sharing, link):
    made = experiment(
        store,
        "trainer.max_steps=3",
        sharing=sharing,
        link=link,
        towers={"revenue": {"type": "mlp", "hidden_units": [5]}},
    )
    run = made.fit(store.folder / "run")
    assert run.model.towers["conversion_to_revenue"].out_features == 5
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


@pytest.mark.parametrize("kind", ["lognormal", "ziln", "gamma", "normal"])
def test_heads_start_at_the_mean_of_the_training_rows(store, kind):
    made = experiment(store, stages={"revenue": {"kind": kind}})
    prepared = prepare(made.config, made.registry, Report(quiet=True))
    training = Fitting(made.config, made.registry, prepared, store.folder, Report(quiet=True))
    torch.nn.init.zeros_(training.model.heads["conversion_to_revenue"].weight)  # what the towers add by chance
    batch = next(iter(prepared.stream(made.config, "train")))
    observed = np.nanmean(amounts_of(rows(600)).to_numpy(zero_copy_only=False))
    predicted = training.model(batch).value("revenue", "conversion").detach()
    torch.testing.assert_close(predicted, torch.full((600,), observed, dtype=torch.float32), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["lognormal", "ziln", "gamma", "normal"])
def test_a_run_predicts_judges_and_loads_values(store, kind):
    run = experiment(store, stages={"revenue": {"kind": kind}}, monitor="val/revenue_given_conversion/gini").fit(
        store.folder / "run"
    )
    table = put(rows(600, 2), revenue=amounts_of(rows(600, 2), 2))
    found = run.predict(table)
    assert found.column_names == [
        *("p_click", "p_conversion", "p_conversion_given_click"),
        *("e_revenue", "e_revenue_given_conversion"),
    ]
    p, given, total = (found[n].to_numpy() for n in ("p_conversion", "e_revenue_given_conversion", "e_revenue"))
    np.testing.assert_allclose(total, p * given, rtol=1e-5)
    assert espace.load(store.folder / "run").predict(table).equals(found)
    assert load(store.folder / "run" / "config.yaml", (), run.registry) == run.config
    check_results(store, table, given, total)


def check_results(store, table, given, total):
    """What results.json has of the test rows against plain sums."""
    results = json.loads((store.folder / "run" / "results.json").read_text())
    x, w = (table[n].to_numpy(zero_copy_only=False) for n in ("revenue", "weight"))
    known = ~np.isnan(x)
    mae = np.average(np.abs(given - x)[known], weights=w[known])
    assert results["test/revenue_given_conversion/mae"] == pytest.approx(mae, rel=1e-4)
    assert results["test/revenue_given_conversion/rows"] == known.sum()
    bought = table["conversion"].to_numpy() == 1
    w = (
        np.where(bought, known / np.average(known[bought], weights=w[bought]), 1.0) * w
    )  # a known amount stands for those that are not
    everywhere = np.where(bought & known, x, 0.0)
    ratio = (w * total).sum() / (w * everywhere).sum()
    assert results["test/revenue/predicted_over_observed"] == pytest.approx(ratio, rel=1e-4)
    assert not {
        n for n in results if n.startswith(("test/revenue", "test/click/mae")) and n.endswith(("auc", "click/mae"))
    }


def test_a_kind_from_a_file_is_asked_for_by_name(store):
    (store.folder / "dwell.py").write_text(DWELL)
    for split, seed in (("train", 0), ("validation", 1), ("test", 2)):
        table = rows(600, seed)
        store.write(put(table, stay=amounts_of(table, seed, "click")), f"{split}.parquet")
    sections = {
        "chain": ["impression -> click -> conversion", "click => stay"],
        "plugins": ["./dwell.py"],
        "stages": {"stay": {"kind": {"type": "dwell", "longest": 200.0}}},
    }
    run = experiment(store, **sections).fit(store.folder / "run")
    stay = rows(600, 2)
    observed = np.nanmean(amounts_of(stay, 2, "click").to_numpy(zero_copy_only=False))
    assert run.predict(stay)["e_stay_given_click"].to_numpy().mean() == pytest.approx(observed, rel=0.3)
    with pytest.raises(DataError, match="rows have stay below 0 or above 2, which its distribution does not have"):
        experiment(store, "stages.stay.kind.longest=2.0", **sections).check()


def test_a_resumed_run_ends_with_the_same_bits(store):
    def weights(run):
        return {n: p.clone() for n, p in run.model.state_dict().items()}

    sections = {"stages": {"revenue": {"kind": "normal"}}}
    straight = experiment(store, "trainer.max_epochs=3", **sections).fit(store.folder / "straight")
    experiment(store, "trainer.max_epochs=1", **sections).fit(store.folder / "resumed")
    longer = experiment(store, "trainer.max_epochs=3", **sections)
    resumed = longer.fit(resume=store.folder / "resumed")
    assert all(torch.equal(a, b) for a, b in zip(weights(straight).values(), weights(resumed).values(), strict=True))


def test_two_ranks_end_where_one_ends_also_in_batches_without_a_sale(store):
    """Sales in the first 200 rows only; the last batch has one row, and one rank none of it."""
    table = rows(385)
    sold = np.where(np.arange(385) < 200, table["conversion"].to_numpy(), 0).astype(np.int8)
    table = put(table, conversion=sold)
    store.write(put(table, revenue=amounts_of(table)))
    data = {"train": "train.parquet", "batch_size": 64, "shuffle": False}
    store.yaml(chain=FUNNEL.lines(), data=data, metrics={}, trainer={"accelerator": "cpu", "max_epochs": 2})
    for ranks in (1, 2):
        run = ("--run-dir", f"of_{ranks}", f"trainer.devices={ranks}")
        command = [sys.executable, "-m", "espace", "fit", "shop.yaml", *run]
        said = subprocess.run(command, cwd=store.folder, capture_output=True, text=True, timeout=PATIENCE)
        assert said.returncode == 0, said
    one, two = (espace.load(store.folder / f"of_{ranks}").model.state_dict() for ranks in (1, 2))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[n], two[n], rtol=1e-4, atol=1e-5) for n in one)


# -- the simulator


def simulated(chain, rows, **options):
    reader = Simulator(rows, "train", chain=tuple(chain), users=300, items=200, **options)
    return reader.read(reader.pieces[0], reader.schema.names)


def test_simulated_amounts_have_their_true_means():
    table = simulated(FUNNEL.lines(), 60_000, click_rate=0.4, conversion_rate=0.5, value_noise=0.6)
    sold = table["conversion"].to_numpy() == 1
    x, given, total = (
        table[n].to_numpy(zero_copy_only=False) for n in ("revenue", "true_revenue_given_conversion", "true_revenue")
    )
    assert np.array_equal(np.isnan(x), ~sold)
    np.testing.assert_allclose(total, table["true_conversion"].to_numpy() * given, rtol=1e-12)
    noise = x[sold] / given[sold]
    assert abs(noise.mean() - 1) < 4 * noise.std() / math.sqrt(sold.sum())
    assert np.log(noise).std() == pytest.approx(0.6, rel=0.02)
    gap = np.nan_to_num(x) - total
    assert abs(gap.mean()) < 4 * gap.std() / math.sqrt(len(gap))


def test_a_simulated_value_of_the_root_is_known_in_every_row():
    table = simulated(["impression -> click", "impression => dwell"], 5_000, value_spread=0.0, value_noise=0.0)
    assert np.allclose(table["dwell"].to_numpy(), 20.0)
    assert np.allclose(table["true_dwell"].to_numpy(), 20.0)


def test_other_knobs_leave_amounts_as_they_are():
    one, other = (
        simulated(FUNNEL.lines(), 3_000, gamma=gamma)["true_revenue_given_conversion"] for gamma in (0.0, 1.0)
    )
    assert one.equals(other)
