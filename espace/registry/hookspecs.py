"""The hooks through which parts reach espace: its own and a stranger's come in by the same door."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import pluggy
from typing_extensions import TypeVar

if TYPE_CHECKING:
    from espace.chain.pieces import ChainPiece
    from espace.contracts import (
        Callback,
        Link,
        Logger,
        Metric,
        Objective,
        Optimizer,
        Reader,
        Sampler,
        Schedule,
        ScoredSampler,
        Sharing,
        StageKind,
        Tower,
        ValueKind,
        ValueMetric,
        Weighting,
    )

hookspec = pluggy.HookspecMarker("espace")
hookimpl = pluggy.HookimplMarker("espace")


Part_contra = TypeVar("Part_contra", contravariant=True, default=object)


class Register(Protocol[Part_contra]):
    """Gives a factory the name under which the YAML asks for it.

    `Register[espace.Tower]` lets a type checker hold what the factory builds to its contract.
    """

    def __call__(self, name: str, factory: Callable[..., Part_contra]) -> None:
        """Add one; its keyword-only parameters are its options in the YAML."""


@hookspec
def register_towers(register: Register[Tower]) -> None:
    """Add towers, built as `factory(spec, *, options)`: features in, one vector per row out."""


@hookspec
def register_sharing(register: Register[Sharing]) -> None:
    """Add ways to share, built as `factory(spec, transitions[, expert], *, options)`: features per transition out."""


@hookspec
def register_links(register: Register[Link]) -> None:
    """Add links, built as `factory(chain, widths, *, options)`: a vector per transition in, another out."""


@hookspec
def register_objectives(register: Register[Objective]) -> None:
    """Add objectives, built as `factory(chain, *, options)`: probabilities and labels in, terms of the loss out."""


@hookspec
def register_samplers(register: Register[Sampler | ScoredSampler]) -> None:
    """Add samplers, which decide the rows and the row weights that training sees."""


@hookspec
def register_weightings(register: Register[Weighting]) -> None:
    """Add weightings, which make one loss, or one gradient, of several terms."""


@hookspec
def register_stages(register: Register[StageKind | ValueKind]) -> None:
    """Add stage kinds, built as `factory(*, options)`: how the outcome of a stage is distributed given its parent."""


@hookspec
def register_pieces(register: Register[ChainPiece]) -> None:
    """Add pieces of chain, built as `factory(*, options)`: they bring stages with their labels and kinds to a chain."""


@hookspec
def register_metrics(register: Register[Metric | ValueMetric]) -> None:
    """Add metrics, which judge one probability against its labels."""


@hookspec
def register_readers(register: Register[Reader]) -> None:
    """Add readers, built as `factory(source, split[, text], *, options)`, which give tables piece by piece."""


@hookspec
def register_callbacks(register: Register[Callback]) -> None:
    """Add callbacks, built as `factory(*, options)`, which Lightning calls around every step of training."""


@hookspec
def register_loggers(register: Register[Logger]) -> None:
    """Add loggers, built as `factory(folder, resumed_at, *, options)`, which take what `metrics.csv` gets."""


@hookspec
def register_optimizers(register: Register[Optimizer]) -> None:
    """Add optimisers, built as `factory(groups[, tables], *, options)`, which change parameters by their gradients."""


@hookspec
def register_schedules(register: Register[Schedule]) -> None:
    """Add schedules, built as `factory(steps, *, options)`: by what the learning rate is multiplied in each step."""
