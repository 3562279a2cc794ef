"""The plan of a part's rows: the windows of an epoch, and the order in them, as a function of seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MIXED = 32  # pieces that a window takes rows from, if there are so many


@dataclass(frozen=True)
class Window:
    """Rows read together: of some pieces the share number `part` of `parts`; and its place in its epoch."""

    pieces: tuple[int, ...]
    epoch: int
    number: int
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Plan:
    """The order of a part's rows in every epoch.

    The rows of a window come from all over the data, so that a file that is sorted, by time or by label, gives batches
    like those of any other. As many pieces as a window needs, but 32 at least, are drawn together, one from each of as
    many stretches of the data. Where they hold more rows than a window, each of several windows takes its share of
    each piece, at random; then a piece is read several times, and where encoded pieces are not cached, it lies in a
    temporary file meanwhile.

    counts: rows of each piece; shuffle_rows: about how many rows are shuffled among each other at a time.
    """

    counts: Sequence[int]
    batch_size: int
    seed: int
    shuffle: bool
    shuffle_rows: int

    def __len__(self) -> int:
        """Batches of an epoch; the last may be short."""
        return -(-sum(self.counts) // self.batch_size)

    def windows(self, epoch: int) -> list[Window]:
        """The windows of an epoch, in order."""
        pieces = np.flatnonzero(np.asarray(self.counts))
        if not self.shuffle:
            return [Window((piece,), epoch, number) for number, piece in enumerate(pieces.tolist())]
        random = np.random.default_rng([self.seed, epoch, 1])
        total = min(len(pieces), -(-sum(self.counts) // max(1, self.shuffle_rows)))
        rounds = max(1, min(total, len(pieces) // _MIXED))
        found: list[Window] = []
        for number, drawn in enumerate(_rounds(pieces, rounds, random)):
            parts = total // rounds + (number < total % rounds)
            found += [Window(drawn, epoch, len(found) + part, part, parts) for part in range(parts)]
        return [window for window in found if self.rows(window)]

    def rows(self, window: Window) -> int:
        """How many a window has."""
        return sum(end - begin for _, begin, end in self._cuts(window))

    def shares(self, window: Window) -> Iterator[tuple[int, NDArray[np.int64] | None]]:
        """Each piece of a window and the rows that it takes of it, in rising order; None for all."""
        for piece, begin, end in self._cuts(window):
            if end - begin == self.counts[piece]:
                yield piece, None
            elif end > begin:
                order = np.random.default_rng([self.seed, window.epoch, 4, piece]).permutation(self.counts[piece])
                yield piece, np.sort(order[begin:end])

    def order(self, window: Window) -> NDArray[np.int64]:
        """The order of the rows of a window."""
        rows = self.rows(window)
        if not self.shuffle:
            return np.arange(rows)
        return np.random.default_rng([self.seed, window.epoch, 2, window.number]).permutation(rows)

    def _cuts(self, window: Window) -> Iterator[tuple[int, int, int]]:
        """Each piece, and from where to where its rows, once shuffled, are the window's; small pieces take turns."""
        for place, piece in enumerate(window.pieces):
            turn, count = place % window.parts, self.counts[piece]
            begin, end = ((part * count + turn) // window.parts for part in (window.part, window.part + 1))
            yield piece, begin, end


def _rounds(pieces: NDArray[np.int64], rounds: int, random: np.random.Generator) -> Iterator[tuple[int, ...]]:
    """Pieces that are drawn together: of every `rounds` that follow each other one goes to each."""
    order = random.permutation(len(pieces))
    turns = [random.permutation(rounds) for _ in range(0, len(pieces), rounds)]
    round_of = np.concatenate(turns)[: len(pieces)] if turns else order
    for number in range(rounds):
        yield tuple(pieces[order[round_of[order] == number]].tolist())
