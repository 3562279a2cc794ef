"""A checkpoint runs no code but that of plugins that the user names, or with which the user has trained it there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

import espace
from espace.errors import RunError
from espace.runs import trust
from espace.training.checkpoint import read_checkpoint, write_checkpoint
from tests.shop import Shop

MARK = "import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch()"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with a tower of the user's own, in a file that leaves a mark when it runs."""
    shop = Shop(tmp_path_factory.mktemp("made")).fill(300)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shop.folder)
        trainer = {"accelerator": "cpu", "max_steps": 1}
        yaml = shop.yaml(plugins=[shop.tower("flat", top=MARK)], tower="flat", trainer=trainer)
        said = shop.espace("fit", yaml, "--run-dir", "run")
    assert said.code == 0, said
    return shop


@pytest.fixture
def shop(made, tmp_path, monkeypatch):
    """A copy, as it comes by mail: the run folder, and the plugin that it names beside it."""
    shutil.copytree(made.folder, tmp_path / "got")
    monkeypatch.chdir(tmp_path / "got")
    copy = Shop(tmp_path / "got")
    (copy.folder / "flat.ran").unlink()
    for name in ("best", "last"):
        file = copy.folder / "run" / "checkpoints" / f"{name}.ckpt"
        content = read_checkpoint(file)
        content["espace"]["config"]["plugins"] = [str(copy.folder / "flat.py")]
        write_checkpoint(content, file)
    config = copy.folder / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(made.folder), str(copy.folder)))
    return copy


def test_a_run_of_ones_own_loads_its_plugins_where_it_was_made(made, monkeypatch):
    monkeypatch.chdir(made.folder)
    for place in ("run", "run/checkpoints/best.ckpt"):
        assert espace.load(place).registry.get("towers", "flat").package == str(made.folder / "flat.py")
    assert made.espace("fit", "--resume", "run", "-q").code == 0
    monkeypatch.chdir(made.folder.parent)
    assert espace.load(f"{made.folder.name}/run").model.towers


@pytest.mark.parametrize("place", ["run", "run/checkpoints/best.ckpt", "alone.ckpt"])
def test_a_run_from_elsewhere_runs_no_code_until_the_user_names_its_plugin(shop, place):
    shutil.copy("run/checkpoints/best.ckpt", "alone.ckpt")
    plugin, out = str(shop.folder / "flat.py"), ["--out", "out.parquet"]
    said = shop.espace("predict", place, "--data", "test.parquet", *out)
    assert said.code == 2
    assert f"{place}: it was trained with {plugin}, and loading that would run its code" in said.error
    assert f"name it: --plugin {plugin}, or espace.load(..., plugins=['{plugin}'])" in said.error
    with pytest.raises(RunError, match=r"name it: --plugin .*flat\.py"):
        espace.load(place)
    assert not Path("flat.ran").exists()
    said = shop.espace("predict", place, "--data", "test.parquet", *out, "--plugin", "./flat.py")
    assert said.code == 0, said
    assert Path("flat.ran").exists()


def test_evaluating_and_going_on_run_no_code_from_elsewhere_either(shop):
    plugin = shop.folder / "flat.py"
    for command in (["evaluate", "run"], ["fit", "--resume", "run"]):
        said = shop.espace(*command)
        assert (said.code, f"trained with {plugin}" in said.error) == (2, True), said
    assert not Path("flat.ran").exists()
    assert shop.espace("evaluate", "run", "--plugin", "./flat.py").code == 0
    said = shop.espace("fit", "--resume", "run", f"plugins=[{plugin}]", "trainer.max_steps=2", "-q")
    assert said.code == 0, said
    assert espace.load("run").model.towers  # now this user has trained it here


def test_a_plugin_that_moved_is_named_by_its_new_place_and_what_is_left_out_is_told(shop):
    Path("flat.py").rename("moved.py")
    assert espace.load("run", plugins=["./moved.py"]).model.towers
    shop.tower("other")
    with pytest.raises(RunError, match=r"no tower 'flat'.*Left out, since nobody named them: .*flat\.py"):
        espace.load("run", plugins=["./other.py"])


def test_the_record_is_believed_only_for_the_folder_the_plugins_and_the_user_that_it_names(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    trust.remember(folder, ["./a.py", "b"])
    assert trust.chosen(folder, ["./a.py", "b"]) == (["./a.py", "b"], [])
    with pytest.raises(RunError, match=r"it was trained with \./c\.py, and"):
        trust.chosen(folder, ["./a.py", "./c.py"])
    record = trust._record(folder)
    record.chmod(0o666)
    with pytest.raises(RunError, match="nobody vouches for it"):
        trust.chosen(folder, ["b"])
    record.chmod(0o600)
    folder.rename(tmp_path / "elsewhere")
    folder.mkdir()
    with pytest.raises(RunError, match="nobody vouches for it"):
        trust.chosen(folder, ["b"])
    if os.getuid() == 0:
        (tmp_path / "elsewhere").rename(tmp_path / "run")
        assert trust.chosen(folder, ["b"]) == (["b"], [])
        os.chown(record, 12345, 12345)
        with pytest.raises(RunError, match="nobody vouches for it"):
            trust.chosen(folder, ["b"])


def test_a_run_without_plugins_leaves_no_record_and_needs_none(trained):
    assert not trust._record(trained.run).exists()
    assert all(torch.isfinite(p).all() for p in espace.load(trained.run).model.parameters())
