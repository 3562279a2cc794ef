"""Rows are counted, weights are not summed."""

from __future__ import annotations

from dataclasses import replace

import torch

from espace.parts.metrics.count import Count
from tests.parts.metrics.draws import draw, judge


def test_each_row_of_non_zero_weight_counts_once_whatever_its_weight() -> None:
    rows = draw(1000)
    weights = torch.where(torch.arange(1000) < 100, 0.0, torch.rand(1000) + 0.5)
    counted = {"rows": 900, "positives": int(rows.labels[100:].sum())}
    assert judge(Count(), replace(rows, weights=weights)) == counted
