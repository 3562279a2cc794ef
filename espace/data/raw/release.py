"""What a raw release is: two files a split, one with a line per impression, one with what many impressions share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from espace.data.raw.lines import Lines, Tally
from espace.errors import DataError

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Form:
    """The lines of one of the files.

    pattern: a regular expression (RE2) for a line without its newline. read: well-formed lines to `columns`, (lines,)
    each. Of these `key` joins the two files, and `size`, of shared lines, is how many list values hang on one.
    """

    pattern: str
    columns: pa.Schema
    read: Callable[[Lines, Tally], pa.Table]


@dataclass(frozen=True)
class Published:
    """Figures that others state for one split: rows, clicks per row, conversions per click; and how far off is far.

    The tolerances are relative. Rates may differ by three standard errors more.
    """

    rows: float
    ctr: float
    cvr: float
    rows_within: float
    ctr_within: float = 0.05
    cvr_within: float = 0.10

    def doubts(self, tally: Tally) -> Iterator[str]:
        """What differs by more than that."""
        if abs(tally.rows / self.rows - 1) > self.rows_within:
            published = f"published are {self.rows:,.0f} (+-{self.rows_within:.1%})"
            yield f"{tally.rows:,} rows, {published}. Is this a part of the data?"
        click, both = tally.labels["click"], tally.labels["both"]
        yield from _doubt("clicks per row", click, tally.rows, self.ctr, self.ctr_within)
        yield from _doubt("conversions per click", both, click, self.cvr, self.cvr_within)


def _doubt(name: str, part: int, whole: int, published: float, within: float) -> Iterator[str]:
    error = math.sqrt(published * (1 - published) / max(whole, 1))
    here = part / max(whole, 1)
    if abs(here - published) > within * published + 3 * error:
        yield f"{here:.4f} {name}, published are {published:.4f} (+-{within:.0%}). Is this another sample?"


@dataclass(frozen=True)
class Files:
    """The two files of a split."""

    rows: Path
    shared: Path


@dataclass(frozen=True)
class Release:
    """A data set as its publisher packed it.

    rows_file, shared_file: names with {split}, globs. columns: of the output. published: by a part of the path of the
    rows file, then by split.
    """

    name: str
    rows_file: str
    shared_file: str
    rows: Form
    shared: Form
    columns: pa.Schema
    published: Mapping[str, Mapping[str, Published]]

    def files(self, folder: Path) -> dict[str, Files]:
        """The files of the splits that lie in a folder or below. Raises DataError for none, or half of a split."""
        found = {}
        for split in SPLITS:
            pair = [_find(folder, name.format(split=split)) for name in (self.rows_file, self.shared_file)]
            if pair[0] and pair[1]:
                found[split] = Files(pair[0], pair[1])
            elif pair[0] or pair[1]:
                missing = (self.shared_file if pair[0] else self.rows_file).format(split=split)
                raise DataError(f"{folder}: has '{(pair[0] or pair[1])}' but no '{missing}'. Unpack both files there.")
        if not found:
            wanted = " and ".join(f"'{n.format(split='train')}'" for n in (self.rows_file, self.shared_file))
            packed = [p.name for p in sorted(folder.rglob("*")) if p.suffix in (".zip", ".gz", ".tar", ".tgz")][:3]
            hint = f"Unpack {', '.join(packed)} first." if packed else "Give the folder with the unpacked files."
            raise DataError(f"{folder}: has neither {wanted} nor those of test. {hint}")
        return found

    def doubts(self, rows_file: Path, split: str, tally: Tally) -> list[str]:
        """Where a split differs from what is published of it; nothing where nothing is."""
        known = [by_split for part, by_split in self.published.items() if rows_file.name.startswith(part)]
        return list(known[0][split].doubts(tally)) if known else []


def _find(folder: Path, name: str) -> Path | None:
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder. Give the one with the unpacked files.")
    found = sorted(folder.rglob(name))
    if len(found) > 1:
        both = " and ".join(f"'{path}'" for path in found[:2])
        raise DataError(f"{folder}: has {both}. Give a folder with one of them.")
    return found[0] if found else None
