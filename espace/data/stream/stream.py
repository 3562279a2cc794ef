"""The plan of batches: which rows make batch k of epoch e, the same on every rank, in every worker, after a restart.

Windows of rows from pieces all over the data, see `Plan`, a function of (seed, epoch), are shuffled and cut into global
batches of a fixed size; a rank takes its slice of each. So a place in the stream is one number, the
count of batches trained, and nothing else has to be saved. On a CPU there are no workers and no prefetch thread:
reading is a few per cent of a step, and a thread that competes for two busy cores costs more than it hides. For a GPU a
thread reads ahead: where it can, it sends whole windows, out of which the GPU takes its batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from espace.data.batch import Batch
from espace.data.encoding.columns import is_list
from espace.data.encoding.encode import Encoder
from espace.data.encoding.encoded import Encoded, Spool
from espace.data.reading.split import Part
from espace.data.stream.plan import Plan, Window
from espace.data.stream.prefetch import prefetched
from espace.data.stream.sampling import times_used

if TYPE_CHECKING:
    from espace.contracts import Sampler, ScoredSampler

Scoring = Callable[[Batch], NDArray[np.float64]]  # a probability of each row, (rows,)


class _Windows(Dataset[Batch]):
    """Reads and encodes windows; holds plain objects, so that worker processes can be started by spawn."""

    def __init__(self, encoded: Encoded, plan: Plan, windows: Sequence[Window], pinned: bool) -> None:
        self.encoded, self.plan, self.windows, self.pinned = encoded, plan, windows, pinned
        self._spool: Spool | None = None  # of the process that reads

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, number: int) -> Batch:
        window = self.windows[number]
        self._spool = self._spool or Spool(self.encoded)
        self._spool.only(window.pieces if window.parts > 1 else ())
        return Batch.cat([self._rows(piece, rows) for piece, rows in self.plan.shares(window)], self.pinned)

    def _rows(self, piece: int, rows: NDArray[np.int64] | None) -> Batch:
        if rows is None or self._spool is None:
            return self.encoded.piece(piece)
        return self._spool.piece(piece).take(torch.from_numpy(rows))


@dataclass(frozen=True)
class _Read:
    """A window's rows, and the order in which they are used, (rows used,) int64."""

    rows: Batch
    order: Tensor

    def mapped(self, change: Callable[[Tensor], Tensor]) -> _Read:
        """The same with every tensor changed."""
        return _Read(self.rows.mapped(change), change(self.order))


def _at_the_start() -> int:
    return 0


