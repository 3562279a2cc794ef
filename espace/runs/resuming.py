"""Whether a run can go on: the same options where they matter, the same data, a whole checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from espace.config import Config
from espace.config.yamlfile import show
from espace.errors import ConfigError, RunError
from espace.registry.registry import Registry
from espace.runs.artefact import told_in
from espace.runs.length import as_begun
from espace.runs.opening import PARTS
from espace.training.checkpoint import read_checkpoint

_SHOWN = 5  # options of which old and new value are told

_MAY_CHANGE = (
    "name",
    "trainer",
    "compile",
    "cuda_graphs",
    "loggers",
    "metrics",
    "scores",
    "monitor",
    "mode",
    "patience",
    "checkpoint_every",
)  # when a run goes on


_RATES = ("optimizer.lr", "optimizer.tables_lr")  # may change when an override next to --resume says so
_PLACE = ("limit_train_batches", "accumulate_grad_batches")  # of trainer: what a count of batches means depends on them


_DATA_MAY_CHANGE = (
    *PARTS,
    "potential",
    "allow_leaks",
    "workers",
    "keep_encoded",
)  # that the training rows are the same is checked


def check_same(config: Config, registry: Registry, run: Path, said: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """Raise RunError when the run was begun with options that cannot change on the way, as its checkpoint has them.

    A rate may change where an override in `said` says so. Returned are the configuration, which where it leaves the
    length open has the numbers that were chosen when the run began, and a line for each rate that changes.
    """
    file = run / "checkpoints" / "last.ckpt"
    told = told_in(read_checkpoint(file, only_whole=True), file)["config"]
    try:
        begun = Config.from_dict(told, registry)
    except ConfigError as error:
        raise RunError(f"{run}: it was begun with what is not there now: {error} Start a new run.") from error
    config = as_begun(config, begun)
    then, now = as_begun(begun, begun).to_dict(), config.to_dict()
    notes = _take_rates(then["optimizer"], now["optimizer"], {text.partition("=")[0].strip() for text in said})
    changed = [key for key in then if key not in (*_MAY_CHANGE, "data") and now[key] != then[key]]
    for section, keys in (("data", {**then["data"], **now["data"]}), ("trainer", dict.fromkeys(_PLACE))):
        free = _DATA_MAY_CHANGE if section == "data" else ()
        differ = [key for key in keys if now[section].get(key) != then[section].get(key)]
        changed += [f"{section}.{key}" for key in differ if key not in free]
    if changed:
        raise RunError(
            f"{run}: it was begun with another {', '.join(changed)}. {_told(then, now, changed)} What may change when a"
            f" run goes on: {', '.join(_MAY_CHANGE)}; with an override, {' and '.join(_RATES)}. Start a new run with"
            " another --run-dir."
        )
    return config, notes


def _take_rates(then: dict[str, Any], now: dict[str, Any], said: set[str]) -> list[str]:
    """Let the rates that were said count as those of the beginning; a line for each that is another."""
    notes = []
    for key in (key.removeprefix("optimizer.") for key in _RATES if key in said):
        if then[key] != now[key]:
            notes.append(f"optimizer.{key} was {show(then[key])} and is {show(now[key])} from here on, as you said.")
            then[key] = now[key]
    return notes


def _told(then: object, now: object, changed: Sequence[str]) -> str:
    """`optimizer.lr was 0.01, now it is 1.0.` The first few of them."""
    differ = [
        line
        for line in _differences(then, now, "")
        if any(f"{line} ".startswith(f"{c}{e}") for c in changed for e in ". ")
    ]
    more = f" And {len(differ) - _SHOWN} more." if len(differ) > _SHOWN else ""
    return f"{'; '.join(differ[:_SHOWN])}.{more}"


def _differences(then: object, now: object, where: str) -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in {**then, **now}:
            yield from _differences(then.get(key), now.get(key), f"{where}.{key}" if where else str(key))
    elif then != now:
        yield f"{where} was {show(then)}, now it is {show(now)}"
