"""Raw text as whole lines, some megabytes at a time, and what is odd about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from espace.errors import DataError

BLOCK = 4 << 20  # bytes read at once
_LONGEST = 64 << 20  # bytes of one line
_SHOWN = 5  # lines named for each kind of oddity
_EXCERPT = 100  # bytes of a line in a message

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Lines:
    """Lines with their ends, `text` (lines,), and their numbers in the part of the file that is read, from 0."""

    text: pa.BinaryArray
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def offsets(self) -> NDArray[np.int32]:
        """(lines + 1,) Where each line begins in `data`, and where the last one ends."""
        return np.frombuffer(self.text.buffers()[1], np.int32)[: len(self) + 1]

    @property
    def data(self) -> pa.Buffer:
        """The bytes of all lines, end to end."""
        return self.text.buffers()[2].slice(0, int(self.offsets[-1]))

    def where(self, mask: Mask) -> Lines:
        """Some of the lines; the same object when it is all of them."""
        return self if mask.all() else Lines(self.text.filter(pa.array(mask)), self.numbers[mask])


@dataclass
class Oddity:
    """Lines of which one thing is said: how many, and the first few by number and text."""

    lines: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)

    def add(self, lines: int, first: Iterable[tuple[int, str]]) -> None:
        """Some more of them, which come later in the file."""
        self.lines += lines
        self.first = [*self.first, *first][:_SHOWN]


class PlainOddity(TypedDict):
    """An `Oddity` as plain values; after JSON the pairs in `first` are lists."""

    lines: int
    first: Sequence[Sequence[int | str]]


class PlainTally(TypedDict):
    """A `Tally` as plain values."""

    lines: int
    rows: int
    labels: dict[str, int]
    oddities: dict[str, PlainOddity]


@dataclass
class Tally:
    """What was read: lines, rows that came of them, sums of the labels, oddities by what is said of them."""

    lines: int = 0
    rows: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    oddities: dict[str, Oddity] = field(default_factory=dict)

    def note(self, what: str, lines: Lines, mask: Mask) -> None:
        """Say something of the masked lines."""
        if mask.any():
            found = lines.where(mask)
            texts = (found.text[i].as_py()[:-1][:_EXCERPT].decode("latin-1") for i in range(min(len(found), _SHOWN)))
            pairs = zip(found.numbers[:_SHOWN].tolist(), texts, strict=True)
            self.oddities.setdefault(what, Oddity()).add(len(found), pairs)

    def add(self, other: Tally) -> None:
        """What was read after this."""
        for what, oddity in other.oddities.items():
            later = ((number + self.lines, text) for number, text in oddity.first)
            self.oddities.setdefault(what, Oddity()).add(oddity.lines, later)
        for name, count in other.labels.items():
            self.labels[name] = self.labels.get(name, 0) + count
        self.lines += other.lines
        self.rows += other.rows

    def to_dict(self) -> PlainTally:
        """Plain values, for JSON."""
        oddities = {what: PlainOddity(lines=o.lines, first=list(o.first)) for what, o in self.oddities.items()}
        return PlainTally(lines=self.lines, rows=self.rows, labels=dict(self.labels), oddities=oddities)

    @classmethod
    def from_dict(cls, plain: PlainTally) -> Tally:
        """The tally of `to_dict`, also after JSON."""
        oddities = {
            what: Oddity(o["lines"], [(int(number), str(text)) for number, text in o["first"]])
            for what, o in plain["oddities"].items()
        }
        return cls(plain["lines"], plain["rows"], plain["labels"], oddities)


def blocks(path: Path, start: int, stop: int) -> Iterator[tuple[bytes, int]]:
    """Whole lines, those that begin at bytes `start` to `stop - 1`, in blocks of about BLOCK bytes; and their ends.

    Raises DataError for a line that does not end within 64 MiB.
    """
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            _rest(file, path)
        while (position := file.tell()) < stop:
            block = file.read(min(BLOCK, stop - position))
            if not block:
                break
            whole = block if block.endswith(b"\n") else block + _rest(file, path)
            yield whole, file.tell()


def lines_of(block: bytes, first: int) -> Lines:
    """A block as lines that end with a single newline each; `first` is the number of the first one."""
    text = block.replace(b"\r\n", b"\n") if b"\r" in block else block
    text = text if text.endswith(b"\n") else text + b"\n"
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text)]
    array = pa.Array.from_buffers(pa.binary(), len(ends), buffers)
    return Lines(array, first + np.arange(len(ends)))


def well_formed(lines: Lines, pattern: str) -> Mask:
    """(lines,) Which lines match a regular expression (RE2) from their first byte to their newline."""
    return np.asarray(pc.match_substring_regex(lines.text, rf"^(?:{pattern})\n$"))


def _rest(file: BinaryIO, path: Path) -> bytes:
    """The rest of the line at which an open file stands."""
    rest = file.readline(_LONGEST)
    if len(rest) == _LONGEST:
        where = f"{path}, byte {file.tell() - _LONGEST:,}"
        raise DataError(f"{where}: a line is longer than {_LONGEST >> 20} MiB. Is this the unpacked text file?")
    return rest
