"""Tables as a notebook shows them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from io import StringIO
from pathlib import Path

from rich.table import Table

from espace.config import Config
from espace.data.console import SafeConsole
from espace.errors import RunError
from espace.runs.tables import results_table

_WIDE = 1_000
_FORMAT = '<pre style="line-height:normal;white-space:pre;overflow-x:auto">{code}</pre>'


def in_notebook() -> bool:
    """Whether what is printed goes to a notebook."""
    return SafeConsole().is_jupyter


def html_of(heading: str, tables: Sequence[Table]) -> str:
    """A line of text and the tables below it."""
    console = SafeConsole(  # not that of the notebook, which would show the tables at once
        record=True, file=StringIO(), width=_WIDE, markup=False, highlight=False, force_jupyter=False
    )
    for table in tables:
        console.print(table)
    shown = "\n".join(
        line.rstrip() for line in console.export_html(inline_styles=True, code_format=_FORMAT).split("\n")
    )
    return f"<p>{escape(heading)}</p>\n{shown}"


def results_in(folder: Path | None) -> dict[str, float | None]:
    """What results.json in a run folder has, by name; nothing without one. Raises RunError for a damaged one."""
    if folder is None or not (folder / "results.json").exists():
        return {}
    try:
        results: dict[str, float | None] = json.loads((folder / "results.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{folder / 'results.json'}: it cannot be read: {error}. Judge the run again.") from error
    return results


def html_of_run(config: Config, folder: Path | None) -> str:
    """Where a run lies, and the table of its results for each part."""
    tables = []
    for name, prefix in (("validation", "val/"), ("test", "test/")):
        found = {n.removeprefix(prefix): v for n, v in results_in(folder).items() if n.startswith(prefix)}
        if found:
            metrics = {n: math.nan if v is None else v for n, v in found.items()}
            tables.append(results_table(config, name, metrics, ()))
    return html_of(f"{config.name or 'run'}: {folder or 'a lone checkpoint'}", tables)
