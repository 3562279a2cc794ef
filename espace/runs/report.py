"""What a person sees: tables, progress, pictures. Nothing here computes a result."""

from __future__ import annotations

import csv
import itertools
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from espace.runs.build import chain_of, labels_of, spaces_of, term_weights
from espace.chain.grammar import Value
from espace.config import Config
from espace.data.auditing.scan import Scan
from espace.data.auditing.tally import Tally
from espace.model.model import Model

Curves = Mapping[str, Mapping[str, Mapping[str, list[float]]]]
Points = Sequence[tuple[float, float]]  # mean and half the width of its interval
Interval = tuple[float, float, float]  # mean, low and high
_COLUMNS = {
    "rows": "rows",
    "positives": "positives",
    "auc": "AUC",
    "log_loss": "log-loss",
    "normalized_entropy": "NE",
    "predicted_over_observed": "pred./obs.",
    "mae": "MAE",
    "gini": "Gini",
}
_OF_TRUTH = {"rank_correlation": "rank corr.", "predicted_over_true": "pred./true", "rmse": "RMSE"}
_PLAIN_WIDTH = 180  # of output that goes to a file or a pipe
_ABBREVIATIONS = {
    ("click",): "pCTR",
    ("conversion",): "pCTCVR",
    ("conversion", "click"): "pCVR",
}


