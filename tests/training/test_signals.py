"""Real processes, really killed: what is left can be resumed, and ends with the same bits as an uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from espace.training.callbacks import Checkpoints, Interrupted, Interrupts
from espace.training.checkpoint import read_checkpoint
from tests.processes import code_of, start, wait_for
from tests.shop import Shop, rows
from tests.training.test_resume import SECTIONS, differences

KILLS = 5
CHAIN = ["impression -> click -> conversion"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A shop with an experiment of 56 batches, and its uninterrupted run."""
    shop = Shop(tmp_path_factory.mktemp("shop")).fill(440)
    shop.write(rows(440), group=100)
    trainer = {"accelerator": "cpu", "max_epochs": 8, "log_every_n_steps": 2, "val_check_interval": 3}
    shop.yaml(**{**SECTIONS, "checkpoint_every": 1, "trainer": trainer})
    assert fit(shop, "whole") == 0
    return shop


def fit(shop: Shop, run: str, *more: str) -> int:
    return code_of(start(shop.folder, shop.folder / f"{run}.txt", "fit", "shop.yaml", "--run-dir", run, *more))


def said(shop: Shop, run: str) -> str:
    return (shop.folder / f"{run}.txt").read_text()


def last_of(run: Path) -> tuple[int, int] | None:
    """Changes whenever last.ckpt does."""
    try:
        found = (run / "checkpoints" / "last.ckpt").stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(shop):
    run, choice = shop.folder / "killed", random.Random(1)
    codes, arguments = [], ["shop.yaml", "--run-dir", "killed"]
    while not codes or codes[-1] != 0:
        before = last_of(run)
        process = start(shop.folder, shop.folder / "killed.txt", "fit", *arguments)
        if len(codes) < KILLS:
            wait_for(lambda: last_of(run) not in (None, before), process)  # noqa: B023
            time.sleep(choice.uniform(0, 0.1))
            process.kill()
        codes.append(code_of(process))
        for name in ("last", "best"):
            if name == "last" or (run / "checkpoints" / "best.ckpt").exists():
                read_checkpoint(run / "checkpoints" / f"{name}.ckpt")
        arguments = ["--resume", "killed"]
    assert codes == [137] * KILLS + [0]
    assert differences(shop.folder / "whole", run) == []
    assert results(shop, "killed") == results(shop, "whole")


def results(shop: Shop, run: str) -> dict:
    return json.loads((shop.folder / run / "results.json").read_text())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_in_hand_and_says_how_to_go_on(shop, number):
    name = f"stopped by {number.name}"
    run = shop.folder / name
    process = start(shop.folder, shop.folder / f"{name}.txt", "fit", "shop.yaml", "--run-dir", name)
    wait_for(lambda: last_of(run) is not None, process)
    os.kill(process.pid, number)
    assert code_of(process) == 128 + number
    step = read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"]
    assert f"Stopped after step {step}; everything is saved. Go on with\n    espace fit --resume {name}" in said(
        shop, name
    )
    assert "Traceback" not in said(shop, name)
    assert not (run / "results.json").exists()
    assert code_of(start(shop.folder, shop.folder / f"{name}.txt", "fit", "--resume", name)) == 0
    assert differences(shop.folder / "whole", run) == []


def test_a_signal_waits_for_accumulated_gradients(shop):
    more = ("trainer.accumulate_grad_batches=3", "trainer.val_check_interval=4", "checkpoint_every=null")
    run = shop.folder / "accumulated"
    process = start(shop.folder, shop.folder / "accumulated.txt", "fit", "shop.yaml", "--run-dir", "accumulated", *more)
    wait_for(lambda: last_of(run) is not None, process)
    os.kill(process.pid, signal.SIGTERM)
    assert code_of(process) == 143
    batches = read_checkpoint(run / "checkpoints" / "last.ckpt")["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert batches["current"]["processed"] in (3, 6, 7)


def test_ctrl_c_while_the_data_is_read_leaves_no_traceback_and_no_folder(tmp_path):
    shop = Shop(tmp_path)
    shop.yaml(chain=CHAIN, data={"type": "simulator", "train": 100_000_000}, features={"user_id": "id"}, metrics={})
    process = start(tmp_path, tmp_path / "said.txt", "fit", "shop.yaml", "--run-dir", "run")
    wait_for((tmp_path / "run").exists, process)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    assert code_of(process) == 130
    assert (tmp_path / "said.txt").read_text() == "espace: interrupted\n"
    assert not (tmp_path / "run").exists()


def test_the_second_signal_stops_at_once_and_handlers_are_put_back(tmp_path):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with Interrupts(Checkpoints(tmp_path, "val/loss", "min", None, None)) as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.received == signal.SIGINT
        with pytest.raises(Interrupted) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.value.exit_code == 143
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
