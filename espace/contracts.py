"""What each kind of part has to look like: one protocol for every kind, with shapes, units and errors.

A part is built by a factory, which the hook of its kind registers. The factory's positional parameters come from
espace; its keyword-only parameters are the options of the YAML. Whatever is trained is an `nn.Module`, and gives what
is asked of it here by its `forward`.

These are contracts of version `API_VERSION`; docs/api.md says what that promises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from espace.chain.labels import Labels
from espace.chain.pieces import ChainPiece
from espace.chain.probability import Probabilities
from espace.chain.scored import Scored, ScoredValue
from espace.chain.terms import Term
from espace.data.reading.readers import Piece
from espace.model.features import Features, FeatureSpec

API_VERSION = 1


class Tower(Protocol):
    """Features in, one vector per row out. Built as `factory(spec, *, options)`, by `register_towers`.

    spec: a `FeatureSpec`, the layout of what `forward` gets.

    It may have `logits`, how many columns of its output, from the left, are logits that the head passes on with a
    weight of 1; and `auxiliary_loss`, an attribute of the class that `forward` sets to one number, (), to be added to
    the loss.
    """

    @property
    def out_features(self) -> int:
        """The width of what `forward` returns."""
        ...

    def forward(self, features: Features) -> Tensor:
        """(batch, out_features), any real numbers: heads make logits of them. A row depends on that row only."""
        ...


Expert: TypeAlias = Callable[[FeatureSpec], Any]  # an nn.Module that is a Tower: torch has no type that says both


class Sharing(Protocol):
    """What the towers of all transitions have in common.

    Built as `factory(spec, transitions[, expert], *, options)`, by `register_sharing`.

    spec: the layout of the features; transitions: their names; expert: `expert(spec)` is a new tower of the type that
    the YAML names under `sharing.expert`. A factory without a third parameter has no experts.
    """

    @property
    def specs(self) -> Mapping[str, FeatureSpec]:
        """`{transition: layout of its features}`."""
        ...

    def forward(self, features: Features) -> Mapping[str, Features]:
        """`{transition: features}`, laid out as `specs` says."""
        ...


class Link(Protocol):
    """What transitions tell each other between tower and head. Built as `factory(chain, widths, *, options)`, by
    `register_links`.

    chain: the `Chain`; widths: `{transition: width of its tower's vector}`.
    """

    @property
    def widths(self) -> Mapping[str, int]:
        """`{transition: width of its new vector}`."""
        ...

    def forward(self, vectors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """`{transition: (batch, width)}` to the same, as wide as `widths` says."""
        ...


class Objective(Protocol):
    """Probabilities and labels in, terms of the loss out.

    Built as `factory(chain, *, options)`, by `register_objectives`.
    It is not trained: what has parameters is a tower, a link or a weighting.
    """

    @property
    def terms(self) -> Mapping[str, Term]:
        """`{term: what it is}`, of stages and values of the chain. A value of the chain needs a term."""
        ...

    def __call__(self, p: Probabilities, labels: Labels, /) -> Mapping[str, tuple[Tensor, Tensor]]:
        """`{term: (loss of each row, how much each row counts in the divisor)}`, (batch,) each, in nats.

        The names are those of `terms`. Rows that are not judged are multiplied by 0, not left out, so that every logit
        gets a finite gradient in every batch.
        """
        ...


class Weighting(Protocol):
    """Terms in, one loss out. Built as `factory(weights, *, options)`, by `register_weightings`.

    weights: `{term: its weight from the YAML}`. Its parameters are trained along.
    """

    def forward(self, terms: Mapping[str, Tensor]) -> Tensor:
        """`{term: mean over its rows, ()}`, 0 for a term without rows, to one number, ().

        It is also called without gradients, to print the loss; what it remembers must not change then.
        """
        ...


Score: TypeAlias = Callable[[NDArray[np.int64]], NDArray[np.float64]]  # positions, (n,), to a probability of each, (n,)
Sampled: TypeAlias = (
    tuple[NDArray[np.int64], NDArray[np.float32]] | tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int8]]
)


class Sampler(Protocol):
    """Rows in, rows and weights out: which rows of a global training batch are used, how often, with what weight.

    Built as `factory(chain, *, options)`, by `register_samplers`. It is a function of what it is given. It may also
    have `rates()`, `{transition: how often rows are used that take each of its classes}`; `effect`, a line for the
    audit; and `objectives`, the names of those that it is right with.
    """

    def __call__(
        self, labels: NDArray[np.int8], weights: NDArray[np.float32], random: np.random.Generator, /
    ) -> Sampled:
        """labels: (rows, stages but the root), -1 for not known; weights: (rows,); random: draws of this batch alone.

        Returns positions, (n,), their weights, (n,), and, where it changes them, their labels, (n, stages but the
        root): -2 is a negative given its parent although that did not happen.
        """
        ...


class ScoredSampler(Protocol):
    """A sampler that goes by what another run predicts. Registered as a `Sampler`."""

    @property
    def scored_by(self) -> tuple[str, str]:
        """(run folder, stage): whose probability `score` gives."""
        ...

    def __call__(
        self, labels: NDArray[np.int8], weights: NDArray[np.float32], random: np.random.Generator, score: Score, /
    ) -> Sampled:
        """As of a `Sampler`; score: positions, (n,), to P(stage) by that run, (n,)."""
        ...


class StageKind(Protocol):
    """How a stage is distributed given its parent. Built as `factory(*, options)`, by `register_stages`.

    Every probability of the chain is made of the two tails it gives, so both have to be exact.
    """

    @property
    def logits(self) -> int:
        """How many numbers of the head it reads."""
        ...

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, logits) to log P(stage given parent) and log(1 - P), (batch,) each."""
        ...

    def start(self, rate: float) -> Sequence[float]:
        """The logits at which P is `rate`, with which the head's bias begins."""
        ...


