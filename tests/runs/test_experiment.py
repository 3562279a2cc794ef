"""A run repeats, its numbers can be recomputed from its predictions, and its folder holds what it promises."""

from __future__ import annotations

import json
import math
import threading
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

import espace
from espace.data.stream.plan import Plan
from espace.data.stream.stream import Stream
from espace.errors import ConfigError
from espace.runs import experiment, fitting
from espace.runs.build import build_model, build_objective, build_weighting
from espace.runs.experiment import Experiment
from espace.runs.opening import prepare
from espace.runs.report import Report
from espace.training.judging import Terms
from tests.shop import CONFIG, put, rows

QUIET = Report(quiet=True)
SPACES = {
    "click": ("click", None),
    "conversion": ("conversion", None),
    "conversion_given_click": ("conversion", "click"),
}
METRICS = {
    *("auc", "log_loss", "normalized_entropy", "predicted_over_observed", "ece", "rows", "positives"),
    *("gauc", "gauc_groups"),
}


def judged(table, space):
    """(labels, predictions, weights, sessions) of one probability on its own rows, as numpy arrays."""
    stage, given = SPACES[space]
    inside = np.ones(table.num_rows, bool) if given is None else table[given].to_numpy() == 1
    return [table[c].to_numpy()[inside] for c in (stage, f"p_{space}", "weight", "session")]


def gauc(y, p, w, groups):
    """Weighted AUC of every group that has both classes, averaged by their weights; and their number."""
    both = [g for g in np.unique(groups) if 0 < y[groups == g].sum() < (groups == g).sum()]
    masks = [groups == g for g in both]
    aucs = [roc_auc_score(y[m], p[m], sample_weight=w[m]) for m in masks]
    return np.average(aucs, weights=[w[m].sum() for m in masks]), len(both)


def calibration_error(y, p, w, points=20):
    """|sum of P - sum of y| over bins of equal mass along the order of P; rows of one P stay together."""
    fine = np.unique(p, return_inverse=True)[1]
    mass = np.bincount(fine, w)
    middle = mass.cumsum() - mass / 2
    coarse = np.minimum(middle / mass.sum() * points, points - 1).astype(int)
    return np.abs(np.bincount(coarse[fine], w * (p - y), points)).sum() / w.sum()


def expected(table, space):
    """Every number that results.json has of one probability, by other means."""
    y, p, w, sessions = judged(table, space)
    loss, rate = log_loss(y, p, sample_weight=w, labels=[0, 1]), np.average(y, weights=w)
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    value, groups = gauc(y, p, w, sessions)
    return {
        "auc": roc_auc_score(y, p, sample_weight=w),
        "log_loss": loss,
        "normalized_entropy": loss / entropy,
        "predicted_over_observed": (w @ p) / (w @ y),
        "ece": calibration_error(y, p, w),
        "rows": len(y),
        "positives": y.sum(),
        "gauc": value,
        "gauc_groups": groups,
    }


