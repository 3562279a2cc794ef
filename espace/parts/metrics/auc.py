"""Area under the ROC curve: exact up to a number of rows, and beyond it from bins that follow the data.

AUC = P(a positive scores above a negative) + P(they tie) / 2
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from torch import Tensor

import espace
from espace.parts.metrics import RankingMetric, judged, logit


class AUC(RankingMetric):
    """Weighted AUC of the logits; NaN unless both classes occur.

    Args:
        bins: how many bins the rows beyond `max_rows` are merged into; R rows then cost at most
            4 (1 + log2(R / max_rows)) / bins, and in practice far less.
        max_rows: up to how many rows, on each rank, it is exact; 24 bytes each.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    by_logit: list[Tensor]  # (rows, 3): logit, weight of the negative, weight of the positive

    def __init__(self, *, bins: Annotated[int, Ge(1)] = 65_536, max_rows: Annotated[int, Ge(1)] = 1_000_000) -> None:
        super().__init__(max_rows, bins, "by_logit")

    def update(self, scored: espace.Scored) -> None:
        """Add rows. Raises NonFiniteError."""
        rows = judged(scored)
        positive = rows.weights * rows.labels
        self.keep("by_logit", logit(rows), rows.weights - positive, positive)

    def compute(self) -> dict[str, Tensor]:
        """`{"auc": scalar}`."""
        _, negatives, positives = self.ordered("by_logit")
        below = negatives.cumsum(0) - negatives
        return {"auc": positives @ (below + negatives / 2) / (positives.sum() * negatives.sum())}


@espace.hookimpl
def register_metrics(register: espace.Register[espace.Metric | espace.ValueMetric]) -> None:
    """Bring `auc`."""
    register("auc", AUC)
