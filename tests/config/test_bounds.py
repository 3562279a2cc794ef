"""What would take for ever to read is refused at once: deep nesting, long lists, references that double, huge chains."""

from __future__ import annotations

from pathlib import Path

import pytest

import espace
from espace.chain.checks import MAX_NAMES
from espace.config import load
from espace.errors import ChainError, ConfigError

BASE = "chain: [impression -> click]\ndata: {train: t.parquet}\nfeatures: {user_id: id}\n"
DOUBLED_TEXT = "".join(f"x{i}: '${{x{i - 1}}}${{x{i - 1}}}'\n" for i in range(1, 60))
PASSED_ON = "".join(f"x{i}: '${{x{i - 1}}}'\n" for i in range(1, 70))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x: " + "[" * 3000 + "]" * 3000, "nested deeper than 50"),
        ("x: " + "{a: " * 3000 + "1" + "}" * 3000, "nested deeper than 50"),
        ("x: [" + "1," * 400_000 + "1]", "more than 10,000 values"),
        ("x: {" + ",".join(f"a{i}: 1" for i in range(80_000)) + "}", "more than 10,000 values"),
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