class TestResults:
    @pytest.fixture(scope="module")
    @staticmethod
    def results(trained):
        return json.loads((trained.run / "results.json").read_text())

    @pytest.fixture(scope="module")
    @staticmethod
    def predicted(trained, tmp_path_factory):
        """The predictions of `espace predict` on what results.json judges."""
        found = {}
        for prefix, split in (("val", "validation"), ("test", "test")):
            out = tmp_path_factory.mktemp("predicted") / "p.parquet"
            source = trained.shop.folder / f"{split}.parquet"
            assert trained.shop.espace("predict", trained.run, "--data", source, "--out", out).code == 0
            found[prefix] = pq.read_table(out)
        return found

    def test_there_is_a_number_for_every_probability_and_loss_and_no_other(self, results):
        judged = {f"{space}/{metric}" for space in SPACES for metric in METRICS}
        assert set(results) == {
            f"{p}/{n}" for p in ("val", "test") for n in judged | {"loss", "loss/click", "loss/conversion"}
        }

    @pytest.mark.parametrize("prefix", ["val", "test"])
    @pytest.mark.parametrize("space", SPACES)
    def test_every_metric_is_that_of_scikit_learn_on_the_predictions_in_its_own_space(
        self, results, predicted, prefix, space
    ):
        for name, value in expected(predicted[prefix], space).items():
            tolerance = {"auc": 1e-4, "ece": 2e-3}.get(name, 1e-6)
            assert results[f"{prefix}/{space}/{name}"] == pytest.approx(value, abs=tolerance), name

    @pytest.mark.parametrize("prefix", ["val", "test"])
    def test_the_loss_is_the_sum_of_the_log_losses_of_the_marginals(self, results, prefix):
        terms = {name: results[f"{prefix}/loss/{name}"] for name in ("click", "conversion")}
        assert terms == pytest.approx({name: results[f"{prefix}/{name}/log_loss"] for name in terms}, abs=1e-6)
        assert results[f"{prefix}/loss"] == pytest.approx(sum(terms.values()), abs=1e-6)

    @pytest.mark.parametrize("split", ["validation", "test"])
    def test_evaluating_the_run_on_the_same_file_gives_the_same_numbers(self, results, trained, shop, split):
        options = ["--split", split, "--out", "out/found.json"]
        if split == "test":
            options.append(f"data.test={trained.shop.folder / 'test.parquet'}")
        assert trained.shop.espace("evaluate", trained.run, *options).code == 0
        found = json.loads((shop.folder / "out" / "found.json").read_text())
        prefix = "val" if split == "validation" else split
        assert {n.removeprefix(f"{split}/"): v for n, v in found.items()} == {
            n.removeprefix(f"{prefix}/"): v for n, v in results.items() if n.startswith(f"{prefix}/")
        }

    def test_another_column_can_group_and_other_data_be_judged(self, trained, shop):
        shop.write(rows(600, 5), "new.parquet")
        options = ["data.test=new.parquet", "metrics.gauc.by=user_id", "--out", "found.json"]
        assert shop.espace("evaluate", trained.run, *options).code == 0
        assert shop.espace("predict", trained.run, "--data", "new.parquet", "--out", "p.parquet").code == 0
        found, table = json.loads((shop.folder / "found.json").read_text()), pq.read_table("p.parquet")
        y, p, w = (table[c].to_numpy() for c in ("conversion", "p_conversion", "weight"))
        value, groups = gauc(y, p, w, table["user_id"].to_numpy())
        assert found["test/conversion/gauc"] == pytest.approx(value, abs=1e-6)
        assert found["test/conversion/gauc_groups"] == groups

    def test_potential_outcomes_are_judged_on_all_rows_that_have_one(self, trained, shop):
        random = np.random.default_rng(1)
        would = random.random(600) < 0.3
        known = [bool(w) if k else None for w, k in zip(would, random.random(600) < 0.9, strict=True)]
        shop.write(put(rows(600, 5), would_buy=known), "new.parquet")
        options = ["data.test=new.parquet", "data.potential.conversion_given_click=would_buy", "--out", "found.json"]
        assert shop.espace("evaluate", trained.run, *options).code == 0
        assert shop.espace("predict", trained.run, "--data", "new.parquet", "--out", "p.parquet").code == 0
        found, table = json.loads((shop.folder / "found.json").read_text()), pq.read_table("p.parquet")
        rows_in = np.array([k is not None for k in known])
        y, p, w = would[rows_in], *(table[c].to_numpy()[rows_in] for c in ("p_conversion_given_click", "weight"))
        name = "test/conversion_given_click_entire_space"
        assert found[f"{name}/rows"] == rows_in.sum()
        assert found[f"{name}/log_loss"] == pytest.approx(log_loss(y, p, sample_weight=w), abs=1e-6)
        assert found[f"{name}/auc"] == pytest.approx(roc_auc_score(y, p, sample_weight=w), abs=1e-4)

    def test_what_only_metrics_read_may_be_missing_where_nothing_is_judged(self, shop):
        for name in ("validation", "test"):
            shop.write(put(rows(300, 1), would_buy=[1, 0, None] * 100), f"{name}.parquet")
        shop.write(rows(600).drop_columns(["session"]))
        data = {**CONFIG["data"], "potential": {"conversion_given_click": "would_buy"}}
        yaml = shop.yaml(data=data, trainer={"accelerator": "cpu", "max_steps": 2})
        said = shop.espace("fit", yaml, "--run-dir", "run")
        assert said.code == 0, said
        results = json.loads((shop.folder / "run" / "results.json").read_text())
        assert results["test/conversion_given_click_entire_space/rows"] == 200
        assert "test/click/gauc" in results
        assert shop.espace("evaluate", "run").code == 0
        said = shop.espace("evaluate", "run", "--split", "train")
        assert said.code == 2
        assert "data.potential.conversion_given_click: train.parquet has no column 'would_buy'." in said.error
        assert "metrics.gauc.by: train.parquet has no column 'session'." in said.error
        assert shop.espace("evaluate", "run", "--split", "train", "data.potential=null", "metrics.gauc=null").code == 0


