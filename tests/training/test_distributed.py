"""Two ranks see the batches of one, and end where it ends, up to rounding."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch

from espace.training.checkpoint import read_checkpoint
from tests.processes import PATIENCE, code_of, start_ranks, wait_for
from tests.shop import Shop, rows
from tests.training.test_resume import SECTIONS

ROWS = 385  # 7 batches of 64: the last has one row, and rank 0 none of it


def table() -> pa.Table:
    """Clicks in the first 200 rows only: the later batches have none."""
    made = rows(ROWS)
    for name in ("click", "conversion"):
        values = np.where(np.arange(ROWS) < 200, made[name].to_numpy(), 0).astype(np.int8)
        made = made.set_column(made.schema.get_field_index(name), name, pa.array(values))
    return made


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    shop = Shop(tmp_path_factory.mktemp("shop")).fill(385)
    shop.write(table(), group=100)
    trainer = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "precision": "32-true",
        "log_every_n_steps": 2,
        "val_check_interval": 3,
    }
    sections = {"data": {**SECTIONS["data"], "shuffle": False}, "trainer": trainer, "objective": "parent_space"}
    tower = {"type": "mlp", "hidden_units": [8]}  # no dropout: the ranks would draw other numbers than one process
    sections["sharing"] = {"type": "mmoe", "experts": 2, "expert": tower}  # the mean weights of gates are compared too
    shop.yaml(**{**SECTIONS, **sections, "tower": tower, "metrics": {"gauc": {"type": "gauc", "by": "session"}}})
    return shop


def fit_alone(shop: Shop, *arguments: object) -> None:
    """In this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shop.folder)
        assert shop.espace("fit", *arguments).code == 0


def weights(run):
    return read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


def metrics(run):
    with (run / "metrics.csv").open() as file:
        return {(int(row["step"]), row["name"]): float(row["value"]) for row in csv.DictReader(file)}


def close(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[n], other[n], rtol=1e-4, atol=1e-5) for n in one)


def test_two_ranks_end_where_one_ends_even_in_batches_without_clicks(shop):
    more = ("shop.yaml", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.5")
    fit_alone(shop, *more, "--run-dir", "one")
    command = [sys.executable, "-m", "espace", "fit", *more, "--run-dir", "two", "trainer.devices=2"]
    said = subprocess.run(command, cwd=shop.folder, capture_output=True, text=True, timeout=PATIENCE)
    assert said.returncode == 0, said
    assert said.stdout.count("Which rows feed which loss term") == 1  # only the first rank speaks
    assert said.stderr == ""
    one, two = shop.folder / "one", shop.folder / "two"
    assert close(weights(one), weights(two))
    assert metrics(two) == pytest.approx(metrics(one), rel=1e-5, abs=1e-6, nan_ok=True)
    with (two / "metrics.csv").open() as file:
        assert len(metrics(two)) == len(list(csv.DictReader(file)))
    assert results(one).keys() == results(two).keys()


def results(run):
    return json.loads((run / "results.json").read_text())


def test_a_signal_to_the_first_rank_stops_all_and_one_process_can_go_on(shop):
    arguments = ("shop.yaml", "trainer.max_epochs=12")
    said, last = shop.folder / "stopped.txt", shop.folder / "stopped" / "checkpoints" / "last.ckpt"
    ranks = start_ranks(shop.folder, said, "fit", *arguments, "--run-dir", "stopped")
    wait_for(last.exists, ranks[0])
    os.kill(ranks[0].pid, signal.SIGTERM)
    assert [code_of(rank) for rank in ranks] == [143, 0], said.read_text()
    assert said.read_text().count("espace fit --resume stopped") == 1
    assert "Traceback" not in said.read_text()
    fit_alone(shop, "--resume", "stopped", *arguments[1:], "trainer.devices=1", "trainer.strategy=auto")
    fit_alone(shop, *arguments, "--run-dir", "straight")
    assert close(weights(shop.folder / "straight"), weights(shop.folder / "stopped"))


@pytest.mark.parametrize("killed", [0, 1])
def test_when_a_rank_is_killed_the_other_ends_with_one_message_and_the_run_can_go_on(shop, killed):
    run = f"killed{killed}"
    arguments = ("shop.yaml", "trainer.max_epochs=40")
    said, last = shop.folder / f"{run}.txt", shop.folder / run / "checkpoints" / "last.ckpt"
    ranks = start_ranks(shop.folder, said, "fit", *arguments, "--quiet", "--run-dir", run)
    wait_for(last.exists, ranks[0])
    os.kill(ranks[killed].pid, signal.SIGKILL)
    codes = [code_of(rank) for rank in ranks]
    assert codes[killed] == 137
    assert codes[1 - killed] == 2, said.read_text()
    assert said.read_text().count(f"espace: {run}: another of the 2 processes has ended") == 1
    assert "Traceback" not in said.read_text()
    fit_alone(shop, "--resume", run, "trainer.max_epochs=40", "trainer.devices=1", "trainer.strategy=auto")
    fit_alone(shop, *arguments, "--run-dir", f"{run}_straight")
    assert close(weights(shop.folder / f"{run}_straight"), weights(shop.folder / run))


def test_a_rank_that_dies_before_the_ranks_have_met_ends_the_run_with_one_message(shop):
    kill = "if os.environ.get('LOCAL_RANK') == '1': os.kill(os.getpid(), 9)"
    plugin = shop.tower("deadly", top="import os", build=kill)
    (shop.folder / "meet.yaml").write_text((shop.folder / "shop.yaml").read_text())
    command = [sys.executable, "-m", "espace", "fit", "meet.yaml", f"plugins=[{plugin}]", "towers={conversion: deadly}"]
    command += ["--quiet", "--run-dir", "never_met", "trainer.devices=2"]
    said = subprocess.run(command, cwd=shop.folder, capture_output=True, text=True, timeout=PATIENCE)
    assert said.returncode not in (0, 1), said
    assert said.stderr.count("espace: never_met: another of the processes was killed by signal 9, so that") == 1
    assert "Traceback" not in said.stderr


def test_a_loss_that_is_not_finite_stops_all_ranks_with_one_message(shop):
    said = shop.folder / "nan.txt"
    ranks = start_ranks(shop.folder, said, "fit", "shop.yaml", "--quiet", "--run-dir", "nan", "optimizer.lr=1e30")
    assert [code_of(rank) for rank in ranks] == [3, 0], said.read_text()
    assert said.read_text().count("espace: step 2: the loss is nan") == 1
    assert "Traceback" not in said.read_text()
