"""A comparison: its tables are what its runs predicted, test rows are read once, nothing is done twice, failures stay alone."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from sklearn.metrics import log_loss, roc_auc_score

from espace.chain.chain import Chain
from espace.compare import compare
from espace.compare.comparison import Comparison
from espace.compare.from_columns import FromColumns
from espace.compare.outcome import Outcome
from espace.compare.statistics import difference
from espace.data.batch import Batch
from espace.errors import ConfigError, DataError
from espace.runs.run import load
from tests import pages
from tests.processes import code_of, start, wait_for
from tests.shop import CONFIG, SPLITS, Shop, put

METRICS = ["conversion_given_click/auc", "click/auc", "conversion/log_loss"]
CHOOSE = {"metric": "click/auc", "mode": "max"}
KEYS = {
    "base": "shop.yaml",
    "seeds": [0, 1],
    "shares": [0.5, 1.0],
    "report": METRICS,
    "variants": {
        "plain": [],
        "same": None,
        "wide": {"choose": {"tower.hidden_units": [[8], [3]], "optimizer.lr": [0.01]}},
        "broken": ["tower=broken", "optimizer.lr=0.1"],
    },
    "choose_by": CHOOSE,
}
SEEN = {"click": "seen_click", "conversion_given_click": "seen_conversion"}
BREAKS = "raise ValueError('it broke')"


def shop_in(folder: Path) -> Shop:
    """A shop whose files have full paths, to be used from anywhere; only its test rows have scores of another model."""
    shop = Shop(folder).fill(600)
    random, test = np.random.default_rng(5), pq.read_table(folder / "test.parquet")
    shop.write(put(test, **{name: random.random(600) for name in SEEN.values()}), "test.parquet")
    data = {**CONFIG["data"], **{split: str(folder / f"{split}.parquet") for split in SPLITS}}
    shop.yaml(data=data, trainer={"accelerator": "cpu", "max_steps": 3}, plugins=[shop.tower("broken", step=BREAKS)])
    return shop


def written(shop: Shop, name: str = "variants", **keys: object) -> Path:
    """The YAML of KEYS with some of them replaced (None: taken out)."""
    path = shop.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**KEYS, **keys}.items() if v is not None}, sort_keys=False))
    return path


def results(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def stamps(folder: Path) -> dict[str, int]:
    """When each run was trained and judged."""
    files = [*folder.glob("runs/*/finished.json"), *folder.glob("runs/*/test-*.json")]
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in files}


def kept(folder: Path, run: str) -> dict[str, np.ndarray]:
    """What is left of the test rows of a run."""
    (path,) = folder.glob(f"runs/{run}/test-*.npz")
    return dict(np.load(path))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The shop, the folder of a finished comparison, and what the command said. Not to be changed."""
    shop = shop_in(tmp_path_factory.mktemp("compared"))
    folder = shop.folder / "out"
    return shop, folder, shop.espace("compare", written(shop), "--out", folder, "--workers", 2)


def test_a_variant_that_fails_is_told_and_stops_nothing_else(done):
    _, folder, said = done
    assert said.code == 1
    assert re.search(r"espace: broken, seed 1 failed: tower 'broken' of .*ValueError: it broke", said.error)
    assert re.search(r"broken, 0.5 of the rows, seed 0: train failed\. tower 'broken' .*ValueError: it broke", said.out)
    table = (folder / "table.md").read_text()
    assert "| broken | failed | failed |" in table
    assert re.search(r"\* broken, seed 1: tower 'broken' .*ValueError: it broke", table)
    assert {r["variant"] for r in results(folder) if r["part"] == "test"} == {"plain", "same", "wide"}
    log = Path(re.search(r"log: (\S+)\)", said.out)[1])
    assert "Traceback" in log.read_text()


def test_progress_counts_all_runs_and_tells_the_time_left(done):
    out = done[2].out
    assert "train: 12 runs, 0 done before, 2 at a time" in out, "plain and same are one"
    assert re.search(r"train 6/12: .*; about .* left", out)
    assert re.search(r"test (\d+)/\1: ", out)


