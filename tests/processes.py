"""The command line in processes of their own, which can be killed. They fork from one that has imported everything."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch", "pytorch_lightning", "espace.cli", "espace.runs.experiment", "espace.training.lightning"]
)
PATIENCE = 120  # seconds, on a busy machine


def start(folder: Path, said: Path, *arguments: object, **environment: str) -> BaseProcess:
    """`espace ARGUMENTS` in `folder`; what it writes goes to `said`."""
    process = _CONTEXT.Process(target=_run, args=(str(folder), str(said), [str(a) for a in arguments], environment))
    process.start()
    return process


def start_ranks(folder: Path, said: Path, *arguments: object) -> list[BaseProcess]:
    """Two ranks of a distributed run on this machine, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    arguments = (*arguments, "trainer.devices=2", "trainer.strategy=ddp")
    return [start(folder, said, *arguments, LOCAL_RANK=str(rank), **place) for rank in (0, 1)]


def _run(folder: str, said: str, arguments: list[str], environment: dict[str, str]) -> None:
    import torch

    os.chdir(folder)
    os.environ.update(environment)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job, as the tests may be, ignores it
    torch.set_num_threads(1)
    with open(said, "a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    from espace.cli import app

    app(arguments, prog_name="espace")


def code_of(process: BaseProcess) -> int:
    """The exit code, as the shell has it: 137 for a process that was killed."""
    process.join(PATIENCE)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode if process.exitcode >= 0 else 128 - process.exitcode


def wait_for(happened: Callable[[], bool], process: BaseProcess) -> None:
    """Until it happened or the process ended."""
    end = time.monotonic() + PATIENCE
    while not happened() and process.is_alive():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.002)
