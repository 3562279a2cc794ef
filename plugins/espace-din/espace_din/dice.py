"""Dice (Zhou et al., KDD 2018, eq. 9), PReLU with a rectified point that follows the data.

f(s) = p(s) s + (1 - p(s)) alpha s,   p(s) = 1 / (1 + exp(-(s - E[s]) / sqrt(Var[s] + eps)))   (9), eps = 1e-8
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BLOCK = 2**18  # numbers at a time on a CPU, so that they stay in its cache


class Dice(nn.Module):
    """E and Var are those of the mini-batch in training, of each unit by itself, and their running averages otherwise.

    With fewer than two rows the running averages serve in training too. alpha starts at 0, as in the authors' code.
    Everything is done in float32 at least.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, units: int, *, eps: float = 1e-8, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.alpha = nn.Parameter(torch.zeros(units))
        self.register_buffer("mean", torch.zeros(units))
        self.register_buffer("var", torch.ones(units))

    def forward(self, s: Tensor) -> Tensor:
        """(rows, units) to the same; in training the running averages move."""
        s = s.to(torch.promote_types(s.dtype, torch.float32))
        mean, var, own = self.mean, self.var, self.training and len(s) > 1
        if own:
            mean, var = torch.batch_norm_update_stats(s.detach(), mean, var, self.momentum)
        scale = (var + self.eps).rsqrt()
        out: Tensor = _Dice.apply(s, self.alpha, -mean * scale, scale, self.eps if own else None)  # type: ignore[no-untyped-call]
        return out


class _Dice(torch.autograd.Function):
    """f of s by blocks of rows, with x = s scale + shift in p. Nothing but s is kept for the gradient.

    Left to torch the gradient takes twice the time, and four times the memory. eps: None where E and Var are constants.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, alpha: Tensor, shift: Tensor, scale: Tensor, eps: float | None) -> Tensor:
        ctx.save_for_backward(s, alpha, shift, scale)
        ctx.eps = eps
        out = torch.empty_like(s)
        for part, into in _blocks(s, out):
            p = torch.addcmul(shift, part, scale).sigmoid_()
            torch.mul(part, torch.addcmul(alpha, 1 - alpha, p, out=p), out=into)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        s, alpha, shift, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient will be asked for
            plain = torch.func.vjp(lambda s, alpha: _plain(s, alpha, shift, scale, ctx.eps), s, alpha)[1]
            return (*plain(grad), None, None, None)
        found, sums = torch.empty_like(s), s.new_zeros(3, len(alpha))
        for part, of_out, into in _blocks(s, grad, found):
            sums += _gradient(part, of_out, alpha, shift, scale, into)
        if ctx.eps is not None:  # E and Var follow s
            by_mean, by_var = sums[:2] * scale / len(s)
            for part, into in _blocks(s, found):
                into.sub_(by_mean + by_var * shift).addcmul_(part, by_var * scale, value=-1)
        return found, sums[2], None, None, None


def _plain(s: Tensor, alpha: Tensor, shift: Tensor, scale: Tensor, eps: float | None) -> Tensor:
    """The same with torch's own gradients."""
    x = s * scale + shift if eps is None else F.batch_norm(s, None, None, training=True, eps=eps)
    return s * torch.addcmul(alpha, 1 - alpha, x.sigmoid())


def _gradient(s: Tensor, grad: Tensor, alpha: Tensor, shift: Tensor, scale: Tensor, into: Tensor) -> Tensor:
    """That of s, for given E and Var, goes `into` its place; returns those of x, of x times x, and of alpha, (3, units)."""
    x = torch.addcmul(shift, s, scale)
    p = x.sigmoid()
    slope = torch.addcmul(alpha, 1 - alpha, p).mul_(grad)
    of_alpha = (1 - p).mul_(s).mul_(grad)
    sum_of_alpha = of_alpha.sum(0)
    of_x = of_alpha.mul_(p).mul_(1 - alpha)
    torch.addcmul(slope, of_x, scale, out=into)
    return torch.stack([of_x.sum(0), x.mul_(of_x).sum(0), sum_of_alpha])


def _blocks(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of all `matrices`, (rows, units), some at a time on a CPU."""
    rows, units = matrices[0].shape
    size = max(_BLOCK // max(units, 1), 1) if matrices[0].device.type == "cpu" else max(rows, 1)
    return zip(*(torch.split(m, size) for m in matrices), strict=True)
