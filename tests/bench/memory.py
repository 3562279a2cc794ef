"""Peak memory of `espace fit` on a small and on a ten times larger file of the same ids.

python -m tests.bench.memory [--rows 2000000] [--times 10]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.data import experiment, write


def peak(path: Path, folder: Path) -> float:
    """Peak resident MiB of a process that scans the whole file and trains one epoch of it."""
    values = experiment(path, batch_size=16_384, split={"share": 0.01})
    values["tower"] = {"type": "mlp", "hidden_units": [16]}  # the data path is what is measured
    values["embedding"] = {"dim": 4}
    yaml = folder / "experiment.yaml"
    yaml.write_text(json.dumps(values))
    command = [sys.executable, "-m", "tests.bench.memory", "--child", str(yaml), "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def child(yaml: Path, folder: Path) -> None:
    """Run the command line in this process and print its peak."""
    from espace.runs.experiment import Experiment

    Experiment.from_yaml(yaml).fit(Path(tempfile.mkdtemp(dir=folder)) / "run")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "espace-bench")
    parser.add_argument("--child", type=Path)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder)
        return
    sizes = (options.rows, options.rows * options.times)
    found = [peak(write(options.folder / f"ali-{rows}.parquet", rows), options.folder) for rows in sizes]
    for rows, mib in zip(sizes, found, strict=True):
        print(f"{rows:>12,} rows: peak {mib:,.0f} MiB")
    print(f"ratio {found[1] / found[0]:.3f}")


if __name__ == "__main__":
    main()
