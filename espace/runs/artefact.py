"""What a checkpoint holds beside the weights: written as plain values and tensors, and doubted when it is read."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espace.config import Config
from espace.data.encoding.columns import Number, is_categorical, table_of
from espace.data.encoding.encode import Encoder, NumberStats, kinds_from_state, learnt_from_state
from espace.data.encoding.kinds import Kind
from espace.data.encoding.vocabulary import Vocabulary
from espace.errors import EspaceError, RunError
from espace.model.named import MARK

FORMAT = 1
_PLACE = {
    "epoch": int,
    "global_step": int,
    "loops": dict,
    "callbacks": dict,
    "state_dict": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "espace_metrics": dict,
}  # what Lightning and espace take up when a run goes on


@dataclass(frozen=True)
class Artefact:
    """Of a checkpoint: the configuration as plain values, what was learnt of the data, all weights by name, averages
    where there are any, and the state of the optimiser."""

    config: dict[str, Any]
    tables: dict[str, Vocabulary | int]
    numbers: dict[str, NumberStats]
    kinds: dict[str, Kind]
    weights: dict[str, torch.Tensor]
    optimizer: Mapping[str, Any]

    def weights_of(self, module: str) -> dict[str, torch.Tensor]:
        """The weights whose names begin with the one of a module, less that."""
        return {k.removeprefix(f"{module}."): v for k, v in self.weights.items() if k.startswith(f"{module}.")}


def artefact_of(config: Config, encoder: Encoder) -> dict[str, object]:
    """What a checkpoint needs beside the weights to predict: plain values and tensors only."""
    return {"format": FORMAT, "config": config.to_dict(), "encoder": _tensors(encoder.state())}


def opened(content: Mapping[str, Any], file: Path) -> Artefact:
    """What the content of a checkpoint says. Raises RunError for what `espace fit` has not written."""
    told = told_in(content, file)
    with understood(file):
        state = told["encoder"]
        _check_numbers(state["numbers"])
        tables, numbers = learnt_from_state({"numbers": state["numbers"], "tables": _arrays(state["tables"])})
        weights = {**content["state_dict"], **(content.get("espace_average") or {})}
        _check_weights(weights)
        states: list[dict[str, Any]] = content.get("optimizer_states", [])
        kinds = kinds_from_state(state)
        return Artefact(told["config"], tables, numbers, kinds, weights, states[0] if states else {})


def check_complete(encoder: Encoder) -> None:
    """Raise ValueError when a feature lacks its table, or what was learnt of it."""
    if missing := [
        name for name in map(table_of, filter(is_categorical, encoder.features)) if name not in encoder.tables
    ]:
        raise ValueError(f"the table of {', '.join(missing)} is not there")
    for feature in (f for f in encoder.features if isinstance(f, Number)):
        learnt = encoder.numbers.get(feature.name)
        if learnt is None or (feature.buckets is not None and encoder.tables[feature.name] != len(learnt.edges) + 1):
            raise ValueError(f"what was learnt of the feature '{feature.name}' is not there, or is not of one piece")


def told_in(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """What espace has put into a checkpoint. Raises RunError when it did not, or in a format that is not
    known here."""
    version = importlib.metadata.version("espace")
    if "espace" not in content:
        raise RunError(f"{file}: it was not written by espace {version} or later. Use another checkpoint.")
    told = content["espace"]
    with understood(file):
        found = told["format"]
        config: object = told["config"]
        if not isinstance(config, dict) or not all(isinstance(name, str) for name in config):
            raise TypeError("the configuration in it is no mapping")
        if type(found) is not int:
            raise TypeError(f"its format is {found!r}, which is no whole number")
    if found != FORMAT:
        raise RunError(
            f"{file}: its format is {found}, and espace {version} knows format {FORMAT} only. Use the espace that wrote"
            " it, or train again."
        )
    with understood(file):
        lacking = _lacking(told["encoder"], content["state_dict"])
    if lacking:
        raise RunError(
            f"{file}: it was written by an espace of before {version}, {lacking}. Use the espace that wrote it, or"
            " train again."
        )
    return dict(told)


def _lacking(encoder: Mapping[str, object], weights: Mapping[str, object]) -> str:
    """What a checkpoint of a development version lacks; nothing of one that is as they are now."""
    heads = [name.removeprefix("model.heads.") for name in weights if name.startswith("model.heads.")]
    if any(not name.startswith(MARK) for name in heads):
        return "which named weights otherwise"
    return "" if "kinds" in encoder else "which did not keep what kind of values each feature has"


def place_in(content: Mapping[str, Any], file: Path) -> int:
    """The step at which a run stands that goes on. Raises RunError for a content from which none can."""
    with understood(file):
        for name, kind in _PLACE.items():
            if not isinstance(content[name], kind) or isinstance(content[name], bool):
                raise TypeError(f"{name} is a {type(content[name]).__name__} and no {kind.__name__}")
        metrics, states = content["espace_metrics"], content["optimizer_states"]
        if len(states) != 1 or not isinstance(states[0], dict):
            raise ValueError("there is no state of one optimiser")
        if (
            type(metrics["size"]) is not int
            or metrics["size"] < 0
            or not isinstance(metrics["window"], dict | type(None))
        ):
            raise ValueError("where the metrics stand is not told")
        _check_counts(content["loops"], "loops")
        loop = content["loops"]["fit_loop"]
        _ = [loop[progress]["total"]["processed"] for progress in ("epoch_progress", "epoch_loop.batch_progress")]
        return int(content["global_step"])


def _check_counts(found: object, where: str) -> None:
    """Raise ValueError unless all numbers in it are counts."""
    if isinstance(found, dict):
        for name, value in found.items():
            _check_counts(value, f"{where}.{name}")
    elif isinstance(found, int | float | str) and (not isinstance(found, int) or found < 0):
        raise ValueError(f"{where} is {found!r} and no count")


@contextmanager
def understood(file: Path) -> Iterator[None]:
    """Turns whatever goes wrong with values from a checkpoint into a RunError; errors that are told stay as they
    are."""
    try:
        yield
    except (EspaceError, MemoryError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        what = f"there is no {said}" if isinstance(error, KeyError) else said or type(error).__name__
        raise RunError(
            f"{file}: its content is not what espace fit writes: {what}. Use another checkpoint, or train again."
        ) from error


def _check_numbers(numbers: Mapping[str, list[Any]]) -> None:
    """Raise ValueError for statistics that no column has."""
    for name, (mean, deviation, edges, *_) in numbers.items():
        plain = [mean, deviation, *edges]
        if any(type(n) not in (int, float) for n in plain) or not np.isfinite(np.array(plain, np.float64)).all():
            raise ValueError(f"the statistics of '{name}' are not all finite numbers")
        if deviation <= 0 or list(edges) != sorted(edges):
            raise ValueError(f"the statistics of '{name}' have a deviation that is not above 0, or edges out of order")


def _arrays(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Vocabularies as arrays, the sizes of hashed tables as they are. Raises ValueError for what can be neither."""
    return {name: _size(name, t) if isinstance(t, int) else _vocabulary(name, t) for name, t in tables.items()}


