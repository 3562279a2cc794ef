"""Tasks in processes of their own, some at a time: one that fails, or is killed, takes none of the others with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from espace.errors import EspaceError

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext
    from multiprocessing.process import BaseProcess

_PRELOADED = ["espace.compare", "espace.training.lightning", "espace.training.callbacks", "espace.training.narrator"]


@dataclass(frozen=True)
class Task:
    """`work()`, which can be pickled; what it prints goes to `log`. `size` is how long it takes, in any unit."""

    work: Callable[[], object]
    log: Path
    size: float = 1.0


@dataclass(frozen=True)
class Done:
    """A task that ended: its number, why it failed (None if it did not), its seconds, and those of all others."""

    number: int
    failed: str | None
    seconds: float
    left: float


def run(tasks: Sequence[Task], workers: int) -> Iterator[Done]:
    """Do all tasks, `workers` at a time, each with its part of the threads; yields them as they end.

    When the caller stops, by Ctrl-C, SIGTERM or otherwise, the tasks get a SIGTERM and are waited for.
    """
    waiting, running = list(range(len(tasks))), dict[int, _Running]()
    threads = max(1, torch.get_num_threads() // workers)
    total, done, spent = sum(t.size for t in tasks), 0.0, 0.0
    with _sigterm_is_an_exit():
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    number = waiting.pop(0)
                    started = _Running(number, tasks[number], threads)
                    running[started.process.sentinel] = started
                for sentinel in wait([*running]):
                    assert isinstance(sentinel, int), "the sentinel of a process is a number"
                    ended = running.pop(sentinel)
                    seconds = time.monotonic() - ended.since
                    spent, done = spent + seconds, done + tasks[ended.number].size
                    yield Done(ended.number, ended.failed(), seconds, spent / done * (total - done) / workers)
        finally:
            for one in running.values():
                one.process.terminate()
            for one in running.values():
                one.process.join()


class _Running:
    """A task that was started."""

    def __init__(self, number: int, task: Task, threads: int) -> None:
        self.number, self.since = number, time.monotonic()
        self._answer, given = multiprocessing.Pipe(duplex=False)
        task.log.parent.mkdir(parents=True, exist_ok=True)
        arguments = (task, threads, os.getcwd(), dict(os.environ), given)
        self.process: BaseProcess = _context().Process(target=_child, args=arguments)
        self.process.start()
        given.close()

    def failed(self) -> str | None:
        """Why it failed, once it has ended."""
        self.process.join()
        code = self.process.exitcode
        assert code is not None, "it has ended"
        if code == 0:
            return None
        try:
            return str(self._answer.recv())
        except EOFError:
            return f"its process was killed by signal {-code}" if code < 0 else f"its process ended with code {code}"


def _context() -> ForkServerContext | SpawnContext:
    """Processes fork from one that has imported everything and has no threads, where there are such."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _child(task: Task, threads: int, folder: str, environment: dict[str, str], answer: Connection) -> None:
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C goes to the parent alone, which stops its children once
    os.chdir(folder)
    os.environ.update(environment)
    torch.set_num_threads(threads)
    _die_with_parent()
    with task.log.open("a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        try:
            task.work()
        except Exception as error:
            traceback.print_exc()
            answer.send(str(error) if isinstance(error, EspaceError) else f"{type(error).__name__}: {error}")
            raise SystemExit(1) from None


def _die_with_parent() -> None:
    """A process whose parent was killed would write where the next command does."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a child"
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _sigterm_is_an_exit() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does, so that what has to be tidied up is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
