"""The comparisons of examples/paper open with what they are, and run, made small, to whole tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from espace.compare import compare
from tests import paper
from tests.test_examples import real_rows

NAMES = sorted(path.stem for path in paper.FOLDER.glob("*.yaml"))
FEW = ["trainer.accelerator=cpu", "trainer.max_steps=2", "tower.hidden_units=[8]", "data.batch_size=500"]


@pytest.mark.parametrize("name", NAMES)
def test_a_comparison_opens_with_what_it_is_and_its_command(name: str) -> None:
    lines = (paper.FOLDER / f"{name}.yaml").read_text().splitlines()
    assert "ESMM paper" in lines[0] or "(Ma et al., SIGIR 2018" in lines[0]
    assert f"#     espace compare examples/paper/{name}.yaml --workers 2" in lines


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("shares", "worlds")])
def test_the_seven_systems_are_there_with_the_options_of_the_paper(name: str) -> None:
    variants = yaml.safe_load((paper.FOLDER / f"{name}.yaml").read_text())["variants"]
    assert [n for n in variants if n != "oracle"] == paper.SYSTEMS
    assert variants["aman"]["choose"] == {"sampler.rate": [0.1, 0.2, 0.5, 1.0]}
    assert variants["oversampling"]["choose"] == {"sampler.factor": [2, 3, 5, 10]}


@pytest.mark.parametrize("name", ["shares", "simulator", "worlds"])
def test_on_the_simulator_it_runs_to_whole_tables(name: str, tmp_path: Path) -> None:
    rows = ["data.train=4_000", "data.validation=4_000", "data.test=4_000"]
    outcome = compare(paper.shrunk(name, tmp_path), [*FEW, *rows], tmp_path / "out", workers=2)
    paper.check(outcome, tmp_path / "out")


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["beibei", "ebnerd"])
def test_on_real_data_it_runs_to_whole_tables(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_rows(paper.FOLDER.parent / f"{name}.yaml", tmp_path, monkeypatch, 6_000)
    outcome = compare(paper.shrunk(name, tmp_path), FEW, tmp_path / "out", workers=2)
    paper.check(outcome, tmp_path / "out")
