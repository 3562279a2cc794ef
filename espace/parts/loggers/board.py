"""Lightning's logger for TensorBoard without a file of its own for options."""

from __future__ import annotations

from pytorch_lightning.loggers import TensorBoardLogger


class Board(TensorBoardLogger):
    """What a resumed run has of later steps is hidden."""

    def log_hyperparams(self, *_: object, **__: object) -> None:
        """config.yaml has them."""
