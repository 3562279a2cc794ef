"""What a person sees: tables, progress, pictures. Nothing here computes a result."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from espace.config import Config
from espace.contracts import Objective
from espace.data.auditing.scan import Scan
from espace.data.console import SafeConsole
from espace.model.model import Model
from espace.runs import widths
from espace.runs.figures import (
    Curves,
    Interval,
    Points,
    draw_calibration,
    draw_conditions,
    draw_gates,
    draw_learning,
    draw_shares,
)
from espace.runs.tables import (
    OF_TRUTH,
    lists_table,
    results_table,
    stages_table,
    suspicious,
    terms_table,
    times_table,
    truths_of,
    truths_table,
)
from espace.training.bars import shows_bars

if TYPE_CHECKING:
    from espace.training.narrator import Narrator

_NAMES_AND_NUMBERS = re.compile(r"'[^']*'|-?\d[\d,.]*(e[+-]?\d+)?")
_SHOWN = 3  # notes of one kind
_PLAIN_WIDTH = 1_000  # of output that goes to a file or a pipe, where nothing has to go for want of room


class Report:
    """Prints to the terminal, unless `quiet`."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        width = None if sys.stdout.isatty() else _PLAIN_WIDTH
        self.console = SafeConsole(quiet=quiet, width=width, markup=False, highlight=False)
        self._reading: Progress | None = None
        self._bars: dict[str, TaskID] = {}

    def warn(self, text: str) -> None:
        """A line that asks for attention."""
        self._tell(("Note:", "yellow"), f" {text}")

    def warn_all(self, lines: Iterable[str]) -> None:
        """Notes, of which those that differ in names and numbers only are one line: the first, and how many more."""
        kinds: dict[str, list[str]] = {}
        for line in lines:
            kinds.setdefault(_NAMES_AND_NUMBERS.sub("", line), []).append(line)
        for same in kinds.values():
            shown = same if len(same) <= _SHOWN else same[:1]
            for line in shown:
                more = len(same) - len(shown)
                self.warn(f"{line} And {more:,} more notes of this kind." if more else line)

    def tell(self, text: str) -> None:
        """A line, or several, as they are."""
        self._tell(text)

    def _tell(self, *parts: str | tuple[str, str]) -> None:
        """A line of text, each part as it is or in a style, which no console wraps: paths in it can be copied."""
        self.console.print(Text.assemble(*parts), soft_wrap=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """The bar of the pass over the data."""
        if self.quiet or not shows_bars(self.console):
            return
        if self._reading is None:
            columns = (
                TextColumn("reading {task.description}"),
                BarColumn(bar_width=max(10, min(40, self.console.width - 50))),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._reading = Progress(*columns, console=self.console, transient=True)
            self._reading.start()
        if what not in self._bars:
            self._bars[what] = self._reading.add_task(what, total=total)
        self._reading.update(self._bars[what], completed=done)

    def done_reading(self) -> None:
        """Take the bar away."""
        if self._reading is not None:
            self._reading.stop()
        self._reading, self._bars = None, {}

    def audit(self, config: Config, objective: Objective, scans: Mapping[str, Scan]) -> list[Table]:
        """Rates of every stage, violations, unknown labels, times, and which rows feed which loss term."""
        self.done_reading()
        tables: dict[tuple[str, ...], Table] = {widths.LABELS: stages_table(config, scans)}
        if config.data.split and config.data.split.by and (spans := {n: s.span for n, s in scans.items() if s.span}):
            tables[widths.TIMES] = times_table(config.data.split.by, spans)
        tables[widths.TERMS] = terms_table(config, objective, scans["train"])
        if scans["train"].lists:
            tables[widths.LISTS] = lists_table(scans["train"])
        for needed, table in tables.items():
            self._show(table, needed)
        return [*tables.values()]

    def _show(self, table: Table, needed: Sequence[str]) -> None:
        self.console.print(widths.fitted(table, self.console.width, needed))

    def start(self, config: Config, model: Model, folder: Path, precision: str) -> None:
        """What is about to be trained, and where it goes."""
        parameters = sum(p.numel() for p in model.parameters())
        tables = sum(p.numel() for n, p in model.named_parameters() if ".tables." in n)
        what = (
            f": {parameters:,} parameters, {tables:,} of them in embedding tables; precision {precision}; run folder "
        )
        self._tell((config.name or "model", "bold"), what, (str(folder), "bold"))

    def narrator(self) -> Narrator:
        """A Lightning callback that tells how training goes: a bar on a terminal, a line per validation elsewhere."""
        from espace.training.narrator import Narrator

        return Narrator(self.console, self.quiet)

    def stopped(self, folder: Path, step: int) -> None:
        """A signal came."""
        self._tell(f"\nStopped after step {step}; everything is saved. Go on with\n    espace fit --resume {folder}")

    def results(self, config: Config, part: str, metrics: Mapping[str, float]) -> None:
        """One row per probability, each judged in its own space, and per truth; then what looks wrong."""
        truths = truths_of(config)
        elsewhere = {f"{p}{v}" for p in truths for v in OF_TRUTH}
        self._show(results_table(config, part, metrics, elsewhere), widths.RESULTS)
        if truths:
            self._show(truths_table(config, part, metrics, truths), widths.TRUTHS)
        self.warn_all(f"{part}: {line}" for line in suspicious(config, metrics))

    def figures(self, folder: Path, curves: Curves) -> None:
        """Learning curves, what the gates use if there are any, and calibration of every probability."""
        (folder / "figures").mkdir(exist_ok=True)
        draw_learning(folder / "metrics.csv", folder / "figures" / "learning_curves.png")
        draw_gates(folder / "metrics.csv", folder / "figures" / "gates.png")
        for part, spaces in curves.items():
            draw_calibration(spaces, folder / "figures" / f"calibration_{part}.png")

    def shares(self, target: Path, metric: str, shares: Sequence[float], lines: Mapping[str, Points]) -> None:
        """A metric of several variants over the shares of the training rows, with intervals."""
        target.parent.mkdir(parents=True, exist_ok=True)
        draw_shares(metric, shares, lines, target)

    def conditions(
        self,
        target: Path,
        title: str,
        conditions: Sequence[str],
        intervals: Mapping[str, Mapping[str, Sequence[Interval | None]]],
    ) -> None:
        """Differences of variants under each condition, with intervals; a plot for each share.

        intervals: `{share: {variant: one for each condition, None where there is none}}`.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        draw_conditions(title, conditions, intervals, target)

    def finished(self, folder: Path) -> None:
        """Where everything went and what to do with it."""
        self._tell(
            "Run folder: ",
            (str(folder), "bold"),
            " (config.yaml, results.json, metrics.csv, checkpoints, vocabulary, figures)\n",
            f"Predict with: espace predict {folder} --data FILE --out predictions.parquet",
        )
