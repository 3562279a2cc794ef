"""What a tower sees of a batch: fields side by side in one flat vector, and histories with their masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from espace.batch import Ragged
from espace.errors import EspaceError, did_you_mean


@dataclass(frozen=True)
class Field:
    """One feature as a slice of the flat vector. `kind` is id, bag, sequence, number or vector; `width` may be 0 for a
    sequence that is not pooled."""

    name: str
    kind: str
    width: int


@dataclass(frozen=True)
class FeatureSpec:
    """The layout of the flat vector, known before any data is: what a tower is built from.

    `sequences` gives the width of every history that `Features.sequence` offers.
    """

    fields: tuple[Field, ...]
    sequences: Mapping[str, int]

    @classmethod
    def of_vector(cls, width: int, name: str = "vector") -> FeatureSpec:
        """The layout of one plain vector, such as another module's output."""
        return cls((Field(name, "vector", width),), {})

    @cached_property
    def width(self) -> int:
        """Columns of the flat vector."""
        return sum(f.width for f in self.fields)

    @cached_property
    def slices(self) -> Mapping[str, slice]:
        """Where each field stands in the flat vector."""
        found, start = {}, 0
        for field in self.fields:
            found[field.name] = slice(start, start + field.width)
            start += field.width
        return found


class Features:
    """The embedded features of one batch, laid out as `spec` says.

    Args:
        spec: the layout.
        flat: (batch, spec.width).
        histories: `{name: function that looks the history up}`, called when a tower asks for it.
    """

    def __init__(self, spec: FeatureSpec, flat: Tensor, histories: Mapping[str, Callable[[], Ragged]] | None = None):
        self.spec = spec
        self._flat = flat
        self._histories = histories or {}

    @classmethod
    def of_vector(cls, vector: Tensor) -> Features:
        """Another module's output, (batch, width), as features."""
        return cls(FeatureSpec.of_vector(vector.shape[1]), vector)

    def flat(self) -> Tensor:
        """All fields side by side: (batch, spec.width)."""
        return self._flat

    def field(self, name: str) -> Tensor:
        """One field: (batch, its width). Raises EspaceError for an unknown name."""
        if name not in self.spec.slices:
            raise EspaceError(f"features: there is no field '{name}'.{did_you_mean(name, self.spec.slices)}")
        return self._flat[:, self.spec.slices[name]]

    def ragged(self, name: str) -> Ragged:
        """A history, embedded, without padding: values (events, width), offsets (batch + 1,)."""
        if name not in self._histories:
            raise EspaceError(f"features: there is no sequence '{name}'.{did_you_mean(name, self._histories)}")
        return self._histories[name]()

    def sequence(self, name: str) -> tuple[Tensor, Tensor]:
        """A history, embedded and padded to the longest of the batch.

        Returns values (batch, length, width), zero in the padding, and mask (batch, length), true where an event is.
        Raises EspaceError for an unknown name.
        """
        return self.ragged(name).padded()
