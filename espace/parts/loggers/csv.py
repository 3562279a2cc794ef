"""A table for spreadsheets: one line for each step, one column for each metric."""

from __future__ import annotations

from pathlib import Path

import espace


def csv(folder: Path, resumed_at: int | None) -> espace.Logger:
    """`steps.csv` in the run folder: a line for each step at which something was told, a column for each metric."""
    from espace.parts.loggers.steps import Steps  # here, since Lightning is slow to import

    return Steps(folder / "steps.csv", resumed_at)


@espace.hookimpl
def register_loggers(register: espace.Register[espace.Logger]) -> None:
    """Bring `csv`."""
    register("csv", csv)
