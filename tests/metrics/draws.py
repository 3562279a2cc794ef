"""Random rows for metrics, and what the ranks of a distributed run would agree on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torchmetrics import Metric

from espace.metrics import auc, calibration, count, gauc, log_loss
from espace.probability import Scored

METRICS: dict[str, type[Metric]] = {}
for module in (auc, calibration, count, gauc, log_loss):
    module.register_metrics(METRICS.__setitem__)

OPTIONS = {"gauc": {"by": "user"}}


def build(name: str) -> Metric:
    return METRICS[name](**OPTIONS.get(name, {}))


def scored(logits: Tensor, labels: Tensor, weights: Tensor | None = None, **extras: Tensor) -> Scored:
    weights = torch.ones(len(logits)) if weights is None else weights
    return Scored(logsigmoid(logits), logsigmoid(-logits), labels.float(), weights.float(), extras)


def draw(
    rows: int, *, seed: int = 0, mean: float = -1.0, std: float = 1.5, users: int = 30, weights: bool = True
) -> Scored:
    """Labels drawn from the predictions themselves; half of the logits are rounded, so that many tie."""
    torch.manual_seed(seed)
    logits = mean + std * torch.randn(rows, dtype=torch.float64)
    logits = torch.where(torch.rand(rows) < 0.5, logits, (4 * logits).round() / 4)
    labels = torch.bernoulli(logits.sigmoid())
    weight = torch.randint(1, 4, (rows,)) if weights else None
    return scored(logits, labels, weight, user=torch.randint(0, users, (rows,)))


def take(rows: Scored, index: Tensor | slice) -> Scored:
    columns = (rows.log_prob, rows.log_not_prob, rows.labels, rows.weights)
    return Scored(*(column[index] for column in columns), {name: c[index] for name, c in rows.extras.items()})


def judge(metric: Metric, *parts: Scored) -> dict[str, float]:
    for part in parts:
        metric.update(part)
    return {name: value.item() for name, value in metric.compute().items()}


def gathered(ranks: list[Metric]) -> dict[str, float]:
    """What rank 0 computes when torch.distributed gathers the states of all ranks."""
    heard: list[list[Tensor]] = []
    for rank in ranks:
        said: list[Tensor] = []

        def listen(state: Tensor, group: object, said: list[Tensor] = said) -> list[Tensor]:
            said.append(state)
            return [state]

        with rank.sync_context(dist_sync_fn=listen, distributed_available=lambda: True):
            heard.append(said)
    states = zip(*heard, strict=True)

    def gather(_: Tensor, group: object) -> list[Tensor]:
        same = list(next(states))
        assert len({state.dtype for state in same}) == 1, "ranks would exchange different types"
        return same

    ranks[0].dist_sync_fn, ranks[0].distributed_available_fn = gather, lambda: True
    return {name: value.item() for name, value in ranks[0].compute().items()}