def test_the_tables_are_what_scikit_learn_makes_of_the_predictions(done):
    _, folder, _ = done
    rows = [r for r in results(folder) if r["part"] == "test" and r["metric"].endswith("/auc")]
    assert len(rows) == 3 * 2 * 2 * 2
    found: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        columns, space = kept(folder, row["run"]), row["metric"].removesuffix("/auc")
        labels, odds, weights = (columns[f"{space}/{name}"] for name in ("labels", "log_odds", "weights"))
        assert float(row["value"]) == pytest.approx(roc_auc_score(labels, odds, sample_weight=weights), abs=1e-12)
        found.setdefault((row["metric"], row["variant"], row["share"]), []).append(float(row["value"]))
    table = (folder / "table.md").read_text()
    for metric in METRICS[:2]:
        section = table.partition(f"## {metric}\n")[2]
        for variant in ("plain", "same", "wide"):
            cells = [
                f"{np.mean(v):.4f} ± {np.std(v, ddof=1):.4f}"
                for v in (found[metric, variant, s] for s in ("0.5", "1.0"))
            ]
            assert f"| {variant} | {cells[0]} | {cells[1]} |" in section


def test_the_predictions_are_those_of_the_run_on_its_test_rows(done):
    shop, folder, _ = done
    row = next(r for r in results(folder) if r["part"] == "test")
    run = load(folder / "runs" / row["run"])
    table = run.predict(pq.read_table(shop.folder / "test.parquet"))
    p = table["p_click"].to_numpy()
    np.testing.assert_allclose(
        kept(folder, row["run"])["click/log_odds"], np.log(p) - np.log1p(-p), rtol=1e-4, atol=1e-5
    )


def test_a_variant_beside_itself_differs_by_nothing(done):
    table = (done[1] / "table.md").read_text()
    for share in ("50 % of the rows", "all rows"):
        line = f"| same | {share} | +0.0000 | +0.0000 to +0.0000 | 1.0000 | 1.0000 | not told apart |"
        assert table.count(line) == len(METRICS)


def test_a_setting_is_chosen_on_validation_alone_and_only_it_is_judged_on_test(done):
    _, folder, _ = done
    rows = results(folder)
    for share in ("0.5", "1.0"):
        wide = [r for r in rows if (r["variant"], r["share"], r["metric"]) == ("wide", share, "click/auc")]
        means = {
            setting: np.mean([float(r["value"]) for r in wide if (r["part"], r["setting"]) == ("validation", setting)])
            for setting in {r["setting"] for r in wide}
        }
        assert len(means) == 2
        assert {r["setting"] for r in wide if r["part"] == "test"} == {max(means, key=means.get)}
    judged = {p.parent.name for p in folder.glob("runs/*/test-*.json")}
    assert judged == {r["run"] for r in rows if r["part"] == "test"}
    assert len(judged) == 8
    for config in folder.glob("runs/*/config.yaml"):
        assert yaml.safe_load(config.read_text())["data"]["test"] is None


def test_a_share_trains_on_so_many_rows(done):
    _, folder, _ = done
    for row in results(folder):
        config = yaml.safe_load((folder / "runs" / row["run"] / "config.yaml").read_text())
        assert (config["data"]["share"], config["seed"]) == (float(row["share"]), int(row["seed"]))


def test_there_is_a_figure_for_every_reported_metric(done):
    figures = {p.name for p in (done[1] / "figures").iterdir()}
    assert figures == {"conversion_given_click_auc.png", "click_auc.png", "conversion_log_loss.png"}


def test_again_trains_nothing_that_is_done_and_tells_the_same(done):
    shop, folder, _ = done
    before, table, rows = stamps(folder), (folder / "table.md").read_text(), results(folder)
    said = shop.espace("compare", shop.folder / "variants.yaml", "--out", folder, "--workers", 2)
    assert "train: 12 runs, 8 done before" in said.out, "what failed is tried again"
    assert "test: 8 runs, 8 done before" in said.out
    assert stamps(folder) == before
    assert ((folder / "table.md").read_text(), results(folder)) == (table, rows)


def test_stopped_and_killed_in_the_middle_it_goes_on_and_ends_with_the_same_results(done, tmp_path):
    shop, folder, _ = done
    path, out = written(shop, "killed", variants={k: KEYS["variants"][k] for k in ("plain", "wide")}), tmp_path / "out"
    for number, runs in ((signal.SIGTERM, 1), (signal.SIGKILL, 3)):
        process = start(tmp_path, tmp_path / "said.txt", "compare", path, "--out", out, "--workers", 2)
        wait_for(lambda: len(stamps(out)) >= runs, process)  # noqa: B023
        os.kill(process.pid, number)
        assert code_of(process) == 128 + number
    finished = stamps(out)
    assert 0 < len(finished) < 8
    assert not (out / "table.md").exists()
    found = compare(path, out=out, workers=2)
    assert not found.failed
    assert finished.items() <= stamps(out).items(), "none of them is trained again"
    mine = [{**r, "value": float(r["value"])} for r in results(out)]
    whole = [{**r, "value": float(r["value"])} for r in results(folder) if r["variant"] != "same"]
    assert mine == whole


