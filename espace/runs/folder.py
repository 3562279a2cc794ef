"""The folder of a run, and whose it is: one process trains in it at a time, for as long as it lives."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from espace.config import Config
from espace.data.reading.naming import file_name
from espace.errors import RunError
from espace.runs.run import writing

_LOCK = ".owner"  # locked by whoever trains here; it dies with the process, though the file may stay
_OURS = (
    "config.yaml",
    "versions.json",
    "metrics.csv",
    "steps.csv",
    "vocabulary",
    "tensorboard",
    "checkpoints",
)  # before a checkpoint
_held: set[int] = set()


def new_folder(config: Config, asked: Path | None) -> Path:
    """The folder of a new run: `asked`, which may be there, or runs/<name>/<time>, which nobody else has made.

    Raises RunError when it cannot be made.
    """
    folder = asked or Path("runs") / file_name(config.name or "run") / time.strftime("%Y%m%d-%H%M%S")
    with writing(folder, "--run-dir"):
        if asked is None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            return next(path for path in _numbered(folder) if _made(path))
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder}: it exists and is not a folder. Choose another --run-dir.")
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _numbered(folder: Path) -> Iterator[Path]:
    """Its name, then others for runs that begin in the same second."""
    yield folder
    yield from (folder.with_name(f"{folder.name}-{n}") for n in count(2))


def _made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Nobody else trains in the folder meanwhile. Raises RunError, which says who does, when somebody else is there."""
    with writing(folder, "--run-dir"):
        lock = _locked(folder / _LOCK)
    _held.add(lock)
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / _LOCK).unlink()
        _held.discard(lock)
        os.close(lock)


def _locked(path: Path) -> int:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(lock, path)
            if path.exists() and os.fstat(lock).st_ino == path.stat().st_ino:
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # whoever had it has just removed it


def _take(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(lock, 200).decode(errors="replace") or "another process"
        raise RunError(
            f"{path.parent}: {owner} is training there. Wait until it ends, stop it, or choose another --run-dir."
        ) from None
    except OSError:  # a file system that knows no locks
        return
    with suppress(OSError):  # the lock is what counts
        os.ftruncate(lock, 0)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}, since {now},".encode(), 0)


def _let_go() -> None:
    """A process that was forked off does not keep the folder when the one that trains is killed."""
    for lock in _held:
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def refuse_taken(folder: Path) -> None:
    """Raise RunError when a new run would write over something, with the way out."""
    there = _content(folder)
    if not there:
        return
    if "config.yaml" in there and not _trained(folder):
        mend = f"A run was stopped there before its first checkpoint. Begin it again by espace fit --resume {folder}"
    elif (folder / "checkpoints" / "last.ckpt").exists():
        mend = f"Go on with it by espace fit --resume {folder}"
    else:
        raise RunError(f"{folder}: it exists and is not empty. Choose another --run-dir.")
    raise RunError(f"{folder}: it exists and is not empty. {mend}, or choose another --run-dir.")


def has_begun(folder: Path) -> bool:
    """Whether there is a checkpoint to go on from; else the run begins again.

    Raises RunError for a folder that is none of a run, or has weights and no place to go on from.
    """
    if (folder / "checkpoints" / "last.ckpt").exists():
        return True
    if not (folder / "config.yaml").exists() or _trained(folder):
        raise RunError(
            f"{folder}: there is no checkpoints/last.ckpt to go on from. Start again with another --run-dir."
        )
    return False


def clear_beginning(folder: Path) -> None:
    """Take away what a run left that was stopped before its first checkpoint. Raises RunError when it cannot."""
    with writing(folder, "--run-dir"):
        for name in _OURS:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            elif name != "config.yaml":
                path.unlink(missing_ok=True)


def _trained(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "results.json"))


def _content(folder: Path) -> list[str]:
    """What is in the folder, besides what a process that was killed has left of its writing."""
    return [p.name for p in folder.iterdir() if p.name != _LOCK and p.suffix != ".partial"]


@contextmanager
def removed_if_empty(folder: Path) -> Iterator[None]:
    """Leave no empty folder behind a run that did not begin."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise
