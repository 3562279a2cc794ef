"""espace: a behaviour chain declared in YAML, trained over the entire space, every probability served by name.

Names are imported when they are first used, so that `import espace` and `espace --help` stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from espace import errors, testing
    from espace.batch import Batch, Labels, Ragged
    from espace.blocks import Activation, Count, Dropout, FieldMatrix, FirstOrder, Gate, Norm, dense
    from espace.chain import Chain, Transition, Value
    from espace.experiment import Experiment
    from espace.features import ExtraTable, Features, FeatureSpec, Field
    from espace.hookspecs import Register, hookimpl
    from espace.pieces import ChainPiece
    from espace.probability import Probabilities, Scored, ScoredValue, Term, ValueTerms
    from espace.runs import Run, load

__version__ = "0.1.0"
__all__ = [
    "Activation",
    "Batch",
    "Chain",
    "ChainPiece",
    "Count",
    "Dropout",
    "Experiment",
    "ExtraTable",
    "FeatureSpec",
    "Features",
    "Field",
    "FieldMatrix",
    "FirstOrder",
    "Gate",
    "Labels",
    "Norm",
    "Probabilities",
    "Ragged",
    "Register",
    "Run",
    "Scored",
    "ScoredValue",
    "Term",
    "Transition",
    "Value",
    "ValueTerms",
    "dense",
    "errors",
    "hookimpl",
    "load",
    "testing",
]

_HOME = {
    "Batch": "batch",
    "Labels": "batch",
    "Ragged": "batch",
    "Activation": "blocks",
    "Count": "blocks",
    "Dropout": "blocks",
    "FieldMatrix": "blocks",
    "FirstOrder": "blocks",
    "Gate": "blocks",
    "Norm": "blocks",
    "dense": "blocks",
    "Chain": "chain",
    "Transition": "chain",
    "Value": "chain",
    "Experiment": "experiment",
    "FeatureSpec": "features",
    "ExtraTable": "features",
    "Features": "features",
    "Field": "features",
    "hookimpl": "hookspecs",
    "Register": "hookspecs",
    "ChainPiece": "pieces",
    "Probabilities": "probability",
    "Scored": "probability",
    "ScoredValue": "probability",
    "Term": "probability",
    "ValueTerms": "probability",
    "Run": "runs",
    "load": "runs",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"espace.{_HOME[name]}"), name)
    if name in ("errors", "testing"):
        return importlib.import_module(f"espace.{name}")
    raise AttributeError(f"module 'espace' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
