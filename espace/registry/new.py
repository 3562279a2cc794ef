"""A folder to begin a plugin with: it installs, passes its tests and trains as it is.

Each folder of `scaffold/` is a kind of part. Its files end in `.txt`; NAME in their paths, and $name, $classname and
$version in their text, are filled in.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from string import Template

import yaml

from espace import __version__
from espace.errors import EspaceError
from espace.registry.registry import KINDS, load, one

SCAFFOLD = Path(__file__).parent / "scaffold"


def create(kind: str, name: str, folder: Path | None = None) -> str:
    """Write a folder, by default ./espace-NAME, with a part of that kind. Returns what to type next.

    Raises EspaceError for an unknown kind, for a name that cannot be one or is taken, and for a folder that is not
    empty or cannot be written.
    """
    _check_kind(kind)
    _check_name(kind, name)
    place = folder or Path(f"espace-{name}")
    try:
        if place.exists() and any(place.iterdir()):
            raise EspaceError(f"new: {place} is not empty. Name a new folder with --folder, or empty this one.")
        for path, text in _files(kind, name):
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_text(text, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise EspaceError(f"new: {place} cannot be written: {reason}. Name another place with --folder.") from error
    return _next_steps(kind, name, place)


def kinds() -> dict[str, str]:
    """What there is a folder of files for: `{"tower": "towers"}`."""
    return {one(kind): kind for kind in KINDS if (SCAFFOLD / one(kind)).is_dir()}


def _check_kind(kind: str) -> None:
    if kind not in kinds():
        raise EspaceError(f"new: it cannot make a '{kind}'. It can make: {', '.join(kinds())}, experiment.")


def _check_name(kind: str, name: str) -> None:
    if not _is_name(name):
        spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        better = re.sub(r"[^a-z0-9]+", "_", spaced).strip("_")
        better = better if _is_name(better) else f"{kind}_{better}".strip("_")
        raise EspaceError(
            f"new: '{name}' cannot be the name of a {kind} in YAML, a module in Python and a package at once."
            f" Write {better}."
        )
    for entry in load().entries(kinds()[kind]):
        if entry.name == name:
            raise EspaceError(f"new: there is a {kind} '{name}' already, from {entry.package}. Take another name.")
    if found := importlib.util.find_spec(f"espace_{name}"):
        raise EspaceError(f"new: there is a module espace_{name} already, {found.origin}. Take another name.")


def _is_name(name: str) -> bool:
    """Lower-case letters, digits and _ between them; no keyword, and no `on` or `null`, which YAML reads otherwise."""
    shape = re.fullmatch(r"[a-z]([a-z0-9_]*[a-z0-9])?", name)
    return bool(shape) and not {name, _classname(name)} & {*keyword.kwlist} and yaml.safe_load(name) == name


def _classname(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _files(kind: str, name: str) -> Iterator[tuple[str, str]]:
    """Path and text of every file."""
    values = {"name": name, "classname": _classname(name), "version": __version__}
    for file in sorted((SCAFFOLD / kind).rglob("*.txt")):
        path = file.relative_to(SCAFFOLD / kind).with_suffix("").as_posix().replace("NAME", name)
        yield path, Template(file.read_text(encoding="utf-8")).substitute(values)


def _next_steps(kind: str, name: str, place: Path) -> str:
    where = place.as_posix() if place.is_absolute() or place.parts[:1] in ((), ("..",)) else f"./{place.as_posix()}"
    steps = (("pip install -e", where, " pytest"), ("pytest", where, ""), ("espace fit", f"{where}/{name}.yaml", ""))
    lines = (f"    {command} {shlex.quote(path)}{more}" for command, path, more in steps)
    return "\n".join([f"{place} has the {kind} {name}. Install it, test it, train with it:", "", *lines])