class Report:
    """Prints to the terminal, unless `quiet`."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        width = None if sys.stdout.isatty() else _PLAIN_WIDTH
        self.console = Console(quiet=quiet, width=width, markup=False, highlight=False)
        self._reading: Progress | None = None
        self._bars: dict[str, Any] = {}

    def warn(self, text: str) -> None:
        """A line that asks for attention."""
        self._tell(("Note:", "yellow"), f" {text}")

    def tell(self, text: str) -> None:
        """A line, or several, as they are."""
        self._tell(text)

    def _tell(self, *parts: str | tuple[str, str]) -> None:
        """A line of text, each part as it is or in a style, which no console wraps: paths in it can be copied."""
        self.console.print(Text.assemble(*parts), soft_wrap=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """The bar of the pass over the data."""
        if self.quiet or not self.console.is_terminal:
            return
        if self._reading is None:
            columns = (
                TextColumn("reading {task.description}"),
                BarColumn(),
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

    def audit(self, config: Config, objective: Any, scans: Mapping[str, Scan]) -> None:
        """Rates of every stage, violations, unknown labels, and which rows feed which loss term."""
        self.done_reading()
        self.console.print(_stages_table(config, scans))
        self.console.print(_terms_table(config, objective, scans["train"]))

    def start(self, config: Config, model: Model, folder: Path, precision: str) -> None:
        """What is about to be trained, and where it goes."""
        parameters = sum(p.numel() for p in model.parameters())
        tables = sum(p.numel() for n, p in model.named_parameters() if ".tables." in n)
        what = (
            f": {parameters:,} parameters, {tables:,} of them in embedding tables; precision {precision}; run folder "
        )
        self._tell((config.name or "model", "bold"), what, (str(folder), "bold"))

    def narrator(self) -> Any:
        """A Lightning callback that tells how training goes: a bar on a terminal, a line per validation elsewhere."""
        from espace.training.narrator import Narrator

        return Narrator(self.console, self.quiet)

    def stopped(self, folder: Path, step: int) -> None:
        """A signal came."""
        self._tell(f"\nStopped after step {step}; everything is saved. Go on with\n    espace fit --resume {folder}")

    def results(self, config: Config, part: str, metrics: Mapping[str, float]) -> None:
        """One row per probability, each judged in its own space, and per truth; then what looks wrong."""
        truths = _truths_of(config)
        self.console.print(_results_table(config, part, metrics, {f"{p}{v}" for p in truths for v in _OF_TRUTH}))
        if truths:
            self.console.print(_truths_table(config, part, metrics, truths))
        for line in suspicious(config, metrics):
            self.warn(f"{part}: {line}")

    def figures(self, folder: Path, curves: Curves) -> None:
        """Learning curves, what the gates use if there are any, and calibration of every probability."""
        import matplotlib

        matplotlib.use("Agg")
        (folder / "figures").mkdir(exist_ok=True)
        _draw_learning(folder / "metrics.csv", folder / "figures" / "learning_curves.png")
        _draw_gates(folder / "metrics.csv", folder / "figures" / "gates.png")
        for part, spaces in curves.items():
            _draw_calibration(spaces, folder / "figures" / f"calibration_{part}.png")

    def shares(self, target: Path, metric: str, shares: Sequence[float], lines: Mapping[str, Points]) -> None:
        """A metric of several variants over the shares of the training rows, with intervals."""
        import matplotlib

        matplotlib.use("Agg")
        target.parent.mkdir(parents=True, exist_ok=True)
        _draw_shares(metric, shares, lines, target)

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
        import matplotlib

        matplotlib.use("Agg")
        target.parent.mkdir(parents=True, exist_ok=True)
        _draw_conditions(title, conditions, intervals, target)

    def finished(self, folder: Path) -> None:
        """Where everything went and what to do with it."""
        self._tell(
            "Run folder: ",
            (str(folder), "bold"),
            " (config.yaml, results.json, metrics.csv, tensorboard, checkpoints, vocabulary, figures)\n",
            f"Predict with: espace predict {folder} --data FILE --out predictions.parquet",
        )


def _stages_table(config: Config, scans: Mapping[str, Scan]) -> Table:
    chain, labels = chain_of(config), labels_of(config)
    table = Table(title="Labels", title_justify="left", box=SIMPLE)
    for name in ("part", "stage", "label", "known rows", "positives", "rate", "given parent", "unknown", "violations"):
        _add_column(table, name, text=name in ("part", "stage", "label"))
    for part, scan in scans.items():
        table.add_row(
            part, chain.root, "", f"{scan.tally.rows:,}", f"{scan.tally.rows:,}", "", "", "", "", style="bold"
        )
        for stage, tally in scan.tally.stages.items():
            label = labels.get(stage, "(else)")
            broken = scan.tally.violations.get(stage, 0)
            rates = (_percent(tally.positives, tally.known), _percent(tally.positives, tally.reached))
            table.add_row(
                "",
                stage,
                label,
                f"{tally.known:,}",
                f"{tally.positives:,}",
                *rates,
                f"{tally.unknown:,}",
                f"{broken:,}",
            )
        for value in chain.values:
            table.add_row("", *_amount_cells(value, labels[value.amount], scan.tally))
    return table


def _amount_cells(value: Value, label: str, tally: Tally) -> list[str]:
    """A line of the table of labels: positives are amounts other than 0."""
    found, broken = tally.amounts[value.amount], sum(tally.violations.get(n, 0) for n in (value.amount, value.name))
    mean = f"mean {found.mean:,.6g}" if found.known else "-"
    counts = (f"{found.known:,}", f"{found.known - found.zeros:,}")
    return [value.amount, label, *counts, "", mean, f"{found.unknown:,}", f"{broken:,}"]


def _terms_table(config: Config, objective: Any, scan: Scan) -> Table:
    weights = term_weights(config, objective)
    table = Table(title=f"Which rows feed which loss term ({config.objective.type})", title_justify="left", box=SIMPLE)
    for name in ("term", "judged on", "rows", "positives", "divided by", "weight"):
        _add_column(table, name, text=name not in ("rows", "positives", "weight"))
    for name, term in objective.terms.items():
        if term.stages[0] in scan.tally.amounts:
            rows, positives = scan.tally.amounts[term.stages[0]].known, ""
        else:
            tallies = [scan.tally.stages[s] for s in term.stages]
            rows = tallies[0].known if term.given is None else tallies[0].reached
            positives = f"{sum(t.positives for t in tallies):,}"
        table.add_row(name, term.rows, f"{rows:,}", positives, term.divisor, f"{weights[name]:g}")
    return table


def _results_table(config: Config, part: str, metrics: Mapping[str, float], elsewhere: Collection[str]) -> Table:
    table = Table(title=f"Results on {part} (loss {metrics['loss']:.5f})", title_justify="left", box=SIMPLE)
    _add_column(table, "probability", text=True)
    _add_column(table, "judged on", text=True)
    found = dict.fromkeys(name.split("/")[1] for name in metrics if not name.startswith("loss"))
    values = [value for value in found if value not in elsewhere]
    shown = [*(v for v in _COLUMNS if v in values), *(v for v in values if v not in _COLUMNS and v != "ece")]
    for value in shown:
        _add_column(table, _COLUMNS.get(value, value.replace("_", " ")), text=False)
    for name, space in spaces_of(config).items():
        address = (space.stage,) if space.given is None else (space.stage, space.given)
        short = None if space.potential else _ABBREVIATIONS.get(address)
        cells = [_number(value, metrics.get(f"{name}/{value}", math.nan)) for value in shown]
        table.add_row(f"{name} ({short})" if short else name, space.rows, *cells)
    return table


def _truths_of(config: Config) -> dict[str, str]:
    """`{prefix of names: column of true probabilities}` of every metric `truth`."""
    options = (metric.options for metric in config.metrics.values() if metric.type == "truth")
    return {f"{o['name']}_" if o["name"] else "": o["column"] for o in options}


def _truths_table(config: Config, part: str, metrics: Mapping[str, float], truths: Mapping[str, str]) -> Table:
    table = Table(title=f"Against true probabilities, {part}", title_justify="left", box=SIMPLE)
    _add_column(table, "probability", text=True)
    _add_column(table, "truth", text=True)
    for name in _OF_TRUTH.values():
        _add_column(table, name, text=False)
    for space, (prefix, column) in itertools.product(spaces_of(config), truths.items()):
        names = {value: f"{space}/{prefix}{value}" for value in _OF_TRUTH}
        if all(name in metrics for name in names.values()):
            table.add_row(space, column, *(_number(value, metrics[name]) for value, name in names.items()))
    return table


def _add_column(table: Table, name: str, *, text: bool) -> None:
    """Words may be wrapped, figures never."""
    table.add_column(name, justify="left" if text else "right", no_wrap=not text, overflow="fold")


def _number(name: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    if name in ("rows", "positives") or name.endswith("_groups"):
        return f"{value:,.0f}"
    if name == "mae":
        return f"{value:,.5g}"
    return f"{value:.3f}" if "predicted_over_" in name else f"{value:.4f}"


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.3%}" if whole else "-"


def suspicious(config: Config, metrics: Mapping[str, float]) -> list[str]:
    """Towers that look dead: at chance, constant, or off by more than a factor of 2."""
    found = []
    for space in spaces_of(config):
        auc, ratio = (metrics.get(f"{space}/{v}", math.nan) for v in ("auc", "predicted_over_observed"))
        rows, positives = (metrics.get(f"{space}/{v}", math.nan) for v in ("rows", "positives"))
        noise = math.sqrt((rows + 1) / (12 * positives * (rows - positives))) if 0 < positives < rows else math.nan
        if auc == 0.5:
            found.append(f"{space} is the same for all rows: its tower has learnt nothing but the base rate.")
        elif abs(auc - 0.5) < 2 * noise:
            found.append(
                f"the AUC of {space}, {auc:.4f}, is within noise (0.5 +- {2 * noise:.4f}) of chance. Its tower may be dead: train"
                " longer, monitor this probability, or give its term more weight."
            )
        if ratio > 2 or ratio < 0.5:
            found.append(
                f"{space} predicts {ratio:.2f} times what was observed. Were the rows sampled, or is the time another?"
            )
    return found


def _read_metrics(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    found: dict[str, tuple[list[int], list[float]]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                steps, values = found.setdefault(line["name"], ([], []))
                steps.append(int(line["step"]))
                values.append(float(line["value"]))
    return found


def _draw_learning(metrics: Path, target: Path) -> None:
    from matplotlib import pyplot as plt

    found = _read_metrics(metrics)
    height = max(4.0, 0.2 * sum(name.endswith("/auc") for name in found))  # of a legend with a line for each
    figure, (losses, aucs) = plt.subplots(1, 2, figsize=(11, height), constrained_layout=True)
    for name, (steps, values) in found.items():
        if name in ("train/loss", "val/loss"):
            losses.plot(steps, values, marker="o" if name.startswith("val") else None, label=name)
        elif name.endswith("/auc"):
            aucs.plot(steps, values, marker="o", label=name.split("/")[1])
    for axes, title in ((losses, "loss"), (aucs, "validation AUC, each in its own space")):
        axes.set(title=title, xlabel="step")
        if axes.lines:
            axes.legend(fontsize=8)
    figure.savefig(target, dpi=120)
    plt.close(figure)


def _draw_gates(metrics: Path, target: Path) -> None:
    """The mean weight of every expert over the steps, a plot for each gate."""
    from matplotlib import pyplot as plt

    gates: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for name, line in _read_metrics(metrics).items():
        if name.startswith("train/gate/"):
            gate, _, expert = name.removeprefix("train/gate/").rpartition("/")
            gates.setdefault(gate, {})[expert] = line
    if not gates:
        return
    width = min(len(gates), 3)
    height = -(-len(gates) // width)
    size = (4.6 * width, 3.4 * height)
    figure, axes = plt.subplots(height, width, figsize=size, squeeze=False, constrained_layout=True)
    for plot in axes.flat[len(gates) :]:
        plot.set_axis_off()
    for plot, (gate, experts) in zip(axes.flat, gates.items(), strict=False):
        for expert, (steps, shares) in experts.items():
            plot.plot(steps, shares, marker="." if len(steps) < 20 else None, label=expert)
        plot.set(title=gate, xlabel="step", ylabel="mean weight", ylim=(0, 1))
        plot.title.set_fontsize(9)
        plot.legend(fontsize=7)
    figure.savefig(target, dpi=120)
    plt.close(figure)


def _draw_calibration(spaces: Mapping[str, Mapping[str, list[float]]], target: Path) -> None:
    from matplotlib import pyplot as plt

    width = min(len(spaces), 3)
    height = -(-len(spaces) // width) if width else 1
    figure, axes = plt.subplots(
        height, max(width, 1), figsize=(4 * max(width, 1), 3.6 * height), squeeze=False, constrained_layout=True
    )
    for plot in axes.flat[len(spaces) :]:
        plot.set_axis_off()
    for plot, (space, curve) in zip(axes.flat, spaces.items(), strict=False):
        pairs = [(p, o) for p, o in zip(curve["predicted"], curve["observed"], strict=True) if p > 0 and o == o]
        if pairs:
            highest = max(max(pair) for pair in pairs)
            plot.plot([0, highest], [0, highest], color="0.7", linewidth=1)
            plot.plot(*zip(*pairs, strict=True), marker="o", markersize=4)
        plot.set(title=space, xlabel="predicted", ylabel="observed")
        plot.title.set_fontsize(9)
    figure.savefig(target, dpi=120)
    plt.close(figure)


def _draw_shares(metric: str, shares: Sequence[float], lines: Mapping[str, Points], target: Path) -> None:
    """A line for each variant; with one share a point for each."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.4), constrained_layout=True)
    for number, (name, points) in enumerate(lines.items()):
        means, halves = zip(*points, strict=True)
        places = shares if len(shares) > 1 else [number]
        errors = [0 if math.isnan(half) else half for half in halves]
        axes.errorbar(places, means, yerr=errors, marker="o", markersize=4, capsize=3, linewidth=1.2, label=name)
    if len(shares) > 1:
        axes.set_xlabel("share of the training rows")
        axes.legend(fontsize=8)
    else:
        axes.set_xticks(range(len(lines)), list(lines), rotation=30 if len(lines) > 6 else 0)
    axes.set(title=metric, ylabel=f"{metric}, test")
    figure.savefig(target, dpi=120)
    plt.close(figure)


