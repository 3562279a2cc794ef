"""espace: a behaviour chain declared in YAML, trained over the entire space, every probability served by name.

Names are imported when they are first used, so that `import espace` and `espace --help` stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from espace import errors, testing
    from espace.chain.chain import Chain
    from espace.chain.grammar import Transition, Value
    from espace.chain.labels import Labels
    from espace.chain.pieces import ChainPiece
    from espace.chain.probability import Probabilities
    from espace.chain.scored import Scored, ScoredValue
    from espace.chain.terms import Term, ValueTerms
    from espace.contracts import (
        API_VERSION,
        Callback,
        Expert,
        Link,
        Logger,
        Metric,
        Objective,
        Optimizer,
        Reader,
        Sampler,
        Schedule,
        ScoredSampler,
        Sharing,
        StageKind,
        Tower,
        ValueKind,
        ValueMetric,
        Weighting,
    )
    from espace.data.batch import Batch, Ragged
    from espace.data.reading.readers import Piece
    from espace.model.blocks import Activation, Count, Dropout, FieldMatrix, FirstOrder, Gate, Norm, dense
    from espace.model.features import ExtraTable, Features, FeatureSpec, Field
    from espace.model.named import NamedModules
    from espace.registry.hookspecs import Register, hookimpl
    from espace.runs.experiment import Experiment
    from espace.runs.run import Run, load

__version__ = "0.1.0"
__all__ = [
    "API_VERSION",
    "Activation",
    "Batch",
    "Callback",
    "Chain",
    "ChainPiece",
    "Count",
    "Dropout",
    "Experiment",
    "Expert",
    "ExtraTable",
    "FeatureSpec",
    "Features",
    "Field",
    "FieldMatrix",
    "FirstOrder",
    "Gate",
    "Labels",
    "Link",
    "Logger",
    "Metric",
    "NamedModules",
    "Norm",
    "Objective",
    "Optimizer",
    "Piece",
    "Probabilities",
    "Ragged",
    "Reader",
    "Register",
    "Run",
    "Sampler",
    "Schedule",
    "Scored",
    "ScoredSampler",
    "ScoredValue",
    "Sharing",
    "StageKind",
    "Term",
    "Tower",
    "Transition",
    "Value",
    "ValueKind",
    "ValueMetric",
    "ValueTerms",
    "Weighting",
    "dense",
    "errors",
    "hookimpl",
    "load",
    "testing",
]

_HOME = {
    "Batch": "data.batch",
    "Labels": "chain.labels",
    "Ragged": "data.batch",
    "Activation": "model.blocks",
    "Count": "model.blocks",
    "Dropout": "model.blocks",
    "FieldMatrix": "model.blocks",
    "FirstOrder": "model.blocks",
    "Gate": "model.blocks",
    "Norm": "model.blocks",
    "dense": "model.blocks",
    "NamedModules": "model.named",
    "Chain": "chain.chain",
    "Transition": "chain.grammar",
    "Value": "chain.grammar",
    "Experiment": "runs.experiment",
    "FeatureSpec": "model.features",
    "ExtraTable": "model.features",
    "Features": "model.features",
    "Field": "model.features",
    "hookimpl": "registry.hookspecs",
    "Register": "registry.hookspecs",
    "ChainPiece": "chain.pieces",
    "Probabilities": "chain.probability",
    "Scored": "chain.scored",
    "ScoredValue": "chain.scored",
    "Term": "chain.terms",
    "ValueTerms": "chain.terms",
    "API_VERSION": "contracts",
    "Callback": "contracts",
    "Logger": "contracts",
    "Expert": "contracts",
    "Link": "contracts",
    "Metric": "contracts",
    "Objective": "contracts",
    "Optimizer": "contracts",
    "Schedule": "contracts",
    "Piece": "data.reading.readers",
    "Reader": "contracts",
    "Sampler": "contracts",
    "ScoredSampler": "contracts",
    "Sharing": "contracts",
    "StageKind": "contracts",
    "Tower": "contracts",
    "ValueKind": "contracts",
    "ValueMetric": "contracts",
    "Weighting": "contracts",
    "Run": "runs.run",
    "load": "runs.run",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"espace.{_HOME[name]}"), name)
    if name in ("errors", "testing"):
        return importlib.import_module(f"espace.{name}")
    raise AttributeError(f"module 'espace' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