def test_other_test_rows_are_judged_anew_without_training(done, tmp_path):
    shop, _, _ = done
    path = written(shop, "moved", seeds=[0], shares=None, variants={"plain": []})
    compare(path, out=tmp_path)
    before = stamps(tmp_path)
    found = compare(path, [f"data.test={shop.folder / 'validation.parquet'}"], out=tmp_path)
    assert before.items() <= stamps(tmp_path).items()
    assert len(stamps(tmp_path)) == len(before) + 1
    ((planned, values),) = found.test.items()
    for metric in ("loss", "click/log_loss", "conversion/predicted_over_observed"):
        assert values[metric] == pytest.approx(found.validation[planned.digest][metric], rel=1e-6)


def test_a_killed_run_is_told_by_its_signal(done, tmp_path):
    shop, _, _ = done
    dies = shop.tower("dies", step="__import__('os').kill(__import__('os').getpid(), 9)")
    plugins = json.dumps([str(shop.folder / dies)])
    variants = {"plain": [], "dies": [f"plugins={plugins}", "tower=dies"]}
    found = compare(written(shop, "dying", seeds=[0], shares=None, variants=variants), out=tmp_path)
    assert found.failed == {"dies, seed 0": "its process was killed by signal 9"}
    assert [p.name for p in found.chosen] == ["plain"]


def test_changed_data_is_another_run(done):
    shop, _, _ = done
    path = written(shop, "digests")
    digests = [p.digest for p in Comparison(path).runs()]
    assert digests == [p.digest for p in Comparison(path, ["data.workers=0"]).runs()]
    assert len(set(digests)) == 12
    for change in ("tower.dropout=0.1", f"data.train={shop.folder / 'test.parquet'}", "features.age=null"):
        changed = {p.digest for p in Comparison(path, [change]).runs() if p.name != "broken"}
        assert not changed & set(digests)


# -- helpers, products and columns: the experiment of a paper

UNBIAS = {"overrides": ["objective=parent_space", "sampler={type: rejection, stage: conversion, floor: 0.3}"]}
PAPER = {
    "base": "shop.yaml",
    "report": [f"pctcvr/{name}" for name in ("auc", "log_loss", "predicted_over_observed")] + METRICS,
    "helpers": {"ctr": ["objective=parent_space"], "bad": ["tower=broken"]},
    "variants": {
        "base": ["objective=parent_space"],
        "unbias": {**UNBIAS, "uses": {"sampler.run": "ctr"}},
        "floor": {**UNBIAS, "choose": {"sampler.floor": [0.6]}, "uses": {"sampler.run": "ctr"}},
        "seen": {"columns": SEEN},
        "stuck": {**UNBIAS, "uses": {"sampler.run": "bad"}},
    },
    "products": {"pctcvr": {"parent": "ctr", "conditional": "conversion_given_click"}},
    "choose_by": CHOOSE,
}


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """The shop, the folder of a finished comparison with helpers, and its outcome. Not to be changed."""
    shop = shop_in(tmp_path_factory.mktemp("paper"))
    path = shop.folder / "paper.yaml"
    path.write_text(yaml.safe_dump(PAPER, sort_keys=False))
    return shop, shop.folder / "out", compare(path, out=shop.folder / "out", workers=2)


def judged(shop: Shop, p: np.ndarray, stage: str, given: str | None = None) -> dict[str, float]:
    """What scikit-learn, and a sum, say of probabilities of the test rows."""
    test = pq.read_table(shop.folder / "test.parquet")
    y, w = (test[name].to_numpy().astype(float) for name in (stage, "weight"))
    rows = slice(None) if given is None else test[given].to_numpy() == 1
    y, p, w = y[rows], p[rows], w[rows]
    ratio = (w @ p) / (w @ y)
    auc = roc_auc_score(y, p, sample_weight=w)
    return {"auc": auc, "log_loss": log_loss(y, p, sample_weight=w), "predicted_over_observed": ratio}


def predicted(found: Outcome, folder: Path, shop: Shop, name: str, column: str) -> np.ndarray:
    """A probability that a run of that name gives the test rows."""
    planned = next(p for p in found.runs if p.name == name)
    run = load(folder / "runs" / planned.digest)
    return run.predict(pq.read_table(shop.folder / "test.parquet"))[column].to_numpy()


def values(found: Outcome, name: str) -> dict[str, float]:
    (planned,) = (p for p in found.test if p.name == name)
    return found.test[planned]


