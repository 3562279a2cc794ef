"""A run folder is made once, belongs to one process at a time, and whatever was left in it there is one way on."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from espace.config import Config
from espace.errors import RunError
from espace.runs.experiment import Experiment
from espace.runs.failing import explained
from espace.runs.folder import new_folder, owned, refuse_taken
from espace.training.checkpoint import read_checkpoint, write_checkpoint
from tests.processes import code_of, wait_for
from tests.shop import CONFIG

PREDICT = ("--data", "test.parquet", "--out", "p.parquet")


@pytest.fixture
def config(shop) -> Config:
    return Experiment.from_yaml(shop.yaml()).config


@pytest.fixture
def copied(shop, trained):
    """A copy of the trained run, to be changed."""
    shutil.copytree(trained.run, "run")
    return shop


def rewritten(name: str, change) -> None:
    """A checkpoint of the copy with another content, and the right digest."""
    file = Path("run/checkpoints") / f"{name}.ckpt"
    content = read_checkpoint(file)
    changed = change(content)
    write_checkpoint(content if changed is None else changed, file)


def test_runs_that_begin_in_the_same_second_have_a_folder_each(config):
    made = [new_folder(config, None) for _ in range(4)]
    assert len({*made}) == 4
    assert all(path.is_dir() for path in made)


def test_a_folder_has_one_owner_who_is_named_and_what_a_dead_one_left_is_nothing(config, tmp_path):
    folder = tmp_path / "run"
    for _ in range(2):
        new_folder(config, folder)
        with owned(folder):
            refuse_taken(folder)
            told = rf"run: process {os.getpid()} on .*, since .*, is training there\. Wait until it ends"
            with pytest.raises(RunError, match=told), owned(folder):
                pass
        assert not (folder / ".owner").exists()
        (folder / ".owner").write_text("process 1 on a host that is gone")
        (folder / "config.yaml.partial").write_text("name: sh")
        refuse_taken(folder)


def keep(folder: str) -> None:
    with owned(Path(folder)):
        signal.pause()


def test_a_process_keeps_its_folder_until_it_is_killed(copied):
    process = get_context("forkserver").Process(target=keep, args=("run",))
    process.start()
    wait_for(lambda: Path("run/.owner").exists() and bool(Path("run/.owner").read_text()), process)
    for command in (["shop.yaml", "--run-dir", "run"], ["--resume", "run"]):
        copied.yaml()
        said = copied.espace("fit", *command)
        assert (said.code, f"run: process {process.pid} on" in said.error) == (2, True), said
    process.kill()
    assert code_of(process) == 137
    with owned(Path("run")):
        assert str(os.getpid()) in Path("run/.owner").read_text()


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_as_the_message_says(copied):
    whole = read_checkpoint(Path("run/checkpoints/last.ckpt"))["state_dict"]
    metrics = Path("run/metrics.csv").read_text()
    shutil.rmtree("run/checkpoints")
    Path("run/results.json").unlink()
    said = copied.espace("fit", copied.yaml(), "--run-dir", "run")
    assert said.code == 2
    assert "stopped there before its first checkpoint. Begin it again by espace fit --resume run, or" in said.error
    said = copied.espace("fit", "--resume", "run")
    assert said.code == 0, said
    assert "run: the run was stopped before its first checkpoint, so it begins at the start" in " ".join(
        said.out.split()
    )
    assert Path("run/metrics.csv").read_text() == metrics
    again = read_checkpoint(Path("run/checkpoints/last.ckpt"))["state_dict"]
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_weights_without_a_place_to_go_on_from_are_not_written_over(copied):
    Path("run/checkpoints/last.ckpt").unlink()
    for arguments, way in (
        (["--resume", "run"], "there is no checkpoints/last.ckpt to go on from. Start again with another --run-dir"),
        (["shop.yaml", "--run-dir", "run"], "it exists and is not empty. Choose another --run-dir"),
    ):
        copied.yaml()
        said = copied.espace("fit", *arguments)
        assert (said.code, way in said.error) == (2, True), said


def test_a_run_goes_on_as_its_checkpoint_says_whatever_became_of_its_yaml(copied):
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("lr: 0.01", "lr: 1.0"))
    said = copied.espace("fit", "--resume", "run")
    assert said.code == 2
    assert (
        "run: it was begun with another optimizer. optimizer.lr was 0.01, now it is 1.0. What may change" in said.error
    )


def test_a_format_that_is_not_known_is_refused(copied):
    for name in ("best", "last"):
        rewritten(name, lambda c: c["espace"].update(format=2))
    for command in (["predict", "run", *PREDICT], ["evaluate", "run"], ["fit", "--resume", "run"]):
        said = copied.espace(*command)
        assert said.code == 2
        assert (
            ".ckpt: its format is 2, and espace 0.1.0 knows format 1 only. Use the espace that wrote it" in said.error
        )


def setting(path: str, value):
    """What puts a value at `a/b/c` of a content; a function gets the old one."""

    def change(content) -> None:
        *way, last = path.split("/")
        for step in way:
            content = content[step]
        content[last] = value(content[last]) if callable(value) else value

    return change


def dropping(path: str):
    def change(content) -> None:
        *way, last = path.split("/")
        for step in way:
            content = content[step]
        del content[last]

    return change


VOCABULARY = "espace/encoder/tables/user_id"
TEXTS = "espace/encoder/tables/item_id"
PRICE = "espace/encoder/numbers/price"
WEIGHT = "state_dict/model.heads.:impression_to_click.weight"
WRONG = {
    "nothing of espace": dropping("espace"),
    "espace's is a list": setting("espace", [1]),
    "no format": dropping("espace/format"),
    "a format in words": setting("espace/format", "one"),
    "no configuration": dropping("espace/config"),
    "a configuration that is text": setting("espace/config", "lr: 1"),
    "an option of another type": setting("espace/config/seed", "x"),
    "no chain": dropping("espace/config/chain"),
    "plugins that are a number": setting("espace/config/plugins", 3),
    "no encoder": dropping("espace/encoder"),
    "an encoder that is a number": setting("espace/encoder", 1),
    "no vocabulary": dropping(VOCABULARY),
    "a vocabulary that is a list": setting(VOCABULARY, [1, 2]),
    "fewer counts": setting(f"{VOCABULARY}/counts", lambda t: t[:-1]),
    "a vocabulary of fractions": setting(f"{VOCABULARY}/numbers", lambda t: t.double()),
    "texts without ends": dropping(f"{TEXTS}/ends"),
    "texts that end too late": setting(f"{TEXTS}/ends", lambda t: t + 1),
    "texts that end before they begin": setting(f"{TEXTS}/ends", lambda t: t.flip(0)),
    "texts that are none": setting(f"{TEXTS}/text", lambda t: t * 0 + 255),
    "buckets below none": setting("espace/encoder/tables/place", -3),
    "no statistics": dropping(PRICE),
    "statistics that are text": setting(PRICE, ["a", "b", []]),
    "a mean that is not finite": setting(PRICE, [float("nan"), 1.0, []]),
    "a deviation of 0": setting(PRICE, [0.0, 0.0, []]),
    "edges out of order": setting("espace/encoder/numbers/age", [0.0, 1.0, [3.0, 2.0, 1.0, 0.0]]),
    "no weights": dropping("state_dict"),
    "weights that are a list": setting("state_dict", [1]),
    "a weight less": dropping(WEIGHT),
    "a weight that is text": setting(WEIGHT, "w"),
    "a weight of another shape": setting(WEIGHT, lambda t: t[:, :-1]),
    "a weight that is not finite": setting(WEIGHT, lambda t: t * np.nan),
}
WRONG_PLACE = {
    "no state of the optimiser": dropping("optimizer_states"),
    "an empty state of the optimiser": setting("optimizer_states", []),
    "a state that is text": setting("optimizer_states", "adam"),
    "no parameters in it": setting("optimizer_states", [{"state": {}, "param_groups": []}]),
    "no loops": dropping("loops"),
    "loops of another kind": setting("loops/fit_loop", {"epoch": 1}),
    "no step": dropping("global_step"),
    "a step in words": setting("global_step", "many"),
    "no place of the metrics": dropping("espace_metrics"),
    "a place of the metrics in words": setting("espace_metrics/size", "all"),
    "sums of other terms": setting("espace_metrics/window", {"sums": torch.ones(7), "rows": torch.ones(7)}),
    "sums in words": setting("espace_metrics/window", {"sums": "many", "rows": torch.ones(2)}),
    "whole numbers as sums": setting(
        "espace_metrics/window", {n: torch.ones(2, dtype=torch.int64) for n in ("sums", "rows")}
    ),
    "callbacks that are a list": setting("callbacks", [1]),
    "rows seen in the future": setting(
        "optimizer_states",
        lambda s: [
            {
                **s[0],
                "state": {i: {**v, "seen": v["seen"] + 9999} if "seen" in v else v for i, v in s[0]["state"].items()},
            }
        ],
    ),
    "steps that are missing": setting(
        "optimizer_states",
        lambda s: [{**s[0], "missed": {i: {**m, "rules": m["rules"][:1]} for i, m in s[0]["missed"].items()}}],
    ),
    "moments of another shape": setting(
        "optimizer_states",
        lambda s: [{**s[0], "state": {i: {**v, "exp_avg": torch.zeros(3, 7)} for i, v in s[0]["state"].items()}}],
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_checkpoint_with_a_wrong_content_is_told_by_its_name_with_a_way_out(copied, what):
    rewritten("best", WRONG[what])
    said = copied.espace("predict", "run", *PREDICT)
    assert said.code == 2
    assert said.error.startswith("espace: run")
    assert any(way in said.error for way in ("Use another checkpoint", "Use the plugins as they were", "not hold here"))


@pytest.mark.parametrize("what", [*WRONG_PLACE, "no configuration", "espace's is a list", "a weight of another shape"])
def test_a_run_does_not_go_on_from_a_wrong_content(copied, what):
    rewritten("last", {**WRONG, **WRONG_PLACE}[what])
    said = copied.espace("fit", "--resume", "run", "trainer.max_epochs=3", "-q")
    assert said.code == 2, said
    assert said.error.startswith("espace: run")


def test_a_full_disk_at_the_start_is_told_with_a_way_out_that_works(shop):
    (shop.folder / "run").mkdir()
    (shop.folder / "run" / "config.yaml.partial").symlink_to("/dev/full")
    said = shop.espace("fit", shop.yaml(), "--run-dir", "run")
    assert said.code == 2
    assert "run: it cannot be written: No space left on device. Choose another --run-dir" in said.error
    assert not (shop.folder / "run").exists()
    small = {**CONFIG["trainer"], "max_steps": 1, "max_epochs": 1}
    assert shop.espace("fit", shop.yaml(trainer=small), "--run-dir", "run").code == 0


@pytest.mark.parametrize(
    ("error", "ranks", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "run/metrics.csv"),
            1,
            r"run/metrics\.csv: it cannot be written",
        ),
        (OSError(errno.EROFS, "Read-only file system"), 1, r"run: it cannot be written: Read-only file system"),
        (RuntimeError("[gloo/tcp/pair.cc:534] Connection closed by peer [::1]"), 2, r"another of the 2 processes has"),
    ],
)
def test_what_is_nobodys_bug_is_told_with_a_way_out(error, ranks, says):
    with pytest.raises(RunError, match=rf"{says}.*espace fit --resume run"), explained(Path("run"), None, bool, ranks):
        raise error


def test_what_is_a_bug_stays_one():
    with pytest.raises(RuntimeError, match="peer"), explained(Path("run"), None, bool, 1):
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(ValueError, match="bug"), explained(Path("run"), Path("last.ckpt"), lambda: True, 2):
        raise ValueError("bug")


def named_as_before(content) -> None:
    """Modules stood under their plain names."""
    content["state_dict"] = {name.replace(".:", "."): value for name, value in content["state_dict"].items()}


def without_kinds(content) -> None:
    del content["espace"]["encoder"]["kinds"]


@pytest.mark.parametrize(
    ("change", "says"),
    [(named_as_before, "which named weights otherwise"), (without_kinds, "did not keep what kind of values each")],
)
def test_a_checkpoint_of_a_development_version_is_refused_with_the_way_out(copied, change, says):
    for name in ("best", "last"):
        rewritten(name, change)
    resume = ("fit", "--resume", "run", "trainer.max_epochs=3")
    for command in (("predict", "run", *PREDICT), ("evaluate", "run"), resume):
        said = copied.espace(*command)
        assert said.code == 2
        assert says in said.error
        assert "or train again." in said.error