@dataclass
class Stream:
    """The batches of a part.

    training: whether ids are forgotten and the sampler is used; scoring: of a sampler that wants scores; place: batches
    trained so far, over all epochs; limit: batches of an epoch that are used; rank, ranks: which slice of each global
    batch is taken; keep: whether encoded pieces stay in the cache; device: where batches go, which a thread then reads
    ahead, and None leaves them on the CPU, without a thread.
    """

    part: Part
    encoder: Encoder
    plan: Plan
    training: bool = False
    sampling: Sampler | ScoredSampler | None = None
    scoring: Scoring | None = None
    workers: int = 0
    place: Callable[[], int] = _at_the_start
    limit: int | None = None
    rank: int = 0
    ranks: int = 1
    keep: bool = False
    device: torch.device | None = None

    def __len__(self) -> int:
        """Batches of an epoch without the limit, to which Lightning's own is applied."""
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        """The batches from the present place to the end of its epoch. Raises DataError when reading fails."""
        used = len(self) if self.limit is None else min(self.limit, len(self))
        epoch, start = divmod(self.place(), max(used, 1))
        numbers = range(start, used)
        if self.device is None:
            yield from self._batches(self._windows(epoch, start), epoch, numbers)
        elif self._is_cut_there():
            yield from self._batches(prefetched(self._windows(epoch, start), self.device), epoch, numbers)
        else:
            yield from prefetched(self._batches(self._windows(epoch, start), epoch, numbers), self.device)

    def _is_cut_there(self) -> bool:
        """Whether windows are cut into batches on the device: the host must not see rows, nor the lengths of lists."""
        return self.sampling is None and self.ranks == 1 and not any(is_list(f) for f in self.encoder.features)

    def _batches(self, windows: Iterable[_Read], epoch: int, numbers: range) -> Iterator[Batch]:
        for number, batch in zip(numbers, self._global_batches(windows), strict=False):
            if number == numbers[-1]:
                self.part.check()  # what was read is what was there at the start
            yield self._slice(self._trained(batch, epoch, number) if self.training else batch)

    def state_dict(self) -> dict[str, object]:
        """Empty: the place is the trainer's count of trained batches. It tells Lightning that resuming is exact."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Nothing to load."""

    def _windows(self, epoch: int, start: int) -> Iterator[_Read]:
        """The windows of an epoch, without the rows of its first `start` batches."""
        skip = start * self.plan.batch_size
        windows = self.plan.windows(epoch)
        while windows and skip >= (rows := self.plan.rows(windows[0])):
            skip -= rows
            windows.pop(0)
        loaded = iter(self._read(windows))
        for window in windows:
            data = next(loaded)
            self._check_rows(window, data)
            yield _Read(data, torch.from_numpy(self.plan.order(window)[skip:]))
            del data  # it makes room for the next one
            skip = 0

    def _global_batches(self, windows: Iterable[_Read]) -> Iterator[Batch]:
        size = self.plan.batch_size
        rest: Batch | None = None  # rows of the window before that did not fill a batch
        for window in windows:
            data, order, begin = window.rows, window.order, 0
            del window
            if rest is not None:
                begin = size - len(rest)
                rest = Batch.cat([rest, data.take(order[:begin])])
                if len(rest) < size:
                    continue
                yield rest
            end = begin + (len(order) - begin) // size * size
            for at in range(begin, end, size):
                yield data.take(order[at : at + size])
            rest = data.take(order[end:]) if end < len(order) else None
            del data
        if rest is not None:
            yield rest

    def _read(self, windows: Sequence[Window]) -> DataLoader[Batch]:
        encoded = Encoded(self.part, self.encoder, labels=True, keep=self.keep)
        pinned = self.device is not None and self.device.type == "cuda" and not self.workers
        return DataLoader(_Windows(encoded, self.plan, windows, pinned), batch_size=None, num_workers=self.workers)

    def _check_rows(self, window: Window, data: Batch) -> None:
        expected = self.plan.rows(window)
        assert len(data) == expected, f"{self.part.name}: {len(data)} rows instead of {expected} in {window}"

    def _trained(self, batch: Batch, epoch: int, number: int) -> Batch:
        """What happens to training batches only; a function of the place, so that it can be repeated."""
        random = np.random.default_rng([self.plan.seed, epoch, 3, number])
        if self.sampling is not None:
            batch = self._sampled(batch, self.sampling, random)
        self.encoder.forget(batch, random)
        return batch

    def _sampled(self, batch: Batch, sampling: Sampler | ScoredSampler, random: np.random.Generator) -> Batch:
        """The rows that the sampler chooses; one of weight 0 when it chooses none."""
        scoring = self.scoring
        score = [] if scoring is None else [lambda rows: scoring(batch.take(torch.from_numpy(rows)))]
        found = sampling(batch.labels.numpy(), batch.weights.numpy(), random, *score)
        rows, weights, *labels = (torch.from_numpy(array) for array in found)
        if not len(rows):
            return batch.take(torch.zeros(1, dtype=torch.int64)).weighted(torch.zeros(1))
        used = times_used(self.encoder.chain, batch.labels, self._rates)
        sampled = batch.take(rows).weighted(weights / used[rows])
        return replace(sampled, labels=labels[0]) if labels else sampled

    @cached_property
    def _rates(self) -> Mapping[str, Sequence[float]]:
        found: Mapping[str, Sequence[float]] = getattr(self.sampling, "rates", dict)()
        return found

    def _slice(self, batch: Batch) -> Batch:
        """This rank's rows; a rank without any takes one row of weight 0, so that all ranks make the same steps."""
        if self.ranks == 1:
            return batch
        cut = [len(batch) * r // self.ranks for r in (self.rank, self.rank + 1)]
        if cut[0] < cut[1]:
            return batch.take(torch.arange(*cut))
        return batch.take(torch.zeros(1, dtype=torch.int64)).weighted(torch.zeros(1))
