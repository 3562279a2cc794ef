"""`steps.csv`, of which the columns grow as metrics come."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from pytorch_lightning.loggers import Logger


class Steps(Logger):
    """One line a step, in the order of steps; columns are step, epoch and the metrics in the order in which they came.

    What one step tells in several calls stands in one line. The file is written anew where a column or a value joins
    what is there, else a line is added.

    Args:
        path: the file.
        resumed_at: lines of later steps are dropped; None: the file is begun anew.
    """

    def __init__(self, path: Path, resumed_at: int | None) -> None:
        super().__init__()
        self.path, self.resumed_at = path, resumed_at
        self.lines: dict[int, dict[str, str]] | None = None  # by step; unread until something is told
        self.columns = ["step", "epoch"]

    @property
    def name(self) -> str:
        """Lightning wants one."""
        return "csv"

    @property
    def version(self) -> str:
        """Lightning wants one."""
        return ""

    def log_hyperparams(self, *_: object, **__: object) -> None:
        """config.yaml has them."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add to the line of the step."""
        lines = self.lines = self._read() if self.lines is None else self.lines
        at = step or 0
        joins = at in lines or not lines or not {*metrics} <= {*self.columns}
        self.columns += [name for name in metrics if name not in self.columns]
        told = {name: f"{float(value):.9g}" for name, value in metrics.items()}
        lines[at] = lines.get(at, {"step": str(at)}) | told
        with self.path.open("w" if joins else "a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if joins:
                writer.writeheader()
            writer.writerows(lines.values() if joins else [lines[at]])

    def _read(self) -> dict[int, dict[str, str]]:
        """What a run that goes on has up to its step."""
        if self.resumed_at is None or not self.path.exists():
            return {}
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            self.columns = list(reader.fieldnames or self.columns)
            whole = (line for line in reader if None not in line.values() and None not in line)
            return {int(line["step"]): line for line in whole if int(line["step"]) <= self.resumed_at}
