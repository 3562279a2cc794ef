"""Whose code comes with a run: plugins that the user names, and those with which this user has trained it here.

A checkpoint names its plugins, and whoever wrote it chose the names. So a fit writes down, outside the run folder,
which plugins it has loaded: in $ESPACE_STATE, else $XDG_STATE_HOME/espace, else ~/.local/state/espace.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from espace.config import listed_plugins
from espace.data.reading.cache import digest
from espace.errors import RunError
from espace.registry.registry import is_file


def remember(folder: Path, plugins: Sequence[str]) -> None:
    """Write down that a fit of this user trains in `folder` with these plugins. What cannot be written is not known."""
    if not plugins:
        return
    with suppress(OSError, RuntimeError):
        record = _record(folder)
        record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = record.with_name(f".{token_hex(8)}.partial")
        partial.write_text(json.dumps({"folder": str(folder.resolve()), "made": _made(folder), "plugins": [*plugins]}))
        partial.chmod(0o600)
        partial.replace(record)


def chosen(place: Path, listed: Sequence[str], named: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Of the plugins that a run folder or a checkpoint lists, those to load, with those that the user names; and those
    that are left out, because nobody vouches for them.

    Raises RunError, with the way out, when some would be left out and the user names none.
    """
    known, names = _known(place), {_key(plugin) for plugin in named}
    taken = [plugin for plugin in listed if plugin in known or _key(plugin) in names]
    left = [plugin for plugin in listed if plugin not in taken]
    if left and not named:
        raise RunError(_refusal(place, left))
    return [*taken, *(n for n in named if _key(n) not in {_key(t) for t in taken})], left


def check_listed(config: Path, overrides: Sequence[str]) -> None:
    """Raise RunError when the configuration in a run folder lists plugins that nobody vouches for, and the user names
    none."""
    listed = listed_plugins(config, overrides)
    chosen(config.parent, listed, listed if any(text.startswith("plugins") for text in overrides) else ())


def _refusal(place: Path, left: Sequence[str]) -> str:
    flags, names = " ".join(f"--plugin {plugin}" for plugin in left), ", ".join(map(repr, left))
    return (
        f"{place}: it was trained with {', '.join(left)}, and loading that would run its code. No fit of this user has"
        f" trained it in this folder on this machine, so nobody vouches for it. If you trust it, name it: {flags}, or"
        f" espace.load(..., plugins=[{names}]); to go on with training, the override 'plugins=[{', '.join(left)}]'."
    )


def _known(place: Path) -> list[str]:
    """The plugins with which this user has trained in that folder, or in the one of that checkpoint."""
    folder = place.parent.parent if place.parent.name == "checkpoints" and place.is_file() else place
    try:
        record = _record(folder)
        for file in (record, folder):
            if file.stat().st_uid != os.getuid():
                return []
        told = json.loads(record.read_text())
        own = record.stat().st_mode & 0o022 == 0 and told["made"] == _made(folder)
        return [str(plugin) for plugin in told["plugins"]] if own else []
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):  # none, or not as it was written
        return []


def _made(folder: Path) -> int:
    """A number that another folder of the same name does not have."""
    return folder.stat().st_ino


def _record(folder: Path) -> Path:
    return _state() / "runs" / f"{digest(folder.resolve())}.json"


def _state() -> Path:
    if named := os.environ.get("ESPACE_STATE"):
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base).absolute() if base else Path.home() / ".local" / "state") / "espace"


def _key(plugin: str) -> str:
    """The same for all spellings of a file."""
    return str(Path(plugin).resolve()) if is_file(plugin) else plugin
