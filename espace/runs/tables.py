"""Tables that are printed: labels, loss terms, results; and what looks wrong in them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping

from rich.box import SIMPLE
from rich.table import Table

from espace.chain.grammar import Value
from espace.config import Config
from espace.contracts import Objective
from espace.data.auditing.scan import Scan
from espace.data.auditing.tally import Tally
from espace.runs.build import chain_of, labels_of, spaces_of, term_weights

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


OF_TRUTH = {"rank_correlation": "rank corr.", "predicted_over_true": "pred./true", "rmse": "RMSE"}


_ABBREVIATIONS = {
    ("click",): "pCTR",
    ("conversion",): "pCTCVR",
    ("conversion", "click"): "pCVR",
}


def stages_table(config: Config, scans: Mapping[str, Scan]) -> Table:
    """Rates, unknown labels and violations of every stage, part by part."""
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


def terms_table(config: Config, objective: Objective, scan: Scan) -> Table:
    """Which rows feed which term of the loss, and with which weight."""
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


def results_table(config: Config, part: str, metrics: Mapping[str, float], elsewhere: Collection[str]) -> Table:
    """A row for each probability and value; no columns for metrics named in `elsewhere`."""
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


def truths_of(config: Config) -> dict[str, str]:
    """`{prefix of names: column of true probabilities}` of every metric `truth`."""
    options = (metric.options for metric in config.metrics.values() if metric.type == "truth")
    return {f"{o['name']}_" if o["name"] else "": o["column"] for o in options}


def truths_table(config: Config, part: str, metrics: Mapping[str, float], truths: Mapping[str, str]) -> Table:
    """A row for each probability and each of `truths`, `{prefix: column}`, that was judged."""
    table = Table(title=f"Against true probabilities, {part}", title_justify="left", box=SIMPLE)
    _add_column(table, "probability", text=True)
    _add_column(table, "truth", text=True)
    for name in OF_TRUTH.values():
        _add_column(table, name, text=False)
    for space, (prefix, column) in itertools.product(spaces_of(config), truths.items()):
        names = {value: f"{space}/{prefix}{value}" for value in OF_TRUTH}
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


_DIVERGED = 3.0  # a log-loss that no weights reach by learning


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
                f"the AUC of {space}, {auc:.4f}, is within noise (0.5 +- {2 * noise:.4f}) of chance. Its tower may be"
                " dead: train longer, monitor this probability, or give its term more weight. Or there is nothing to be"
                " learnt: try features that could tell."
            )
        if (log_loss := metrics.get(f"{space}/log_loss", math.nan)) > _DIVERGED:
            found.append(
                f"the log-loss of {space}, {log_loss:.4g}, is far above 0.6931, which a guess of 1/2 has: training has"
                " diverged, and these predictions are of no use. Lower optimizer.lr, or look for huge numbers among the"
                " features."
            )
        if ratio > 2 or ratio < 0.5:
            found.append(
                f"{space} predicts {ratio:.2f} times what was observed. Were the rows sampled, or is the time another?"
            )
    return found
