"""What would take for ever to read is refused at once: deep nesting, long lists, references that double, huge chains."""

from __future__ import annotations

from pathlib import Path

import pytest

import espace
from espace.chain.checks import MAX_NAMES
from espace.config import load
from espace.errors import ChainError, ConfigError, EspaceError
from espace.runs.build import build_model
from espace.runs.experiment import Experiment
from espace.runs.inputs import layout_without_data

BASE = "chain: [impression -> click]\ndata: {train: t.parquet}\nfeatures: {user_id: id}\n"
DOUBLED_TEXT = "".join(f"x{i}: '${{x{i - 1}}}${{x{i - 1}}}'\n" for i in range(1, 60))
PASSED_ON = "".join(f"x{i}: '${{x{i - 1}}}'\n" for i in range(1, 70))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x: " + "[" * 3000 + "]" * 3000, "nested deeper than 50"),
        ("x: " + "{a: " * 3000 + "1" + "}" * 3000, "nested deeper than 50"),
        ("x: [" + "1," * 400_000 + "1]", "more than 50,000 values"),
        ("x: {" + ",".join(f"a{i}: 1" for i in range(80_000)) + "}", "more than 50,000 values"),
        ("x0: " + "a" * 4000 + "\n" + DOUBLED_TEXT, "too much: resolved it has more than 10,000 characters"),
        ("x0: aa\n" + PASSED_ON, "too much: it leads through more than 50 others"),
        ("x: '" + "${" * 3000 + "y" + "}" * 3000 + "'", "too much: 3,000 references, more than 50"),
        ("x: '" + "${oc.env:" * 500 + "'", "too much: 500 references, more than 50"),
    ],
)
def test_a_file_without_measure_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "c.yaml").write_text(BASE + text + "\n")
    with pytest.raises(ConfigError, match=says):
        load(tmp_path / "c.yaml")


def test_a_chain_has_a_bound_and_up_to_it_is_read() -> None:
    lines = [f"s{i} -> s{i + 1}" for i in range(1500)]
    assert len(espace.Chain.parse(lines[: MAX_NAMES - 1]).stages) == MAX_NAMES
    with pytest.raises(ChainError, match=r"it has 1,501 stages and values, more than 256, .* Leave some out"):
        espace.Chain.parse(lines)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("tower: {type: mlp, hidden_units: [9223372036854775807]}", "the model is too large to be built here: Stor"),
        ("tower: {type: mlp, hidden_units: [99999999999999999999]}", "mlp cannot be built: .*Overflow"),
        ("embedding: {dim: 9223372036854775807}", "the model is too large to be built here"),
        ("features: {x: {type: vector, size: 99999999999999999999}}", "mlp cannot be built: .*Overflow"),
    ],
)
def test_a_model_of_a_size_beyond_all_numbers_is_refused(tmp_path: Path, change: str, says: str) -> None:
    base = BASE.partition("features")[0] if change.startswith("features") else BASE
    (tmp_path / "c.yaml").write_text(f"{base}{change}\n")
    with pytest.raises(ConfigError, match=says) as caught:
        Experiment.from_yaml(tmp_path / "c.yaml")
    assert "frame #" not in str(caught.value)


def test_a_model_that_no_memory_holds_is_refused_when_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"{BASE}embedding: {{dim: 100000000000000}}\n")
    made = Experiment.from_yaml(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="the model is too large to be built here"):
        build_model(made.config, made.registry, layout_without_data(made.config))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("train: 10, users: 1000000000000", "1,000,000,000,000 users and 2,000 items"),
        ("train: 10, items: 99999999999999999999", "are more than 1,073,741,824 numbers. Make them fewer"),
        ("train: 10, latent: 99999999999999", "of 99,999,999,999,999 numbers each"),
        ("train: 10, piece_rows: 9999999999", "or 9,999,999,999 rows at a time"),
        ("train: 1000000000000", "data.train: 1,000,000,000,000 rows are more than 1,048,576 times the 65,536"),
        ("train: 10, test: 99999999999999999999", "data.test: 99,999,999,999,999,999,999 rows are more"),
    ],
)
def test_a_simulated_world_that_no_memory_holds_is_refused_before_it_is_made(
    tmp_path: Path, options: str, says: str
) -> None:
    data = f"data: {{type: simulator, {options}}}"
    (tmp_path / "c.yaml").write_text(BASE.replace("data: {train: t.parquet}", data))
    with pytest.raises(EspaceError, match=says):
        Experiment.from_yaml(tmp_path / "c.yaml").check()
