"""Tables that are printed: labels, loss terms, results; and what looks wrong in them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping

from rich.box import SIMPLE
from rich.table import Table

from espace.chain.chain import Chain
from espace.chain.grammar import Value
from espace.chain.terms import Term
from espace.config import Config
from espace.contracts import Objective
from espace.data.auditing.scan import Scan
from espace.data.auditing.tally import Tally
from espace.data.encoding.known import ANY
from espace.data.reading.times import Span
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


_SHOWN = 24  # letters of a value

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
        for stage in scan.tally.stages:
            for cells in _stage_cells(chain, stage, labels.get(stage, "(else)"), scan.tally):
                table.add_row("", *cells)
        for value in chain.values:
            table.add_row("", *_amount_cells(value, labels[value.amount], scan.tally))
    return table


def _stage_cells(chain: Chain, stage: str, label: str, tally: Tally) -> Iterator[list[str]]:
    """The line of a stage in the table of labels, and where it has several parents one for each."""
    found, broken, arrivals = tally.stages[stage], tally.violations.get(stage, 0), chain.arrivals(stage)
    given = [_share(tally.known.rate(chain, stage, t)) for t in arrivals]
    whole = [f"{found.known:,}", f"{found.positives:,}", _share(tally.rate(chain, stage))]
    yield [stage, label, *whole, given[0] if len(given) == 1 else "", f"{found.unknown:,}", f"{broken:,}"]
    for t, rate in zip(arrivals, given, strict=True) if len(given) > 1 else ():
        counts = (int(n[stage, t.name].sum()) for n in (tally.known.known, tally.known.happened))
        yield [f"  given {t.parent}", "", *(f"{n:,}" for n in counts), "", rate, "", ""]


def _share(rate: float) -> str:
    return "-" if math.isnan(rate) else f"{rate:.3%}"


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
            rows, found = _term_rows(chain_of(config), term, scan.tally)
            positives = f"{found:,}"
        table.add_row(name, term.rows, f"{rows:,}", positives, term.divisor, f"{weights[name]:g}")
    return table


def _term_rows(chain: Chain, term: Term, tally: Tally) -> tuple[int, int]:
    """Rows that a term of stages judges, and positives among them."""
    known, stages = tally.known, [s for s in term.stages if s in tally.stages]
    arrivals = [(s, t) for s in stages for t in chain.arrivals(s) if term.given in (None, t.parent)]
    positives = sum(int(known.happened[s, t.name].sum()) for s, t in arrivals)
    if term.given is None and known.at_random(chain, stages[0]):
        return tally.stages[stages[0]].read, sum(tally.stages[s].read_positives for s in stages)
    whats = [(s if len(stages) == 1 else ANY, t.name) for s, t in arrivals]
    below = known.below[stages[0]][0] if term.given is None else 0
    return below + sum(int(known.known[share].sum()) for share in dict.fromkeys(whats)), positives


def times_table(by: str, spans: Mapping[str, Span]) -> Table:
    """The first and the last time of every part that has times."""
    table = Table(title=f"Times, '{by}'", title_justify="left", box=SIMPLE)
    for name in ("part", "type", "first", "last"):
        _add_column(table, name, text=True)
    for part, span in spans.items():
        table.add_row(part, span.type, span.first, span.last)
    return table


def lists_table(scan: Scan) -> Table:
    """What the lists of each list feature look like in the training rows."""
    table = Table(title="Lists", title_justify="left", box=SIMPLE)
    for name in ("feature", "mean length", "empty", "most frequent", "of all"):
        _add_column(table, name, text=name in ("feature", "most frequent"))
    for name, facts in scan.lists.items():
        mean = f"{facts.events / facts.rows:.1f}" if facts.rows else "-"
        most = facts.most if len(facts.most) <= _SHOWN else f"{facts.most[:_SHOWN]}..."
        cells = (mean, _short(facts.empty, facts.rows), most, _short(facts.times, facts.seen))
        table.add_row(name, *cells)
    return table


def _short(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


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


_OFF = 0.1  # predicted over observed, from 1
_FAR = 0.5  # the same, for potential outcomes: of rows whose parent did not happen training has seen nothing
_MOST = 0.5  # of the loss, the share of one value
_DIVERGED = 3.0  # a log-loss that no weights reach by learning


def suspicious(config: Config, metrics: Mapping[str, float]) -> list[str]:
    """Towers that look dead, at chance, constant or off by more than chance explains; a value that rules the loss."""
    found = []
    for space, judged in spaces_of(config).items():
        auc, ratio = (metrics.get(f"{space}/{v}", math.nan) for v in ("auc", "predicted_over_observed"))
        rows, positives = (metrics.get(f"{space}/{v}", math.nan) for v in ("rows", "positives"))
        noise = math.sqrt((rows + 1) / (12 * positives * (rows - positives))) if 0 < positives < rows else math.nan
        if auc == 0.5:
            found.append(f"'{space}' is the same for all rows: its tower has learnt nothing but the base rate.")
        elif abs(auc - 0.5) < 2 * noise:
            found.append(
                f"the AUC of '{space}', {auc:.4f}, is within noise (0.5 +- {2 * noise:.4f}) of chance. Its tower may be"
                " dead: train longer, monitor this probability, or give its term more weight. Or there is nothing to be"
                " learnt: try features that could tell."
            )
        if (log_loss := metrics.get(f"{space}/log_loss", math.nan)) > _DIVERGED:
            found.append(
                f"the log-loss of '{space}', {log_loss:.4g}, is far above 0.6931, which a guess of 1/2 has: training"
                " has diverged, and these predictions are of no use. Lower optimizer.lr, or look for huge numbers among"
                " the features."
            )
        error = math.sqrt((1 - positives / rows) / positives) if 0 < positives <= rows else math.nan
        if abs(ratio - 1) > max(_FAR if judged.potential else _OFF, 3 * error):
            found.append(
                f"'{space}' predicts {ratio:.2f} times what was observed; chance is within {1 - 2 * error:.2f} and"
                f" {1 + 2 * error:.2f}. Were the rows sampled, is the time another, or was training too short?"
            )
    return [*found, *_ruling(config, metrics)]


def _ruling(config: Config, metrics: Mapping[str, float]) -> Iterator[str]:
    """A value whose term is most of the loss: it chooses the weights that are kept."""
    chain = chain_of(config)
    values = {v.amount if v.parent == chain.root else f"{v.amount}_given_{v.parent}": v.amount for v in chain.values}
    terms = {n.removeprefix("loss/"): abs(v) for n, v in metrics.items() if n.startswith("loss/")}
    stages = {term: config.stages.get(values.get(term, term)) for term in terms}
    weighed = {term: v * (1.0 if (s := stages[term]) is None else s.weight) for term, v in terms.items()}
    for term, name in values.items():
        share = weighed.get(term, 0.0) / (sum(weighed.values()) or 1.0)
        if share > _MOST:
            yield (
                f"the term of '{name}' is {share:.0%} of the loss, so it decides which weights are kept. Lower"
                f" stages.{name}.weight, or let monitor name the probability that you need."
            )