def _size(name: str, buckets: int) -> int:
    if isinstance(buckets, bool) or buckets < 1:
        raise ValueError(f"the table of '{name}' has {buckets} buckets")
    return buckets


def _vocabulary(name: str, state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    kinds = {"numbers": torch.int64, "text": torch.uint8, "ends": torch.int64, "counts": torch.int64}
    wanted = ("numbers", "counts") if "numbers" in state else ("text", "ends", "counts")
    if set(state) != set(wanted) or any(state[n].dtype != kinds[n] or state[n].dim() != 1 for n in wanted):
        raise ValueError(f"the vocabulary of '{name}' is not of {', '.join(wanted)}")
    found = {n: state[n].numpy() for n in wanted}
    if "ends" in found:
        places = np.append(0, found["ends"])
        if (np.diff(places) < 0).any() or places[-1] != len(found["text"]):
            raise ValueError(f"the texts of the vocabulary of '{name}' do not end where they should")
    values = found[wanted[0]] if "numbers" in found else found["ends"]
    if len(values) != len(found["counts"]) or (found["counts"] < 1).any():
        raise ValueError(f"the vocabulary of '{name}' has {len(values)} values with other counts")
    return found


def _check_weights(weights: Mapping[str, Any]) -> None:
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__} and no tensor")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"not all weights in {name} are finite")


def _tensors(state: Mapping[str, object]) -> dict[str, object]:
    return {name: _tensors(v) if isinstance(v, Mapping) else _tensor(v) for name, v in state.items()}


def _tensor(value: object) -> object:
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
