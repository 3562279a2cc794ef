"""Every example says what it is, builds, and trains."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from espace.registry.registry import load
from espace.runs.experiment import Experiment
from espace.runs.run import Run

HOME = Path(__file__).parent.parent
EXAMPLES = [p for p in sorted((HOME / "examples").glob("*.yaml")) if p.stem != "compare"]  # which compares experiments
REAL = Path(os.environ.get("ESPACE_DATA", HOME.parent / "shared" / "data")).resolve()
ROWS = 6_000
PARTS = ("train", "validation", "test")


def _is_real(example: Path) -> bool:
    return "ESPACE_DATA" in example.read_text()


def _cases() -> Iterator[object]:
    for example in (e for e in EXAMPLES if e.stem != "aliccp"):  # which tests/data/test_prepare.py trains
        yield pytest.param(example, id=example.stem, marks=[pytest.mark.real_data] if _is_real(example) else [])


def real_rows(example: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> list[str]:
    """A few rows: fewer draws of the simulator, or a copy of the beginning of the real files."""
    if not _is_real(example):
        data = yaml.safe_load(example.read_text())["data"]
        return [f"data.{part}={rows}" for part in PARTS if part in data]
    monkeypatch.setenv("ESPACE_DATA", str(REAL))
    data = Experiment.from_yaml(example).config.data
    for source in filter(None, (getattr(data, part) for part in PARTS)):
        name = Path(source).relative_to(Path(os.environ["ESPACE_DATA"]))
        if not (REAL / name).exists():
            pytest.skip(f"there is no {name} in {REAL}. Set ESPACE_DATA to the folder with the real data")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_batches([next(pq.ParquetFile(REAL / name).iter_batches(rows))]), folder / name)
    monkeypatch.setenv("ESPACE_DATA", str(folder))
    return []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_opens_with_what_it_is_and_its_command(example: Path) -> None:
    lines = example.read_text().splitlines()
    comment = [line.removeprefix("#").strip() for line in lines[: next(i for i, t in enumerate(lines) if t[:1] != "#")]]
    assert len(comment[0]) > 20, "the first line says what it is, and which paper or data"
    assert f"espace fit examples/{example.name}" in comment


def _fit(example: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, rows: int, *more: str) -> Run:
    overrides = real_rows(example, folder / "data", monkeypatch, rows)
    steps = [
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=4",
        "trainer.accelerator=cpu",
        "trainer.val_check_interval=2",
    ]
    run = Experiment.from_yaml(example, [*overrides, *steps, *more]).fit(folder / "run")
    assert run is not None
    return run


@pytest.mark.parametrize("example", list(_cases()))
def test_an_example_builds_and_trains(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _fit(example, tmp_path, monkeypatch, ROWS)
    assert run.folder is not None
    assert {"config.yaml", "results.json", "metrics.csv", "checkpoints", "figures"} <= {
        p.name for p in run.folder.iterdir()
    }


# -- every tower, under ESMM and under a chain of three stages

TOWERS = [entry.name for entry in load().entries("towers")]
SMALLER = {"xdeepfm": ["tower.cin_units=[16, 16]"], "bst": ["tower.hidden_units=[64]"]}
WITH_HISTORY = [case for case in _cases() if case.id in ("esmm", "din")]  # type: ignore[attr-defined]


def test_the_towers_of_the_repository_are_installed() -> None:
    brought = {path.name.removeprefix("espace-") for path in (HOME / "plugins").iterdir() if path.is_dir()}
    packages = {entry.package.split()[0].removeprefix("espace-") for entry in load().entries("towers")}
    assert brought <= packages, "pip install ./plugins/*"


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("example", WITH_HISTORY)
def test_every_tower_trains_on_every_chain(
    example: Path, tower: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _fit(example, tmp_path, monkeypatch, 1_000, f"tower={tower}", "data.batch_size=200", *SMALLER.get(tower, []))
    assert {t.type for t in (run.config.tower, *run.config.towers.values())} == {tower}
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
