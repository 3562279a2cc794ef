"""The optimiser and the schedule that the configuration names, and how many steps they will have."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from espace.config import Config
from espace.contracts import Schedule
from espace.errors import PluginError
from espace.registry.registry import Registry
from espace.registry.signature import accepts
from espace.runs.build import make, tables_of
from espace.runs.length import RATE
from espace.training.rates import Rates


def build_rates(config: Config, registry: Registry, batches: int) -> Rates:
    """The rates of a run whose epochs have so many batches. Raises ConfigError, also where a schedule has no end."""
    section, where = config.optimizer, "optimizer.schedule"
    schedule: Schedule = make(registry, "schedules", section.schedule, steps_of(config, batches), where=where)
    make_optimizer = partial(_optimizer, config, registry)
    return Rates(make_optimizer, tables_of(config, registry), section.lr or RATE, section.tables_lr, schedule)


def steps_of(config: Config, batches: int) -> int | None:
    """How many steps the optimiser makes in a run whose epochs have so many batches; None where only time ends it."""
    options, limit = config.trainer, config.trainer.get("limit_train_batches")
    if limit is not None:
        batches = min(batches, limit) if type(limit) is int else int(batches * limit)
    an_epoch = -(-batches // options.get("accumulate_grad_batches", 1))
    most = options.get("max_steps", -1)
    epochs = options.get("max_epochs", -1 if most > 0 or options.get("max_time") else 1)
    known = [n for n in (an_epoch * epochs if epochs is not None and epochs >= 0 else None, most) if n and n > 0]
    return min(known, default=None)


def _optimizer(config: Config, registry: Registry, groups: list[dict[str, Any]], tables: str) -> torch.optim.Optimizer:
    component = config.optimizer
    told = (tables,) if accepts(registry.get("optimizers", component.type).factory, 2) else ()
    found = make(registry, "optimizers", component, groups, *told, where="optimizer")
    if not isinstance(found, torch.optim.Optimizer):
        raise PluginError(f"optimizer: {component.type} gives a {type(found).__name__} and no torch.optim.Optimizer.")
    return found
