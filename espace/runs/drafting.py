"""`espace new experiment`: a YAML from a file of rows, every line a guess with its reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from espace.config import escaped
from espace.config.naming import name_problem
from espace.config.patterns import is_pattern
from espace.config.yamlfile import inline
from espace.data.console import SafeConsole
from espace.data.guessing.guess import Guess, guess
from espace.data.guessing.sample import Sample, sample
from espace.data.guessing.stages import within
from espace.data.reading.readers import Files
from espace.errors import ChainError, DataError, EspaceError, visible
from espace.registry import new as parts

_WIDTH = 80
_BESIDE = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def create(kind: str, name: str, folder: Path | None = None, out: Path | None = None, chain: str | None = None) -> str:
    """What `espace new` makes: an experiment from the rows `name`, or a part of that name in a folder.

    Raises EspaceError as `draft` and `espace.registry.new.create` do, and for options of the other kind.
    """
    foreign = {"--folder": folder} if kind == "experiment" else {"--out": out, "--chain": chain}
    if wrong := [option for option, given in foreign.items() if given is not None]:
        raise EspaceError(f"new: {kind} has no option {' and '.join(wrong)}. Leave it out.")
    return draft(name, out, chain) if kind == "experiment" else parts.create(kind, name, folder)


def draft(data: str, out: Path | None = None, chain: str | None = None) -> str:
    """Write a YAML for the rows in `data`, by default experiment.yaml. Returns a table of what was guessed.

    chain: the chain, where it is not to be guessed. Raises EspaceError for a file that is there or cannot be written,
    DataError for data that cannot be read or where no stage can be guessed.
    """
    place = out or Path("experiment.yaml")
    if place.exists():
        raise EspaceError(f"new: {place} is there already. Name another file with --out, or remove this one.")
    reader, options = _opened(data)
    seen = sample(reader)
    odd = {
        name: "its name has a character that cannot stand in a YAML"
        for name in reader.schema.names
        if name_problem(name)
    }
    try:
        with np.errstate(all="ignore"):  # sums of what is nearly infinite
            found = guess(seen, chain, odd)
    except ChainError as error:
        raise ChainError(f"--{error}") from error
    except DataError as error:
        raise DataError(f"{data}: {error}") from error
    if not found.features:
        raise DataError(
            f"{data}: no column is left for a feature: {_listed(found)}. Add columns that say who and what."
        )
    section = {"train": data, **options, **_held_out(data, options, found, seen)}
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("x", encoding="utf-8") as file:
            file.write("\n".join(_lines(place, data, section, found, seen)) + "\n")
    except OSError as error:
        reason = error.strerror or error
        raise EspaceError(f"new: {place} cannot be written: {reason}. Name another file with --out.") from error
    return _told(place, found, seen)


def _listed(found: Guess) -> str:
    return "; ".join(f"{name} ({what})" for name, (what, _) in found.became.items())


def _opened(data: str) -> tuple[Files, dict[str, Any]]:
    """The rows, and the options to read them: a CSV may be divided by something else than its ending says."""
    try:
        return Files(data, "train"), {}
    except DataError as error:
        other = re.search(r"Set delimiter: '(.|\\t)'", str(error))
        if other is None:
            raise
    delimiter = "\t" if len(other[1]) > 1 else other[1]
    return Files(data, "train", delimiter=delimiter), {"delimiter": delimiter}


def _held_out(data: str, options: dict[str, Any], found: Guess, seen: Sample) -> dict[str, Any]:
    """Files of validation and test rows beside the training rows, else a split of these."""
    split = found.split
    parts = _beside(data, options, seen)
    if "validation" in parts:
        return {**parts, **({"split": {"by": split.by}} if split.by else {})}
    if split.by is None:
        return {**parts, "split": {"share": split.share}}
    return {**parts, "split": {"by": split.by, "train_until": split.until}}


def _beside(data: str, options: dict[str, Any], seen: Sample) -> dict[str, str]:
    """`{part: file}` of files called like the training rows' but for the part, with all their columns."""
    path = Path(data)
    stem = re.sub("training", "train", path.name)
    if not path.is_file() or not stem.startswith("train"):
        return {}
    parts = {}
    for part, names in _BESIDE.items():
        there = [p for name in names if (p := path.with_name(stem.replace("train", name, 1))).is_file()]
        if there and _alike(there[0], options, seen):
            parts[part] = str(there[0])
    return parts


