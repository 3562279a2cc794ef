"""The family of errors. Every message reads `where: what is wrong, with the values. The way out.`"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class EspaceError(Exception):
    """A mistake that the user can mend. The command line prints it without a traceback and exits with `exit_code`."""

    exit_code = 2


class ConfigError(EspaceError):
    """The YAML file or an override is wrong. Carries every problem found, not only the first."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class ChainError(EspaceError):
    """The chain contradicts itself, or a name is not in it."""


class DataError(EspaceError):
    """A file, a column or a value is not what the configuration says."""


class PluginError(EspaceError):
    """A plugin could not be loaded, or two of them claim one name."""


class RunError(EspaceError):
    """A run folder is missing, incomplete, or already taken."""


class NonFiniteError(EspaceError):
    """The loss, a prediction or a gradient stopped being finite."""

    exit_code = 3


class DivergedError(EspaceError):
    """A run has been trained, and is far worse than base rates alone. Its folder is complete."""

    exit_code = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` when something close is known, else the list of what is known (or nothing)."""
    names = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(sorted(names))}." if names else ""


def visible(text: str) -> str:
    """The text with control characters written out, so that no value can command a terminal: `\\x1b[2J`."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


# All but the ends of lines and tabs; and what turns the direction of the text behind it.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
