"""What goes wrong around a training run and is nobody's bug, told with place and way out."""

from __future__ import annotations

import errno
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from espace.errors import EspaceError, RunError, visible

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
_WATCH = "lightning_fabric.strategies.launchers.subprocess_script"
_CHILD = re.compile(r"Child process with PID \d+ terminated with code (?:-(\d+)|(\d+))")
_ENDED = "another of the processes was {}, so that this one ends too. The last checkpoint is as it was: go on with"
_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "socket closed",
    "remote process exited",
    "broken pipe",
)


@contextmanager
def explained(folder: Path, start: Path | None, began: Callable[[], bool], ranks: int) -> Iterator[None]:
    """Turns into a RunError what the disk says, what the checkpoint `start` has that cannot be taken up until the run
    `began`, and the end of another process of a distributed run."""
    try:
        yield
    except EspaceError:
        raise
    except Exception as error:
        if message := _told(error, folder, None if began() else start, ranks):
            raise RunError(message) from error
        raise


def _told(error: Exception, folder: Path, start: Path | None, ranks: int) -> str | None:
    said = " ".join(str(error).split())
    go_on = f"espace fit --resume {folder}"
    if isinstance(error, OSError) and error.errno in _DISK:
        where = error.filename or folder
        return (
            f"{where}: it cannot be written: {error.strerror or error}. The last checkpoint is as it was. Make room,"
            f" then"
            f" go on with {go_on}."
        )
    if ranks > 1 and any(sign in said.lower() for sign in _LOST):
        return (
            f"{folder}: another of the {ranks} processes has ended, or cannot be reached. Its own message, or the"
            f" system's"
            f" log, says why. The last checkpoint is as it was: go on with {go_on}."
        )
    if start is not None:
        return (
            f"{start}: the run cannot go on from its content: {type(error).__name__}: {said}. Start a new run with"
            f" another"
            " --run-dir."
        )
    return None


class _Deaths(logging.Handler):
    """Says that another rank is gone, before Lightning's watch over the ranks that it has started ends this one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(logging.INFO)
        self.folder = folder

    def emit(self, record: logging.LogRecord) -> None:
        """A line on stderr, at once: what comes next is SIGKILL."""
        if found := _CHILD.search(record.getMessage()):
            why = f"killed by signal {found[1]}" if found[1] else f"over with exit code {found[2]}"
            go_on = f"espace fit --resume {self.folder}"
            print(visible(f"espace: {self.folder}: {_ENDED.format(why)} {go_on}."), file=sys.stderr, flush=True)


@contextmanager
def deaths_told(folder: Path) -> Iterator[None]:
    """Inside, a rank that has ended is told though nothing waits for it, as before the ranks have met. Behind it, this
    process ends by itself, with the message that it has."""
    logger, deaths = logging.getLogger(_WATCH), _Deaths(folder)
    before = logger.level
    logger.addHandler(deaths)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(deaths)
        logger.setLevel(before)
        for thread in threading.enumerate():
            if thread.name == "child-process-observer":
                getattr(thread, "_child_processes", []).clear()  # so that it finds none to end all for
