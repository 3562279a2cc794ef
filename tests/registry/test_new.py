"""`espace new`: the folder it writes works as it is, and every mistake gets one message with a way out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from espace.errors import EspaceError
from espace.registry import new
from espace.registry import registry as plugins
from tests.shop import Shop

HOME = Path(__file__).parents[2]
FILES = ["README.md", "made_up.yaml", "pyproject.toml", "espace_made_up/__init__.py", "tests/test_made_up.py"]
FEW = ["data.train=2000", "data.validation=1000", "data.test=1000", "trainer.accelerator=cpu", "--quiet"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `espace new tower made_up` writes, below the working directory."""
    monkeypatch.chdir(tmp_path)
    new.create("tower", "made_up")
    return tmp_path / "espace-made_up"


def run(*command: object, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# What it writes


def test_it_writes_a_package_with_tests_and_an_experiment(folder: Path) -> None:
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert sorted(path.relative_to(folder).as_posix() for path in written) == sorted(FILES)
    text = "".join(path.read_text() for path in written)
    assert not [mark for mark in ("$", "NAME") if mark in text], "every place is filled in"
    assert "class MadeUp(nn.Module)" in text


def test_it_says_what_to_type_next(shop: Shop) -> None:
    said = shop.espace("new", "tower", "made_up")
    assert (said.code, said.error) == (0, "")
    commands = [line.strip() for line in said.out.splitlines() if line.startswith("    ")]
    assert commands == [
        "pip install -e ./espace-made_up pytest",
        "pytest ./espace-made_up",
        "espace fit ./espace-made_up/made_up.yaml",
    ]


def test_the_folder_may_be_named(shop: Shop) -> None:
    said = shop.espace("new", "tower", "made_up", "--folder", "my towers/mine")
    assert "    pip install -e './my towers/mine' pytest\n" in said.out, "in the words that a shell takes"
    assert all((shop.folder / "my towers" / "mine" / file).is_file() for file in FILES)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    said = new.create("tower", "made_up", tmp_path)
    assert f"    pytest {tmp_path}\n" in said
    assert all((tmp_path / file).is_file() for file in FILES)


# That it works


def test_it_trains_from_its_file_before_it_is_installed(folder: Path) -> None:
    plugin = "plugins=[./espace_made_up/__init__.py]"
    said = Shop(folder).espace("fit", folder / "made_up.yaml", plugin, *FEW, "--run-dir", folder / "run")
    assert (said.code, said.error) == (0, "")
    assert "test/conversion/auc" in (folder / "run" / "results.json").read_text()


def test_it_trains_by_its_name_once_it_is_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    ((name, module),) = project["entry-points"]["espace"].items()
    info = folder / f"espace_made_up-{project['version']}.dist-info"  # what pip would write
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text(f"[espace]\n{name} = {module}\n")
    monkeypatch.syspath_prepend(str(folder))
    try:
        entry = plugins.load(base=folder).get("towers", "made_up")
        assert entry.package == "espace-made_up 0.1.0"
        assert [option.name for option in entry.options] == ["layers"]
        plugins._load.cache_clear()
        with pytest.raises(EspaceError, match=r"there is a tower 'made_up' already, from espace-made_up 0\.1\.0"):
            new.create("tower", "made_up", folder / "again")
        said = Shop(folder).espace("fit", folder / "made_up.yaml", *FEW, "--run-dir", folder / "run")
        assert (said.code, said.error) == (0, "")
    finally:
        sys.modules.pop("espace_made_up", None)
        plugins._load.cache_clear()


def test_its_tests_pass(folder: Path) -> None:
    out = run("pytest", "-q", "-p", "no:cacheprovider", folder, folder=folder, PYTHONPATH=str(folder))
    assert "passed" in out


def test_its_code_is_in_the_style_of_this_repository(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(folder, repository / "plugins" / "espace-made_up")
    shutil.copy(HOME / "pyproject.toml", repository)
    (repository / "espace").symlink_to(HOME / "espace")  # which imports are first-party
    run("ruff", "check", "--no-cache", "plugins", folder=repository)
    run("ruff", "format", "--no-cache", "--check", "plugins", folder=repository)


# Mistakes


def test_an_unknown_kind_says_which_there_are(shop: Shop) -> None:
    said = shop.espace("new", "reader", "made_up")
    assert (said.code, said.error) == (2, "espace: new: it cannot make a 'reader'. It can make: tower, experiment.")


def test_every_kind_is_one_that_plugins_bring() -> None:
    folders = {path.name for path in new.SCAFFOLD.iterdir() if path.is_dir()}
    assert folders == set(new.kinds())


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("made-up", "made_up"),
        ("MadeUp", "made_up"),
        ("made up", "made_up"),
        ("_made_", "made"),
        ("3d", "tower_3d"),
        ("class", "tower_class"),
        ("none", "tower_none"),
        ("on", "tower_on"),
        ("über", "ber"),
        ("", "tower"),
    ],
)
def test_what_cannot_be_a_name_gets_one_that_can(tmp_path: Path, name: str, better: str) -> None:
    with pytest.raises(EspaceError, match=rf"^new: '{name}' cannot be the name of a tower .* Write {better}\.$"):
        new.create("tower", name, tmp_path)
    new.create("tower", better, tmp_path)


def test_a_name_that_is_taken_is_refused_with_the_package_that_has_it(shop: Shop) -> None:
    said = shop.espace("new", "tower", "mlp")
    assert said.code == 2
    assert said.error == "espace: new: there is a tower 'mlp' already, from espace. Take another name."
    assert not (shop.folder / "espace-mlp").exists()


def test_a_module_that_is_there_is_not_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(EspaceError, match=r"there is a module espace_made_up already, .*__init__\.py\. Take another"):
        new.create("tower", "made_up", folder / "again")


def test_a_folder_with_something_in_it_is_refused(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    with pytest.raises(EspaceError, match=r"espace-made_up is not empty\. Name a new folder with --folder"):
        new.create("tower", "made_up")
    assert (folder / "README.md").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_a_message(shop: Shop) -> None:
    said = shop.espace("new", "tower", "made_up", "--folder", "train.parquet/mine")
    assert said.code == 2
    assert said.error.startswith(
        "espace: new: train.parquet/mine cannot be written: Not a directory. Name another place"
    )


def test_debug_shows_where_an_error_comes_from(shop: Shop) -> None:
    with pytest.raises(AssertionError, match="a traceback"):
        shop.espace("new", "tower", "mlp", "--debug")


def test_the_help_says_what_it_does_with_an_example(shop: Shop) -> None:
    assert "Example: espace new tower cross_net" in " ".join(shop.espace("new", "--help").out.split())
