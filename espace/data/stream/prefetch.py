"""What a GPU reads next is made and sent to it by a thread, while it trains on what came before."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from queue import SimpleQueue
from threading import Thread
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from espace.data.batch import sent


class Tensors(Protocol):
    """Something made of tensors, such as a `Batch`."""

    def mapped(self, change: Callable[[Tensor], Tensor], /) -> Self:
        """The same with every tensor changed."""
        ...


Item = TypeVar("Item", bound=Tensors)
_Sent = tuple[Item, torch.cuda.Event | None]  # an item and the event of its copy


def prefetched(items: Iterable[Item], device: torch.device, ahead: int = 2) -> Iterator[Item]:
    """The items in their order, on `device`, at most `ahead` of them read before they are asked for.

    `items` is iterated in a thread, which begins when the first item is asked for. What it raises is raised here, at
    its place in the order. When the iterator is closed or dropped, the thread finishes the item it is at, closes the
    iterator of `items` and ends. A CUDA device gets its copies on a stream of their own: the stream that is current
    when an item is asked for waits for them, the host does not.
    """
    reader = _Reader(items, device, ahead)
    reader.start()
    try:
        while (item := reader.next()) is not None:
            yield item
    finally:
        reader.stop()


class _Reader(Thread, Generic[Item]):
    """Reads an item each time one is asked for; `ahead` items are asked for at once."""

    def __init__(self, items: Iterable[Item], device: torch.device, ahead: int) -> None:
        super().__init__(name="prefetch", daemon=True)  # Python ends while a caller holds an iterator, see `_end`
        self._items, self._device = items, device
        self._lane = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._asked: SimpleQueue[None] = SimpleQueue()
        self._found: SimpleQueue[_Sent[Item] | BaseException | None] = SimpleQueue()  # None at the end
        self._stopped = False
        for _ in range(ahead):
            self._asked.put(None)
        atexit.register(self._end)

    def next(self) -> Item | None:
        """The next item, None after the last, for the current stream. Raises what reading it raised."""
        found = self._found.get()
        self._asked.put(None)
        try:
            if isinstance(found, BaseException):
                raise found
            return None if found is None else _arrived(found, self._device)
        finally:
            del found  # which would keep alive what its own traceback refers to

    def stop(self) -> None:
        """Read no more. It waits for nothing and takes no lock, since it may run whenever garbage is collected."""
        self._stopped = True
        self._asked.put(None)

    def run(self) -> None:
        """Read until the items end, or nobody wants more."""
        try:
            with closing(_each(self._items)) as source:
                while self._wanted() and (item := next(source, None)) is not None:
                    self._found.put(self._sent(item))
                    del item
            self._found.put(None)
        except BaseException as error:
            self._found.put(error)
        finally:
            atexit.unregister(self._end)

    def _wanted(self) -> bool:
        self._asked.get()
        return not self._stopped

    def _sent(self, item: Item) -> _Sent[Item]:
        """The item on its way to the device, and what tells when it is there."""
        with torch.cuda.stream(self._lane):  # None changes nothing
            moved = item.mapped(lambda tensor: sent(tensor, self._device))
        return moved, None if self._lane is None else self._lane.record_event()

    def _end(self) -> None:
        """A thread must not be inside torch when Python ends."""
        self.stop()
        self.join()


def _each(items: Iterable[Item]) -> Generator[Item, None, None]:
    yield from items


def _arrived(found: _Sent[Item], device: torch.device) -> Item:
    """The item for the current stream: it waits for the copy, and memory is not used again before its work is done."""
    item, copied = found
    if copied is None:
        return item
    stream = torch.cuda.current_stream(device)
    stream.wait_event(copied)

    def used(tensor: Tensor) -> Tensor:
        tensor.record_stream(stream)
        return tensor

    return item.mapped(used)
