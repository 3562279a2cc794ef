"""What a training step costs on a GPU: `espace fit` as it is, reading included, beside the floor of its products and bytes.

    python -m tests.bench.gpu [--batches 8192 65536 262144] [--variants ...] [--profile]

Every fit trains on the same rows, which are encoded once. A step is the mean over --steps of them after --warm-up others, with
the GPU waited for at both ends. Rounds are interleaved, and medians are printed beside the floor of `tests.bench.floor`: the
matrix products of both towers at library speed in the precision of the variant, and the rows of the table that a batch looks
up at the measured bandwidth of copying.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from espace.data.stream import prefetch
from espace.runs.experiment import Experiment
from espace.runs.report import Report
from espace.training.lightning import Training
from tests.bench.data import SIZES, experiment, write
from tests.bench.floor import bandwidth, moved, products

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOAT32, HALF = {"trainer": {"precision": "32-true"}}, {"trainer": {"precision": "bf16-mixed"}}
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {**FLOAT32, "cuda_graphs": False},
    "float32 graphs": FLOAT32,
    "bf16": {**HALF, "cuda_graphs": False},
    "bf16 graphs": HALF,
    "bf16 graphs compiled": {**HALF, "compile": True},
    "bf16 graphs lazy": {**HALF, "optimizer": {"tables": "lazy"}},
    "bf16 graphs dense": {**HALF, "optimizer": {"tables": "dense"}},
}


class Loud(Report):
    """Says only what did not go as asked."""

    def warn(self, text: str) -> None:
        """Print it."""
        print(text, flush=True)


class Clock:
    """Times of training batches; `profile` prints what the steps between two of them are made of."""

    def __init__(self, warm_up: int, steps: int, profile: bool) -> None:
        self.warm_up, self.steps, self.number = warm_up, steps, 0
        self.begin = self.end = self.waited = 0.0
        kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        self.profiler = torch.profiler.profile(activities=kinds) if profile else None

    def tick(self) -> None:
        """A batch begins."""
        if self.number == self.warm_up:
            self._wait()
            if self.profiler:
                self.profiler.__enter__()
            self.begin = time.perf_counter()
        if self.number == self.warm_up + self.steps:
            self._wait()
            self.end = time.perf_counter()
            if self.profiler:
                self.profiler.__exit__(None, None, None)
                for key in ("self_cuda_time_total", "self_cpu_time_total"):
                    print(self.profiler.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=70))
        self.number += 1

    def _wait(self) -> None:
        if DEVICE == "cuda":
            torch.cuda.synchronize()


def seconds(
    path: Path, batch: int, variant: dict[str, Any], options: argparse.Namespace, profile: bool = False
) -> float:
    """Of a step."""
    clock = Clock(options.warm_up, options.steps, profile)
    values = experiment(path, batch_size=batch) | variant
    trainer = {**variant.get("trainer", {}), "max_steps": options.warm_up + options.steps + 1}
    values["trainer"] = {**trainer, "accelerator": "gpu" if DEVICE == "cuda" else "cpu"}
    before, reads = Training.on_train_batch_start, prefetch._Reader.next

    def note(self: Training, *args: Any) -> None:
        clock.tick()
        before(self, *args)

    def timed(self: prefetch._Reader) -> Any:
        start = time.perf_counter()
        found = reads(self)
        clock.waited += (time.perf_counter() - start) * (clock.warm_up < clock.number <= clock.warm_up + clock.steps)
        return found

    Training.on_train_batch_start, prefetch._Reader.next = note, timed  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "bench.yaml").write_text(json.dumps(values))
            Experiment.from_yaml(Path(name) / "bench.yaml").fit(Path(name) / "run", report=Loud(quiet=True))
    finally:
        Training.on_train_batch_start, prefetch._Reader.next = before, reads  # type: ignore[method-assign]
    return (clock.end - clock.begin) / options.steps, clock.waited / options.steps


def floor(path: Path, batch: int) -> dict[str, float]:
    """Seconds of a step by precision."""
    table = pq.ParquetFile(path).iter_batches(batch, columns=[f"f{i}" for i in range(len(SIZES))])
    columns = next(table).columns
    distinct = sum(len(np.unique(column.to_numpy())) for column in columns) / len(columns[0])
    bytes_ = batch * moved(distinct) / bandwidth(DEVICE)
    kinds = {"float32": torch.float32, "bf16": torch.bfloat16}
    return {name: products(batch, DEVICE, kind) + bytes_ for name, kind in kinds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, nargs="+", default=[8_192, 65_536, 262_144])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=300)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=2**20)
    parser.add_argument("--copies", type=int, default=4, help="of the rows, since making them takes long")
    parser.add_argument("--profile", action="store_true", help="print what steps are made of")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "espace-bench")
    options = parser.parse_args()
    os.environ.setdefault("ESPACE_CACHE", str(options.folder / "cache"))
    path = options.folder / f"ali-{options.rows}-{options.copies}"
    first = write(path / "0.parquet", options.rows)
    for number in range(1, options.copies):
        (path / f"{number}.parquet").unlink(missing_ok=True)
        shutil.copy(first, path / f"{number}.parquet")
    print(torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU: the CPU's times", flush=True)
    found: dict[tuple[int, str], list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for batch in options.batches:
            for name in options.variants:
                step, waited = seconds(path, batch, VARIANTS[name], options)
                found[batch, name].append(step)
                print(f"{batch:,} {name}: {step * 1e3:.3f} ms, of them {waited * 1e3:.3f} for rows", flush=True)
    print("| batch | variant | ms a step, median | range | rows/s | over the floor |\n|---|---|---|---|---|---|")
    for batch in options.batches:
        least = floor(first, batch)
        for name in options.variants:
            times = [1e3 * s for s in found[batch, name]]
            middle, of = statistics.median(times), 1e3 * least[name.split()[0]]
            cells = [f"{batch:,}", name, f"{middle:.3f}", f"{min(times):.3f}-{max(times):.3f}"]
            print(f"| {' | '.join([*cells, f'{batch / middle / 1e3:,.1f} M', f'{middle / of:.2f}'])} |")
        print(f"floor at {batch:,}: {', '.join(f'{n} {1e3 * s:.3f} ms' for n, s in least.items())}", flush=True)
    if options.profile:
        for batch in options.batches:
            seconds(path, batch, VARIANTS[options.variants[-1]], options, profile=True)


if __name__ == "__main__":
    main()
