"""Sums over the events of each row, and back from rows to events, without padding.

Each of `repeat` and `total` is the other's gradient; on a CPU both cost a fraction of what torch's own gradients do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def repeat(rows: Tensor, offsets: Tensor) -> Tensor:
    """Each row once for each of its events: (batch, width) to (events, width)."""
    out: Tensor = _Repeat.apply(rows, offsets)  # type: ignore[no-untyped-call]
    return out


def total(events: Tensor, offsets: Tensor) -> Tensor:
    """The sum of each row's events, zeros where it has none: (events, width) to (batch, width)."""
    out: Tensor = _Total.apply(events, offsets)  # type: ignore[no-untyped-call]
    return out


def softmax(scores: Tensor, offsets: Tensor) -> Tensor:
    """Normalised over the events of each row, in float32 at least: (events,) to (events,)."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    highest = torch.segment_reduce(scores.detach(), "max", offsets=offsets)  # (batch,), of no event -inf
    weights = (scores - repeat(highest[:, None], offsets)[:, 0]).exp()[:, None]
    return (weights / repeat(total(weights, offsets), offsets))[:, 0]


class _Repeat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(offsets)
        return rows.repeat_interleave(offsets.diff(), dim=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return total(grad, *ctx.saved_tensors), None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, events: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(offsets)
        each = torch.arange(len(events), device=events.device)
        return F.embedding_bag(each, events, offsets, mode="sum", include_last_offset=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return repeat(grad, *ctx.saved_tensors), None
