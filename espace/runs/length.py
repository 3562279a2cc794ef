"""How long a run trains, in which batches and at which rate, where the YAML leaves that open: it follows the rows.

A small set needs many short steps and several epochs, a large one is learnt in one. What is written in the YAML stays.

* `data.batch_size`: the power of two below a 256th of the training rows, from 64 to 1,024.
* `optimizer.lr`: 1e-3, and for a batch of fewer than 256 rows chosen here less, in proportion to the square root of
  its rows, as Adam's noise asks for (Malladi et al., NeurIPS 2022, "On the SDEs and scaling rules for adaptive gradient
  algorithms").
* `trainer.max_epochs`: at most as many as make a million rows, 50 at most; without validation rows, which would tell
  when to stop, as many as make a quarter of that, 10 at most.
* `optimizer.average`: 0.99.
* `patience`: as many validations as there are epochs, 4 to 12.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from espace.config import Config

_ROWS = 2**20  # over all epochs
_UNWATCHED = 2**18  # the same, without validation rows
_MOST, _MOST_UNWATCHED = 50, 10  # epochs
_BATCHES = 256  # of an epoch, or more
_LEAST, _LARGEST = 64, 1024  # rows of a batch
_SMALL = 256  # rows of a batch, below which the rate falls
RATE = 1e-3  # for larger batches, and wherever the size of a batch is written
_AVERAGE = 0.99
_PATIENCE = (4, 12)  # validations


def settled(config: Config, rows: int, monitored: bool) -> Config:
    """The configuration with numbers where it had none, for so many training rows.

    monitored: whether there are validation rows.
    """
    size = config.data.batch_size or batch_size(rows)
    own = config.data.batch_size is None
    rate = config.optimizer.lr or RATE * (math.sqrt(min(1.0, size / _SMALL)) if own else 1.0)
    average = _AVERAGE if config.optimizer.average is None else config.optimizer.average
    data = config.data.model_copy(update={"batch_size": size})
    optimizer = config.optimizer.model_copy(update={"lr": rate, "average": average})
    changed: dict[str, Any] = {"data": data, "optimizer": optimizer}
    if is_open(config.trainer):
        epochs = most_epochs(rows, monitored)
        changed["trainer"] = {**config.trainer, "max_epochs": epochs}
        if monitored and config.patience is None and epochs > 1:
            changed["patience"] = min(_PATIENCE[1], max(_PATIENCE[0], epochs))
    return config.model_copy(update=changed)


def as_begun(config: Config, begun: Config) -> Config:
    """The configuration with what a run that goes on chose at its beginning, where it leaves it open."""
    changed: dict[str, Any] = {}
    if config.data.batch_size is None:
        changed["data"] = config.data.model_copy(update={"batch_size": begun.data.batch_size})
    before = {"lr": begun.optimizer.lr or RATE, "average": begun.optimizer.average or 0.0}
    left = {name: value for name, value in before.items() if getattr(config.optimizer, name) is None}
    changed["optimizer"] = config.optimizer.model_copy(update=left)
    if is_open(config.trainer) and "max_epochs" in begun.trainer:
        changed["trainer"] = {**config.trainer, "max_epochs": begun.trainer["max_epochs"]}
        changed["patience"] = config.patience or begun.patience
    return config.model_copy(update=changed)


def is_open(trainer: Mapping[str, object]) -> bool:
    """Whether the keys of `trainer` leave the length open."""
    return not any(trainer.get(name) is not None for name in ("max_epochs", "max_steps", "max_time"))


def batch_size(rows: int) -> int:
    """For so many training rows."""
    return int(min(_LARGEST, max(_LEAST, 2 ** int(math.log2(max(rows, 1) / _BATCHES)) if rows >= _BATCHES else 0)))


def most_epochs(rows: int, monitored: bool) -> int:
    """For so many training rows."""
    budget, most = (_ROWS, _MOST) if monitored else (_UNWATCHED, _MOST_UNWATCHED)
    return min(most, max(1, round(budget / max(rows, 1))))


def told(asked: Config, found: Config, rows: int) -> str | None:
    """The line that says what was chosen and why; None where everything was written."""
    parts = []
    if asked.data.batch_size is None:
        parts.append(f"batches of {found.data.batch_size:,}")
    if asked.optimizer.lr is None and found.optimizer.lr != RATE:
        parts.append(f"a rate of {found.optimizer.lr:.3g}")
    if is_open(asked.trainer):
        epochs = found.trainer["max_epochs"]
        steps = -(-rows // (found.data.batch_size or 1))
        parts.append("one epoch" if epochs == 1 else f"up to {epochs} epochs of {steps:,} steps")
        if asked.patience is None and found.patience is not None:
            parts[-1] += f", until {found.monitor} has not improved for {found.patience} validations"
        elif epochs > 1:
            parts[-1] = f"{epochs} epochs of {steps:,} steps"
    if parts and asked.optimizer.average is None and found.optimizer.average:
        parts.append(f"the average of about the last {1 / (1 - found.optimizer.average):.0f} weights is kept")
    if not parts:
        return None
    keys = "data.batch_size, optimizer.lr, optimizer.average, trainer.max_epochs and patience set them"
    return f"Chosen for {rows:,} training rows: {'; '.join(parts)} ({keys})."
