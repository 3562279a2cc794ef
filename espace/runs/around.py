"""What goes on beside training steps: the callbacks and loggers that the configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from espace.config import Config
from espace.registry.registry import Registry
from espace.runs.build import make
from espace.training.guests import as_callback, as_logger, check_keys

if TYPE_CHECKING:
    from pytorch_lightning import Callback
    from pytorch_lightning.loggers import Logger


def build_callbacks(config: Config, registry: Registry) -> list[Callback]:
    """Those under `callbacks`, in their order. Raises ConfigError and PluginError."""
    found = {}
    for name, component in config.callbacks.items():
        where = f"callbacks.{name}"
        found[name] = as_callback(make(registry, "callbacks", component, where=where), where)
    check_keys(found)
    return [*found.values()]


def build_loggers(config: Config, registry: Registry, folder: Path, resumed_at: int | None) -> list[Logger]:
    """Those under `loggers`, in their order. Raises ConfigError and PluginError."""
    found = []
    for name, component in config.loggers.items():
        where = f"loggers.{name}"
        found.append(as_logger(make(registry, "loggers", component, folder, resumed_at, where=where), where))
    return found
