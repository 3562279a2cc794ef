"""Training with PyTorch Lightning: the module, the checkpoint files, the loggers, the trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from espace.data.batch import Batch
from espace.errors import NonFiniteError
from espace.model.embedding import Table
from espace.model.model import Model
from espace.model.returned import check_loss
from espace.training.averaging import Average
from espace.training.graphs import Graphed
from espace.training.judging import Judge, Objective, Terms, Utilisation, check_finite
from espace.training.rates import Rates
from espace.training.sparse import clip_grad_norm
from espace.training.trainer import MetricsFile


@dataclass
class Losses:
    """The loss of a batch, (), its terms over all ranks, and what towers added to it, ()."""

    loss: Tensor
    total: Terms
    auxiliary: Tensor | None


class Training(pl.LightningModule):
    """One training step, one validation step, one optimiser.

    Metrics are written where they are computed, since Lightning would write them after the callbacks: a checkpoint has
    every line before it. The step of a line is the number of optimiser steps with it.

    Args:
        model: the model.
        objective: `(probabilities, labels) -> {term: (value, rows)}`.
        weighting: `{term: scalar} -> scalar`; its parameters are trained along.
        judge: the metrics of validation.
        rates: what decides how far a step goes.
        seed: every step's random numbers are drawn from (seed, step, rank), so that a resumed run draws the same.
        artefact: plain values that travel in every checkpoint under "espace".
        average: the decay of the average of weights that is judged and kept; 0 for the weights themselves.
        graphs: on a CUDA device steps become graphs; it is called with a line that says why not. None: they never do.
    """

    def __init__(
        self,
        model: Model,
        objective: Objective,
        weighting: nn.Module,
        judge: Judge,
        rates: Rates,
        seed: int,
        artefact: Mapping[str, object],
        graphs: Callable[[str], None] | None = None,
        average: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.weighting = weighting
        self.judge = judge
        self._rates = rates
        self._base: list[float] = []  # the rate of every group, before the schedule
        self._seed = seed
        self._artefact = dict(artefact)
        self._window: Terms | None = None  # of all ranks, since the last line
        self.gates = Utilisation(model.gates)
        self.told: dict[str, float] = {}  # the last value of every metric
        self._settle: Callable[[], None] = _nothing
        self._tell_graphs = graphs
        self._graphed: Graphed[Losses] | None = None
        self._decay = average
        self._average: Average | None = None
        self._averages: object = None  # of a checkpoint, until there are weights to take them
        self._shown = ExitStack()  # while the averages stand where the weights are
        self._has_gradients = False  # of the step at hand, before it goes backward

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":  # set some 40 times a step, and a module looks long at what it is given
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser, which is told of look-ups where rows of tables catch up."""
        optimizer: Any = self._rates.optimizer_of(self)
        self._base = [group["lr"] for group in optimizer.param_groups]
        if self._rates.tables == "exact":
            for table in (m for m in self.modules() if isinstance(m, Table)):
                table.before_look_up = optimizer.catch_up
            self._settle = optimizer.settle
        return optimizer  # type: ignore[no-any-return]

    def settle(self) -> None:
        """Let the rows of all tables catch up, for whoever reads the weights between two steps."""
        self._settle()

    def configure_gradient_clipping(
        self, optimizer: object, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the norm over dense and sparse gradients together, without a pass over a table.

        Raises NonFiniteError for a gradient that is not finite.
        """
        if gradient_clip_val:
            norm = clip_grad_norm(self.parameters(), gradient_clip_val)
            if norm.device.type == "cpu" and not torch.isfinite(norm):
                raise NonFiniteError(
                    f"step {self.global_step + 1}: the norm of the gradient is {float(norm):g}."
                    " The last checkpoint has finite weights. Lower optimizer.lr, or look for extreme numbers among"
                    " the features."
                )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Draw this step's random state from its number, and set its rates."""
        step = self._progress.processed
        seed = int(np.random.SeedSequence([self._seed, step, self.global_rank]).generate_state(1)[0])
        torch.default_generator.manual_seed(
            seed
        )  # torch.manual_seed writes down a stack trace for every kind of device
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        self._rates.set(self.trainer.optimizers[0], self._base, self.global_step)

    def on_fit_start(self) -> None:
        """The weights are where they will be trained: from here on they are averaged."""
        if self._decay:
            self._average = Average({"model": self.model, "weighting": self.weighting}, self._decay)
            if self._averages is not None:
                self._average.load(self._averages)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step, and what it adds to the averages."""
        super().optimizer_step(*args, **kwargs)
        if self._average is not None:
            self._average.update(self.global_step + 1)

    def averaged(self) -> AbstractContextManager[None]:
        """The weights that are judged and kept stand in the module."""
        return nullcontext() if self._average is None else self._average.in_place()

    def on_train_start(self) -> None:
        """Steps that can become graphs do: those of one process on a CUDA device, each with one batch."""
        trainer = self.trainer
        alone = isinstance(trainer.strategy, SingleDeviceStrategy) and trainer.accumulate_grad_batches == 1
        if self._tell_graphs and self.device.type == "cuda" and alone and trainer.precision != "16-mixed":
            self._graphed = Graphed(self._losses, self, self._tell_graphs)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch. Raises NonFiniteError, on every rank, when it stops being finite."""
        found = None if self._graphed is None else self._graphed(batch)
        self._has_gradients = found is not None
        found = found or self._losses(batch)
        logs = self._logs_now()
        if logs or found.loss.device.type == "cpu":
            check_finite(found.loss.detach(), found.total, f"step {self.global_step + 1}")
        self._window = found.total.copy() if self._window is None else self._window + found.total
        if logs:
            self._tell_window(self._window, found.auxiliary)
            self._window = None
        return found.loss.detach() if self._has_gradients else found.loss

    def backward(self, loss: Tensor, *args: object, **kwargs: object) -> None:
        """Gradients, unless the step has them already."""
        if self._has_gradients and self._graphed is not None:
            self._graphed.give_gradients()
        else:
            super().backward(loss, *args, **kwargs)

    def _losses(self, batch: Batch) -> Losses:
        terms = Terms.of(self.objective, self.model(batch), batch)
        total = terms.total()
        loss: Tensor = self.weighting(terms.means(total))
        check_loss(loss)
        auxiliary = self.model.auxiliary_loss()
        self.gates.add(batch.weights)
        return Losses(loss if auxiliary is None else loss + auxiliary, total, auxiliary)

    def _logs_now(self) -> bool:
        """Whether the optimiser's step comes with this batch, and a line with this step."""
        trainer: Any = self.trainer  # Lightning gives it `log_every_n_steps` without a type
        every: int = trainer.log_every_n_steps
        return every > 0 and (self.global_step + 1) % every == 0 and not self.trainer.fit_loop._should_accumulate()

    def _tell_window(self, window: Terms, auxiliary: Tensor | None) -> None:
        means = window.means()
        with torch.no_grad():
            loss = self.weighting(means)
        terms = {f"train/loss/{name}": float(value) for name, value in means.items()}
        last = {} if auxiliary is None else {"train/auxiliary_loss": float(auxiliary.detach())}
        gates = {f"train/gate/{name}": share for name, share in self.gates.take().items()}
        self._tell({"train/loss": float(loss), **terms, **last, **gates}, self.global_step + 1)

    def on_validation_start(self) -> None:
        """Judge whole tables, and averages where there are any."""
        self.settle()
        self._shown.enter_context(self.averaged())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Judge one batch."""
        self.judge.update(self.model(batch), batch, self.objective)

    def on_validation_epoch_end(self) -> None:
        """Log every probability's metrics in its own space."""
        found = {f"val/{name}": value for name, value in self.judge.compute().items()}
        self.judge.reset()
        self._shown.close()
        self._rates.judged(found["val/loss"])
        self._tell(found, self.global_step)

    def _tell(self, found: dict[str, float], step: int) -> None:
        """Show the values to callbacks, and write them."""
        self.told |= found
        epoch = (self._progress.ready - 1) // int(self.trainer.num_training_batches)
        for logger in self.trainer.loggers if self.trainer.is_global_zero else ():
            logger.log_metrics({**found, "epoch": epoch}, step)

    @property
    def _progress(self) -> Any:
        """How many batches were begun (`ready`) and trained (`processed`), over all epochs."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put what prediction needs beside the weights, and where the metrics stand."""
        checkpoint["espace"] = self._artefact
        window = None if self._window is None else {"sums": self._window.sums, "rows": self._window.rows}
        checkpoint["espace_metrics"] = {"window": window, "size": self._metrics.size()}
        checkpoint["espace_schedule"] = self._rates.state()
        checkpoint["espace_average"] = self._average.state() if self._average else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the metrics as they stood: what the run wrote after the checkpoint is dropped."""
        self._rates.load(checkpoint.get("espace_schedule", {}))  # espace 0.1.0 wrote none
        self._averages = checkpoint.get("espace_average")
        found = checkpoint["espace_metrics"]
        if found["window"] is not None:
            names = list(self.judge.terms.names)
            self._window = Terms(
                names, *(_stood(found["window"][n], len(names), self.device) for n in ("sums", "rows"))
            )
        if self.trainer.is_global_zero:
            self._metrics.cut(found["size"])

    @property
    def _metrics(self) -> MetricsFile:
        return next(logger for logger in self.trainer.loggers if isinstance(logger, MetricsFile))


def _stood(found: object, terms: int, device: torch.device) -> Tensor:
    """(terms,) as a checkpoint has them. Raises ValueError for anything else."""
    if not isinstance(found, Tensor) or found.shape != (terms,) or not found.is_floating_point():
        raise ValueError(f"where the metrics stand is not told by {terms} numbers")
    return found.to(device)


def _nothing() -> None:
    pass
