"""espace: `fit` with validation off, as the others have none, then `predict` on the test rows in memory."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from espace.runs.experiment import Experiment
from espace.training.lightning import Training
from tests.bench.data import experiment
from tests.bench.peers.common import FIELDS, Bench


def main() -> None:
    """Train, predict, print."""
    more = {"nargs": "*", "default": [], "help": "overrides of the YAML, such as trainer.precision=bf16-mixed"}
    bench = Bench("espace", ["torch", "pytorch-lightning", "numpy", "pyarrow"], {"--set": more})
    options = bench.options
    torch.set_num_threads(options.threads)
    values = experiment(options.train, test=str(options.test), batch_size=options.batch)
    trainer: dict[str, object] = {"accelerator": "gpu" if options.device == "cuda" else "cpu"}
    if options.rows:
        trainer["max_steps"] = -(-bench.rows // options.batch)
    values["trainer"] = trainer
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["ESPACE_CACHE"] = str(folder / "cache")  # nothing is known of the files beforehand
        (folder / "bench.yaml").write_text(json.dumps(values))
        run = _timed_fit(bench, Experiment.from_yaml(folder / "bench.yaml", options.set), folder / "run")
        table = pq.read_table(options.test, columns=FIELDS)
        with bench.phase("predict", bench.test_rows):
            p = run.predict(table)
        results = json.loads((folder / "run" / "results.json").read_text())
    told = {f"told_auc_{n}": results[f"test/{n}/auc"] for n in ("click", "conversion", "conversion_given_click")}
    bench.finish(click=p["p_click"], conversion=p["p_conversion"], **told)


def _timed_fit(bench: Bench, plan: Experiment, folder: Path) -> Any:
    """Training lasts until the last checkpoint is written; what comes before it is preparation."""
    prepare, train = bench.phase("prepare", bench.file_rows + bench.test_rows), bench.phase("train", bench.rows)

    def start(self: Training) -> None:
        prepare.__exit__(None, None, None)
        train.__enter__()

    def end(self: Training) -> None:
        train.__exit__(None, None, None)

    Training.on_train_start, Training.on_fit_end = start, end  # type: ignore[method-assign, assignment]
    prepare.__enter__()
    return plan.fit(folder)


if __name__ == "__main__":
    main()