@pytest.mark.parametrize("name", ["base", "unbias", "floor"])
def test_a_product_is_judged_as_scikit_learn_judges_the_product_of_two_predictions(paper, name):
    shop, folder, found = paper
    click = predicted(found, folder, shop, "ctr", "p_click")
    given = predicted(found, folder, shop, name, "p_conversion_given_click")
    for metric, value in judged(shop, click * given, "conversion").items():
        assert values(found, name)[f"pctcvr/{metric}"] == pytest.approx(value, rel=1e-6)


def test_a_product_with_itself_is_the_marginal_of_the_run(paper):
    found = paper[2]
    assert values(found, "base")["pctcvr/log_loss"] == pytest.approx(
        values(found, "base")["conversion/log_loss"], rel=1e-6
    )
    assert values(found, "unbias")["pctcvr/log_loss"] != pytest.approx(values(found, "unbias")["conversion/log_loss"])


def test_columns_are_judged_as_scikit_learn_judges_them(paper):
    shop, folder, found = paper
    test, seen = pq.read_table(shop.folder / "test.parquet"), values(paper[2], "seen")
    click, given = (test[column].to_numpy() for column in SEEN.values())
    for metric in ("auc", "log_loss", "predicted_over_observed"):
        wanted = {
            "click": judged(shop, click, "click"),
            "conversion_given_click": judged(shop, given, "conversion", "click"),
            "conversion": judged(shop, click * given, "conversion"),
            "pctcvr": judged(shop, predicted(found, folder, shop, "ctr", "p_click") * given, "conversion"),
        }
        for space, values_of in wanted.items():
            exact = space in ("pctcvr", "conversion_given_click", "click") or metric != "auc"
            assert seen[f"{space}/{metric}"] == pytest.approx(values_of[metric], rel=1e-6 if exact else 1e-4)


def test_a_helper_is_trained_once_for_all_that_use_it_and_is_in_no_table(paper):
    _, folder, found = paper
    ran = [json.loads(p.read_text())["run"] for p in folder.glob("runs/*/finished.json")]
    assert sorted(ran) == ["floor, seed 0, sampler.floor=0.6", "helper ctr, seed 0", "unbias, seed 0"], "base is ctr"
    digest = {p.name: p.digest for p in found.runs}
    assert digest["base"] == digest["ctr"]
    for name in ("unbias", "floor"):
        config = yaml.safe_load((folder / "runs" / digest[name] / "config.yaml").read_text())
        assert config["sampler"]["run"] == str(folder / "runs" / digest["ctr"])
    assert not re.search(r"^\| (ctr|helper)", (folder / "table.md").read_text(), re.M)
    assert not {"ctr", "bad"} & {r["variant"] for r in results(folder)}


def test_a_helper_that_fails_fails_what_uses_it_and_nothing_else(paper):
    found = paper[2]
    assert set(found.failed) == {"helper bad, seed 0", "stuck, seed 0"}
    assert "ValueError: it broke" in found.failed["helper bad, seed 0"]
    told = "it is not trained, since it uses the helper bad, seed 0, which failed: tower 'broken' of "
    assert found.failed["stuck, seed 0"].startswith(told)
    assert {p.name for p in found.chosen} == {"base", "unbias", "floor", "seen"}


def test_the_folder_can_be_moved_and_nothing_is_trained_again(paper, tmp_path):
    shop, folder, _ = paper
    shutil.copytree(folder, tmp_path / "elsewhere")
    compare(shop.folder / "paper.yaml", out=tmp_path / "elsewhere")
    assert stamps(tmp_path / "elsewhere") == stamps(folder)
    assert results(tmp_path / "elsewhere") == results(folder)
    assert (tmp_path / "elsewhere" / "table.md").read_text() == (folder / "table.md").read_text()


def test_another_helper_is_another_run_of_what_uses_it(paper):
    shop, _, found = paper
    path = shop.folder / "other.yaml"
    path.write_text(yaml.safe_dump({**PAPER, "helpers": {**PAPER["helpers"], "ctr": ["optimizer.lr=0.1"]}}))
    now = {p.name: p.digest for p in Comparison(path).runs()}
    assert {p.name for p in found.runs if p.digest != now[p.name]} == {"ctr", "unbias", "floor"}


def test_a_product_of_different_rows_fails_its_run(done, tmp_path):
    shop, folder, _ = done
    shutil.copytree(folder / "runs", tmp_path / "runs")
    other = [f"data.test={shop.folder / 'validation.parquet'}"]
    product = {"p": {"parent": "other", "conditional": "conversion_given_click"}}
    keys = {"helpers": {"other": other}, "products": product, "report": ["p/auc"], "shares": None, "seeds": [0]}
    found = compare(written(shop, "rows", **keys, variants={"plain": []}), out=tmp_path)
    assert "its test rows (600 rows, " in found.failed["plain, seed 0"]
    assert "are not those of the helper (600 rows, " in found.failed["plain, seed 0"]
    assert "| plain | failed |" in (tmp_path / "table.md").read_text()


