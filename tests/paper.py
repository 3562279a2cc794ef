"""The comparisons of examples/paper, made small."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import yaml

from espace.compare.outcome import Outcome

FOLDER = Path(__file__).parent.parent / "examples" / "paper"
SYSTEMS = ["base", "aman", "oversampling", "unbias", "division", "esmm_ns", "esmm"]


def shrunk(name: str, folder: Path) -> Path:
    """A copy with one seed, at most two shares and conditions, and two values to choose from; a path."""
    keys = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    keys["base"] = str((FOLDER / keys["base"]).resolve())
    keys |= {"seeds": keys["seeds"][:1], "shares": keys.get("shares", [1.0])[-2:]}
    keys |= {"conditions": dict(list(keys["conditions"].items())[-2:])} if "conditions" in keys else {}
    for variant in keys["variants"].values():
        if isinstance(variant, dict) and "choose" in variant:
            variant["choose"] = {option: values[:2] for option, values in variant["choose"].items()}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(keys, sort_keys=False))
    return path


def check(outcome: Outcome, out: Path) -> None:
    """Nothing failed, and every variant has a value of every metric on test rows."""
    keys = yaml.safe_load((FOLDER / f"{outcome.comparison.name}.yaml").read_text())
    assert outcome.failed == {}
    with (out / "results.csv").open(newline="") as file:
        values = {(r["variant"], r["metric"]): float(r["value"]) for r in csv.DictReader(file) if r["part"] == "test"}
    assert set(values) == {(variant, metric) for variant in keys["variants"] for metric in keys["report"]}
    assert not any(math.isnan(value) for value in values.values())
