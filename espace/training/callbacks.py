"""What happens around training steps: checkpoints, patience, and signals that stop a run between two steps."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import pytorch_lightning as pl
import torch
from torch import Tensor

from espace.errors import DataError, NonFiniteError
from espace.training.guests import check_states
from espace.training.lightning import Training

Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None  # of a signal


class Checkpoints(pl.Callback):
    """`best.ckpt` (weights) whenever the monitor improves; `last.ckpt` (everything) after every validation, every
    `every` batches, and when training is stopped.

    A last.ckpt is only written where nothing is half done: between two batches, after the validation that follows the
    batch if one does, and when no gradients are being accumulated; where it is due earlier, it waits. Validation
    follows the last batch of all too, unless its epoch is without one (check_val_every_n_epoch), so that the last
    weights are judged. A run whose monitor never had a value, as one without validation rows, has the last weights as
    its best.

    Args:
        folder: where the files go.
        monitor: a name of a validation metric; mode: whether it is better "min" or "max".
        every: batches from one last.ckpt to the next besides those after validations; None for only those.
        patience: training stops after so many validations in a row without improvement; None for never.
    """

    def __init__(self, folder: Path, monitor: str, mode: str, every: int | None, patience: int | None) -> None:
        self.folder, self.monitor, self.mode, self.every, self.patience = folder, monitor, mode, every, patience
        self.best: float | None = None
        self.waited = 0  # validations since the best one; once patience is over it stays over
        self.gain = 0.0  # by how much of itself the last validation bettered the best before it
        self.began = False  # whether all that a checkpoint says has been taken up
        self._due = False
        self._between_steps = False

    def state_dict(self) -> dict[str, object]:
        """The best score so far, and the validations since."""
        return {"monitor": self.monitor, "mode": self.mode, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back, unless it was another score."""
        if (state_dict["monitor"], state_dict["mode"]) == (self.monitor, self.mode):
            self.best, self.waited = state_dict["best"], state_dict["waited"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the place as an uninterrupted run has it, from which Lightning goes on rightly.

        After it resumed at the end of an epoch its count of begun epochs is one behind, and resuming once more would
        skip an epoch. After a validation that is not on the schedule it would train one batch more before it sees the
        end of the epoch; after the batch, before that validation, it does not. Raises PluginError for a state of
        another callback that could not be read.
        """
        check_states(checkpoint.get("callbacks", {}))
        loops = checkpoint["loops"]["fit_loop"]
        epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
        over = (batches["total"]["processed"] - batches["current"]["processed"]) // int(trainer.num_training_batches)
        for count in (epochs["total"], epochs["current"]):
            count["ready"] = count["started"] = over + 1
        if trainer.validating and not _on_schedule(trainer):
            for count in (batches["total"], batches["current"]):
                count["completed"] -= 1

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        """A run whose patience was over before it was resumed does not train on."""
        self.began = True
        self._stop_if_patience_is_over(trainer)

    def on_train_batch_start(self, *_: object) -> None:
        """A step begins: its half-made state is not saved."""
        self._between_steps = False

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Save when it is due."""
        self._between_steps = True
        if _ends(trainer):
            trainer.should_stop = True  # Lightning then validates
        if self.every and _batches_trained(trainer) % self.every == 0:
            self._due = True
        if self._due and is_whole(trainer):
            self.save_last(trainer)

    def on_validation_start(self, *_: object) -> None:
        """Nothing is saved inside a validation."""
        self._between_steps = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the best weights if these are, and the place."""
        assert isinstance(pl_module, Training), "made together"
        score = pl_module.told[self.monitor]
        better = self._is_better(score)
        self.gain = abs(score - self.best) / abs(self.best) if better and self.best else 0.0
        if better:
            self.best = score
            self._save(trainer, "best", weights_only=True)
        if not self._patience_is_over:
            self.waited = 0 if better else self.waited + 1
        self._stop_if_patience_is_over(trainer)
        self._due = True
        if not accumulates(trainer):
            self.save_last(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep the place when the data gave out between two steps; several ranks are at several places."""
        alone = trainer.world_size == 1
        if alone and self._between_steps and isinstance(exception, DataError) and not accumulates(trainer):
            self.save_last(trainer)

    def on_fit_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Without any score the last weights are the best."""
        if self.best is None:
            self._save(trainer, "best", weights_only=True)

    def save_last(self, trainer: pl.Trainer) -> None:
        """Write last.ckpt."""
        self._due = False
        self._save(trainer, "last")

    def _save(self, trainer: pl.Trainer, name: str, weights_only: bool = False) -> None:
        module = trainer.lightning_module
        assert isinstance(module, Training), "made together"
        if weights_only:
            module.settle()
        with module.averaged() if weights_only else nullcontext():
            check_weights(trainer)
            trainer.save_checkpoint(self.folder / f"{name}.ckpt", weights_only)

    def _is_better(self, score: float) -> bool:
        if score != score:
            return False
        return self.best is None or (score < self.best if self.mode == "min" else score > self.best)

    @property
    def _patience_is_over(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def _stop_if_patience_is_over(self, trainer: pl.Trainer) -> None:
        if self._patience_is_over:
            trainer.should_stop = True


class Quarters(pl.Callback):
    """Validation after every quarter of an epoch, the last one at its end: four in an epoch of four batches or more,
    one after each batch of a shorter one."""

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Lightning validates where `batches done in the epoch % val_check_batch` is 0, resumed or not."""
        trainer.val_check_batch = _Quarterly(trainer.num_training_batches)


class _Quarterly(int):
    """The batches of an epoch, of which the remainder is 0 at the end of each quarter: 586 are not four times any."""

    def __rmod__(self, done: int) -> int:
        return int(done not in quarters(self))


def quarters(batches: int) -> list[int]:
    """How many batches of an epoch are done at the end of each quarter: `ceil(batches i / 4)`, each number once."""
    return sorted({-(-batches * i // 4) for i in range(1, 5)})


def check_weights(trainer: pl.Trainer) -> None:
    """Raise NonFiniteError unless every weight is finite: such weights never replace a checkpoint."""
    wrong = [name for name, p in trainer.lightning_module.named_parameters() if not _is_finite(p.detach())]
    if wrong:
        raise NonFiniteError(
            f"step {trainer.global_step}: not all weights are finite ({', '.join(wrong)}). The checkpoint before is"
            " as it was. Lower optimizer.lr, set trainer.gradient_clip_val, or look for extreme numbers among the"
            " features."
        )


def _is_finite(numbers: Tensor) -> bool:
    """Whether all numbers are, found without a tensor as large."""
    ends = torch.aminmax(torch.view_as_real(numbers) if numbers.is_complex() else numbers) if numbers.numel() else ()
    return all(bool(torch.isfinite(end)) for end in ends)


def accumulates(trainer: pl.Trainer) -> bool:
    """Whether gradients of batches wait for the optimiser; no checkpoint has them."""
    return trainer.fit_loop._should_accumulate()


def is_whole(trainer: pl.Trainer) -> bool:
    """Whether nothing is half done at the end of a batch: no gradients wait, and no validation follows it."""
    return not accumulates(trainer) and not _validates(trainer)


def _validates(trainer: pl.Trainer) -> bool:
    """Whether a validation belongs to the batch that was just trained."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None, "asked after a training batch"
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _on_schedule(trainer: pl.Trainer) -> bool:
    """Whether a resumed run would find this validation in its place, as it does not where it was due by the clock or by
    the end of training."""
    stop, trainer.should_stop = trainer.should_stop, False
    try:
        return _validates(trainer) and getattr(trainer, "_val_check_time_interval", None) is None
    finally:
        trainer.should_stop = stop


def _batches_trained(trainer: pl.Trainer) -> int:
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress  # Lightning's type of `total` lacks `processed`
    return int(progress.total.processed)


def _ends(trainer: pl.Trainer) -> bool:
    """Whether the batch that was just trained is the last of all."""
    batches = _batches_trained(trainer)
    epochs = trainer.max_epochs if trainer.max_epochs is not None else -1
    by_steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return by_steps or (epochs != -1 and batches >= epochs * trainer.num_training_batches)


class Interrupted(BaseException):
    """A signal stopped the run; `exit_code` is the one that a shell expects."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.exit_code = 128 + number


class Interrupts(pl.Callback):
    """Ctrl-C and SIGTERM stop training after the batch in hand, and what belongs to it (validation, the rest of the
    batches of an accumulated gradient), with the place saved. A second signal stops at once, where it is.

    With several ranks, a signal to one of them stops all after the same batch.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.received: int | None = None
        self._before: dict[int, Handler] = {}

    def __enter__(self) -> Interrupts:
        self._before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        self._handle(dict.fromkeys(self._before, self._note))
        return self

    def __exit__(self, *_: object) -> None:
        self._handle(self._before)

    def on_train_start(self, *_: object) -> None:
        """Take SIGTERM back from Lightning, which would stop in the middle of an accumulated gradient."""
        self._handle(dict.fromkeys(self._before, self._note))

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Save and stop if a signal came."""
        if self._came(trainer) and is_whole(trainer):
            self.checkpoints.save_last(trainer)
            raise Interrupted(self.received or signal.SIGTERM)

    def on_validation_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Stop if a signal came; the place was saved just before."""
        if self._came(trainer) and not accumulates(trainer):
            raise Interrupted(self.received or signal.SIGTERM)

    def _came(self, trainer: pl.Trainer) -> bool:
        """Whether a signal came to any rank."""
        return bool(trainer.strategy.reduce_boolean_decision(self.received is not None, all=False))

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise Interrupted(number)
        self.received = number

    def _handle(self, handlers: Mapping[int, Handler]) -> None:
        try:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        except ValueError:
            return  # not in the main thread: whoever runs us handles signals
