"""What is judged where: spaces of potential outcomes, metrics that judge some probabilities only, and the truth."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from sklearn.metrics import log_loss, roc_auc_score

from espace.chain.chain import Chain
from espace.chain.labels import Labels
from espace.chain.probability import Probabilities
from espace.chain.spaces import Space, of_potential, spaces
from espace.config import Config, override
from espace.data.batch import Batch
from espace.errors import ConfigError
from espace.parts.stages.lognormal import LogNormal
from espace.registry.registry import load
from espace.runs.build import spaces_of
from espace.runs.experiment import Experiment
from espace.runs.metrics import build_metrics, metric_names
from espace.testing.chains import CHAINS
from espace.training.judging import scored
from tests.parts.metrics.test_truth import plain_correlation, plain_ranks
from tests.shop import CONFIG, SPLITS, put, rows

REGISTRY = load()
every_chain = pytest.mark.parametrize(
    "chain", [Chain.parse(lines) for lines in CHAINS], ids=lambda c: "; ".join(c.lines())
)


def drawn(chain: Chain, count: int, seed: int) -> tuple[Batch, Probabilities, Labels]:
    """Labels at random, unknown ones among them, whatever the chain says; potential outcomes, some NaN; weights, some 0."""
    torch.manual_seed(seed)
    labels = torch.randint(-1, 2, (count, len(chain.stages) - 1), dtype=torch.int8)
    would = torch.bernoulli(torch.full((count,), 0.4, dtype=torch.float64)).where(torch.rand(count) < 0.8, torch.nan)
    weights = torch.randint(0, 3, (count,)).float()
    batch = Batch(torch.empty(count, 0), {}, torch.empty(count, 0), labels, weights, {"would": would})
    kinds = {value.name: LogNormal() for value in chain.values}
    z = {t.name: torch.randn(count, 2 if t.name in kinds else len(t.outcomes)) for t in chain.heads}
    p = Probabilities(chain, z, kinds)
    return batch, p, Labels(chain, labels, batch.amounts)


@every_chain
def test_the_rows_of_every_space_are_those_of_a_plain_loop(chain: Chain) -> None:
    batch, p, labels = drawn(chain, 300, 1)
    column = {stage: labels.of(stage).tolist() for stage in chain.stages}
    would, weights = batch.extras["would"].tolist(), batch.weights.tolist()
    found = spaces(chain, dict.fromkeys(chain.addresses, "would"))
    for name, (stage, given, potential, without) in found.items():
        if name in chain.expectations:
            continue
        inside = []
        for row in range(300):
            label = would[row] if potential else column[stage][row]
            parent = column[given][row] if given else 1
            wanted = {(False, False): parent == 1, (True, False): True, (True, True): parent == 0}[
                bool(potential), without
            ]
            if weights[row] > 0 and label in (0, 1) and wanted:
                inside.append(row)
        judged = scored(p, batch, labels, *found[name])
        expected = [would[row] if potential else column[stage][row] for row in inside]
        assert judged.labels.tolist() == expected, name
        assert torch.equal(judged.log_prob, p.log_prob(stage, given)[inside]), name


@every_chain
def test_rows_whose_parent_is_not_known_are_neither_clicked_nor_without_a_click(chain: Chain) -> None:
    batch, p, labels = drawn(chain, 2000, 2)
    for name, (_, given) in chain.addresses.items():
        if given is not None:
            everywhere, without = (
                len(scored(p, batch, labels, *s).labels) for s in of_potential(chain, name, "would").values()
            )
            judged = batch.extras["would"].isfinite() & (batch.weights > 0)
            inside, unknown = (int((judged & (labels.of(given) == known)).sum()) for known in (1, -1))
            assert everywhere == without + inside + unknown
            assert min(without, inside, unknown) > 0


def test_a_marginal_has_no_parent_to_be_without() -> None:
    chain = Chain.parse("impression -> click -> conversion")
    assert list(of_potential(chain, "conversion", "x")) == ["conversion_entire_space"]
    found = spaces(chain, {"conversion_given_click": "x"})
    assert found["conversion_given_click_without_click"] == Space("conversion", "click", "x", without=True)
    told = [space.rows for name, space in found.items() if name.startswith("conversion_given_click")]
    assert told == ["click = 1", "all rows, potential outcome", "click = 0, potential outcome"]


# -- names


EXPERIMENT: dict[str, Any] = {
    "chain": ["impression -> click -> conversion => revenue"],
    "data": {"type": "simulator", "train": 100, "potential": {"conversion_given_click": "potential_conversion"}},
    "features": {"user_id": "id"},
}


def config_of(**over: Any) -> Config:
    return Experiment(Config.from_dict({**EXPERIMENT, **over}, REGISTRY), REGISTRY).config


@pytest.mark.parametrize(
    ("chain", "potential", "space"),
    [
        (["impression -> click", "impression -> click_entire_space"], "click", "click_entire_space"),
        (["impression -> click => click_entire_space"], "click", "click_entire_space"),
        (
            ["impression -> a | a_without_a", "a -> b", "a_without_a -> b"],
            "b_given_a",
            "b_given_a_without_a",
        ),
    ],
)
def test_a_space_that_would_have_the_name_of_a_probability_is_refused(
    chain: list[str], potential: str, space: str
) -> None:
    data = {**EXPERIMENT["data"], "potential": {potential: "x"}}
    with pytest.raises(
        ConfigError, match=rf"data\.potential\.{potential}: with it '{space}' would stand for two things"
    ):
        Config.from_dict({**EXPERIMENT, "chain": chain, "data": data})


def computed(config: Any) -> dict[str, set[str]]:
    """{space: the names of what is computed of it}, from what `monitor` may be."""
    found: dict[str, set[str]] = {space: set() for space in spaces_of(config)}
    for name in metric_names(config, REGISTRY):
        _, space, value = name.split("/") if name.count("/") == 2 else ("", "loss", "")
        if space != "loss":
            found[space].add(value)
    return found


def test_what_may_be_monitored_is_what_is_judged() -> None:
    of = ["click", "conversion_given_click_without_click"]
    config = config_of(metrics={"auc": {"type": "auc", "of": of}, "value": {"type": "value", "of": ["revenue"]}})
    found = computed(config)
    assert {space for space, values in found.items() if "auc" in values} == set(of)
    assert {space for space, values in found.items() if "gini" in values} == {"revenue"}
    assert all("log_loss" in values for space, values in found.items() if not space.startswith("revenue"))
    config_of(monitor="val/conversion_given_click_without_click/auc")
    with pytest.raises(ConfigError, match="monitor: 'val/conversion/auc' is not measured"):
        config_of(metrics={"auc": {"type": "auc", "of": of}}, monitor="val/conversion/auc")


def test_without_of_a_metric_judges_all_of_its_kind() -> None:
    judging = build_metrics(config_of(), REGISTRY)
    assert list(judging) == list(spaces_of(config_of()))
    for space, metrics in judging.items():
        assert list(metrics) == (
            ["value"] if space.startswith("revenue") else ["auc", "log_loss", "calibration", "count"]
        )


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"auc": {"type": "auc", "of": ["clik"]}}, r"metrics\.auc\.of\[0\]: there is no such probability\. Did you mean 'click'"),
        ({"auc": {"type": "auc", "of": ["conversion_entire_space"]}}, r"of\[0\]: it is judged by potential outcomes\. Name"),
        ({"auc": {"type": "auc", "of": []}}, r"metrics\.auc\.of: \[\] is not a list of texts with a length of at least 1"),
        ({"auc": {"type": "auc", "of": "click"}}, r"metrics\.auc\.of: 'click' is not a list of texts"),
        ({"auc": {"type": "auc", "off": ["click"]}}, r"metrics\.auc: auc has no option 'off'\. Did you mean 'of'"),
        ({"auc": {"type": "auc", "of": ["revenue"]}}, r"metrics\.auc\.of: 'revenue' is the expectation of a value, but auc"),
        ({"value": {"type": "value", "of": ["click"]}}, r"metrics\.value\.of: 'click' is a probability, but value"),
        ({"fine": {"type": "auc", "bins": 9}}, r"metrics\.fine: it computes 'auc' of 'click', and so does metrics\.auc\. Rem"),
        (
            {n: {"type": "truth", "column": n, "of": ["click"]} for n in ("x", "y")},
            r"metrics\.y: it computes 'rank_correlation' of 'click', and so does metrics\.x\. Give it a name\.$",
        ),
        ({"t": {"type": "truth", "column": "x", "name": "a b"}}, r"metrics\.t: truth cannot be built: name: 'a b' is to be part"),
        ({"t": {"type": "truth", "column": "user_id"}}, r"features\.user_id: the column 'user_id' is what metrics\.t judges by"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_told(metrics: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        config_of(metrics=metrics)
    assert len(caught.value.problems) == 1


def test_two_truths_and_two_metrics_of_different_things_stand_side_by_side() -> None:
    metrics = {
        "auc": {"type": "auc", "of": ["click"]},
        "fine": {"type": "auc", "bins": 1000, "of": ["conversion"]},
        "truth": {"type": "truth", "column": "x"},
        "do": {"type": "truth", "column": "y", "name": "do"},
    }
    found = computed(config_of(metrics=metrics))["conversion"]
    assert found >= {"auc", "rank_correlation", "do_rank_correlation", "rmse", "do_rmse"}


def test_a_score_cannot_read_the_truth() -> None:
    metrics = {"t": {"type": "truth", "column": "true_click"}}
    with pytest.raises(ConfigError, match=r"scores\.s: the column 'true_click' is what metrics\.t judges by"):
        config_of(metrics=metrics, scores={"s": "click * true_click"})


def test_of_is_kept_in_the_configuration_and_changed_by_overrides() -> None:
    config = config_of(metrics={"auc": {"type": "auc", "of": ["click"]}})
    assert Config.from_dict(config.to_dict()) == config
    expected = {"type": "auc", "bins": 65_536, "max_rows": 1_000_000, "of": ["click"]}
    assert config.to_dict()["metrics"]["auc"] == expected
    assert override(config, ["metrics.auc.of=null"], REGISTRY) == config_of()
    assert override(config_of(), ["metrics.auc.of=[click]"], REGISTRY) == config


# -- a run


TRUTH = (
    "metrics.truth={type: truth, column: true_cvr, of: [conversion_given_click, conversion_given_click_without_click]}"
)
OF_CLICKED = "metrics.truth={type: truth, column: true_cvr, of: [conversion_given_click]}"
OPTIONS = ("data.test=new.parquet", "data.potential.conversion_given_click=would_buy", TRUTH)


@pytest.fixture
def trained(shop: Any) -> Any:
    """A shop with a run, and a file with potential outcomes and true probabilities, some of them missing."""
    random = np.random.default_rng(1)
    some = [None if random.random() < 0.1 else float(random.random()) for _ in range(600)]
    would = [None if random.random() < 0.1 else bool(random.random() < 0.3) for _ in range(600)]
    shop.fill(600).write(put(rows(600, 5), would_buy=would, true_cvr=some), "new.parquet")
    assert shop.espace("fit", shop.yaml(), "trainer.max_epochs=1", "--run-dir", "run").code == 0
    return shop


def test_a_run_is_judged_against_the_truth_and_on_rows_without_a_click(trained: Any) -> None:
    done = trained.espace("evaluate", "run", *OPTIONS, "--out", "found.json")
    assert done.code == 0
    assert all(text in done.out for text in ("click = 0, potential outcome", "rank corr.", "pred./true", "RMSE"))
    assert trained.espace("predict", "run", "--data", "new.parquet", "--out", "p.parquet").code == 0
    found, table = json.loads((trained.folder / "found.json").read_text()), pq.read_table("p.parquet")
    column = {name: np.array(table[name].to_pylist(), float) for name in ("would_buy", "true_cvr", "click", "weight")}
    p, w, q = table["p_conversion_given_click"].to_numpy(), column["weight"], column["true_cvr"]
    without = (column["click"] == 0) & ~np.isnan(column["would_buy"])
    name = "test/conversion_given_click_without_click"
    y = column["would_buy"][without]
    assert found[f"{name}/rows"] == without.sum()
    assert found[f"{name}/log_loss"] == pytest.approx(log_loss(y, p[without], sample_weight=w[without]), abs=1e-6)
    assert found[f"{name}/auc"] == pytest.approx(roc_auc_score(y, p[without], sample_weight=w[without]), abs=1e-3)
    for space, inside in (("_without_click", without), ("", column["click"] == 1)):
        name = f"test/conversion_given_click{space}"
        a, b, c = (x[inside & ~np.isnan(q)] for x in (p, q, w))
        assert found[f"{name}/predicted_over_true"] == pytest.approx((c * a).sum() / (c * b).sum(), rel=1e-5)
        assert found[f"{name}/rmse"] == pytest.approx(math.sqrt(np.average((a - b) ** 2, weights=c)), rel=1e-5)
        ranks = plain_correlation(plain_ranks(a, c), plain_ranks(b, c), c)
        assert found[f"{name}/rank_correlation"] == pytest.approx(ranks, abs=1e-5)
    assert "test/click/rmse" not in found


def test_what_metrics_read_is_asked_of_what_is_evaluated_and_not_of_what_is_predicted(trained: Any) -> None:
    lacking = trained.espace("evaluate", "run", "data.test=test.parquet", OF_CLICKED)
    assert lacking.code == 2
    assert "metrics.truth.column: test.parquet has no column 'true_cvr'." in lacking.error
    data = {**CONFIG["data"], **dict.fromkeys(SPLITS, "new.parquet")}
    assert (
        trained.espace("fit", trained.yaml(data=data), "trainer.max_steps=2", OF_CLICKED, "--run-dir", "other").code
        == 0
    )
    done = trained.espace("predict", "other", "--data", "test.parquet", "--out", "p.parquet")
    assert done.code == 0


@pytest.mark.parametrize(("wrong", "told"), [(1.5, "1.5"), (-0.25, "-0.25")])
def test_what_is_no_probability_is_told_with_its_place(wrong: float, told: str, trained: Any) -> None:
    values = [0.5] * 599 + [wrong]
    trained.write(put(rows(600, 5), would_buy=[True] * 600, true_cvr=values), "new.parquet")
    done = trained.espace("evaluate", "run", *OPTIONS)
    assert done.code == 2
    assert (
        f"new.parquet, row group 1, row 99: true_cvr = {told} is no probability from 0 to 1. Mend the column"
        in done.error
    )


def test_a_comparison_judges_against_the_truth_and_says_where_it_is_not(trained: Any) -> None:
    columns = {"would_buy": [True, False] * 300, "true_cvr": [0.2, 0.3, 0.4] * 200}
    for split, seed in SPLITS.items():
        trained.write(put(rows(600, seed), **columns), f"{split}.parquet")
    data = {**CONFIG["data"], "potential": {"conversion_given_click": "would_buy"}}
    truth = {"type": "truth", "column": "true_cvr", "of": ["conversion_given_click_without_click"]}
    trained.yaml(data=data, metrics={"truth": truth}, trainer={"accelerator": "cpu", "max_steps": 2})
    report = [f"conversion_given_click_without_click/{metric}" for metric in ("auc", "rank_correlation")]
    tree = {"base": "shop.yaml", "variants": {"a": [], "b": ["optimizer.lr=0.02"]}, "seeds": [0], "report": report}
    (trained.folder / "compare.yaml").write_text(yaml.safe_dump(tree))
    done = trained.espace("compare", "compare.yaml", "--out", "out")
    assert done.code == 0
    lines = (trained.folder / "out" / "results.csv").read_text().splitlines()
    for metric in report:
        assert sum(f",test,{metric}," in line for line in lines) == 2
    trained.write(rows(600, 2), "test.parquet")
    done = trained.espace("compare", "compare.yaml", "--out", "other")
    assert done.code == 2
    assert "metrics.truth.column: test.parquet has no column 'true_cvr'." in done.error


def test_a_stage_called_loss_shares_no_name_with_a_term_of_the_loss() -> None:
    def of(chain: str) -> Config:
        tree = {"chain": [chain], "data": {"train": "x.parquet"}, "features": {"user_id": "id"}}
        return Config.from_dict(tree, REGISTRY)

    with pytest.raises(
        ConfigError, match=r"'auc' of the stage 'loss' and the loss term of 'auc' would both be val/loss/auc"
    ):
        metric_names(of("impression -> loss -> auc"), REGISTRY)
    assert "val/loss/auc" in metric_names(of("impression -> loss -> conversion"), REGISTRY)
    assert "val/loss/auc" in metric_names(of("impression -> click -> auc"), REGISTRY)
