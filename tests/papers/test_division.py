"""DIVISION, a competitor in the paper of ESMM (Ma et al., SIGIR 2018, arXiv 1804.07931, section 3.2): two models over all
impressions, of y = click and of y & z = click and conversion, with nothing in common, and

    pCVR = pCTCVR / pCTR
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from espace.chain.chain import Chain
from espace.data.batch import Batch
from espace.parts.objectives.entire_space import EntireSpace
from espace.runs.build import build_model, features_of
from espace.runs.experiment import Experiment
from espace.runs.inputs import build_encoder
from espace.testing import random_labels
from tests.papers.plain import ROWS, assert_close, coins, entropy, gradient, loss, model, rates

CHAIN = Chain.parse("impression -> click -> conversion")
CLICK, CONVERSION = (t.name for t in CHAIN.transitions)
EXAMPLE = Path(__file__).parents[2] / "examples" / "division.yaml"
CTR, CTCVR = rates(2)
Y, Z = coins(2)
FEATURES = ("user_id", "item_id", "user_group", "item_category", "context")
HAPPENED = {"click": Y, "conversion": Y & Z}


def division(ctr=CTR, ctcvr=CTCVR):
    return model(CHAIN, {CLICK: ctr, CONVERSION: ctcvr}, joint=["conversion"])


def test_pctr_and_pctcvr_are_what_the_two_models_say_and_pcvr_is_their_quotient():
    p = division()
    assert_close(p.prob("click"), CTR)
    assert_close(p.prob("conversion"), CTCVR)
    assert_close(p.prob("conversion", given="click"), CTCVR / CTR)


def test_pcvr_can_exceed_one():
    p = division()
    above = p.prob("conversion", given="click") > 1
    assert torch.equal(above, CTCVR > CTR)
    assert 0 < above.sum() < ROWS


@pytest.mark.parametrize("size", [1.0, 40.0])
def test_with_heads_that_are_conditional_it_cannot(size):
    """The same numbers as logits of pCTR and pCVR: ESMM's product."""
    z = (size * torch.randn(2, ROWS, generator=torch.Generator().manual_seed(0))).double().sigmoid()
    p = model(CHAIN, {CLICK: z[0].clamp(1e-15, 1 - 1e-15), CONVERSION: z[1].clamp(1e-15, 1 - 1e-15)})
    assert (p.prob("conversion", given="click") <= 1).all()
    assert (p.prob("conversion") <= p.prob("click")).all()


def test_the_loss_is_the_cross_entropy_of_either_model():
    expected = entropy(Y, CTR).mean() + entropy(Y & Z, CTCVR).mean()
    assert_close(loss(EntireSpace(CHAIN), division(), HAPPENED), expected)


def test_each_model_learns_from_its_own_label_only():
    """d loss / d p = (p - y) / (p (1 - p)) per row for either, where ESMM's product has further addends."""
    for name, label, p in (("ctr", Y, CTR), ("ctcvr", Y & Z, CTCVR)):
        found = gradient(lambda at, name=name: loss(EntireSpace(CHAIN), division(**{name: at}), HAPPENED), p)
        assert_close(found, (p - label.double()) / (p * (1 - p)) / ROWS)


def test_at_the_optimum_pcvr_is_the_conversion_rate_among_the_clicks():
    """Rows of equal features: the loss is stationary at the two rates, and their quotient is conversions / clicks."""
    clicks, conversions = Y.double().mean(), (Y & Z).double().mean()
    best = torch.stack([clicks, conversions])

    def at(rates):
        return loss(EntireSpace(CHAIN), division(*(r.expand(ROWS) for r in rates)), HAPPENED)

    assert gradient(at, best).abs().max() < 1e-12
    pcvr = division(*(r.expand(ROWS) for r in best)).prob("conversion", given="click")
    assert_close(pcvr, ((Y & Z).double().sum() / Y.double().sum()).expand(ROWS))


def reached(*overrides, rows=16):
    """The example's model, and for each stage the parameters that its term has a gradient for, by rows of random ids."""
    torch.manual_seed(0)
    made = Experiment.from_yaml(EXAMPLE, overrides)
    sizes = dict.fromkeys((f.name for f in features_of(made.config)), 12)
    network = build_model(made.config, made.registry, build_encoder(made.config, sizes, {}).layout)
    ids = torch.arange(rows * len(sizes), dtype=torch.int32).reshape(rows, -1) % 12
    labels = random_labels(CHAIN, rows)
    p = network(Batch(ids, {}, torch.empty(rows, 0), labels.values, torch.ones(rows), {}))
    names, parameters = zip(*network.named_parameters(), strict=True)
    found = {}
    for stage, (value, _) in EntireSpace(CHAIN)(p, labels).items():
        gradients = torch.autograd.grad(value.sum(), parameters, allow_unused=True, retain_graph=True)
        found[stage] = {name for name, g in zip(names, gradients, strict=True) if g is not None}
    return network, found


def test_the_example_is_two_models_without_a_parameter_in_common():
    network, found = reached()
    assert network.joint == {"conversion"}
    assert not found["click"] & found["conversion"]
    assert found["click"] | found["conversion"] == {name for name, _ in network.named_parameters()}


def test_with_a_conditional_head_the_second_term_reaches_both():
    network, found = reached("stages.conversion.head=conditional")
    assert found["conversion"] == {name for name, _ in network.named_parameters()}


def test_trained_on_few_rows_some_pcvr_exceed_one_and_with_a_conditional_head_none_does(tmp_path):
    few = ["data.train=2000", "data.rates={click: 0.3, conversion_given_click: 0.8}", "data.batch_size=200"]
    few += ["data.validation=null", "data.test=null", "data.potential={}", "optimizer.lr=0.01"]
    few += ["trainer={accelerator: cpu, max_epochs: 6}", "tower.hidden_units=[32]"]
    for head, exceeds in (("joint", True), ("conditional", False)):
        run = Experiment.from_yaml(EXAMPLE, [*few, f"stages.conversion.head={head}"]).fit(tmp_path / head)
        reader = run.registry.get("readers", "simulator").factory(2000, "test", **run.config.data.options)
        p = run.predict(reader.read(reader.pieces[0], list(FEATURES)))
        pcvr = p["p_conversion_given_click"].to_numpy()
        assert (pcvr > 1).any() == exceeds
        assert pcvr == pytest.approx(p["p_conversion"].to_numpy() / p["p_click"].to_numpy(), rel=1e-5)
