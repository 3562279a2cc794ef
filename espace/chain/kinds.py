"""What a chain asks of stage kinds, which `espace.contracts` describes: being modules, those of stages are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class OutcomeKind(Protocol):
    """Of a stage: a `StageKind`."""

    @property
    def logits(self) -> int:
        """How many numbers of the head it reads."""
        ...

    def __call__(self, z: Tensor, /) -> tuple[Tensor, Tensor]:
        """(batch, logits) to log P(stage given parent) and log(1 - P), (batch,) each."""
        ...

    def start(self, rate: float, /) -> Sequence[float]:
        """The logits at which P is `rate`."""
        ...


class _AmountKind(Protocol):
    @property
    def logits(self) -> int:
        """How many numbers of the head it reads."""
        ...

    def log_density(self, z: Tensor, x: Tensor, /) -> Tensor:
        """(rows, logits) and amounts, (rows,), to the log of their density or probability, (rows,)."""
        ...

    def start(self, mean: float, variance: float, zeros: float, /) -> Sequence[float]:
        """The logits at which the mean is `mean`."""
        ...


@runtime_checkable
class PositiveKind(_AmountKind, Protocol):
    """Of a value: a `ValueKind` with a mean above 0."""

    def log_mean(self, z: Tensor, /) -> Tensor:
        """(batch, logits) to log E[amount], (batch,)."""
        ...


@runtime_checkable
class SignedKind(_AmountKind, Protocol):
    """Of a value: a `ValueKind` whose mean may be 0 or less."""

    def mean(self, z: Tensor, /) -> Tensor:
        """(batch, logits) to E[amount], (batch,)."""
        ...


AmountKind: TypeAlias = PositiveKind | SignedKind
Kind: TypeAlias = OutcomeKind | AmountKind


def as_kind(module: nn.Module) -> Kind:
    """A module that is a stage kind, as it is."""
    assert isinstance(module, PositiveKind | SignedKind | OutcomeKind), "a stage kind has logits and a start"
    return module


def of_stage(kind: Kind | None) -> OutcomeKind | None:
    """The kind of a stage, as it is."""
    assert not isinstance(kind, PositiveKind | SignedKind), "what distributes amounts is no kind of a stage"
    return kind


def of_value(kind: Kind | None) -> AmountKind:
    """The kind of a value, as it is."""
    assert isinstance(kind, PositiveKind | SignedKind), "a value has a kind that distributes amounts"
    return kind
