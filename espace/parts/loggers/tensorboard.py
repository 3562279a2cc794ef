"""Curves in TensorBoard: `tensorboard --logdir runs`."""

from __future__ import annotations

from pathlib import Path

import espace


def tensorboard(folder: Path, resumed_at: int | None) -> espace.Logger:
    """Events for TensorBoard, in the folder `tensorboard` of the run."""
    from espace.parts.loggers.board import Board  # here, since Lightning is slow to import

    return Board(folder, "tensorboard", version="", purge_step=None if resumed_at is None else resumed_at + 1)


@espace.hookimpl
def register_loggers(register: espace.Register[espace.Logger]) -> None:
    """Bring `tensorboard`, the default."""
    register("tensorboard", tensorboard)
