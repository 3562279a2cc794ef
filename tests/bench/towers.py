"""What each tower's step costs over the step of the MLP on the same rows.

    python -m tests.bench.towers [--towers deepfm din ...] [--batch 8192] [--precision 32-true] [--rounds 5]

`espace fit` with reading, logging and progress on, 23 id features of 1.01 million ids, two towers, dim 18. Every tower that has
a deep part has the MLP's, 360-200-80 without dropout; the other options are its defaults. `din` and its like read a history of
20 events on average. Rounds are interleaved in one process; medians of the ratios within a round are printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import psutil
import torch

from espace.registry.registry import load
from tests.bench.data import SIZES, write
from tests.bench.step import with_espace

DEEP = {"hidden_units": [360, 200, 80], "dropout": 0.0}
MORE: dict[str, dict[str, object]] = {  # with the 200 of xdeepfm a batch of 8192 takes 8 GB
    "xdeepfm": {"cin_units": [32, 32]},
    "masknet": {"structure": "parallel"},
}


def options_of(name: str) -> dict[str, object]:
    """The type with its options: DEEP as far as the tower has them."""
    known = {option.name for option in load().get("towers", name).options}
    return {"type": name, **{k: v for k, v in DEEP.items() if k in known}, **MORE.get(name, {})}


def features_of(name: str) -> dict[str, object]:
    """The features; with a history where the tower reads one."""
    history = {"history": {"type": "sequence", "share": "f1", "pool": "none"}}
    reads = any(option.name == "history" for option in load().get("towers", name).options)
    return {f"f{i}": "id" for i in range(len(SIZES))} | (history if reads else {})


def main() -> None:
    """Measure and print."""
    every = [entry.name for entry in load().entries("towers") if entry.name != "mlp"]
    parser = argparse.ArgumentParser()
    parser.add_argument("--towers", nargs="+", default=every)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "espace-bench")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = write(options.folder / f"towers-{options.rows}.parquet", options.rows)
    ratios: dict[str, list[float]] = {name: [] for name in options.towers}
    for number in range(options.rounds):
        print(f"round {number}: other processes before it {psutil.cpu_percent(interval=1.0):.0f} %", flush=True)
        times = {
            name: with_espace(
                path,
                options.batch,
                options.steps,
                options.precision,
                tower=options_of(name),
                features=features_of(name),
            )
            for name in ("mlp", *options.towers)
        }
        for name in options.towers:
            ratios[name].append(times[name] / times["mlp"])
        print("  " + ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in times.items()), flush=True)
    print(f"\nbatch {options.batch}, {options.threads} threads, {options.precision}, a step over that of the MLP:")
    for name, found in ratios.items():
        print(f"| `{name}` | {statistics.median(found):.2f} | {min(found):.2f}-{max(found):.2f} |")


if __name__ == "__main__":
    main()
