"""A crash is told as the law that it breaks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def law(sentence: str) -> Iterator[None]:
    """Raise AssertionError with this sentence for whatever goes wrong inside."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{sentence}; it raised {type(error).__name__}: {error}") from error
