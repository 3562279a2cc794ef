"""Errors inside parts that others wrote, told as such: which part, where in it, what espace expects of it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from espace.errors import EspaceError, PluginError
from espace.registry.registry import Entry, Registry, one

_EXPECTED = {
    "towers": "forward gets an espace.Features and returns (batch, out_features)",
    "sharing": "forward gets an espace.Features and returns {transition: espace.Features}",
    "links": "forward gets {transition: (batch, width)} and returns the same, as wide as widths says",
    "objectives": "it is called with probabilities and labels and returns {term: (value, rows)}, (batch,) each",
    "samplers": "it is called with labels, weights and a generator and returns a weight for each row",
    "weightings": "forward gets {term: loss}, of shape () each, and returns one loss of shape ()",
    "stages": "forward gets (batch, logits) and returns log P and log(1 - P), (batch,) each",
    "metrics": "update gets an espace.Scored, compute returns {name: number}",
    "readers": "read(piece, columns) returns a pyarrow Table of these columns with the rows of the piece",
    "optimizers": "it is a torch.optim.Optimizer of the groups that it was given",
    "schedules": "it is called with a step, from 0 on, and returns by what the learning rate is multiplied",
    "callbacks": "its methods are those of pytorch_lightning.Callback, each with the trainer and the module",
    "loggers": "log_metrics(metrics, step) gets {name: number}; it is a pytorch_lightning.loggers.Logger",
}


@contextmanager
def parts_told(registry: Registry) -> Iterator[None]:
    """Turns what is raised inside the code of a part that is not espace's own into a PluginError that names it."""
    try:
        yield
    except EspaceError:
        raise
    except Exception as error:
        if (told := _told(error, registry)) is None:
            raise
        raise PluginError(told) from error


def _told(error: Exception, registry: Registry) -> str | None:
    """What to say of an error from within a part; None where it comes from elsewhere."""
    foreign = [e for e in registry.all() if e.package != "espace"]
    frames = [*traceback.walk_tb(error.__traceback__)][::-1]  # the innermost first
    for belongs in (_is_of_module, _is_of_part):
        for frame, line in frames:
            if entry := next((e for e in foreign if belongs(frame, e)), None):
                return _message(entry, f"{frame.f_code.co_filename}:{line}, in {frame.f_code.co_name}", error)
    return None


def _message(entry: Entry, place: str, error: Exception) -> str:
    what = " ".join(f"{type(error).__name__}: {error}".split())
    expected = f" What is expected: {_EXPECTED[entry.kind]}." if entry.kind in _EXPECTED else ""
    return f"{one(entry.kind)} '{entry.name}' of {entry.package}: {place}: {what}.{expected} --debug shows more."


def _is_of_module(frame: FrameType, entry: Entry) -> bool:
    """Whether a frame runs code of the module that has the part."""
    module = sys.modules.get(getattr(entry.factory, "__module__", ""))
    return module is not None and frame.f_globals is vars(module)


def _is_of_part(frame: FrameType, entry: Entry) -> bool:
    """Whether a frame runs a method of the part, which it may have from elsewhere."""
    return isinstance(entry.factory, type) and isinstance(frame.f_locals.get("self"), entry.factory)
