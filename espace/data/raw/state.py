"""How far a preparation has come: one JSON file, replaced whole after every part."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from espace.data.raw.lines import PlainTally, Tally
from espace.errors import DataError

VERSION = 1  # raise it when the same files give another output
NAME = "prepared.json"


class State:
    """Which parts of which step are written, with their tallies, for these raw files in this folder.

    Raises DataError when the folder holds what was made of other files, or in another way.
    """

    def __init__(self, folder: Path, release: str, files: Mapping[str, Path], part_bytes: int) -> None:
        self.path = folder / NAME
        stats = {name: path.stat() for name, path in files.items()}
        raw = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
        self._head: dict[str, object] = {"release": release, "version": VERSION, "part_bytes": part_bytes, "files": raw}
        self._steps: dict[str, dict[str, PlainTally]] = {}
        if self.path.exists():
            self._load()
        elif folder.exists() and any(folder.iterdir()):
            raise DataError(f"{folder}: is not empty, and not of an earlier preparation. Give a new folder.")

    def _load(self) -> None:
        try:
            known = json.loads(self.path.read_text())
            self._steps = known.pop("steps")
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{self.path}: cannot be read: {error!r}. Remove the folder, and start again.") from error
        different = [name for name, value in self._head.items() if known.get(name) != value]
        if different:
            then, now = (json.dumps({n: d.get(n) for n in different}) for d in (known, self._head))
            way_out = "Give another folder, or remove this one and start again"
            raise DataError(f"{self.path}: was begun with other {', '.join(different)}: {then}, now {now}. {way_out}.")

    def tally(self, step: str, part: int) -> Tally | None:
        """What a part held, if it was finished."""
        plain = self._steps.get(step, {}).get(str(part))
        return None if plain is None else Tally.from_dict(plain)

    def add(self, step: str, part: int, tally: Tally) -> None:
        """A part is written."""
        self._steps.setdefault(step, {})[str(part)] = tally.to_dict()
        self.save()

    def save(self) -> None:
        """Write it down; the folder is made when it is not there."""
        with whole(self.path) as temporary:
            temporary.write_text(json.dumps(self._head | {"steps": self._steps}, indent=1))


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, hidden from readers, which takes its place at the end: all of it or nothing."""
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
