"""Whether lazy tables cost quality: AUC of every probability with lazy, exact and dense Adam, over seeds.

    python -m tests.bench.parity FILE [OVERRIDES ...] [--tables lazy exact dense] [--seeds 3]

`FILE` is an experiment, or `synthetic` for the table of tests/bench/data.py (2,000,000 rows, batch 8192, one epoch). Test rows
are judged where there are any, else validation rows. Mean and range over the seeds, and the mean paired difference to the last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from tests.bench.data import experiment, write


def aucs(file: Path, overrides: list[str], tables: str, seed: int, folder: Path) -> dict[str, float]:
    """AUC by probability, of one run."""
    run = folder / f"{tables}-{seed}"
    changed = [*overrides, f"optimizer.tables={tables}", f"seed={seed}"]
    command = [sys.executable, "-m", "espace", "fit", str(file), *changed, "--run-dir", str(run), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((run / "results.json").read_text())
    part = "test" if any(name.startswith("test/") for name in found) else "val"
    return {n.split("/")[1]: v for n, v in found.items() if n.startswith(f"{part}/") and n.endswith("/auc") and v}


def synthetic(folder: Path) -> Path:
    """The YAML of the synthetic table."""
    cache = Path(tempfile.gettempdir()) / "espace-peers"
    train, test = (
        write(cache / "train-2000000.parquet", 2_000_000),
        write(cache / "test-500000.parquet", 500_000, seed=1),
    )
    file = folder / "synthetic.yaml"
    file.write_text(yaml.safe_dump(experiment(train, test=str(test), batch_size=8_192)))
    return file


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--tables", nargs="+", default=["lazy", "exact", "dense"])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = synthetic(folder) if options.file == "synthetic" else Path(options.file)
        found = {
            tables: [aucs(file, options.overrides, tables, seed, folder) for seed in range(options.seeds)]
            for tables in options.tables
        }
    last = found[options.tables[-1]]
    for probability in last[0]:
        for tables, runs in found.items():
            values = [run[probability] for run in runs]
            gaps = statistics.mean(v - other[probability] for v, other in zip(values, last, strict=True))
            spread = f"{min(values):.4f} to {max(values):.4f}"
            print(f"| {probability} | {tables} | {statistics.mean(values):.4f} | {spread} | {gaps:+.4f} |")


if __name__ == "__main__":
    main()
