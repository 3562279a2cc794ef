"""Which rows of a reader belong to training, validation or test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from espace.data.reading.times import Clock, Moment

if TYPE_CHECKING:
    from espace.contracts import Reader
    from espace.data.reading.readers import Piece


class RowFilter(Protocol):
    """Says which rows of a piece belong to a part; a pure function of the piece, so that it can be asked again."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it has to see."""
        ...

    def mask(self, table: pa.Table, piece: int, where: str) -> NDArray[np.bool_] | None:
        """(rows,), or None for all rows."""
        ...

    def __str__(self) -> str:
        """What its rows have in common, as in `has day < 5`."""
        ...


@dataclass(frozen=True)
class Everything:
    """All rows."""

    columns: tuple[str, ...] = ()

    def mask(self, table: pa.Table, piece: int, where: str) -> None:
        """No row is left out."""

    def __str__(self) -> str:
        return "is there"


@dataclass(frozen=True)
class HeldOut:
    """A random share of the rows (`inside`), or all the others. The draw depends on seed, piece and row only."""

    share: float
    seed: int
    inside: bool
    columns: tuple[str, ...] = ()

    def mask(self, table: pa.Table, piece: int, where: str) -> NDArray[np.bool_]:
        """The rows drawn, or the others."""
        drawn = np.random.default_rng([self.seed, piece, 7]).random(table.num_rows) < self.share
        out: NDArray[np.bool_] = drawn if self.inside else ~drawn
        return out

    def __str__(self) -> str:
        return f"falls {'into' if self.inside else 'outside'} the random share of {self.share:g}"


@dataclass(frozen=True)
class Sampled:
    """A random share of the rows that `of` keeps. The draw depends on seed, piece and row only, so that the rows of a
    smaller share are among those of a larger one."""

    share: float
    seed: int
    of: RowFilter

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the other filter."""
        return self.of.columns

    def mask(self, table: pa.Table, piece: int, where: str) -> NDArray[np.bool_]:
        """The rows drawn."""
        drawn: NDArray[np.bool_] = np.random.default_rng([self.seed, piece, 11]).random(table.num_rows) < self.share
        mask = self.of.mask(table, piece, where)
        return drawn if mask is None else drawn & mask

    def __str__(self) -> str:
        return f"{self.of} and falls into the random share of {self.share:g}"


@dataclass(frozen=True)
class Between:
    """Rows with `since <= by < until`; None is open. Values and bounds are read by a `Clock`."""

    by: str
    since: Moment | None
    until: Moment | None
    format: str | None = None
    numbers: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The column of the time."""
        return (self.by,)

    def mask(self, table: pa.Table, piece: int, where: str) -> NDArray[np.bool_]:
        """The rows in the range. A null time belongs to no part."""
        values, clock = table.column(self.by), Clock(self.by, self.format, self.numbers)
        inside = pc.is_valid(values)
        if self.since is not None:
            inside = pc.and_(inside, clock.compared(values, self.since, pc.greater_equal, where))
        if self.until is not None:
            inside = pc.and_(inside, clock.compared(values, self.until, pc.less, where))
        return np.asarray(pc.fill_null(inside, False).to_numpy(), np.bool_)

    def __str__(self) -> str:
        since = "" if self.since is None else f"{self.since} <= "
        return f"has {since}{self.by}{'' if self.until is None else f' < {self.until}'}"


@dataclass(frozen=True)
class Part:
    """The rows of training, validation or test: some rows of the pieces of a reader."""

    name: str
    reader: Reader
    keep: RowFilter = Everything()

    def read(self, piece: int, columns: Sequence[str]) -> tuple[pa.Table, NDArray[np.int64]]:
        """The part's rows of one piece, and their row numbers in the piece."""
        where = self.where(piece)
        wanted = list(dict.fromkeys([*columns, *self.keep.columns]))
        table = self.reader.read(self.reader.pieces[piece], wanted)
        mask = self.keep.mask(table, piece, where)
        if mask is None:
            return table, np.arange(table.num_rows)
        return table.filter(pa.array(mask)), np.flatnonzero(mask)

    def check(self, piece: int | None = None) -> None:
        """Raise DataError when the rows of a piece, or of any, are not what they were, where the reader can tell."""
        check: Callable[[Piece | None], None] | None = getattr(self.reader, "check", None)
        if check is not None:
            check(None if piece is None else self.reader.pieces[piece])

    def where(self, piece: int) -> str:
        """The piece, for an error message."""
        return str(self.reader.pieces[piece])

    @property
    def identity(self) -> str:
        """Changes when the rows do."""
        return f"{self.reader.fingerprint}/{self.keep!r}"