class TestNotebooks:
    def test_a_run_shows_its_results_and_gives_them_by_name(self, trained):
        run = espace.load(trained.run)
        assert run.results == json.loads((trained.run / "results.json").read_text())
        shown = run._repr_html_()
        assert shown.startswith(f"<p>shop: {trained.run}</p>")
        for text in ("Results on validation", "Results on test", "conversion_given_click", "pred./obs.", "<pre style"):
            assert text in shown
        alone = espace.load(trained.run / "checkpoints" / "best.ckpt")
        assert alone.results == {}
        assert "a lone checkpoint" in alone._repr_html_()

    def test_a_run_judges_itself_as_the_command_does(self, trained, shop):
        run = espace.load(trained.run)
        found = {f"test/{name}": value for name, value in run.evaluate().items()}
        expected = {name: value for name, value in run.results.items() if name.startswith("test/")}
        assert found == pytest.approx({n: math.nan if v is None else v for n, v in expected.items()}, nan_ok=True)
        shop.write(rows(600, 5), "new.parquet")
        other = run.evaluate("validation", ["data.validation=new.parquet"])
        assert other["click/rows"] == 600
        with pytest.raises(ConfigError, match=r"split: there is no part 'tset' of the data\. Did you mean 'test'"):
            run.evaluate("tset")

    def test_what_check_returns_shows_the_audit(self, shop):
        shown = Experiment.from_yaml(shop.yaml()).check()._repr_html_()
        assert shown.startswith(
            "<p>Nothing stands against training: train 600 rows, validation 600 rows, test 600 rows"
        )
        for text in ("Labels", "given parent", "Which rows feed which loss term"):
            assert text in shown


