"""A comparison: its tables are what its runs predicted, test rows are read once, nothing is done twice, failures stay alone."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score

from espace.compare import compare
from espace.comparison import Comparison
from espace.errors import ConfigError
from espace.runs import load
from tests import pages
from tests.processes import code_of, start, wait_for
from tests.shop import CONFIG, SPLITS, Shop

METRICS = ["conversion_given_click/auc", "click/auc", "conversion/log_loss"]
DONE = ("finished.json", "test.json")
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
BREAKS = "raise ValueError('it broke')"


def shop_in(folder: Path) -> Shop:
    """A shop whose files have full paths, so that it can be used from anywhere."""
    shop = Shop(folder).fill(600)
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
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.glob("runs/*/*.json") if p.name in DONE}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The shop, the folder of a finished comparison, and what the command said. Not to be changed."""
    shop = shop_in(tmp_path_factory.mktemp("compared"))
    folder = shop.folder / "out"
    return shop, folder, shop.espace("compare", written(shop), "--out", folder, "--workers", 2)


def test_a_variant_that_fails_is_told_and_stops_nothing_else(done):
    _, folder, said = done
    assert said.code == 1
    assert "espace: broken, seed 1 failed: ValueError: it broke" in said.error
    assert "broken, 0.5 of the rows, seed 0: train failed. ValueError: it broke (log: " in said.out
    table = (folder / "table.md").read_text()
    assert "| broken | failed | failed |" in table
    assert "* broken, seed 1: ValueError: it broke" in table
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
        kept, space = np.load(folder / "runs" / row["run"] / "test.npz"), row["metric"].removesuffix("/auc")
        labels, odds, weights = (kept[f"{space}/{name}"] for name in ("labels", "log_odds", "weights"))
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
    kept = np.load(folder / "runs" / row["run"] / "test.npz")
    p = table["p_click"].to_numpy()
    np.testing.assert_allclose(kept["click/log_odds"], np.log(p) - np.log1p(-p), rtol=1e-4, atol=1e-5)


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
    judged = {p.parent.name for p in folder.glob("runs/*/test.json")}
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
    after = stamps(tmp_path)
    assert {k for k in before if before[k] != after[k]} == {k for k in before if k.endswith("test.json")}
    (digest,) = found.test
    for metric in ("loss", "click/log_loss", "conversion/predicted_over_observed"):
        assert found.test[digest][metric] == pytest.approx(found.validation[digest][metric], rel=1e-6)


def test_a_killed_run_is_told_by_its_signal(done, tmp_path):
    shop, _, _ = done
    dies = shop.tower("dies", step="__import__('os').kill(__import__('os').getpid(), 9)")
    plugins = json.dumps([str(shop.folder / dies)])
    variants = {"plain": [], "dies": [f"plugins={plugins}", "tower=dies"]}
    found = compare(written(shop, "dying", seeds=[0], shares=None, variants=variants), out=tmp_path)
    assert found.failed == {"dies, seed 0": "its process was killed by signal 9"}
    assert [p.variant for p in found.chosen] == ["plain"]


def test_changed_data_is_another_run(done):
    shop, _, _ = done
    path = written(shop, "digests")
    digests = [p.digest for p in Comparison(path).runs()]
    assert digests == [p.digest for p in Comparison(path, ["data.workers=0"]).runs()]
    assert len(set(digests)) == 12
    for change in ("tower.dropout=0.1", f"data.train={shop.folder / 'test.parquet'}", "features.age=null"):
        changed = {p.digest for p in Comparison(path, [change]).runs() if p.variant != "broken"}
        assert not changed & set(digests)


WRONG = [
    ({"base": "shpo.yaml"}, r"base: .*shpo.yaml: there is no such file. Did you mean 'shop.yaml'\?"),
    ({"base": None}, r"base: this is missing. It has to be text"),
    ({"sedes": [1]}, r"sedes: there is no such key. Did you mean 'seeds'\?"),
    ({"seeds": [0, 1, 0]}, r"seeds\[2\]: 0 stands there twice"),
    ({"seeds": []}, r"seeds: \[\] is not a list of whole numbers with a length of at least 1"),
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
]


@pytest.mark.parametrize(("keys", "match"), WRONG, ids=[m[:40] for _, m in WRONG])
def test_what_is_wrong_in_the_file_is_said_with_its_place_before_anything_is_run(done, keys, match):
    path = written(done[0], "wrong", **keys)
    with pytest.raises(ConfigError, match=rf"wrong.yaml:\d+:\d+: .*{match}"):
        Comparison(path)


def test_all_that_is_wrong_is_said_at_once(done):
    path = written(done[0], "wrong", report=["no/auc"], variants={"a": ["no=1"], "b": ["tower=no"], "c": []})
    with pytest.raises(ConfigError) as error:
        Comparison(path)
    assert [re.search(r": (\S+): ", p)[1] for p in error.value.problems] == ["report[0]", "variants.a", "variants.b"]


def test_the_example_can_be_run_and_opens_with_its_command():
    example = pages.HOME / "examples" / "compare.yaml"
    assert "#     espace compare examples/compare.yaml" in example.read_text().splitlines()[2]
    assert len(Comparison(example).runs()) == 24


def test_each_worker_gets_its_part_of_the_threads(done, tmp_path, monkeypatch):
    shop, _, _ = done
    tower = shop.tower("counts", top="import torch", step="print('threads', torch.get_num_threads(), flush=True)")
    variants = {"counts": [f"plugins={json.dumps([str(shop.folder / tower)])}", "tower=counts"]}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    compare(written(shop, "threads", seeds=[0], shares=None, variants=variants), out=tmp_path, workers=2)
    (log,) = tmp_path.glob("runs/*.log")
    assert "threads 3\n" in log.read_text()
