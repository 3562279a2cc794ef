"""ESMM beside the parent-space baseline and the oracle on simulated worlds, for a correlation rho of both signs.

    python -m tests.bench.worlds [--seeds 5] [--workers 2] [--out docs/results-esmm.md]

Every world is one seed of `examples/esmm.yaml`; both objectives see the same rows. AUCs are judged on clicked rows and, with
the potential outcomes, on all impressions; "mean ratio" is the mean prediction over the mean of the true probability.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from espace import Experiment
from espace.data.leaks import rank_auc
from espace.data.simulator import Simulator

EXAMPLE = Path(__file__).parents[2] / "examples" / "esmm.yaml"
OBJECTIVES = ("entire_space", "parent_space")
COLUMNS = ("click AUC", "pCVR AUC, clicked", "pCVR AUC, all", "pCTCVR AUC", "mean ratio, clicked", "mean ratio, all")


def world(rho: float, seed: int, more: Sequence[str]) -> dict[str, list[float]]:
    """{objective or "oracle": a value for each of COLUMNS} of one world."""
    torch.set_num_threads(1)
    found = {}
    for objective in OBJECTIVES:
        overrides = [f"data.rho={rho}", f"data.seed={seed}", f"seed={seed}", f"objective={objective}", *more]
        experiment = Experiment.from_yaml(EXAMPLE, overrides)
        with tempfile.TemporaryDirectory() as folder:
            run = experiment.fit(Path(folder) / "run")
        assert run is not None
        table = test_rows(experiment)
        p = run.predict(table)
        found[objective] = judge(table, p["p_click"], p["p_conversion_given_click"], p["p_conversion"])
        found["oracle"] = judge(table, *(table[f"true_{n}"] for n in ("click", "conversion_given_click", "conversion")))
    return found


def test_rows(experiment: Experiment) -> pa.Table:
    """The rows of the test part, with the truth."""
    data = experiment.config.data
    reader = Simulator(data.test, "test", **data.options)  # type: ignore[arg-type]
    return pa.concat_tables(reader.read(piece, reader.schema.names) for piece in reader.pieces)


def judge(table: pa.Table, ctr: Any, cvr: Any, ctcvr: Any) -> list[float]:
    """A value for each of COLUMNS."""
    click, conversion, potential = (table[n].to_numpy() == 1 for n in ("click", "conversion", "potential_conversion"))
    p, q, both, true = (c.to_numpy() for c in (ctr, cvr, ctcvr, table["true_conversion_given_click"]))
    return [
        rank_auc(p, click),
        rank_auc(q[click], conversion[click]),
        rank_auc(q, potential),
        rank_auc(both, conversion),
        q[click].mean() / true[click].mean(),
        q.mean() / true.mean(),
    ]


def rows_of(rho: float, worlds: list[dict[str, list[float]]]) -> list[str]:
    """Lines of a Markdown table: mean and deviation over the worlds."""
    lines = []
    for system in (*OBJECTIVES, "oracle"):
        columns = zip(*(w[system] for w in worlds), strict=True)
        cells = [
            f"{statistics.mean(c):.4f} ± {statistics.stdev(c) if len(c) > 1 else 0:.4f}" for c in map(list, columns)
        ]
        lines.append(f"| {rho:+.1f} | {system} | {' | '.join(cells)} |")
    differences = np.array([np.subtract(w["entire_space"], w["parent_space"]) for w in worlds])
    cells = [f"{m:+.4f} ± {s:.4f}" for m, s in zip(differences.mean(0), differences.std(0, ddof=1), strict=True)]
    return [*lines, f"| {rho:+.1f} | paired difference | {' | '.join(cells)} |"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rho", type=float, nargs="+", default=[0.5, -0.5])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", help="further overrides, such as trainer.max_epochs=2")
    options = parser.parse_args()
    tasks = list(itertools.product(options.rho, range(options.seeds)))
    with concurrent.futures.ProcessPoolExecutor(options.workers) as pool:
        found = list(pool.map(world, *zip(*tasks, strict=True), [options.overrides] * len(tasks)))
    lines = [f"| rho | objective | {' | '.join(COLUMNS)} |", f"|{'---|' * (len(COLUMNS) + 2)}"]
    for rho in options.rho:
        lines += rows_of(rho, [w for w, (r, _) in zip(found, tasks, strict=True) if r == rho])
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
