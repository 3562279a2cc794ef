"""What of `trainer:` this machine, and this process, cannot do: found before the data is read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import AcceleratorRegistry
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

from espace.errors import ConfigError, did_you_mean
from espace.training.trainer import lightning_quiet

_GPUS = ("cuda", "mps")
_OF_DETERMINISM = ("CUBLAS_WORKSPACE_CONFIG", "HOROVOD_FUSION_THRESHOLD")  # in the environment


def check_machine(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for options of Lightning's trainer that are no good here: no such device, or no way to start
    the processes of further ones."""
    _check_accelerator(options.get("accelerator", "auto"))
    with lightning_quiet(), torch_as_it_was():
        try:
            trainer = pl.Trainer(
                **options,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
        except (TypeError, ValueError, RuntimeError, ImportError) as error:
            raise ConfigError(f"trainer: Lightning refuses these options: {error}") from error
    launcher = trainer.strategy.launcher
    if launcher is None or (isinstance(launcher, _SubprocessScriptLauncher) and _can_start(launcher)):
        return
    raise ConfigError(
        f"trainer.devices: {trainer.world_size} devices need as many processes, which are started by running the same"
        " program again; python -c, a prompt and a notebook are no file that could be run. Run it by the command of"
        " espace: espace fit FILE.yaml. Or put the program into a file, or set trainer.devices: 1."
    )


def _can_start(launcher: _SubprocessScriptLauncher) -> bool:
    """Whether further processes are there already, as torchrun starts them, or this program can be run again."""
    return launcher.cluster_environment.creates_processes_externally or Path(sys.argv[0]).is_file()


def _check_accelerator(name: object) -> None:
    known = {n: AcceleratorRegistry[n]["accelerator"] for n in AcceleratorRegistry.available_accelerators()}
    here = sorted(n for n, kind in known.items() if kind.is_available())
    possible = {"auto", *here} | ({"gpu"} if {*here} & {*_GPUS} else set())
    if name not in possible:
        hint = did_you_mean(str(name), [*known, "gpu", "auto"]) if name not in (*known, "gpu") else ""
        raise ConfigError(
            f"trainer.accelerator: {name!r} is not on this machine, which has {', '.join(here)}."
            f"{hint if ' Did' in hint else ''} Set auto, or one of those."
        )


@contextmanager
def torch_as_it_was() -> Iterator[None]:
    """What Lightning's trainer sets in torch and in the environment for a run does not outlive it."""
    deterministic, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark, before = torch.backends.cudnn.benchmark, {n: os.environ.get(n) for n in _OF_DETERMINISM}
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
        torch.backends.cudnn.benchmark = benchmark
        for name in (n for n, value in before.items() if value is None):
            os.environ.pop(name, None)
