"""Laws of loggers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

from pytorch_lightning.loggers import Logger

from espace.testing.law import law


class LoggerTests:
    """Laws of a logger. Set `logger` and `options`."""

    logger: ClassVar[Callable[..., Any]]
    options: ClassVar[Mapping[str, object]] = {}

    def build(self, folder: Path, resumed_at: int | None = None) -> Any:
        """A new one with the options."""
        return type(self).logger(folder, resumed_at, **self.options)

    def test_is_a_logger_of_lightning(self, tmp_path: Path) -> None:
        assert isinstance(self.build(tmp_path), Logger), "it inherits from pytorch_lightning.loggers.Logger"

    def test_takes_what_a_run_tells_and_leaves_it_as_it_is(self, tmp_path: Path) -> None:
        logger = self.build(tmp_path)
        params = {"seed": 0, "tower": {"type": "mlp", "hidden_units": [8]}, "name": None}
        told = {"train/loss": 0.5, "val/click/auc": float("nan"), "epoch": 0}
        before = deepcopy((params, told))  # of which the NaN is the same, so that it is equal
        with law("numbers may be NaN, and names differ from step to step"):
            logger.log_hyperparams(params)
            logger.log_metrics(told, 1)
            logger.log_metrics({"train/loss": 0.4, "epoch": 0}, 2)
            logger.log_metrics({"val/loss": 0.4, "epoch": 0}, 2)
            logger.save()
            logger.finalize("success")
        assert (params, told) == before, "what it is given is not changed: others read it too"

    def test_goes_on_with_a_run(self, tmp_path: Path) -> None:
        with law("a run may be stopped, lose some of its steps, and go on"):
            for resumed_at in (None, 1):
                logger = self.build(tmp_path, resumed_at)
                for step in (1, 2, 3) if resumed_at is None else (2, 3, 4):
                    logger.log_metrics({"train/loss": 1 / step, "epoch": 0}, step)
                logger.finalize("success")
