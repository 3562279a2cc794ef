"""An Ali-CCP-shaped table: 23 id fields of about a million ids, Zipf-distributed, a history of the second of them with 20
events on average and at most 50, clicks and conversions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SIZES = [200_000, 500_000, 50_000, 50_000, 40_000, 30_000, 30_000, 20_000, 20_000, 10_000, 10_000, 10_000, 9_000]
SIZES += [8_000, 7_000, 6_000, 5_000, 4_000, 3_000, 3_000, 100, 30, 13]
GROUP = 65_536
LONGEST = 50


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
    score = np.sin(columns["f0"] * 0.7) + np.cos(columns["f1"] * 0.3) + 0.5 * np.sin(columns["f21"])
    click = random.random(rows) < 0.04 * np.exp(0.6 * score - 0.3)
    buy = click & (random.random(rows) < 0.05 * np.exp(0.5 * np.cos(columns["f1"] * 0.3)))
    history = _history(np.random.default_rng(random.integers(2**32)), rows)
    return pa.table({**columns, "history": history, "click": click.astype(np.int8), "conversion": buy.astype(np.int8)})


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