def _draw_conditions(
    title: str,
    conditions: Sequence[str],
    intervals: Mapping[str, Mapping[str, Sequence[Interval | None]]],
    target: Path,
) -> None:
    """A dot and a bar for each variant below each other, condition by condition from the top."""
    from matplotlib import pyplot as plt

    variants = max(len(of_share) for of_share in intervals.values())
    size = (5.6 * len(intervals), 1.4 + len(conditions) * (0.3 + 0.18 * variants))
    figure, axes = plt.subplots(1, len(intervals), figsize=size, squeeze=False, sharey=True, constrained_layout=True)
    for plot, (share, of_share) in zip(axes.flat, intervals.items(), strict=True):
        plot.axvline(0, color="0.7", linewidth=1)
        for number, (name, found) in enumerate(of_share.items()):
            there = {place: one for place, one in enumerate(found) if one is not None}
            heights = [place + 0.7 * ((number + 0.5) / variants - 0.5) for place in there]
            means = [mean for mean, _, _ in there.values()]
            halves = [0 if math.isnan(high) else high - mean for mean, _, high in there.values()]
            plot.errorbar(means, heights, xerr=halves, fmt="o", markersize=4, capsize=2, linewidth=1.2, label=name)
        plot.set(title=share if len(intervals) > 1 else "", xlabel=title)
        plot.set_yticks(range(len(conditions)), list(conditions))
        plot.set_ylim(len(conditions) - 0.5, -0.5)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    figure.savefig(target, dpi=120)
    plt.close(figure)
