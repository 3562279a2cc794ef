"""Lightning's Trainer as espace sets it up: its options checked, its checkpoints whole, its metrics in a file."""

from __future__ import annotations

import csv
import inspect
import logging
import os
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.loggers import Logger

from espace.config import Config
from espace.config.validate import describe, did_you_mean_or_home
from espace.config.yamlfile import show
from espace.errors import ConfigError
from espace.training.checkpoint import read_checkpoint, write_checkpoint

if TYPE_CHECKING:
    from torch.serialization import MAP_LOCATION

_OURS = {
    "logger": "metrics always go to metrics.csv, and the key loggers says where else",
    "callbacks": "write them under the key callbacks, and let a plugin bring them by register_callbacks",
    "plugins": "precision and strategy have keys of their own",
    "default_root_dir": "use --run-dir",
    "enable_checkpointing": "checkpoints/best.ckpt and last.ckpt are always written",
    "enable_model_summary": "espace show prints the modules",
    "enable_progress_bar": "use --quiet",
    "num_sanity_val_steps": "the audit looks at the validation rows before training",
    "use_distributed_sampler": "the plan of batches does it",
    "reload_dataloaders_every_n_epochs": "the plan of batches does it",
    "fast_dev_run": "use max_steps",
    "overfit_batches": "use limit_train_batches",
}
_NARROW = ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16")
_LEAST = {
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "num_nodes": 1,
}
_STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")


class SafeCheckpointIO(CheckpointIO):
    """Lightning's checkpoints through `espace.training.checkpoint`: whole or not at all, checked, without code."""

    def save_checkpoint(
        self, checkpoint: Mapping[str, object], path: str | Path, storage_options: object = None
    ) -> None:
        """Write `checkpoint`. Raises RunError."""
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: MAP_LOCATION = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint. Raises RunError."""
        return read_checkpoint(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove it, with the digest that espace 0.1.0 wrote beside it."""
        for file in (Path(path), Path(f"{path}.sha256")):
            file.unlink(missing_ok=True)


class MetricsFile(Logger):
    """`metrics.csv` with the columns step, epoch, name, value: one line a value, only ever appended."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        """Lightning wants one."""
        return "metrics"

    @property
    def version(self) -> str:
        """Lightning wants one."""
        return ""

    def log_hyperparams(self, *_: object, **__: object) -> None:
        """config.yaml has them."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append."""
        new = not self.path.exists() or not self.path.stat().st_size
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(["step", "epoch", "name", "value"])
            epoch = int(metrics.get("epoch", 0))
            writer.writerows([step, epoch, n, f"{float(v):.9g}"] for n, v in metrics.items() if n != "epoch")

    def size(self) -> int:
        """Bytes that are on the disk."""
        if not self.path.exists():
            return 0
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size

    def cut(self, size: int) -> None:
        """Drop what was written after the file had `size` bytes."""
        if self.path.exists():
            os.truncate(self.path, min(size, self.path.stat().st_size))


def trainer_problems(options: Mapping[str, object]) -> list[str]:
    """What is wrong with the keys of `trainer:`, against Lightning's own signature."""
    known = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self", *_OURS}
    found = [f"trainer.{k}: espace sets it; {_OURS[k]}." for k in options if k in _OURS]
    unknown = [k for k in options if k not in known and k not in _OURS]
    hints = {k: did_you_mean_or_home(k, known, Config) for k in unknown}
    found += [f"trainer: Lightning's Trainer has no option '{k}'.{hint}" for k, hint in hints.items()]
    if options.get("gradient_clip_algorithm") not in (None, "norm"):
        found.append(
            "trainer.gradient_clip_algorithm: only 'norm' is possible, over dense and sparse gradients together."
        )
    if str(options.get("precision")) in _NARROW:
        found.append(
            f"trainer.precision: with {options['precision']} the weights lose what a step adds."
            " Set bf16-mixed: its weights have 32 bits."
        )
    if options.get("strategy", "auto") not in _STRATEGIES:
        found.append(
            f"trainer.strategy: {options['strategy']!r} is not possible: every rank has whole tables, and"
            f" runs the command itself. Known: {', '.join(_STRATEGIES)}."
        )
    return found + _too_small(options) + _mistyped(options)


def make_trainer(
    options: Mapping[str, Any], callbacks: list[pl.Callback], folder: Path, loggers: Sequence[Logger] = ()
) -> pl.Trainer:
    """Lightning's Trainer with espace's checkpoints, and `metrics.csv` beside `loggers`. Raises ConfigError for an
    option it does not know."""
    if problems := trainer_problems(options):
        raise ConfigError(problems)
    try:
        return pl.Trainer(
            **{"log_every_n_steps": 20, "accelerator": "auto", **options},
            num_sanity_val_steps=0,
            logger=[MetricsFile(folder / "metrics.csv"), *loggers],
            callbacks=callbacks,
            plugins=[SafeCheckpointIO()],
            default_root_dir=folder,
            enable_model_summary=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"trainer: Lightning refuses these options: {error}") from error


def _too_small(options: Mapping[str, object]) -> list[str]:
    """Numbers that Lightning takes and that make no sense: a negative norm would turn every gradient round."""
    numbers = {n: v for n, v in options.items() if n in _LEAST and type(v) in (int, float)}
    return [
        f"trainer.{name}: {show(value)} is not {_LEAST[name]} or more. Set it higher, or leave it out."
        for name, value in numbers.items()
        if not value >= _LEAST[name]  # type: ignore[operator]  # nan neither
    ]


def _mistyped(options: Mapping[str, object]) -> list[str]:
    """Values of no plain type that the signature of Lightning's trainer names: it would find out late, or never."""
    found = []
    for name, hint in typing.get_type_hints(pl.Trainer.__init__).items():
        kinds = typing.get_args(hint) if typing.get_origin(hint) is typing.Union else (hint,)
        plain = tuple(k for k in kinds if typing.get_origin(k) or k in (int, float, str, bool, type(None)))
        if name in options and plain and not any(_fits(options[name], kind) for kind in plain):
            wanted = describe(typing.Union[plain])  # noqa: UP007
            found.append(f"trainer.{name}: {show(options[name])} is not {wanted}.")
    return found


def _fits(value: object, kind: object) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    kind = typing.get_origin(kind) or kind
    return isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


@contextmanager
def lightning_quiet() -> Iterator[None]:
    """Lightning's tips, and its guesses about loaders that we do not use, stay out of the user's sight.

    Raises ConfigError for what Lightning calls a misconfiguration: all it knows of one is the user's options.
    """
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|lightning_utilities")
        warnings.filterwarnings("ignore", message=".*(GPU|TPU|num_workers|litlogger|pynvml).*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        except MisconfigurationException as error:
            raise ConfigError(f"trainer: Lightning refuses these options: {error}") from error
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
