"""What all runners share: their options, the clocks of their phases, areas under the curve, the JSON line.

It is imported in the environment of every peer, so it needs no more than numpy, pyarrow and psutil.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pyarrow.parquet as pq
from numpy.typing import NDArray

FIELDS = [f"f{i}" for i in range(23)]
LABELS = ["click", "conversion"]
DIM = 18
HIDDEN = [360, 200, 80]
LR = 1e-3


class Bench:
    """One run of a peer: `prepare`, `train` and `predict` are timed by `phase`, `finish` prints the line.

    Args:
        peer: its name in the table.
        packages: distributions whose versions are recorded.
        more: further options, as `{flag: keywords of add_argument}`.

    Attributes: options; file_rows and test_rows, of the two files; rows, those trained on.
    """

    def __init__(self, peer: str, packages: Sequence[str], more: dict[str, dict[str, Any]] | None = None) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--train", type=Path, required=True, help="Parquet")
        parser.add_argument("--test", type=Path, required=True, help="Parquet")
        parser.add_argument("--batch", type=int, default=8192)
        parser.add_argument("--threads", type=int, default=1, help="and cores, for all processes of the run")
        parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of espace, rechub, deepctr-torch")
        parser.add_argument(
            "--rows", type=int, help="train on the first of them only; vocabularies are of the whole file"
        )
        for flag, keywords in (more or {}).items():
            parser.add_argument(flag, **keywords)
        self.options = parser.parse_args()
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.options.threads])
        self.file_rows, self.test_rows = (
            int(pq.read_metadata(path).num_rows) for path in (self.options.train, self.options.test)
        )
        self.rows = min(self.options.rows or self.file_rows, self.file_rows)
        self._found: dict[str, Any] = {"peer": peer, "batch": self.options.batch, "threads": self.options.threads}
        self._found["device"] = self.options.device
        self._found["versions"] = {name: version(name) for name in packages}
        self._found |= {flag[2:]: getattr(self.options, flag[2:].replace("-", "_")) for flag in more or ()}

    @contextmanager
    def phase(self, name: str, rows: int) -> Iterator[None]:
        """Record wall and CPU seconds of the block, rows a second, and how many cores other processes kept busy."""
        start = time.perf_counter(), _own_seconds(), _busy_seconds()
        yield
        wall, own, busy = time.perf_counter() - start[0], _own_seconds() - start[1], _busy_seconds() - start[2]
        found = {"s": wall, "cpu_s": own, "rows": rows, "rows_a_s": rows / wall, "others": max(busy - own, 0.0) / wall}
        self._found |= {f"{name}_{key}": round(value, 4) for key, value in found.items()}

    def finish(self, click: Any, conversion: Any, **more: float) -> None:
        """Print the line, `more` in it. The predictions are of all test rows: P(click), P(conversion)."""
        table = pq.read_table(self.options.test, columns=LABELS)
        found = areas(click, conversion, *(table[name].to_numpy() for name in LABELS))
        self._found |= {f"auc_{name}": round(value, 5) for name, value in found.items()}
        self._found["total_s"] = round(time.time() - psutil.Process().create_time(), 2)
        self._found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # compare.py adds children
        print(json.dumps({**self._found, **more}), flush=True)


def encoded(bench: Bench) -> tuple[Any, Any, list[int]]:
    """Training and test rows as DataFrames, ids numbered by scikit-learn's LabelEncoder over both, as the peers' examples
    do; and the size of each field's table."""
    import pandas as pd  # type: ignore[import-untyped]
    from sklearn.preprocessing import LabelEncoder  # type: ignore[import-untyped]

    frames = [pd.read_parquet(path, columns=FIELDS + LABELS) for path in (bench.options.train, bench.options.test)]
    both = pd.concat(frames, ignore_index=True)
    for field in FIELDS:
        both[field] = LabelEncoder().fit_transform(both[field])
    return both[: len(frames[0])][: bench.rows], both[len(frames[0]) :], [int(both[f].max()) + 1 for f in FIELDS]


def areas(click: Any, conversion: Any, clicked: Any, bought: Any) -> dict[str, float]:
    """Areas under the curve by name, of two probabilities over all rows and their labels, (rows,) each."""
    p, both = (np.asarray(x, np.float64).ravel() for x in (click, conversion))
    clicked, bought = np.asarray(clicked) == 1, np.asarray(bought) == 1
    given = (both / np.maximum(p, 1e-300))[clicked]
    return {
        "click": auc(p, clicked),
        "conversion": auc(both, bought),
        "conversion_given_click": auc(given, bought[clicked]),
    }


def auc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """The share of pairs of a positive and a negative that are in order, ties as halves."""
    negatives = np.sort(scores[~positive])
    below = sum(np.searchsorted(negatives, scores[positive], side).sum() for side in ("left", "right")) / 2
    return float(below / max(len(negatives) * positive.sum(), 1))


def _own_seconds() -> float:
    """CPU seconds of this process and its children, those that have ended too."""
    me = psutil.Process()
    times = []
    for process in (me, *me.children(recursive=True)):
        try:
            times.append(process.cpu_times())
        except psutil.NoSuchProcess:
            continue
    return float(sum(t.user + t.system + t.children_user + t.children_system for t in times))


def _busy_seconds() -> float:
    """CPU seconds of all processes, and those that the machine's host took."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)
