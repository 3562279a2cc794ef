"""The built-in metrics by name, and random rows for them."""

from __future__ import annotations

from torchmetrics import Metric

from espace.parts.metrics import auc, calibration, count, gauc, log_loss, truth
from espace.testing.metrics import example_scored as draw
from espace.testing.metrics import gathered, judge, scored, take

__all__ = ["METRICS", "build", "draw", "gathered", "judge", "scored", "take"]

METRICS: dict[str, type[Metric]] = {}
for module in (auc, calibration, count, gauc, log_loss, truth):
    module.register_metrics(METRICS.__setitem__)

OPTIONS = {"gauc": {"by": "user"}, "truth": {"column": "true"}}


def build(name: str) -> Metric:
    return METRICS[name](**OPTIONS.get(name, {}))
