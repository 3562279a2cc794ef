"""One rule for every name that a user gives: to a feature, a stage, a value, a metric, a score, a run, a variant."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator

from espace.config.yamlfile import Key, Problem

LONGEST = 200  # characters
_NOT_WRITTEN = frozenset(
    {"Cc", "Cs", "Zl", "Zp"}
)  # control characters, half surrogates, breaks of lines, of paragraphs
_TURNING = frozenset(
    "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)  # they turn what stands behind them round


def name_problem(name: str) -> str | None:
    """Why a text is no name, and the way out; None where it is one. Blanks, dots and letters of any script may be."""
    if not name.strip():
        return "the name is empty. Write at least one letter."
    if odd := next((c for c in name if unicodedata.category(c) in _NOT_WRITTEN or c in _TURNING), None):
        return f"the name has the character U+{ord(odd):04X}, which cannot be seen. Write it without that."
    if len(name) > LONGEST:
        return f"the name has {len(name):,} characters, more than {LONGEST}. Choose a shorter one."
    return None


def name_problems(key: Key, names: Iterable[str]) -> Iterator[Problem]:
    """What is wrong with the names that stand below `key`."""
    for name in names:
        if why := name_problem(name):
            yield Problem((*key, name), why)