def _alike(path: Path, options: dict[str, Any], seen: Sample) -> bool:
    """Whether the rows of a file have the columns of the sample in their types, and every 0/1 column is one too."""
    try:
        reader = Files(str(path), "test", **options)
        if any(n not in reader.schema.names or reader.schema.field(n).type != c.kind for n, c in seen.columns.items()):
            return False
        other = sample(reader).columns
    except DataError:
        return False
    binary = [c for c in seen.columns.values() if c.binary]
    nested = ((a, b) for a in binary for b in binary if a is not b and within(a, b))
    holds = all(not (other[a.name].happened & other[b.name].known & ~other[b.name].happened).any() for a, b in nested)
    return holds and all(other[c.name].binary for c in binary)


def _lines(place: Path, data: str, section: dict[str, Any], found: Guess, seen: Sample) -> Iterator[str]:
    """The text of the YAML."""
    of = "all" if seen.whole else f"{seen.rows:,} of"
    yield f"# Guessed from {of} {seen.of:,} rows of {_comment(data)}. Read it, mend it, then"
    yield "#"
    yield f"#     espace check {_comment(str(place))}"
    yield f"#     espace fit {_comment(str(place))}"
    yield f"name: {inline(escaped(place.stem))}"
    yield from ("", "chain:")
    for name, (what, why) in found.became.items():
        if what in ("stage", "value"):
            yield f"  # {_comment(name)}: {_comment(why)}"
    yield from (f"  - {inline(escaped(line))}" for line in found.chain)
    if found.labels:
        yield from ("", f"labels: {inline(escaped(found.labels))}")
    if found.kinds:
        yield from ("", f"stages: {inline({name: {'kind': kind} for name, kind in found.kinds.items()})}")
    yield from ("", "data:")
    for key, value in section.items():
        why = f"  # {_comment(found.split.why)}" if key == "split" and value != {"by": found.split.by} else ""
        yield f"  {key}: {inline(escaped(value))}{why}"
    yield from _features(found)
    if found.group is not None:
        yield from ("", "metrics:")
        yield f"  gauc: {inline(escaped({'type': 'gauc', 'by': found.group}))}"


def _features(found: Guess) -> Iterator[str]:
    yield from ("", "features:")
    whys = {n: found.became.get(part.get("column", n), ("", ""))[1] for n, part in found.features.items()}
    for name, part in found.features.items():
        if is_pattern(name, part):
            part = {**part, "column": name}
        short = part["type"] if len(part) == 1 else part
        yield f"  {inline(name)}: {inline(escaped(short))}  # {_comment(whys[name])}"
    if found.left:
        yield from ("", "# Left out:")
        yield from (f"#   {_comment(name)}: {_comment(why)}" for name, why in found.left.items())


def _comment(text: str) -> str:
    """Text that ends no line and is nothing but text."""
    return re.sub(r"[\s\x85\u2028\u2029\ufeff]", " ", visible(text)).strip()


def _told(place: Path, found: Guess, seen: Sample) -> str:
    """A table of the guesses, 80 columns wide, and what to do next."""
    console = SafeConsole(width=_WIDTH, markup=False, highlight=False, color_system=None, force_terminal=False)
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("column", max_width=24, overflow="fold")
    table.add_column("guess", max_width=20, overflow="fold")
    table.add_column("why", overflow="fold")
    for name, (what, why) in found.became.items():
        table.add_row(visible(name), what, visible(why))
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    of = "all" if seen.whole else f"{seen.rows:,} of"
    chain = [f"    {line}" for line in found.chain]
    end = [
        f"{place} has it, from {of} {seen.of:,} rows; all of it is a guess. Read it, then",
        "",
        f"    espace check {place}",
    ]
    return "\n".join([*lines, "", *chain, "", *end])
