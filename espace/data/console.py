"""The one console that everything is printed on: text from data and files cannot command the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from espace.errors import visible


class SafeConsole(Console):
    """A console on which text cannot command the terminal: its control characters are written out."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich does, of text that is visible, so that a column is as wide as what stands in it."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """As rich does, every piece of text made visible."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
