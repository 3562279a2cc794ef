"""Features to try a part on: every kind of field, and histories that are empty, short and long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from espace.data.batch import Ragged
from espace.model.features import ExtraTable, Features, FeatureSpec, Field

_LENGTHS = {"history": (0, 4), "history_time": (0, 4), "carts": (2, 3)}  # row i has (first + i) % cycle events


def example_spec() -> FeatureSpec:
    """Ids of two widths, a pooled bag, numbers and a vector; `history`, pooled, with `history_time` aligned to it event
    by event; `carts`, which is not pooled. `history` and `carts` share the table of `item`."""
    fields = [Field(name, "id", 4) for name in ("user", "item", "context")]
    fields += [
        Field("city", "id", 6),
        Field("tags", "bag", 4),
        Field("history", "sequence", 4),
        Field("history_time", "sequence", 0),
        Field("carts", "sequence", 0),
        Field("age", "number", 2),
        Field("price", "number", 2),
        Field("text", "vector", 3),
    ]
    return FeatureSpec(
        tuple(fields), {"history": 4, "history_time": 2, "carts": 4}, {"history": "item", "carts": "item"}
    )


def example_features(spec: FeatureSpec, rows: int = 6, seed: int = 0, *, empty: bool = False) -> Features:
    """Random features of that layout in float64; row 0 has an empty history, and every row if `empty`."""
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    flat = normal(rows, spec.width)
    histories = {}
    for name, width in spec.sequences.items():
        first, cycle = _LENGTHS.get(name, (0, 4))
        lengths = (first + torch.arange(rows)) % cycle * (not empty)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        histories[name] = Ragged(normal(int(offsets[-1]), width), offsets)
    return _features(spec, flat, histories, normal(rows, len(spec.categorical), spec.extra_width))


def rows_of(features: Features, rows: Tensor) -> Features:
    """Some of the rows, in that order."""
    histories = {name: ragged.take(rows) for name, ragged in histories_of(features).items()}
    return _features(features.spec, features.flat()[rows], histories, extra_of(features)[rows])


def as_float(features: Features) -> Features:
    """The same in float32."""
    narrow = {name: Ragged(r.values.float(), r.offsets) for name, r in histories_of(features).items()}
    return _features(features.spec, features.flat().float(), narrow, extra_of(features).float())


def with_extra(features: Features, spec: FeatureSpec, extra: Tensor) -> Features:
    """The same features of a layout of which more was asked; extra: (rows, len(spec.categorical), spec.extra_width)."""
    return _features(spec, features.flat(), histories_of(features), extra)


def histories_of(features: Features) -> dict[str, Ragged]:
    """Every history, without padding."""
    return {name: features.ragged(name) for name in features.spec.sequences}


def extra_of(features: Features) -> Tensor:
    """All that was asked for: (rows, len(spec.categorical), spec.extra_width)."""
    return features.extra(ExtraTable(0, features.spec.extra_width))


def tensors_of(features: Features) -> list[Tensor]:
    """Every tensor that a part can reach."""
    return [features.flat(), extra_of(features), *(r.values for r in histories_of(features).values())]


def _features(spec: FeatureSpec, flat: Tensor, histories: Mapping[str, Ragged], extra: Tensor) -> Features:
    return Features(spec, flat, {name: _always(ragged) for name, ragged in histories.items()}, extra)


def _always(ragged: Ragged) -> Callable[[], Ragged]:
    return lambda: ragged
