"""The laws that every part keeps, as test classes to inherit. A plugin's whole test can be

    class TestCross(TowerTests):
        tower = Cross
        options = {"layers": 3}

Each test's failure says in one sentence which law was broken.
"""

from __future__ import annotations

from espace.testing.callbacks import CallbackTests
from espace.testing.chains import CHAINS, random_labels
from espace.testing.features import as_float, example_features, example_spec, rows_of
from espace.testing.links import LinkTests
from espace.testing.loggers import LoggerTests
from espace.testing.metrics import MetricTests, example_scored
from espace.testing.objectives import ObjectiveTests
from espace.testing.optimizers import OptimizerTests
from espace.testing.pieces import PieceTests
from espace.testing.readers import ReaderTests
from espace.testing.samplers import SamplerTests
from espace.testing.schedules import ScheduleTests
from espace.testing.sharing import SharingTests
from espace.testing.stages import StageTests, ValueTests
from espace.testing.towers import TowerTests
from espace.testing.weightings import WeightingTests

__all__ = [
    "CHAINS",
    "CallbackTests",
    "LinkTests",
    "LoggerTests",
    "MetricTests",
    "ObjectiveTests",
    "OptimizerTests",
    "PieceTests",
    "ReaderTests",
    "SamplerTests",
    "ScheduleTests",
    "SharingTests",
    "StageTests",
    "TowerTests",
    "ValueTests",
    "WeightingTests",
    "as_float",
    "example_features",
    "example_scored",
    "example_spec",
    "random_labels",
    "rows_of",
]
