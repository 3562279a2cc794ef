"""What a tower sees of a batch: fields side by side in one flat vector, and histories with their masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from espace.data.batch import Ragged
from espace.errors import EspaceError, did_you_mean


@dataclass(frozen=True)
class Field:
    """One feature as a slice of the flat vector. `kind` is id, bag, sequence, number or vector; `width` may be 0 for a
    sequence that is not pooled."""

    name: str
    kind: str
    width: int


@dataclass(frozen=True)
class ExtraTable:
    """`width` numbers besides its vector that every id has for the tower that asked: `FeatureSpec.ask`."""

    start: int
    width: int


@dataclass(frozen=True)
class FeatureSpec:
    """The layout of the flat vector, known before any data is: what a tower is built from.

    `sequences` gives the width of every history that `Features.sequence` offers, `targets` the field that shares its
    table.
    """

    fields: tuple[Field, ...]
    sequences: Mapping[str, int]
    targets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    _asked: dict[object, ExtraTable] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of_vector(cls, width: int, name: str = "vector") -> FeatureSpec:
        """The layout of one plain vector, such as another module's output."""
        return cls((Field(name, "vector", width),), {})

    @cached_property
    def width(self) -> int:
        """Columns of the flat vector."""
        return sum(f.width for f in self.fields)

    @cached_property
    def categorical(self) -> tuple[Field, ...]:
        """The fields that are looked up by id, in their order: those for which an extra table has rows."""
        return tuple(f for f in self.fields if f.kind in ("id", "bag", "sequence") and f.width)

    def ask(self, width: int = 1, name: str | None = None) -> ExtraTable:
        """Ask the embedding for `width` more numbers for every id, such as first-order weights; for use in `__init__`.

        `Features.extra` gives them. Towers that ask under one `name` share them; without a name they are the tower's
        own. Raises EspaceError for two widths under one name.
        """
        table = ExtraTable(self.extra_width, width)
        found = self._asked.setdefault(name or object(), table)
        if found.width != width:
            raise EspaceError(
                f"extra table '{name}': one tower asks for a width of {found.width}, another for {width}."
                " Use two names."
            )
        return found

    @property
    def extra_width(self) -> int:
        """Numbers of every id that towers have asked for."""
        return sum(table.width for table in self._asked.values())

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
        extra: (batch, len(spec.categorical), spec.extra_width), what towers asked for besides.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        flat: Tensor,
        histories: Mapping[str, Callable[[], Ragged]] | None = None,
        extra: Tensor | None = None,
    ):
        self.spec = spec
        self._flat = flat
        self._histories = histories or {}
        self._extra = flat.new_empty(len(flat), 0, 0) if extra is None else extra

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

    def extra(self, table: ExtraTable) -> Tensor:
        """What a tower asked for: (batch, len(spec.categorical), table.width).

        Of a bag or a history it is pooled as its field is. Another module's output has no ids: (batch, 0,
        table.width). Raises EspaceError for a table that was asked of another spec.
        """
        if not self.spec.categorical:
            return self._flat.new_zeros(len(self._flat), 0, table.width)
        if table.start + table.width > self._extra.shape[2]:
            raise EspaceError(
                "features: this extra table was asked of another spec. Ask the one that the tower is built from."
            )
        return self._extra[:, :, table.start : table.start + table.width]

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