def test_columns_have_one_value_for_all_seeds_and_shares_and_can_be_compared_with(done, tmp_path):
    shop, folder, _ = done
    shutil.copytree(folder / "runs", tmp_path / "runs")
    variants = {"seen": {"columns": SEEN}, "plain": [], "again": {"columns": SEEN}}
    found = compare(written(shop, "columns", variants=variants), out=tmp_path)
    table, lines = (tmp_path / "table.md").read_text(), {m: f"## {m}\n" for m in METRICS}
    for metric, heading in lines.items():
        (value,) = {found.test[p][metric] for p in found.test if p.name == "seen"}
        assert f"| seen | {value:.4f} | {value:.4f} |" in table.partition(heading)[2]
        for share in (0.5, 1.0):
            runs = [p for p in found.test if (p.name, p.share) == ("plain", share)]
            told = found.differences["", share, metric, "plain"]
            assert told.seeds == 2
            assert told.difference.mean == pytest.approx(np.mean([found.test[p][metric] - value for p in runs]))
            assert found.differences["", share, metric, "again"].seeds == 1


def test_a_column_that_holds_no_probabilities_fails_alone_and_says_where(done, tmp_path):
    shop, folder, _ = done
    shutil.copytree(folder / "runs", tmp_path / "runs")
    test = pq.read_table(shop.folder / "test.parquet")
    shop.write(put(test, high=[1.5] * 600, holes=[None, *[0.5] * 599], ends=[0.0, *[1.0] * 599]), "odd.parquet")
    columns = {name: {"columns": {**SEEN, "click": name}} for name in ("high", "holes", "ends")}
    path = written(shop, "odd", variants={"plain": [], **columns}, shares=None, seeds=[0])
    found = compare(path, [f"data.test={shop.folder / 'odd.parquet'}"], out=tmp_path)
    assert re.search(r"odd.parquet, row group 0, row 0: high = 1.5 is no probability", found.failed["high, seed 0"])
    assert "the column 'holes' is null in 1 of 600 test rows" in found.failed["holes, seed 0"]
    assert {p.name for p in found.test} == {"plain", "ends"}, "0 and 1 are probabilities"


def test_a_model_of_columns_multiplies_them_along_any_chain():
    chain = Chain.parse(["impression -> click", "click -> cart | wish else browse", "cart -> buy", "wish -> buy"])
    names = ["click", "cart_given_click", "wish_given_click", "buy_given_cart", "buy_given_wish"]
    p = dict(zip(names, torch.rand(5, 100, dtype=torch.float64, generator=torch.manual_seed(0)), strict=True))
    p["wish_given_click"] *= 1 - p["cart_given_click"]
    none = torch.empty(100, 0)
    batch = Batch(none, {}, none, none, torch.ones(100), {f"c_{name}": values for name, values in p.items()})
    found = FromColumns(chain, {name: f"c_{name}" for name in names})(batch)
    ways = p["cart_given_click"] * p["buy_given_cart"] + p["wish_given_click"] * p["buy_given_wish"]
    browse = 1 - p["cart_given_click"] - p["wish_given_click"]
    for name, wanted in {**p, "buy": p["click"] * ways, "browse_given_click": browse}.items():
        torch.testing.assert_close(found.prob(*chain.addresses[name]), wanted, rtol=1e-12, atol=1e-15)
    batch.extras["c_wish_given_click"] += 1
    with pytest.raises(DataError, match="c_cart_given_click \\+ c_wish_given_click is above 1 in 100 of 100 test rows"):
        FromColumns(chain, {name: f"c_{name}" for name in names})(batch)


# -- conditions: a sweep over worlds

