"""Tables that fit into a terminal: what is less needed goes as a whole, and no name is ever cut."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from rich.table import Table

from espace.data.console import SafeConsole

# Columns of the tables, the most needed first; one that is not named here is the first to go.
LABELS = ("stage", "label", "part", "rate", "positives", "given parent", "violations", "unknown", "known rows")
TERMS = ("term", "rows", "positives", "weight", "judged on", "divided by")
LISTS = ("feature", "mean length", "empty", "of all", "most frequent")
TIMES = ("part", "first", "last", "type")
RESULTS = ("probability", "AUC", "Gini", "pred./obs.", "rows", "positives", "log-loss", "MAE", "NE", "judged on")
TRUTHS = ("probability", "truth", "pred./true", "rank corr.", "RMSE")
_ALWAYS = 2  # columns that stay, folded where even they do not fit

_PAPER = SafeConsole(width=100_000)  # on which nothing is wrapped


def fitted(table: Table, width: int, needed: Sequence[str]) -> Table:
    """A copy of the table, less the columns that do not fit into `width`; its caption names these.

    needed: headers, the most needed first. The first two stay in any case.
    """
    table = copy(table)
    ranks = {name: place for place, name in enumerate(needed)}
    by_need = sorted(table.columns, key=lambda column: ranks.get(str(column.header), len(needed)))
    gone = []
    while len(by_need) > _ALWAYS and _PAPER.measure(table).maximum > width:
        gone.append(by_need.pop())
        table.columns = [column for column in table.columns if column is not gone[-1]]
    if gone:
        table.caption = f"A wider terminal also shows: {', '.join(str(column.header) for column in reversed(gone))}"
        table.caption_justify = "left"
    return table
