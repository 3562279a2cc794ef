"""Where a bar can be drawn: on a terminal, and in a notebook that has what it is drawn with."""

from __future__ import annotations

from importlib.util import find_spec

from rich.console import Console


def shows_bars(console: Console) -> bool:
    """Whether something on this console can change after it was printed."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
