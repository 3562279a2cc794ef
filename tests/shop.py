"""A small shop to train on: impression -> click -> conversion with every kind of feature, its YAML, and the command line."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from typer.testing import CliRunner

from espace.cli import app

CONFIG: dict[str, Any] = {
    "name": "shop",
    "chain": ["impression -> click -> conversion"],
    "data": {
        "train": "train.parquet",
        "validation": "validation.parquet",
        "test": "test.parquet",
        "weight": "weight",
        "batch_size": 256,
    },
    "features": {
        "user_id": "id",
        "item_id": "id",
        "place": {"type": "hash", "buckets": 20},
        "price": {"type": "number", "log1p": True},
        "age": {"type": "number", "buckets": 5},
        "history": {"type": "sequence", "share": "item_id"},
        "tags": {"type": "bag", "weights": "tag_weights"},
        "text": {"type": "vector", "size": 3},
    },
    "embedding": {"dim": 4},
    "tower": {"type": "mlp", "hidden_units": [8]},
    "metrics": {"gauc": {"type": "gauc", "by": "session"}},
    "optimizer": {"lr": 0.01},
    "trainer": {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 5},
}
SPLITS = {"train": 0, "validation": 1, "test": 2}


@cache
def rows(count: int = 2000, seed: int = 0) -> pa.Table:
    """Impressions of which about 30 % are clicked and 10 % bought; some numbers and histories are missing."""
    random = np.random.default_rng(seed)
    user, item, tags = random.integers(0, 40, count), random.integers(0, 60, count), random.integers(0, 3, count)
    text = random.normal(size=(count, 3))
    click = random.random(count) < _sigmoid(np.sin(user) + np.cos(item) + text[:, 0] - 1.2)
    conversion = click & (random.random(count) < _sigmoid(np.cos(user) + np.sin(item) - 0.9))
    history = [[f"i{i}" for i in random.integers(0, 70, n)] for n in random.integers(0, 5, count)]
    return pa.table(
        {
            "user_id": user,
            "item_id": [f"i{i}" for i in item],
            "place": random.integers(0, 1000, count),
            "price": [None if p < 5 else p for p in random.gamma(2, 20, count)],
            "age": random.integers(18, 80, count),
            "history": [None if len(h) == 4 else h for h in history],
            "tags": [[f"t{t + k}" for k in range(t)] for t in tags.tolist()],
            "tag_weights": [[1.0 + k for k in range(t)] for t in tags.tolist()],
            "text": pa.array(text.tolist(), pa.list_(pa.float32())),
            "click": click.astype(np.int8),
            "conversion": conversion.astype(np.int8),
            "weight": random.choice([0.5, 1.0, 2.0], count),
            "session": random.integers(0, 200, count),
            "day": random.integers(0, 10, count),
        }
    )


def put(table: pa.Table, **columns: Any) -> pa.Table:
    """The table with some columns replaced or added; a function gets the old values as a list."""
    for name, new in columns.items():
        values = new(table[name].to_pylist()) if callable(new) else new
        array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
        there = name in table.column_names
        table = (
            table.set_column(table.column_names.index(name), name, array) if there else table.append_column(name, array)
        )
    return table


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


TOWER = """import espace
from torch import nn
{top}


class Tower(nn.Module):
    def __init__(self, spec, *, width: int = 4):
        super().__init__()
        self.layer = nn.Linear(spec.width, width)
        self.out_features = width
        {build}

    def forward(self, features):
        {step}
        return self.layer(features.flat())


@espace.hookimpl
def register_towers(register):
    register("{name}", Tower)
"""


@dataclass
class Said:
    """What a command wrote, and how it ended."""

    code: int
    out: str
    error: str


@dataclass
class Shop:
    """A folder with data, a YAML, and what the commands leave behind."""

    folder: Path

    def write(self, table: pa.Table, name: str = "train.parquet", *, group: int = 500) -> Path:
        """Write rows as Parquet, in row groups of `group` rows."""
        pq.write_table(table, self.folder / name, row_group_size=group)
        return self.folder / name

    def fill(self, count: int = 2000) -> Shop:
        """Write training, validation and test rows."""
        for split, seed in SPLITS.items():
            self.write(rows(count, seed), f"{split}.parquet")
        return self

    def yaml(self, **sections: Any) -> str:
        """Write the YAML of CONFIG with some sections replaced (None: taken out)."""
        tree = {name: section for name, section in {**CONFIG, **sections}.items() if section is not None}
        return self.text(yaml.safe_dump(tree, sort_keys=False))

    def text(self, text: str) -> str:
        """Write a YAML just so."""
        (self.folder / "shop.yaml").write_text(text)
        return "shop.yaml"

    def tower(self, name: str, *, top: str = "", build: str = "", step: str = "") -> str:
        """Write a plugin file with a linear tower; the three are lines to run on import, in __init__ and in forward."""
        (self.folder / f"{name}.py").write_text(TOWER.format(name=name, top=top, build=build, step=step))
        return f"./{name}.py"

    def espace(self, *arguments: object) -> Said:
        """Run a command in this process, with the exit code that the shell would see."""
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise AssertionError(f"espace {arguments}: a traceback") from result.exception
        return Said(result.exit_code, result.stdout, " ".join(result.stderr.split()))


@dataclass
class Trained:
    """A finished run, the shop it was trained in, and what `espace fit` said."""

    shop: Shop
    run: Path
    said: Said
