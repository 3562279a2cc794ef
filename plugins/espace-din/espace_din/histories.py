"""Which histories a tower reads, what each is compared with, and which sequences stand beside it event by event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import espace
from espace.errors import DataError, did_you_mean


class Events(NamedTuple):
    """One history of a batch, without padding: target (batch, width), events (events, width + side), offsets (batch + 1,)."""

    target: Tensor
    events: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class History:
    """A sequence, the field it is compared with, and the sequences that stand beside it.

    width: of an event and of the target; event_width: of an event with what stands beside it.
    """

    name: str
    target: str
    side: tuple[str, ...]
    width: int
    event_width: int

    def read(self, features: espace.Features) -> Events:
        """Look it up. Raises DataError where a sequence beside it has another number of events in some row."""
        history = features.ragged(self.name)
        beside = {name: features.ragged(name) for name in self.side}
        for name, ragged in beside.items():
            if not torch.equal(ragged.offsets, history.offsets):
                raise DataError(_misaligned(self.name, history.lengths, name, ragged.lengths))
        parts = [history.values, *(ragged.values for ragged in beside.values())]
        events = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return Events(features.field(self.target), events, history.offsets)


def histories_of(
    spec: espace.FeatureSpec,
    target: str | None,
    history: Sequence[str] | None,
    side: Mapping[str, Sequence[str]] | None,
) -> list[History]:
    """The histories that the options name.

    By default all that share the table of a field, but for those that stand beside another. Raises ValueError for names
    that are not known, where there is no history, and where a history is not as wide as its target.
    """
    beside = {name: tuple(names) for name, names in (side or {}).items()}
    taken = {n for names in beside.values() for n in names}
    names = [n for n in spec.sequences if n in _shared(spec) and n not in taken] if history is None else history
    if not names:
        raise ValueError(_none_found(spec))
    for name in (*names, *beside, *taken):
        if name not in spec.sequences:
            raise ValueError(f"there is no sequence '{name}'.{did_you_mean(name, spec.sequences)}")
    for name in beside:
        if name not in names:
            raise ValueError(f"side: '{name}' is not one of the histories.{did_you_mean(name, names)}")
    return [_history(spec, name, target or spec.targets.get(name), beside.get(name, ())) for name in names]


def _shared(spec: espace.FeatureSpec) -> set[str]:
    """The sequences that share the table of a field that is no sequence itself."""
    kinds = {f.name: f.kind for f in spec.fields}
    return {name for name, target in spec.targets.items() if kinds.get(target, "sequence") != "sequence"}


def _history(spec: espace.FeatureSpec, name: str, target: str | None, side: tuple[str, ...]) -> History:
    if target is None:
        raise ValueError(
            f"'{name}' shares no table, so that it is not known what to compare its events with. Set target, or share of"
            f" '{name}', to the name of a feature."
        )
    if target not in spec.slices:
        raise ValueError(f"target: there is no field '{target}'.{did_you_mean(target, spec.slices)}")
    width, found = spec.sequences[name], next(f.width for f in spec.fields if f.name == target)
    if width != found:
        raise ValueError(
            f"the events of '{name}' are {width} wide, but what they are compared with, '{target}', is {found} wide. Set"
            f" share: {target} in '{name}', so that both have one table."
        )
    return History(name, target, side, width, width + sum(spec.sequences[n] for n in side))


def _none_found(spec: espace.FeatureSpec) -> str:
    others = f"; name one of {', '.join(spec.sequences)} under history, and a target" if spec.sequences else ""
    return (
        "no sequence shares the table of another feature, so that there is no history to look at. Declare one among the"
        f" features, history: {{type: sequence, share: item_id, pool: none}}{others}. Behind shared experts, where there are"
        " no features, use tower: mlp."
    )


def _misaligned(name: str, lengths: Tensor, beside: str, others: Tensor) -> str:
    row = int((lengths != others).nonzero()[0])
    return (
        f"'{beside}' stands beside '{name}' event by event, but in row {row} of the batch '{name}' has {int(lengths[row])}"
        f" events and '{beside}' has {int(others[row])}. Give both lists one length in the data and the same max_length and"
        f" keep, or leave '{beside}' out of side."
    )
