"""From raw text to Parquet, part after part; a part is the lines that begin in so many bytes of a file.

A part is written whole. What is shared goes to disk first, as Arrow files beside the output; then the impressions are
read once and joined to it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from espace.data.encoding.vocabulary import one_array
from espace.data.raw.lines import BLOCK, Lines, Oddity, Tally, blocks, lines_of, well_formed
from espace.data.raw.release import Form, Release
from espace.data.raw.shared import Shared
from espace.data.raw.state import State, whole
from espace.errors import DataError

PART_BYTES = 64 << 20
VIOLATION = "conversion without a click"
MALFORMED = "malformed, left out"
ORPHAN = "a key that the other file lacks, whose columns are null"
REPEATED = "the key of a later line, which is taken instead"
_MAPPED_LESS = 4  # parts of what is shared are that much smaller: some are mapped into memory at once
_VALUES = 8_000_000  # of lists in a row group; one row more may go beyond


@dataclass(frozen=True)
class Progress:
    """A block is done: bytes `start` to `done` of the `size` of a step's file; and so many rows came of it."""

    step: str
    start: int
    done: int
    size: int
    rows: int


@dataclass(frozen=True)
class Step:
    """One file, read into the parts of a folder."""

    name: str
    source: Path
    form: Form
    folder: Path
    ending: str
    size: int  # bytes of the source
    part_bytes: int

    @property
    def parts(self) -> int:
        """How many."""
        return max(1, -(-self.size // self.part_bytes))

    def path(self, part: int) -> Path:
        """Where a part goes."""
        return self.folder / f"part-{part:05d}{self.ending}"


Read = Iterator[tuple[Lines, pa.Table, Progress]]


class Conversion:
    """A release in the folder `raw`, to `out/<split>/part-*.parquet`. Raises DataError for a folder that does not fit.

    Attributes: release, files (by split), done (whether nothing is left to do).
    """

    def __init__(self, release: Release, raw: Path, out: Path, part_bytes: int = PART_BYTES) -> None:
        self.release, self.files = release, release.files(raw)
        self._out, self._part_bytes = out, part_bytes
        named = {path.name: path for files in self.files.values() for path in (files.rows, files.shared)}
        self._state = State(out, release.name, named, part_bytes)
        self.done = all(self._is_done(self._rows(split)) for split in self.files)

    def run(self) -> Iterator[Progress]:
        """Do what is left. Stopped between or within blocks, it goes on later from the part it was in.

        Raises DataError when there is not one well-formed line in some megabytes of a file, or in all of it.
        """
        self._state.save()
        for split in self.files:
            rows, shared = self._rows(split), self._shared(split)
            if not self._is_done(rows):
                yield from self._do(shared, partial(_write_shared, shared.form.columns))
                with closing(Shared([shared.path(p) for p in range(shared.parts)], shared.form.columns)) as found:
                    repeated = {REPEATED: Oddity(found.repeated)} if found.repeated else {}
                    self._state.add(f"{split}/keys", 0, Tally(oddities=repeated))
                    yield from self._do(rows, partial(_write_rows, found, self.release.columns))
            shutil.rmtree(shared.folder, ignore_errors=True)
        self.done = True

    def read(self, split: str) -> dict[Path, Tally]:
        """What was read of the two files of a split."""
        files = self.files[split]
        found = {files.rows: self._total(self._rows(split)), files.shared: self._total(self._shared(split))}
        found[files.shared].add(self._state.tally(f"{split}/keys", 0) or Tally())
        return found

    def _rows(self, split: str) -> Step:
        source, folder = self.files[split].rows, self._out / split
        size = source.stat().st_size
        return Step(f"{split}/rows", source, self.release.rows, folder, ".parquet", size, self._part_bytes)

    def _shared(self, split: str) -> Step:
        source, folder = self.files[split].shared, self._out / f"_shared_{split}"
        part_bytes = -(-self._part_bytes // _MAPPED_LESS)
        return Step(f"{split}/shared", source, self.release.shared, folder, ".arrow", source.stat().st_size, part_bytes)

    def _left(self, step: Step) -> list[int]:
        """The parts of a step that are not written."""
        return [p for p in range(step.parts) if not (step.path(p).exists() and self._state.tally(step.name, p))]

    def _is_done(self, step: Step) -> bool:
        return not self._left(step) and self._total(step).rows > 0

    def _do(self, step: Step, write: Callable[[Path, Read, Tally], Iterator[Progress]]) -> Iterator[Progress]:
        for part in self._left(step):
            tally = Tally()
            with whole(step.path(part)) as temporary:
                yield from write(temporary, _read(step, part, tally), tally)
            self._state.add(step.name, part, tally)
        total = self._total(step)
        if not total.rows:
            first = next((oddity.first[0][1] for oddity in total.oddities.values()), "")
            raise DataError(_NO_LINES.format(step.source, f"its {total.lines:,}", first))

    def _total(self, step: Step) -> Tally:
        total = Tally()
        for part in range(step.parts):
            total.add(self._state.tally(step.name, part) or Tally())
        return total


_NO_LINES = "{}: none of {} lines is as the release has them. The first of them: {!r}. Is this the unpacked raw file?"


def _read(step: Step, part: int, tally: Tally) -> Read:
    """The well-formed lines of a part, block after block, and the columns that they become."""
    start = part * step.part_bytes
    for block, end in blocks(step.source, start, min(start + step.part_bytes, step.size)):
        lines = lines_of(block, tally.lines)
        good = well_formed(lines, step.form.pattern)
        tally.note(MALFORMED, lines, ~good)
        if not good.any() and len(block) >= BLOCK:
            raise DataError(_NO_LINES.format(step.source, f"{len(lines):,}", block[:100].decode("latin-1")))
        tally.lines += len(lines)
        tally.rows += int(good.sum())
        if good.any():
            kept = lines.where(good)
            yield kept, step.form.read(kept, tally), Progress(step.name, start, end, step.size, len(kept))
        start = end


def _write_shared(columns: pa.Schema, path: Path, read: Read, tally: Tally) -> Iterator[Progress]:
    tables = [columns.empty_table()]
    for _, table, progress in read:
        tables.append(table)
        yield progress
    table = pa.concat_tables(tables)
    with pa.ipc.new_file(str(path), columns) as writer:
        writer.write_batch(pa.record_batch([one_array(column) for column in table.columns], schema=columns))


def _write_rows(shared: Shared, columns: pa.Schema, path: Path, read: Read, tally: Tally) -> Iterator[Progress]:
    flat = [field.name for field in columns if not pa.types.is_list(field.type)]
    # Runs of equal lists pack as well without a dictionary, which would cost half of the time.
    options = {"compression": "lz4", "use_dictionary": flat, "write_statistics": flat, "write_page_checksum": True}
    with pq.ParquetWriter(path, columns, **options) as writer:
        for lines, table, progress in read:
            place = shared.rows(one_array(table["key"]))
            tally.note(ORPHAN, lines, place < 0)
            _count_labels(table, lines, tally)
            for rows in _groups(shared.sizes(place)):
                other = shared.take(place[rows])
                own = table.slice(rows.start, rows.stop - rows.start)
                joined = [own[n] if n in own.column_names else other[n] for n in columns.names]
                writer.write_table(pa.Table.from_arrays(joined, schema=columns), row_group_size=len(own))
            yield progress


def _count_labels(table: pa.Table, lines: Lines, tally: Tally) -> None:
    click, conversion = (np.asarray(table[name]) == 1 for name in ("click", "conversion"))
    tally.note(VIOLATION, lines, conversion & ~click)
    for name, mask in (("click", click), ("conversion", conversion), ("both", click & conversion)):
        tally.labels[name] = tally.labels.get(name, 0) + int(mask.sum())


def _groups(sizes: NDArray[np.int64]) -> Iterator[slice]:
    """Consecutive rows, cut so that what depends on them fits in memory."""
    cuts = np.flatnonzero(np.diff(np.cumsum(sizes) // _VALUES)) + 1
    for start, stop in zip([0, *cuts], [*cuts, len(sizes)], strict=True):
        yield slice(int(start), int(stop))
