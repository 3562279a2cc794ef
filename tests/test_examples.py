"""Every example says what it is, builds, and trains."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from espace.experiment import Experiment

HOME = Path(__file__).parent.parent
EXAMPLES = sorted((HOME / "examples").glob("*.yaml"))
REAL = Path(os.environ.get("ESPACE_DATA", HOME.parent / "shared" / "data")).resolve()
ROWS = 6_000
PARTS = ("train", "validation", "test")


def _is_real(example: Path) -> bool:
    return "ESPACE_DATA" in example.read_text()


def _cases() -> Iterator[object]:
    for example in EXAMPLES:
        yield pytest.param(example, id=example.stem, marks=[pytest.mark.real_data] if _is_real(example) else [])


def _overrides(example: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A few thousand rows: fewer draws of the simulator, or a copy of the beginning of the real files."""
    if not _is_real(example):
        data = yaml.safe_load(example.read_text())["data"]
        return [f"data.{part}={ROWS}" for part in PARTS if part in data]
    data = Experiment.from_yaml(example).config.data
    for source in filter(None, (getattr(data, part) for part in PARTS)):
        name = Path(source).relative_to(Path(os.environ["ESPACE_DATA"]))
        if not (REAL / name).exists():
            pytest.skip(f"there is no {name} in {REAL}. Set ESPACE_DATA to the folder with the real data")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_batches([next(pq.ParquetFile(REAL / name).iter_batches(ROWS))]), folder / name)
    monkeypatch.setenv("ESPACE_DATA", str(folder))
    return []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_opens_with_what_it_is_and_its_command(example: Path) -> None:
    lines = example.read_text().splitlines()
    comment = [line.removeprefix("#").strip() for line in lines[: next(i for i, t in enumerate(lines) if t[:1] != "#")]]
    assert len(comment[0]) > 20, "the first line says what it is, and which paper or data"
    assert f"espace fit examples/{example.name}" in comment


@pytest.mark.parametrize("example", list(_cases()))
def test_an_example_builds_and_trains(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if _is_real(example):
        monkeypatch.setenv("ESPACE_DATA", str(REAL))
    overrides = _overrides(example, tmp_path / "data", monkeypatch)
    steps = [
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=4",
        "trainer.accelerator=cpu",
        "trainer.val_check_interval=2",
    ]
    run = Experiment.from_yaml(example, [*overrides, *steps]).fit(tmp_path / "run")
    assert run is not None
    assert {"config.yaml", "results.json", "metrics.csv", "checkpoints", "figures"} <= {
        p.name for p in run.folder.iterdir()
    }
