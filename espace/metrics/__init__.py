"""Metrics: how good one probability is in one space. Here stands what they share; each file beside it is one metric."""

from __future__ import annotations

from torch import Tensor

import espace
from espace.errors import NonFiniteError

LARGEST_LOGIT = 40.0


def judged(scored: espace.Scored) -> espace.Scored:
    """The rows of non-zero weight, predictions, labels and weights widened to float64; made once for all metrics.

    Raises NonFiniteError when a prediction on one of these rows is NaN or infinite.
    """
    if "judged" not in scored.made:
        scored.made["judged"] = _judged(scored)
    found: espace.Scored = scored.made["judged"]
    return found


def _judged(scored: espace.Scored) -> espace.Scored:
    rows = scored.weights.nonzero().squeeze(1)
    wide = espace.Scored(
        scored.log_prob.index_select(0, rows).double(),
        scored.log_not_prob.index_select(0, rows).double(),
        scored.labels.index_select(0, rows).double(),
        scored.weights.index_select(0, rows).double(),
        {name: column.index_select(0, rows) for name, column in scored.extras.items()},
    )
    finite = logit(wide).isfinite()
    if not finite.all():
        raise NonFiniteError(
            f"metrics: {int((~finite).sum()):,} of {len(finite):,} predictions are NaN or infinite, so no metric of them"
            " means anything. Lower the learning rate, or look for NaN and huge values among the number features."
        )
    return wide


def logit(scored: espace.Scored) -> Tensor:
    """log P - log(1 - P), exact in both tails: (rows,)."""
    return scored.log_prob - scored.log_not_prob


def place(scored: espace.Scored, bins: int) -> tuple[Tensor, Tensor]:
    """Which of `bins` equal bins over -40 .. 40 each logit falls in, (rows,) int64, and where in it, (rows,) from 0 to 1.

    What lies beyond is put at the ends, where 1 - P or P is below 1e-17. Made once for all metrics with as many bins.
    """
    if bins not in scored.made:
        scored.made[bins] = _place(logit(scored), bins)
    found: tuple[Tensor, Tensor] = scored.made[bins]
    return found


def _place(logits: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    position = (logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT) + LARGEST_LOGIT) * (bins / (2 * LARGEST_LOGIT))
    index = position.long().clamp(max=bins - 1)
    return index, position - index
