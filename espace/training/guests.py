"""What plugins bring of Lightning's: callbacks and loggers, and states that a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from torch import Tensor

from espace.errors import PluginError

_PLAIN = (Tensor, str, bytes, bool, int, float, complex, type(None))


def as_callback(part: object, where: str) -> pl.Callback:
    """A callback of Lightning. Raises PluginError for what is none."""
    if not isinstance(part, pl.Callback):
        raise PluginError(f"{where}: a {type(part).__name__} is no pytorch_lightning.Callback. Inherit from that.")
    return part


def as_logger(part: object, where: str) -> Logger:
    """A logger of Lightning. Raises PluginError for what is none."""
    if not isinstance(part, Logger):
        raise PluginError(f"{where}: a {type(part).__name__} is no pytorch_lightning.loggers.Logger. Inherit from it.")
    return part


def check_keys(callbacks: Mapping[str, pl.Callback]) -> None:
    """Raise PluginError where two callbacks would have one place in a checkpoint."""
    seen: dict[str, str] = {}
    for name, callback in callbacks.items():
        if (other := seen.setdefault(callback.state_key, name)) != name:
            raise PluginError(
                f"callbacks.{name}: a checkpoint would keep the state of it and of '{other}' under one name,"
                f" '{callback.state_key}'. Let its author write a property state_key that tells them apart."
            )


def check_states(states: Mapping[str, object]) -> None:
    """Raise PluginError for the state of a callback that could be written, and not be read without running code."""
    for key, state in states.items():
        if (odd := _odd(state)) is not None:
            raise PluginError(
                f"callbacks: the state of '{key}' holds a {type(odd).__name__}, which no checkpoint can keep. Let its"
                " state_dict return plain values and tensors."
            )


def _odd(state: object) -> object:
    """Something in a state that is neither plain nor a tensor; None where all is."""
    if isinstance(state, dict):
        return next((odd for pair in state.items() for odd in map(_odd, pair) if odd is not None), None)
    if type(state) in (list, tuple, set):
        return next((odd for odd in map(_odd, state) if odd is not None), None)  # type: ignore[call-overload]
    return None if isinstance(state, _PLAIN) and type(state).__module__ != "numpy" else state
