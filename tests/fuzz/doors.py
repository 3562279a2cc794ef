"""How a door is tried: examples from a strategy, one verdict for each, all of them counted."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from espace.errors import EspaceError

ACCEPTED, REFUSED = "accepted", "refused"
SECONDS = 60  # in which one example has to end
BATCH = 100  # examples of the big run that one call of hypothesis draws
COUNTS: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by door
FINDINGS: defaultdict[str, list[str]] = defaultdict(list)

settings.register_profile(
    "doors", deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=False
)
Thing = TypeVar("Thing")


class HangsError(Exception):
    """An example did not end in time."""


def try_door(door: str, examples: SearchStrategy[Thing], judge: Callable[[Thing], str], few: int) -> None:
    """Give `judge` what may come in at `door`: it says ACCEPTED or REFUSED, and raises for a broken law.

    few: how many examples are part of the tests. In the big run (`python -m tests.fuzz`) it is as many as were asked
    for there, in the minutes given there; what is broken is noted, and the run goes on.
    """
    wanted, minutes = (int(n) for n in os.environ.get("ESPACE_FUZZ", "0 0").split())
    if not wanted:
        _batch(door, examples, judge, few, settings.get_profile("doors"), 0)
        return
    end, first = time.monotonic() + 60 * minutes, time.time_ns()
    for number in itertools.count():
        left = wanted - COUNTS[door]["tried"]
        if left <= 0 or time.monotonic() > end:
            return
        quick = settings(settings.get_profile("doors"), phases=[Phase.generate], max_examples=1)
        try:
            _batch(door, examples, judge, min(BATCH, left), quick, first + number)
        except Exception as error:
            FINDINGS[door].append(_told(error))


def _batch(
    door: str, examples: SearchStrategy[Thing], judge: Callable[[Thing], str], count: int, how: settings, start: int
) -> None:
    @seed(start)
    @settings(how, max_examples=count)
    @given(examples)
    def one(example: Thing) -> None:
        COUNTS[door]["tried"] += 1
        with _in_time(example):
            COUNTS[door][judge(example)] += 1

    one()


def verdict(call: Callable[[], object]) -> str:
    """ACCEPTED, or REFUSED when espace says why; any other exception is a finding."""
    told = "something"
    try:
        call()
    except EspaceError as error:
        told = str(error)
    else:
        return ACCEPTED
    assert told.strip(), "an error that says nothing"
    return REFUSED


@contextmanager
def _in_time(example: object) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise HangsError(f"after {SECONDS} s: {example!r}")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _told(error: BaseException) -> str:
    """What is wrong, where, and with which example."""
    where, notes = error.__traceback__, getattr(error, "__notes__", [])
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    code = where.tb_frame.f_code if where else None
    at = f"{code.co_filename}:{where.tb_lineno}" if code and where else "?"
    return f"{type(error).__name__}: {str(error)[:500]} ({at}) {' '.join(notes)[:2000]}"
