"""Whether a run can go on: the same options where they matter, the same data, a whole checkpoint."""

from __future__ import annotations

from pathlib import Path

import espace.config as configuration
from espace.config import Config
from espace.errors import RunError
from espace.registry.registry import Registry
from espace.runs.opening import PARTS
from espace.runs.run import (
    config_file,
)

_MAY_CHANGE = (
    "name",
    "trainer",
    "compile",
    "cuda_graphs",
    "metrics",
    "scores",
    "monitor",
    "mode",
    "patience",
    "checkpoint_every",
)  # when a run goes on


_PLACE = ("limit_train_batches", "accumulate_grad_batches")  # of trainer: what a count of batches means depends on them


_DATA_MAY_CHANGE = (
    *PARTS,
    "potential",
    "allow_leaks",
    "workers",
    "keep_encoded",
)  # that the training rows are the same is checked


def check_same(config: Config, registry: Registry, run: Path) -> None:
    """Raise RunError when the run was begun with options that cannot change on the way."""
    now, then = (c.to_dict() for c in (config, configuration.load(config_file(run), (), registry)))
    changed = [key for key in then if key not in (*_MAY_CHANGE, "data") and now[key] != then[key]]
    for key in {**then["data"], **now["data"]}:
        if key not in _DATA_MAY_CHANGE and now["data"].get(key) != then["data"].get(key):
            changed.append(f"data.{key}")
    for key in _PLACE:
        if now["trainer"].get(key) != then["trainer"].get(key):
            changed.append(f"trainer.{key}")
    if changed:
        raise RunError(
            f"{run}: it was begun with another {', '.join(changed)}. What may change when a run goes on:"
            f" {', '.join(_MAY_CHANGE)}. Start a new run with another --run-dir."
        )
