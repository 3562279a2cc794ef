"""How training goes: a progress bar on a terminal, and a line per validation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Sized

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from espace.training.bars import shows_bars
from espace.training.lightning import Training

_REFRESH = 20  # steps
_BAR, _LEAST_BAR = 40, 10  # columns


class Narrator(pl.Callback):
    """Shows the step, the training losses, rows per second, and the loss of every validation."""

    def __init__(self, console: Console, quiet: bool) -> None:
        self.console = console
        self.quiet = quiet
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._since = 0.0
        self._rows = 0
        self._room = 0  # columns beside the bar

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Begin."""
        self._since, self._rows = time.monotonic(), 0
        if shows_bars(self.console) and not self.quiet and trainer.is_global_zero:
            total = trainer.estimated_stepping_batches
            rest = self.console.width - len("training ") - 2 * len(str(total)) - len(" / 0:00:00  ")
            bar = max(_LEAST_BAR, min(_BAR, rest // 2))
            self._room = rest - bar
            columns = (TextColumn("training"), BarColumn(bar), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.description}"), console=self.console, refresh_per_second=4)
            self._task = self._bar.add_task("", total=None if total == float("inf") else int(total))
            self._bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: object, batch: Sized, index: int
    ) -> None:
        """Move the bar, not at every step."""
        self._rows += len(batch) * trainer.world_size
        if self._bar is not None and trainer.global_step % _REFRESH == 0:
            assert isinstance(module, Training), "made together"
            self._bar.update(self._task, completed=trainer.global_step, description=self._losses(module.told))

    def _losses(self, told: Mapping[str, float]) -> str:
        rate = self._rows / max(time.monotonic() - self._since, 1e-9)
        found = {n.removeprefix("train/"): v for n, v in told.items() if n.startswith("train/loss")}
        return fitting([*(f"{n} {v:.4f}" for n, v in found.items()), f"{rate:,.0f} rows/s"], self._room)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """A line."""
        if not trainer.is_global_zero:
            return
        assert isinstance(module, Training), "made together"
        loss = module.told["val/loss"]
        line = f"step {trainer.global_step:>6,}  validation loss {loss:.5f}  AUC: {_told(module.told, 'auc')}"
        if ginis := _told(module.told, "gini"):
            line += f"  Gini: {ginis}"
        self.console.print(line, soft_wrap=True)  # one line in a log, however many probabilities there are

    def on_train_end(self, *_: object) -> None:
        """End."""
        self._stop()

    def on_exception(self, *_: object) -> None:
        """Leave the terminal as it was."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def fitting(parts: Sequence[str], room: int) -> str:
    """The first parts, as many as fit into so many columns with two blanks between them; none is cut."""
    text = ""
    for part in parts:
        longer = f"{text}  {part}" if text else part
        if len(longer) > room:
            break
        text = longer
    return text


def _told(metrics: Mapping[str, float], metric: str) -> str:
    """One metric of every probability, or value, that has it."""
    found = {n.split("/")[1]: v for n, v in metrics.items() if n.startswith("val/") and n.endswith(f"/{metric}")}
    return "  ".join(f"{n} {v:.4f}" for n, v in found.items())
