"""What goes wrong around a training run and is nobody's bug, told with place and way out."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from espace.errors import EspaceError, RunError

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
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
            f" then go on with {go_on}."
        )
    if ranks > 1 and any(sign in said.lower() for sign in _LOST):
        return (
            f"{folder}: another of the {ranks} processes has ended, or cannot be reached. Its own message, or the"
            f" system's log, says why. The last checkpoint is as it was: go on with {go_on}."
        )
    if start is not None:
        return (
            f"{start}: the run cannot go on from its content: {type(error).__name__}: {said}. Start a new run with"
            " another --run-dir."
        )
    return None