WORLDS = {
    "base": "world.yaml",
    "overrides": ["data.seed=${seed}"],
    "seeds": [0, 1],
    "report": ["conversion_given_click/auc", "click/log_loss"],
    "conditions": {"rho -0.6": ["data.rho=-0.6"], "rho 0.6": ["data.rho=0.6"]},
    "variants": {
        "esmm": {"choose": {"optimizer.lr": [0.001, 0.05]}},
        "oracle": {"columns": {n: f"true_{n}" for n in SEEN}},
    },
    "choose_by": CHOOSE,
}
WORLD = {
    "chain": CONFIG["chain"],
    "data": {"type": "simulator", "train": 2000, "validation": 1000, "test": 3000, "users": 30, "items": 20},
    "features": {"user_id": "id", "item_id": "id"},
    "embedding": {"dim": 4},
    "tower": {"type": "mlp", "hidden_units": [4]},
    "trainer": {"accelerator": "cpu", "max_steps": 4},
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """The folder with a finished sweep, and its outcome. Not to be changed."""
    folder = tmp_path_factory.mktemp("worlds")
    for name, tree in (("world", WORLD), ("worlds", WORLDS)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return folder, compare(folder / "worlds.yaml", out=folder / "out", workers=2)


def test_within_a_condition_all_is_as_with_its_overrides_alone(worlds, tmp_path):
    folder, found = worlds
    shutil.copytree(folder / "out" / "runs", tmp_path / "runs")
    before = stamps(tmp_path)
    for condition, overrides in WORLDS["conditions"].items():
        alone = {**WORLDS, "conditions": {}, "overrides": [*WORLDS["overrides"], *overrides]}
        (folder / "alone.yaml").write_text(yaml.safe_dump(alone))
        one = compare(folder / "alone.yaml", out=tmp_path)
        assert one.differences == {("", *k[1:]): v for k, v in found.differences.items() if k[0] == condition}
        mine = [{**r, "condition": ""} for r in results(folder / "out") if r["condition"] == condition]
        assert results(tmp_path) == mine
    assert stamps(tmp_path) == before, "nothing is done again"


def test_a_setting_is_chosen_for_each_condition(worlds):
    found = worlds[1]
    for condition in WORLDS["conditions"]:
        means = {}
        for planned in (p for p in found.planned if (p.name, p.condition) == ("esmm", condition)):
            means.setdefault(planned.setting, []).append(found.validation[planned.digest]["click/auc"])
        best = max(means, key=lambda s: np.mean(means[s]))
        assert {p.setting for p in found.chosen if (p.name, p.condition) == ("esmm", condition)} == {best}


def test_every_seed_is_a_world_of_its_own_and_differences_are_over_seeds(worlds):
    found = worlds[1]
    assert len({p.data for p in found.runs}) == 2 * 2, "seeds, conditions"
    assert len({found.test[p]["conversion_given_click/auc"] for p in found.test if p.name == "oracle"}) == 4
    for (condition, _, metric, _), told in found.differences.items():
        of = {(p.name, p.seed): v[metric] for p, v in found.test.items() if p.condition == condition}
        by_seed = np.array([of["oracle", seed] - of["esmm", seed] for seed in (0, 1)])
        assert told.difference == difference(by_seed)
        assert told.difference.mean > 0 or metric.endswith("log_loss")


def test_the_tables_have_a_column_for_each_condition_and_the_figures_are_there(worlds):
    folder, found = worlds
    table = (folder / "out" / "table.md").read_text()
    assert table.count("| variant | rho -0.6 | rho 0.6 |\n|---|---|---|\n| esmm | 0.") == 2
    assert table.count("| variant | condition | trained on | difference |") == 2
    for condition in WORLDS["conditions"]:
        told = found.differences[condition, 1.0, "click/log_loss", "oracle"].difference
        assert f"| oracle | {condition} | all rows | {told.mean:+.4f} | {told.low:+.4f} to {told.high:+.4f} |" in table
    figures = {p.name for p in (folder / "out" / "figures").iterdir()}
    assert figures == {"conversion_given_click_auc.png", "click_log_loss.png"}


def test_conditions_may_differ_in_their_test_rows_alone(done, tmp_path):
    shop, folder, _ = done
    shutil.copytree(folder / "runs", tmp_path / "runs")
    conditions = {"now": None, "later": [f"data.test={shop.folder / 'validation.parquet'}"]}
    path = written(shop, "later", conditions=conditions, shares=None, seeds=[0], variants={"plain": []})
    found = compare(path, out=tmp_path)
    assert len({p.digest for p in found.runs}) == 1
    now, later = (next(v for p, v in found.test.items() if p.condition == c) for c in conditions)
    assert now["click/log_loss"] != later["click/log_loss"] == pytest.approx(later["click/log_loss"])
    assert later["click/log_loss"] == pytest.approx(found.validation[found.runs[0].digest]["click/log_loss"], rel=1e-6)


# -- what is wrong in the file


def using(helper: str, key: str = "sampler.run") -> dict[str, object]:
    return {"variants": {"a": {**UNBIAS, "uses": {key: helper}}}}


def product(name="p", parent="ctr", conditional="conversion_given_click", choose=False) -> dict[str, object]:
    parts = {"parent": parent, "conditional": conditional}
    variant = {"choose": {"optimizer.lr": [0.1]}} if choose else {}
    products = {name: {k: v for k, v in parts.items() if v is not None}}
    return {"helpers": {"ctr": []}, "products": products, "variants": {"a": variant}}


def columns(of: dict[str, object], **keys: object) -> dict[str, object]:
    return {"variants": {"a": {"columns": of, **keys}}}


WRONG = [
    ({"base": "shpo.yaml"}, r"base: .*shpo.yaml: there is no such file. Did you mean 'shop.yaml'\?"),
    ({"base": None}, r"base: this is missing. It has to be text"),
    ({"sedes": [1]}, r"sedes: there is no such key. Did you mean 'seeds'\?"),
    ({"seeds": [0, 1, 0]}, r"seeds\[2\]: 0 stands there twice"),
    ({"seeds": []}, r"seeds: \[\] is not a list of whole numbers .* with a length of at least 1"),
    ({"shares": [0.5, 1.5]}, r"shares\[1\]: 1.5 is not a number above 0 and of at most 1"),
    ({"report": ["clik/auc"]}, r"report\[0\]: 'clik/auc' is not measured in 'plain'. Did you mean 'click/auc'\?"),
    ({"variants": {}}, "variants: there is none"),
    (
        {"variants": {"a": ["tower.dropuot=0.1"]}},
        r"variants.a: override .* no option 'dropuot'. Did you mean 'dropout'\?",
    ),
    ({"variants": {"a": ["seed=1"]}}, "variants.a: the comparison sets seed. Write seeds at the top instead"),
    ({"variants": {"a": {"choose": {"data.share": [0.1]}}}}, "the comparison sets data.share. Write shares"),
    ({"variants": {"a": {"choose": {"optimizer.lr": []}}}}, r"variants.a.choose.optimizer.lr: \[\] is not a list"),
    ({"variants": {"a": {"choose": {"optimizer.lr": [0.1, -1]}}}}, "variants.a: override 'optimizer.lr=-1'"),
    ({"choose_by": None}, "variants.wide.choose: which value is the best. Write choose_by"),
    ({"choose_by": {"metric": "click/acu", "mode": "max"}}, "choose_by.metric: 'click/acu' is not measured in 'wide'"),
    ({"choose_by": {"metric": "click/auc"}}, "choose_by.mode: this is missing. It has to be one of 'min', 'max'"),
    ({"against": "plane"}, r"against: there is no variant 'plane'. Did you mean 'plain'\?"),
    ({"variants": {"a": ["data.test=null"]}}, "variants.a: it has no data.test"),
    (
        {"variants": {"a": {"overrides": ["data.validation=null"], "choose": {"optimizer.lr": [1]}}}},
        "no validation rows",
    ),
    ({"conditions": {"c": ["optimizer.lr=-1"]}}, "conditions.c: override 'optimizer.lr=-1'"),
    ({"conditions": {"c": ["seed=1"]}}, "conditions.c: the comparison sets seed. Write seeds"),
    (
        {
            "conditions": {"c": ["chain=[impression -> click]"]},
            "report": ["click/auc"],
            "variants": {"a": ["labels.no=x"]},
        },
        "variants.a: under 'c': override 'labels.no=x'",
    ),
    ({"helpers": {"h": []}}, "helpers.h: nothing uses it. Name it under uses"),
    ({"helpers": {"h": ["data.share=0.1"]}, **using("h")}, "helpers.h: the comparison sets data.share"),
    ({"helpers": {"h": ["tower.dropuot=1"]}, **using("h")}, r"helpers.h: override .* no option 'dropuot'"),
    ({"helpers": {"ctr": []}, **using("crt")}, r"uses.sampler.run: there is no helper 'crt'. Did you mean 'ctr'\?"),
    (using("ctr"), r"uses.sampler.run: there is no helper 'ctr'. Write helpers: \{ctr: "),
    ({"helpers": {"h": []}, **using("h", "sampler.rnu")}, r"variants.a: .*no option 'rnu'. Did you mean 'run'\?"),
    ({"helpers": {"h": []}, **using("h", "seed")}, "variants.a: the comparison sets seed"),
    (
        {"helpers": {"h": ["features.age=null"]}, **using("h")},
        "uses.sampler.run: the helper 'h' reads other features than 'a'.*Give both the same features",
    ),
    (
        {"helpers": {"h": ["chain=[impression -> conversion]", "data.violations=drop"]}, **using("h")},
        "uses.sampler.run: the chain of the helper 'h' has no stage 'click'",
    ),
    (product(parent="crt"), r"products.p.parent: there is no helper 'crt'. Did you mean 'ctr'\?"),
    (product(conditional="conversion"), "products.p.conditional: 'conversion' is not the probability of a stage given"),
    (product(name="click"), "products.click: 'click' is a probability of the chain already"),
    (product(name="p", parent=None), "products.p.parent: this is missing"),
    ({**product(), "report": ["p/gauc"]}, r"report\[0\]: 'p/gauc' is not measured in 'a'. Did you mean 'p/auc'"),
    ({**product(), "helpers": {"ctr": ["data.test=null"]}}, "helpers.ctr: it has no data.test, and a product"),
    (
        {**product(), "helpers": {"ctr": ["chain=[impression -> conversion]"]}},
        "helpers.ctr: its chain has no stage 'click'",
    ),
    (
        {**product(), "report": ["click/auc"], "variants": {"a": ["chain=[impression -> click]"]}},
        "variants.a: its chain has another 'conversion_given_click' than the base, or none",
    ),
    ({"choose_by": {**CHOOSE, "metric": "p/auc"}, **product(choose=True)}, "choose_by.metric: 'p/auc' is not measured"),
    (columns({"click": "seen_click"}), "columns: there is no column for conversion_given_click. Write"),
    (
        columns({**SEEN, "conversion": "seen_conversion"}),
        "columns.conversion: columns give the probability of one step of the chain.*Did you mean",
    ),
    (
        columns(SEEN, overrides=["tower.dropout=0.1"]),
        "variants.a.overrides: nothing is trained where columns are judged",
    ),
    (columns(SEEN, choose={"optimizer.lr": [1]}), "variants.a.choose: nothing is trained where"),
    ({"helpers": {"h": []}, **columns(SEEN, uses={"sampler.run": "h"})}, "variants.a.uses: nothing is trained where"),
    (columns({"click": 3}), "variants.a.columns.click: 3 is not text"),
    (
        {"overrides": ["chain=[impression -> click -> conversion, conversion => revenue]"], **columns(SEEN)},
        "variants.a.columns: the chain has the value 'revenue'",
    ),
]


@pytest.mark.parametrize(("keys", "match"), WRONG, ids=[m[:40] for _, m in WRONG])
def test_what_is_wrong_in_the_file_is_said_with_its_place_before_anything_is_run(done, keys, match):
    path = written(done[0], "wrong", **keys)
    with pytest.raises(ConfigError, match=rf"wrong.yaml:\d+:\d+: .*{match}"):
        Comparison(path)


def test_a_column_that_is_not_there_is_said_before_anything_is_run(done):
    path = written(done[0], "wrong", variants={"a": {"columns": {**SEEN, "click": "sene_click"}}, "b": []})
    what = r"variants.a.columns.click: the test rows have no column 'sene_click'. Did you mean 'seen_click'\?"
    with pytest.raises(ConfigError, match=rf"wrong.yaml:\d+:\d+: {what}"):
        Comparison(path).runs()


def test_a_helper_of_which_nothing_is_reported_is_not_trained(done):
    asked = {
        name: Comparison(written(done[0], "asked", **{**product(), "report": [name]}))
        for name in ("p/auc", "click/auc")
    }
    assert [any(p.helper for p in comparison.runs()) for comparison in asked.values()] == [True, False]


def test_all_that_is_wrong_is_said_at_once(done):
    path = written(done[0], "wrong", report=["no/auc"], variants={"a": ["no=1"], "b": ["tower=no"], "c": []})
    with pytest.raises(ConfigError) as error:
        Comparison(path)
    assert [re.search(r": (\S+): ", p)[1] for p in error.value.problems] == ["report[0]", "variants.a", "variants.b"]


def test_the_example_can_be_run_and_opens_with_its_command():
    example = pages.HOME / "examples" / "compare.yaml"
    assert "#     espace compare examples/compare.yaml" in example.read_text().splitlines()[2]
    assert len([p for p in Comparison(example).runs() if not p.columns]) == 24


def test_each_worker_gets_its_part_of_the_threads(done, tmp_path, monkeypatch):
    shop, _, _ = done
    tower = shop.tower("counts", top="import torch", step="print('threads', torch.get_num_threads(), flush=True)")
    variants = {"counts": [f"plugins={json.dumps([str(shop.folder / tower)])}", "tower=counts"]}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    compare(written(shop, "threads", seeds=[0], shares=None, variants=variants), out=tmp_path, workers=2)
    (log,) = tmp_path.glob("runs/*.log")
    assert "threads 3\n" in log.read_text()
