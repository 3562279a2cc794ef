"""An Ali-CCP-shaped table: 23 id fields of about a million ids, Zipf-distributed, a history of the second of them with 20
events on average and at most 50, clicks and conversions by a factorisation machine with random factors that a model can learn."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

SIZES = [200_000, 500_000, 50_000, 50_000, 40_000, 30_000, 30_000, 20_000, 20_000, 10_000, 10_000, 10_000, 9_000]
SIZES += [8_000, 7_000, 6_000, 5_000, 4_000, 3_000, 3_000, 100, 30, 13]
GROUP = 65_536
LONGEST = 50
RANK = 4
WEIGHT, FACTOR = 0.2, 0.1  # standard deviations, in a field of EVEN ids
EVEN = 5000
START = (-4.67, -3.8)  # such that 4 % are clicked and 5 % of the clicked bought


def write(path: Path, rows: int, seed: int = 0) -> Path:
    """Write `rows` rows in row groups of 65,536, unless the file is there already."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, writer = path.with_suffix(".partial"), None
    for number, start in enumerate(range(0, rows, GROUP)):
        table = _piece(np.random.default_rng([seed, number]), min(GROUP, rows - start))
        writer = writer or pq.ParquetWriter(partial, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()
    partial.replace(path)
    return path


def _piece(random: np.random.Generator, rows: int) -> pa.Table:
    columns = {f"f{i}": ((random.random(rows) ** 3) * size).astype(np.int32) for i, size in enumerate(SIZES)}
    click, wish = (random.random(rows) < 1 / (1 + np.exp(-z)) for z in _logits([*columns.values()]))
    buy = click & wish
    history = _history(np.random.default_rng(random.integers(2**32)), rows)
    return pa.table({**columns, "history": history, "click": click.astype(np.int8), "conversion": buy.astype(np.int8)})


@cache
def _planted() -> list[NDArray[np.float32]]:
    """What every id of a field adds to both scores: (ids, 2, 1 + RANK), a weight and a factor. The same for every file; the
    ids of small fields, which come often enough to be learnt, add more."""
    random, scale = np.random.default_rng(18), np.array([WEIGHT] + [FACTOR] * RANK)
    return [
        (random.standard_normal((size, 2, 1 + RANK), np.float32) * scale * (EVEN / size) ** 0.25).astype(np.float32)
        for size in SIZES
    ]


def _logits(ids: list[NDArray[np.int32]]) -> NDArray[np.float32]:
    """Of click, and of conversion after a click: (2, rows). Weights, and products of the factors of all pairs of fields."""
    rows = np.stack([table[column] for table, column in zip(_planted(), ids, strict=True)])
    total = rows.sum(axis=0)
    pairs = (total[..., 1:] ** 2 - (rows[..., 1:] ** 2).sum(axis=0)).sum(axis=-1) / 2
    scores: NDArray[np.float32] = (total[..., 0] + pairs + np.array(START, np.float32)).T
    return scores


def _history(random: np.random.Generator, rows: int) -> pa.ListArray:
    lengths = np.minimum(random.geometric(1 / 26, rows) - 1, LONGEST)
    items = ((random.random(lengths.sum()) ** 3) * SIZES[1]).astype(np.int32)
    return pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), items)


def experiment(train: Path, **data: object) -> dict[str, object]:
    """The configuration of ESMM on such a file, as plain values."""
    return {
        "name": "bench",
        "chain": ["impression -> click -> conversion"],
        "data": {"train": str(train), **data},
        "features": {f"f{i}": "id" for i in range(len(SIZES))},
    }
