"""Reading ahead: the same items in the same order, no more than asked for, and no thread that outlives its reader."""

import gc
import itertools
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import pytest
import torch

from espace.data.batch import Batch, Ragged, sent
from espace.data.stream.prefetch import prefetched
from espace.errors import DataError

CPU = torch.device("cpu")
SECONDS = 20  # after which a thread counts as stuck


@dataclass
class Item:
    value: torch.Tensor

    def mapped(self, change):
        return Item(change(self.value))


class Source:
    """Numbers up to `count`, then an error if there is one; remembers what was read, by whom, and when it was closed."""

    def __init__(self, count, error=None):
        self.count, self.error = count, error
        self.read, self.threads = 0, set()
        self.closed = threading.Event()

    def __iter__(self):
        try:
            for number in range(self.count):
                self.threads.add(threading.current_thread())
                self.read = number + 1
                yield Item(torch.tensor(number))
            if self.error is not None:
                raise self.error
        finally:
            self.threads.add(threading.current_thread())
            self.closed.set()

    def ended(self):
        """Whether the one thread that read and closed this source, not ours, is at its end."""
        assert self.closed.wait(SECONDS)
        (thread,) = self.threads
        assert thread is not threading.current_thread()
        thread.join(SECONDS)
        return not thread.is_alive()


def reads(source, count):
    """Whether `count` items are read, and no more."""
    end = time.monotonic() + SECONDS
    while source.read < count and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.02)
    return source.read == count


@pytest.mark.parametrize(("count", "ahead"), list(itertools.product([0, 1, 2, 50], [1, 2, 7])))
def test_items_come_in_their_order_and_the_thread_ends_with_them(count, ahead):
    source = Source(count)
    assert [int(i.value) for i in prefetched(source, CPU, ahead)] == list(range(count))
    assert source.ended()


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_no_more_items_are_read_than_were_taken_and_may_wait(ahead):
    source = Source(10)
    found = prefetched(source, CPU, ahead)
    assert reads(source, 0)
    for taken in range(1, 11):
        next(found)
        assert reads(source, min(taken + ahead, 10))
    found.close()


@pytest.mark.parametrize("at", [0, 1, 2, 5])
@pytest.mark.parametrize("error", [DataError("row 3: no number"), KeyError("row 3"), KeyboardInterrupt("row 3")])
def test_an_error_comes_at_its_place_with_the_place_that_raised_it(at, error):
    source = Source(at, error)
    found = prefetched(source, CPU)
    assert [int(next(found).value) for _ in range(at)] == list(range(at))
    with pytest.raises(type(error), match="row 3") as raised:
        next(found)
    assert raised.value is error
    assert "__iter__" in [entry.name for entry in raised.traceback]
    assert source.ended()
    assert list(found) == []


def closed(found):
    found.close()


def dropped(found):
    del found


def lost_in_a_cycle(found):
    cycle = [found]
    cycle.append(cycle)


@pytest.mark.parametrize("taken", [1, 3, 10])
@pytest.mark.parametrize("stop", [closed, dropped, lost_in_a_cycle])
def test_whoever_stops_early_leaves_no_thread_and_a_closed_source(taken, stop):
    source = Source(10)

    def some():
        found = prefetched(source, CPU)
        for _ in range(taken):
            next(found)
        stop(found)

    some()
    gc.collect()
    assert source.ended()


def test_an_error_of_the_caller_ends_the_thread():
    source = Source(10)

    def use():
        for _ in prefetched(source, CPU):
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        use()
    gc.collect()
    assert source.ended()


def test_nothing_is_read_and_no_thread_begins_before_the_first_item_is_asked_for():
    source, before = Source(3), threading.enumerate()
    found = prefetched(source, CPU)
    assert not {*threading.enumerate()} - {*before}
    assert reads(source, 0)
    found.close()
    assert not source.threads


def test_a_thread_that_is_reading_or_waiting_keeps_python_from_nothing():
    program = """
import time, torch
from espace.data.stream.prefetch import prefetched
from tests.data.test_prefetch import Item

def slow():
    for number in range(100):
        time.sleep(0.05)
        yield Item(torch.tensor(number))

kept = prefetched(slow(), torch.device("cpu"))
stopped = prefetched(slow(), torch.device("cpu"))
next(kept), next(stopped)
stopped.close()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")


def batch(rows=5):
    lists = {"a": Ragged(torch.arange(7).int(), torch.tensor([0, 1, 1, 4, 7, 7]), torch.rand(7))}
    rest = torch.zeros(rows, 1, dtype=torch.int8), torch.rand(rows), {"group": torch.arange(rows)}, torch.rand(rows, 2)
    return Batch(torch.ones(rows, 3, dtype=torch.int32), lists, torch.rand(rows, 2), *rest)


def test_every_tensor_of_a_batch_is_sent_and_none_is_copied_to_where_it_is():
    one, places = batch(), []
    (found,) = prefetched([one], CPU)
    one.mapped(lambda t: places.append(t.data_ptr()) or t)
    assert len(places) == 10
    again = []
    found.to("cpu").mapped(lambda t: again.append(t.data_ptr()) or t)
    assert again == places
    (away,) = prefetched([one], torch.device("meta"))
    kinds = []
    away.mapped(lambda t: kinds.append((t.device.type, t.dtype, t.shape)) or t)
    expected = []
    one.mapped(lambda t: expected.append(("meta", t.dtype, t.shape)) or t)
    assert kinds == expected


def test_what_is_sent_to_where_it_is_stays_the_same():
    tensor = torch.arange(3)
    assert sent(tensor, CPU) is tensor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_memory_of_the_gpu_is_not_used_again_while_work_on_it_waits():
    """Much work is queued on each item, which is dropped at once, while the next ones are copied."""
    device, size = torch.device("cuda", 0), 1 << 22
    heavy = torch.rand(4096, 4096, device=device) / 4096
    sums = []
    for item in prefetched((Item(torch.full((size,), float(n))) for n in range(40)), device):
        for _ in range(10):
            heavy = heavy @ heavy
        sums.append(item.value.double().sum())
        del item
    assert torch.stack(sums).tolist() == [float(n) * size for n in range(40)]
