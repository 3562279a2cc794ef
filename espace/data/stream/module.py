"""The streams of an experiment, for Lightning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch

from espace.data.stream.stream import Stream
from espace.errors import ConfigError


class DataModule(pl.LightningDataModule):
    """Hands Lightning the streams of training and validation: each rank its slice of a batch, on its GPU if any.

    Args:
        train: the training stream; its place becomes the number of batches that the trainer has trained.
        validation: the validation stream, or None.
    """

    def __init__(self, train: Stream, validation: Stream | None) -> None:
        super().__init__()
        self.train = train
        self.validation = validation

    def train_dataloader(self) -> Stream:
        """The training stream from the trainer's present place."""
        trainer, batches = self._trainer, len(self.train)
        limit = trainer.limit_train_batches
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress  # Lightning's type of `total` lacks `processed`
        if isinstance(limit, float) and int(limit * batches) == 0:
            raise ConfigError(
                f"trainer.limit_train_batches: {limit} of the {batches:,} batches of an epoch is less than one. Set it"
                f" to {1 / batches:.2g} or more, or to a whole number of batches."
            )
        steps = int(limit * batches) if isinstance(limit, float) else limit
        return self._sliced(replace(self.train, place=lambda: progress.total.processed, limit=steps))

    def val_dataloader(self) -> Stream | list[Stream]:
        """The validation stream; nothing when there is none."""
        return self._sliced(self.validation) if self.validation is not None else []

    @property
    def _trainer(self) -> pl.Trainer:
        assert self.trainer is not None, "Lightning attaches the trainer before it asks for data"
        return self.trainer

    def _sliced(self, stream: Stream) -> Stream:
        trainer = self._trainer
        return replace(stream, rank=trainer.global_rank, ranks=trainer.world_size, device=gpu_of(trainer))


def gpu_of(trainer: pl.Trainer) -> torch.device | None:
    """The CUDA device on which this rank trains, None where it trains on something else."""
    device = trainer.strategy.root_device
    return device if device.type == "cuda" else None