class TestRuns:
    def test_the_folder_holds_what_it_promises(self, trained):
        there = {str(p.relative_to(trained.run)) for p in trained.run.rglob("*") if p.is_file()}
        assert there >= {"config.yaml", "versions.json", "metrics.csv", "results.json"}
        assert there >= {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "figures/learning_curves.png"}
        assert there >= {"figures/calibration_validation.png", "figures/calibration_test.png"}
        assert {p for p in there if p.startswith("vocab")} == {
            f"vocabulary/{n}.parquet" for n in ("user_id", "item_id", "tags")
        }
        assert json.loads((trained.run / "versions.json").read_text()).keys() >= {"python", "espace", "torch"}

    def test_a_vocabulary_is_a_table_that_a_person_can_read(self, trained):
        found = pq.read_table(trained.run / "vocabulary" / "user_id.parquet").to_pydict()
        seen = rows(2000, 0)["user_id"].to_pylist()
        assert dict(zip(found["value"], found["count"], strict=True)) == {u: seen.count(u) for u in set(seen)}
        assert found["count"] == sorted(found["count"], reverse=True)

    def test_every_number_that_was_logged_has_step_epoch_and_name(self, trained):
        header, *lines = (trained.run / "metrics.csv").read_text().split()
        assert header == "step,epoch,name,value"
        names = {line.split(",")[2] for line in lines}
        assert names >= {"train/loss", "val/loss", *(f"val/{space}/auc" for space in SPACES)}

    def test_the_configuration_of_a_run_repeats_it_to_the_bit(self, trained, shop):
        assert shop.espace("fit", trained.run / "config.yaml", "--run-dir", "again").code == 0
        again = shop.folder / "again"
        one, other = (espace.load(run).model.state_dict() for run in (trained.run, again))
        assert all(torch.equal(one[name], other[name]) for name in one)
        for file in ("results.json", "metrics.csv"):
            assert (again / file).read_text() == (trained.run / file).read_text()
        texts = [(run / "config.yaml").read_text().partition("\n")[2] for run in (trained.run, again)]
        assert texts[0] == texts[1], "all but the first line, which names the run"

    def test_another_seed_gives_other_weights(self, trained, shop):
        options = ("seed=1", "trainer.max_epochs=1", "--run-dir", "other")
        assert shop.espace("fit", trained.run / "config.yaml", *options).code == 0
        one, other = (espace.load(run).predict(rows(600, 0)) for run in (trained.run, shop.folder / "other"))
        assert not one.equals(other)

    def test_python_trains_as_the_command_line_does(self, shop):
        yaml = shop.yaml(trainer={"accelerator": "cpu"})
        run = Experiment.from_yaml(yaml, ["trainer.max_steps=2"]).fit("one")
        assert shop.espace("fit", yaml, "trainer.max_steps=2", "--run-dir", "two").code == 0
        assert run.predict(rows(600, 0)).equals(espace.load("two").predict(rows(600, 0)))

    def test_a_run_without_a_folder_goes_to_one_named_by_experiment_and_time(self, shop):
        assert shop.espace("fit", shop.yaml(trainer={"accelerator": "cpu", "max_steps": 1})).code == 0
        (run,) = (shop.folder / "runs" / "shop").iterdir()
        assert (run / "results.json").exists()

    def test_without_validation_rows_the_last_weights_are_the_best(self, shop):
        data = {k: v for k, v in CONFIG["data"].items() if k != "validation"}
        assert shop.espace("fit", shop.yaml(data=data), "--run-dir", "run").code == 0
        assert all(name.startswith("test/") for name in json.loads((shop.folder / "run/results.json").read_text()))
        assert espace.load("run").predict(rows(600, 0)).num_rows == 600

    @pytest.mark.parametrize("split", [{"share": 0.25}, {"by": "day", "train_until": 7}])
    def test_a_split_gives_every_row_to_one_part_and_its_validation_can_be_judged_again(self, shop, split):
        data = {**{k: v for k, v in CONFIG["data"].items() if k != "validation"}, "split": split}
        yaml = shop.yaml(data=data, trainer={"accelerator": "cpu", "max_steps": 1})
        assert shop.espace("fit", yaml, "--run-dir", "run").code == 0
        results = json.loads((shop.folder / "run" / "results.json").read_text())
        for part in ("train", "validation"):
            assert shop.espace("evaluate", "run", "--split", part, "--out", f"{part}.json").code == 0
        train, again = (json.loads((shop.folder / f"{p}.json").read_text()) for p in ("train", "validation"))
        assert train["train/click/rows"] + results["val/click/rows"] == 600
        assert again["validation/click/log_loss"] == results["val/click/log_loss"]
        if "by" in split:
            assert results["val/click/rows"] == sum(day >= 7 for day in rows(600, 0)["day"].to_pylist())