class ValueKind(Protocol):
    """How an amount is distributed given its parent. Built as `factory(*, options)`, by `register_stages`.

    Beside what stands here it has `log_mean(z)`, (batch, logits) to log E[amount], (batch,); or, where the mean may be
    0 or less, `mean(z)`, to E[amount] in the unit of the column.
    """

    @property
    def logits(self) -> int:
        """How many numbers of the head it reads."""
        ...

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the largest amount that there can be, both included, in the unit of the column."""
        ...

    def log_density(self, z: Tensor, x: Tensor) -> Tensor:
        """(rows, logits) and amounts within the limits, (rows,), to the log of density or probability, (rows,)."""
        ...

    def start(self, mean: float, variance: float, zeros: float) -> Sequence[float]:
        """The logits at which the mean is `mean`. zeros: the share of amounts that are 0."""
        ...


class Metric(Protocol):
    """Judges one probability against its labels: a `torchmetrics.Metric`.

    Built as `factory(*, options)`, by `register_metrics`.
    An option `by` names a column of group keys, an option `column` one of probabilities; both stand in `scored.extras`.
    """

    def update(self, scored: Scored) -> None:
        """Add rows of the one space that it judges. A row of weight 0 counts for nothing."""
        ...

    def compute(self) -> Mapping[str, Tensor]:
        """`{name: number, ()}`; the names do not depend on the rows, and NaN is what is not defined on them."""
        ...


class ValueMetric(Protocol):
    """Judges one value against its amounts: a `torchmetrics.Metric` with `of_values = True`.

    Registered as a `Metric`.
    """

    @property
    def of_values(self) -> bool:
        """True: it judges values."""
        ...

    def update(self, scored: ScoredValue) -> None:
        """Add rows of the one space that it judges. A row of weight 0 counts for nothing."""
        ...

    def compute(self) -> Mapping[str, Tensor]:
        """`{name: number, ()}`; the names do not depend on the rows, and NaN is what is not defined on them."""
        ...


class Reader(Protocol):
    """Tables, piece by piece. Built as `factory(source, split[, text], *, options)`, by `register_readers`.

    source: what the YAML says under `train`, `validation` or `test`; split: which of these, or `predict`; text: the
    columns that hold categories or lists: where types have to be guessed, these are text. It can be pickled. It may
    have `check(piece | None)`, which raises DataError when the rows of a piece, or any, have changed.
    """

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns of every piece."""
        ...

    @property
    def pieces(self) -> Sequence[Piece]:
        """The units of reading and shuffling, each held in memory as a whole."""
        ...

    @property
    def fingerprint(self) -> str:
        """A text that changes when the content does."""
        ...

    def read(self, piece: Piece, columns: Sequence[str]) -> pa.Table:
        """Those columns of a piece, in the order of the schema, always the same.

        Raises DataError that names the file and the row group.
        """
        ...


class Callback(Protocol):
    """A `pytorch_lightning.Callback`. Built as `factory(*, options)`, by `register_callbacks`.

    Lightning calls its methods with the trainer and the module, an `nn.Module` with `model` and with `told`, the last
    value of every metric. Each step draws from a random state of its own. `trainer.should_stop = True` ends training.
    """

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same bits: plain values and tensors."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""


class Logger(Protocol):
    """A `pytorch_lightning.loggers.Logger`. Built as `factory(folder, resumed_at, *, options)`, by `register_loggers`.

    folder: a `Path`, that of the run; resumed_at: the step from which a run goes on, after which the logger may have
    more that is to be forgotten, or None. Only the first of several processes calls the methods.
    """

    def log_hyperparams(self, params: Any) -> None:
        """The configuration as plain values, once when a run begins."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """`{name: number}` with `epoch` among them; step: of the optimiser, counted from 1."""


class Optimizer(Protocol):
    """A `torch.optim.Optimizer`. Built as `factory(groups[, tables], *, options)`, by `register_optimizers`.

    groups: a list of `{"params": [...], "lr": rate}`, in the order of the parameters; tables: `exact` or `lazy`, where
    gradients of embedding tables are sparse, or `dense`. A factory without that parameter gets dense gradients only.
    For `exact` it has `catch_up(table, rows)`, called before rows are looked up, and `settle()`, before whole tables
    are read.
    """

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups; espace sets the `lr` of each before every step."""

    def step(self) -> Any:
        """Change every parameter that has a gradient."""


class Schedule(Protocol):
    """By what the learning rate is multiplied. Built as `factory(steps, *, options)`, by `register_schedules`.

    steps: how many steps of the optimiser the run has, or None where only time or patience ends it. It may have
    `judged(loss)`, called with the loss after every validation, and then `state_dict()` and `load_state_dict(state)`,
    so that a resumed run goes on with the same bits.
    """

    def __call__(self, step: int) -> float:
        """The factor of a step, counted from 0; without `judged` it depends on the step only."""


CONTRACTS: Mapping[str, tuple[type, ...]] = {
    "towers": (Tower,),
    "sharing": (Sharing,),
    "links": (Link,),
    "objectives": (Objective,),
    "samplers": (Sampler, ScoredSampler),
    "weightings": (Weighting,),
    "stages": (StageKind, ValueKind),
    "pieces": (ChainPiece,),  # a piece is what its factory returns, so its contract is a class
    "metrics": (Metric, ValueMetric),
    "readers": (Reader,),
    "callbacks": (Callback,),
    "loggers": (Logger,),
    "optimizers": (Optimizer,),
    "schedules": (Schedule,),
}
