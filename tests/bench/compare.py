"""espace beside its peers: the same ESMM, the same Parquet files, each with its own reader and its own loop.

    python -m tests.bench.peers.install                      # once, into /tmp/peers
    python -m tests.bench.compare [--batches 1024 8192] [--threads 1 2] [--rounds 5] [--peers espace fuxictr] [--steps 200]

On a GPU: --device cuda --batches 8192 65536 262144 --peers espace espace_compiled torch_rechub deepctr_torch.

Every run is a process of its own; rounds are interleaved. Its line is appended to FOLDER/results-ROWS.jsonl, so that a command
given again goes on where it was stopped. A run beside which other processes took more than --quiet cores while it trained is
kept but not counted, and made again by the next command. At the end a table of medians is printed and written beside the lines.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from tests.bench.data import write
from tests.bench.peers.install import PACKAGES, python_of

ROOT = Path(__file__).parents[2]
OWN: dict[str, list[str]] = {  # runs in this environment: the module and its options
    "espace": ["tests.bench.peers.espace_run"],
    "espace_lazy": ["tests.bench.peers.espace_run", "--set", "optimizer.tables=lazy"],
    "espace_bf16": ["tests.bench.peers.espace_run", "--set", "trainer.precision=bf16-mixed"],
    "espace_compiled": ["tests.bench.peers.espace_run", "--set", "compile=true"],
    "limit": ["tests.bench.limit"],
}
CELL = ("peer", "batch", "threads", "steps", "device")
COLUMNS = "rows/s | range | to torch peers | CPU µs/row | prepare s | predict rows/s | total s | MiB | AUC click | AUC conversion"
COLUMNS += " | AUC conversion given click | others"


def run(cell: dict[str, Any], train: Path, test: Path, environments: Path) -> dict[str, Any]:
    """The line of one run, with the peak of all its processes. Raises RuntimeError with the end of what it said."""
    peer, threads = cell["peer"], str(cell["threads"])
    python = sys.executable if peer in OWN else str(python_of(environments, peer))
    command = [python, "-m", *OWN.get(peer, [f"tests.bench.peers.{peer}"]), "--train", str(train), "--test", str(test)]
    command += ["--batch", str(cell["batch"]), "--threads", threads, "--device", cell["device"]]
    if cell["steps"]:
        command += ["--rows", str(cell["batch"] * cell["steps"])]
    variables = {**os.environ, "OMP_NUM_THREADS": threads}
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as wrong:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=said, stderr=wrong)
        peak = _peak(process)
        for file in (said, wrong):
            file.seek(0)
        lines = [line for line in said.read().splitlines() if line.startswith('{"peer"')]
        if process.returncode or not lines:
            raise RuntimeError(f"{' '.join(command)}\n{wrong.read()[-2000:]}")
    return {**json.loads(lines[-1]), **cell, "peak_mib": max(peak, json.loads(lines[-1])["peak_mib"])}


def _peak(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process; the largest resident memory that it and its children had at one time, MiB."""
    peak, root = 0, psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        for one in (root, *root.children(recursive=True)):
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak = max(peak, total)
        time.sleep(0.5)
    return peak // 2**20


def table(results: list[dict[str, Any]]) -> str:
    """Medians of the runs of each cell, and the rate over that of the fastest torch peer with the same batch and threads."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        cells[tuple(result[key] for key in CELL)].append(result)
    rates = {cell: _median(found, "train_rows_a_s") for cell, found in cells.items()}
    lines = [f"| peer | batch | threads | rounds | {COLUMNS} |", f"|{'---|' * (5 + COLUMNS.count('|'))}"]
    for cell, found in sorted(cells.items(), key=lambda item: (*item[0][1:3], -rates[item[0]])):
        peer, batch, threads, steps, device = cell
        same = {c[0]: rate for c, rate in rates.items() if (c[1:3], c[4]) == (cell[1:3], device)}
        torch = [rate for name, rate in same.items() if name in PACKAGES and name != "deepctr_tf"]
        name = peer + (f", {steps} steps" if steps else "") + (f", {device}" if device != "cpu" else "")
        lines.append(
            f"| {name} | {batch} | {threads} | {len(found)} | {_row(found, max(torch, default=float('nan')))} |"
        )
    return "\n".join(lines)


def _row(found: list[dict[str, Any]], reference: float) -> str:
    rates, rate = [f["train_rows_a_s"] for f in found], _median(found, "train_rows_a_s")
    cpu = statistics.median(f["train_cpu_s"] / f["train_rows"] for f in found) * 1e6
    shown = [f"{rate:,.0f}", f"{min(rates):,.0f}-{max(rates):,.0f}", f"{rate / reference:.2f}", f"{cpu:.1f}"]
    for key, form in {"prepare_s": ".1f", "predict_rows_a_s": ",.0f", "total_s": ".1f", "peak_mib": ",.0f"}.items():
        shown.append(f"{_median(found, key):{form}}")
    shown += [f"{_median(found, f'auc_{n}'):.4f}" for n in ("click", "conversion", "conversion_given_click")]
    return " | ".join([*shown, f"{max(f['train_others'] for f in found):.2f}"])


def _median(found: list[dict[str, Any]], key: str) -> float:
    return float(statistics.median(f[key] for f in found))


def main() -> None:
    """Make the runs that are missing, then print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, nargs="+", default=[1024, 8192, 32768])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", choices=[*OWN, *PACKAGES], default=["espace", "limit", *PACKAGES])
    parser.add_argument("--steps", type=int, default=0, help="train on so many batches only; no AUC worth having")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quiet", type=float, default=0.2, help="cores")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--test-rows", type=int, default=500_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "espace-peers")
    parser.add_argument("--environments", type=Path, default=Path("/tmp/peers"))
    options = parser.parse_args()
    for name in {*options.peers} - {*OWN}:
        if not python_of(options.environments, name).exists():
            parser.error(f"{options.environments} has no {name}: python -m tests.bench.peers.install --only {name}")
    results = measured(options)
    text = table([r for r in results if r["train_others"] <= options.quiet])
    (options.folder / f"results-{options.rows}.md").write_text(text + "\n")
    print(text)


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All lines of the folder, after the runs that were missing."""
    train = write(options.folder / f"train-{options.rows}.parquet", options.rows, seed=0)
    test = write(options.folder / f"test-{options.test_rows}.parquet", options.test_rows, seed=1)
    kept = options.folder / f"results-{options.rows}.jsonl"
    results = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for values in itertools.product(range(options.rounds), options.batches, options.threads, options.peers):
        cell = dict(zip(("round", "batch", "threads", "peer"), values, strict=True), steps=options.steps)
        cell["device"] = options.device
        if any(cell.items() <= r.items() and r["train_others"] <= options.quiet for r in results):
            continue
        try:
            found = run(cell, train, test, options.environments)
        except RuntimeError as error:
            print(f"{cell} failed: {error}", flush=True)
            continue
        results.append(found)
        with kept.open("a") as file:
            file.write(json.dumps(found) + "\n")
        others = f"others {found['train_others']:.2f} cores"
        print(f"{cell}: {found['train_rows_a_s']:,.0f} rows/s, {others}", flush=True)
    return results


if __name__ == "__main__":
    main()