class TestFirstStep:
    """What the very first batch of training gives."""

    def experiment(self, shop, table, **sections):
        shop.write(table)
        data = {"train": "train.parquet", "weight": "weight", "batch_size": 10_000, "shuffle": False}
        found = Experiment.from_yaml(shop.yaml(data=data, **sections))
        return found, prepare(found.config, found.registry, QUIET)

    def model(self, experiment, prepared):
        torch.manual_seed(0)
        model = build_model(experiment.config, experiment.registry, prepared.encoder.layout)
        model.start_at(prepared.scans["train"].tally.outcomes)
        return model.eval()

    def loss(self, experiment, model, encoder, prepared):
        """(loss, terms) of the whole file as one batch, ids encoded by `encoder`."""
        plan = Plan(prepared.scans["train"].counts, 10_000, 0, False, 1)
        (batch,) = Stream(prepared.parts["train"], encoder, plan)
        objective = build_objective(experiment.config, experiment.registry)
        weighting = build_weighting(experiment.config, experiment.registry, objective)
        terms = Terms.of(objective, model(batch), batch).means()
        return float(weighting(terms).detach()), {name: float(value.detach()) for name, value in terms.items()}

    @pytest.mark.parametrize("objective", ["entire_space", "parent_space"])
    def test_a_row_of_weight_2_counts_as_two_rows(self, shop, objective):
        table = put(rows(600, 0), weight=[1.0] * 600)
        twice = np.flatnonzero(np.arange(600) % 7 == 0)
        weighted, once = self.experiment(
            shop, put(table, weight=[2.0 if i in twice else 1.0 for i in range(600)]), objective=objective
        )
        model = self.model(weighted, once)
        expected = self.loss(weighted, model, once.encoder, once)
        doubled, both = self.experiment(shop, pa.concat_tables([table, table.take(twice)]), objective=objective)
        found = self.loss(doubled, model, once.encoder, both)
        plain, alone = self.experiment(shop, table, objective=objective)
        assert found[0] == pytest.approx(expected[0], rel=1e-6)
        assert found[1] == pytest.approx(expected[1], rel=1e-6)
        assert self.loss(plain, model, once.encoder, alone)[0] != pytest.approx(expected[0], rel=1e-4)

    def test_a_row_of_weight_0_does_not_count(self, shop):
        table, half = put(rows(600, 0), weight=[1.0] * 600), np.arange(600) < 300
        weighted, all_rows = self.experiment(shop, put(table, weight=half.astype(float)))
        model = self.model(weighted, all_rows)
        expected = self.loss(weighted, model, all_rows.encoder, all_rows)
        less, few = self.experiment(shop, table.slice(0, 300))
        assert self.loss(less, model, all_rows.encoder, few)[1] == pytest.approx(expected[1], rel=1e-6)

    def test_the_first_predictions_are_the_base_rates(self, shop):
        experiment, prepared = self.experiment(shop, rows(600, 0), features={"user_id": "id", "item_id": "id"})
        model = self.model(experiment, prepared)
        (batch,) = Stream(prepared.parts["train"], prepared.encoder, Plan([500, 100], 10_000, 0, False, 1))
        clicks, bought = batch.labels.sum(0).tolist()
        rates = [(clicks + 1) / (600 + 2)]
        rates += [rates[0] * (bought + 1) / (clicks + 2)]
        fresh = [float(model(batch).prob(stage).mean().detach()) for stage in ("click", "conversion")]
        assert fresh == pytest.approx(rates, rel=0.2), "but for what a fresh head makes of a fresh tower"
        for head in model.heads.values():
            torch.nn.init.zeros_(head.weight)
        exact = [float(model(batch).prob(stage).mean().detach()) for stage in ("click", "conversion")]
        assert exact == pytest.approx(rates, rel=1e-5)


def test_no_kernel_is_compiled_while_the_filters_of_warnings_are_others(shop, monkeypatch):
    """They are the process's, and numba puts back those that it found: Lightning's warnings would be seen."""
    changed, late = threading.Event(), []
    quiet = fitting.lightning_quiet

    @contextmanager
    def told():
        changed.set()
        with quiet():
            yield

    monkeypatch.setattr(experiment, "load_kernels", lambda: late.append(changed.wait(timeout=1.0)))
    monkeypatch.setattr(fitting, "lightning_quiet", told)
    Experiment.from_yaml(shop.yaml(), ["trainer.max_steps=2"]).fit("run")
    assert (late, changed.is_set()) == ([False], True)
