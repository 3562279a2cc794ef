"""What parts gave back, against what they promised: an error where it happens, and not some layers later."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor

from espace.errors import PluginError


def check_vectors(what: str, found: object, widths: Mapping[str, int], rows: int) -> None:
    """Raise PluginError unless there is one vector, (rows, width), for every transition in `widths`."""
    check_names(what, found, widths)
    assert isinstance(found, Mapping), "as checked"
    for name, width in widths.items():
        vector = found[name]
        if not isinstance(vector, Tensor) or vector.shape != (rows, width):
            raise PluginError(
                f"{what} of {name}: it gave {_described(vector)}, but a tensor of shape ({rows}, {width}), that is"
                " (batch, width), is expected, as it said when it was built. Mend its forward."
            )


def check_names(what: str, found: object, names: Collection[str]) -> None:
    """Raise PluginError unless `found` is a mapping with all of `names`."""
    if not isinstance(found, Mapping):
        raise PluginError(f"{what}: it gave {_described(found)}, but one thing for each transition is expected.")
    if missing := [name for name in names if name not in found]:
        raise PluginError(f"{what}: it gave nothing for {', '.join(missing)}, only for {', '.join(map(str, found))}.")


def check_terms(found: object, rows: int) -> None:
    """Raise PluginError unless an objective gave `{term: (value, rows)}` with tensors of shape (rows,)."""
    if not isinstance(found, Mapping) or not found:
        raise PluginError(f"objective: it gave {_described(found)}, but {{term: (value, rows)}} is expected.")
    for name, term in found.items():
        pair = isinstance(term, tuple) and len(term) == 2 and all(isinstance(t, Tensor) for t in term)
        if not pair or any(t.shape != (rows,) for t in term):
            raise PluginError(
                f"objective: for the term '{name}' it gave {_described(term)}, but two tensors of shape ({rows},), that"
                " is (batch,), are expected: the value, and the rows that count."
            )


def check_loss(loss: object) -> None:
    """Raise PluginError unless it is one number that a model can learn from."""
    if not isinstance(loss, Tensor) or loss.shape != ():
        raise PluginError(f"weighting: it gave {_described(loss)}, but one loss, a tensor of shape (), is expected.")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise PluginError(
            "weighting: the loss has no gradient, so nothing would learn. Make it of the terms that it gets, and those"
            " of the probabilities that the objective gets, without detach() and without .item()."
        )


def check_numbers(name: str, metric: object, found: object) -> dict[str, float]:
    """What the metric `name` computed, as plain numbers by name. Raises PluginError unless it is `{name: number}`."""
    where = f"metric '{name}': {place_of(type(metric).__dict__.get('compute', type(metric)))}: it"
    what = "but {name: number} is expected: for each name, which is text, a number or a tensor of shape (). Mend it."
    if not isinstance(found, Mapping):
        raise PluginError(f"{where} gave {_described(found)}, {what}")
    for key, value in found.items():
        number = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
        if not isinstance(key, str) or not (number or isinstance(value, int | float | np.number)):
            raise PluginError(f"{where} gave {_described(value)} for {key!r}, {what}")
    return {name: float(value) for name, value in found.items()}


def place_of(part: object) -> str:
    """Where a class or a method stands: `file.py:12, in compute`."""
    try:
        plain = inspect.unwrap(cast(Callable[..., object], part))
        file, line = inspect.getsourcefile(plain), inspect.getsourcelines(plain)[1]
    except (OSError, TypeError):
        return str(part)
    return f"{file}:{line}, in {plain.__name__}"


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"({', '.join(_described(v) for v in value)})"
    return f"a {type(value).__name__}"
