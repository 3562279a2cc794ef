"""Stage kinds: another distribution of an outcome given its parent, from the YAML to the prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import espace
from espace.config import load
from espace.errors import ConfigError
from espace.runs.experiment import Experiment
from espace.runs.show import describe
from tests.shop import rows

CLOGLOG = """\"\"\"Complementary log-log: P = 1 - exp(-exp(z)), the chance of an event when they come at the rate exp(z).\"\"\"
import math

import torch
from torch import nn
import espace


class CLogLog(nn.Module):
    logits = 1

    def forward(self, z):
        rate = z[:, 0].exp()
        return torch.log(-torch.expm1(-rate)), -rate

    def start(self, rate):
        return [math.log(-math.log1p(-rate))]


class Capped(nn.Module):
    \"\"\"P = c sigmoid(z), where c is learnt too: what is never certain.\"\"\"
    logits = 2

    def __init__(self, *, start_at: float = 0.9):
        super().__init__()
        self.start_at = start_at

    def forward(self, z):
        log_cap = nn.functional.logsigmoid(z[:, 1])
        log_p = nn.functional.logsigmoid(z[:, 0]) + log_cap
        nothing = nn.functional.logsigmoid(-z[:, 0]) + log_cap
        return log_p, torch.logaddexp(nothing, nn.functional.logsigmoid(-z[:, 1]))

    def start(self, rate):
        share = rate / max(self.start_at, rate + 1e-3)
        return [math.log(share / (1 - share)), math.log(self.start_at / (1 - self.start_at))]


@espace.hookimpl
def register_stages(register):
    register("cloglog", CLogLog)
    register("capped", Capped)
"""


@pytest.fixture
def kinds(shop):
    (shop.folder / "kinds.py").write_text(CLOGLOG)
    return shop


def experiment(shop, stages, *overrides, **sections):
    return Experiment.from_yaml(shop.yaml(plugins=["./kinds.py"], stages=stages, **sections), overrides)


@pytest.mark.parametrize("kind", ["cloglog", "capped", {"type": "capped", "start_at": 0.7}])
def test_a_stage_with_another_kind_trains_starts_at_its_rate_and_predicts(kinds, kind):
    made = experiment(kinds, {"conversion": {"kind": kind, "weight": 2.0}})
    run = made.fit(kinds.folder / "run")
    table = run.predict(rows(400, 7))
    p = {name: table[name].to_numpy() for name in table.column_names if name.startswith("p_")}
    assert np.allclose(p["p_conversion"], p["p_click"] * p["p_conversion_given_click"], atol=1e-6)
    observed = rows(400, 7)["conversion"].to_numpy().sum() / rows(400, 7)["click"].to_numpy().sum()
    assert abs(p["p_conversion_given_click"].mean() - observed) < 0.15
    assert espace.load(kinds.folder / "run").predict(rows(400, 7)).equals(table)


def test_its_equation_is_shown(kinds):
    text = describe(experiment(kinds, {"conversion": {"kind": "cloglog"}}))
    assert "P(conversion given click) = cloglog(z[click_to_conversion])" in text
    assert "P(click) = sigmoid(z[impression_to_click])" in text


def test_it_can_be_overridden_and_is_written_out(kinds):
    made = experiment(kinds, {"conversion": {"kind": "capped"}}, "stages.conversion.kind.start_at=0.8")
    assert made.config.to_dict()["stages"]["conversion"]["kind"] == {"type": "capped", "start_at": 0.8}
    run = made.fit(kinds.folder / "run")
    assert load(run.folder / "config.yaml", (), made.registry) == run.config
    assert run.config.stages == made.config.stages


@pytest.mark.parametrize(
    ("chain", "stage", "problem"),
    [
        (
            ["impression -> click -> conversion"],
            "impression",
            "every row is one 'impression', so it has no distribution",
        ),
        (["impression -> click else conversion"], "conversion", "'conversion' happens where 'click' does not.*'click'"),
        (
            ["impression -> click | conversion"],
            "click",
            "one choice of 2 outcomes, a softmax, so none of them has a kind",
        ),
    ],
)
def test_what_has_no_kind_of_its_own_is_refused(kinds, chain, stage, problem):
    with pytest.raises(ConfigError, match=problem):
        experiment(kinds, {stage: {"kind": "cloglog"}}, chain=chain)


def test_a_misspelt_kind_has_the_nearest_name(kinds):
    with pytest.raises(ConfigError, match=r"there is no stage kind 'clogog'\. Did you mean 'cloglog'\?"):
        experiment(kinds, {"conversion": {"kind": "clogog"}})


def test_both_tails_of_the_chain_are_those_of_the_kind():
    chain = espace.Chain.parse("impression -> click -> conversion")
    z = {"impression_to_click": torch.randn(5, 1).double(), "click_to_conversion": torch.randn(5, 2).double()}

    class Halved:
        logits = 2

        def __call__(self, z):
            p = 0.5 * torch.sigmoid(z.sum(1))
            return p.log(), (1 - p).log()

    p = espace.Probabilities(chain, z, {"click_to_conversion": Halved()})
    click = torch.sigmoid(z["impression_to_click"][:, 0])
    both = click * 0.5 * torch.sigmoid(z["click_to_conversion"].sum(1))
    assert torch.allclose(p.prob("conversion"), both)
    assert torch.allclose(p.log_not_prob("conversion"), (1 - both).log())
