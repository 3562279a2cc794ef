"""Blocks that towers and sharing are made of: dense layers, features as vectors of one width, a gate over experts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from espace.model.features import Features, FeatureSpec

Activation: TypeAlias = Literal["relu", "prelu", "gelu", "silu", "tanh"]
Norm: TypeAlias = Literal["none", "batch", "layer"]
Dropout: TypeAlias = Annotated[float, Ge(0.0), Lt(1.0)]
Count: TypeAlias = Annotated[int, Gt(0)]

_MULTIPLE = 8  # of numbers of 16 bits, that matrix units load at a time

# A linear layer or a norm has no use for its output on the way back, so the commonest activation overwrites it.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "prelu": nn.PReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class _BatchNorm(nn.BatchNorm1d):
    """Batch norm that judges a single row, which has no variance, by the running statistics."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and len(input) < 2:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


_NORMS = {"batch": _BatchNorm, "layer": nn.LayerNorm}


class Linear(nn.Linear):
    """A linear layer, (batch, in_features) to (batch, out_features), that keeps cores and matrix units busy.

    The weights lie in memory column by column, and so does their gradient: on a CPU it is then the product x^T g, which
    is several per cent faster than g^T x where the input is wider than the output.

    Under autocast on a GPU matrix units want widths that are multiples of 8, so the input is padded while it is
    rounded, once for all layers that see it. And the gradient of the bias is a product with ones, several times as fast
    as a sum over the batch.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.weight = nn.Parameter(self.weight.detach().T.contiguous().T)

    def forward(self, input: Tensor) -> Tensor:
        """(batch, out_features)."""
        if (
            input.is_cuda
            and input.dim() == 2
            and torch.is_autocast_enabled("cuda")
            and not torch.compiler.is_compiling()
        ):
            return _rounded_product(input, self.weight, self.bias, torch.get_autocast_dtype("cuda"))
        return super().forward(input)


def _rounded_product(x: Tensor, weight: Tensor, bias: Tensor | None, kind: torch.dtype) -> Tensor:
    """x W^T + b with numbers of `kind`; gradients have the dtypes of x, W and b."""
    out: Tensor = _Product.apply(_rounded(x, kind), weight, bias)  # type: ignore[no-untyped-call]
    return out


def _rounded(x: Tensor, kind: torch.dtype) -> Tensor:
    """(batch, width padded) of `kind`, made once for each tensor and kept beside it."""
    if x.dtype == kind and x.shape[1] % _MULTIPLE == 0:
        return x
    kept, wanted = getattr(x, "_rounded", None), (kind, torch.is_grad_enabled())
    if kept is None or kept[0] != wanted:
        kept = wanted, _Round.apply(x, kind)  # type: ignore[no-untyped-call]
        x._rounded = kept  # type: ignore[attr-defined]
    out: Tensor = kept[1]
    return out


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: torch.dtype) -> Tensor:
        ctx.kind, ctx.width = x.dtype, x.shape[1]
        return _padded(x, -(-x.shape[1] // _MULTIPLE) * _MULTIPLE, kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[:, : ctx.width].to(ctx.kind), None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        w = _padded(weight, x.shape[1], x.dtype).contiguous()
        ctx.save_for_backward(x, w)
        ctx.width, ctx.kinds = weight.shape[1], (weight.dtype, None if bias is None else bias.dtype)
        return x @ w.T if bias is None else torch.addmm(bias.to(x.dtype), x, w.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, w), (of_weights, of_biases), grad = ctx.saved_tensors, ctx.kinds, grad.contiguous()
        of_x = grad @ w if ctx.needs_input_grad[0] else None
        of_weight = (x.T @ grad).T[:, : ctx.width].to(of_weights)
        of_bias = None if of_biases is None else (grad.new_ones(_MULTIPLE, len(grad)) @ grad)[0].to(of_biases)
        return of_x, of_weight, of_bias


def _padded(x: Tensor, width: int, kind: torch.dtype) -> Tensor:
    """(rows, width) in another dtype, with zeros behind the columns of x."""
    if x.shape[1] == width:
        return x.to(kind)
    out = x.new_empty(len(x), width, dtype=kind)
    out[:, : x.shape[1]], out[:, x.shape[1] :] = x, 0
    return out


def dense(
    in_features: int,
    hidden_units: Sequence[int],
    *,
    activation: Activation = "relu",
    dropout: float = 0.0,
    norm: Norm = "none",
) -> nn.Sequential:
    """Linear, norm, activation, dropout for each of `hidden_units`: (batch, in_features) to (batch, last of them)."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise([in_features, *hidden_units]):
        layers.append(Linear(before, after))
        if norm != "none":
            layers.append(_NORMS[norm](after))
        layers.append(ACTIVATIONS[activation]())
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


class FirstOrder(nn.Module):
    """A linear model on the features themselves, the first-order part of a factorisation machine: a weight for every
    id, the mean or sum of them for bags and pooled histories, and a weight for every other column.

    Args:
        spec: the layout of the features.
        name: towers that give the same name share the weights of ids; without one they are this tower's own.
    """

    def __init__(self, spec: FeatureSpec, name: str | None = None) -> None:
        super().__init__()
        self.table = spec.ask(1, name)
        ids = {f.name for f in spec.categorical}
        columns = [spec.slices[f.name] for f in spec.fields if f.name not in ids]
        self._start = min((c.start for c in columns), default=spec.width)  # they stand behind those with ids
        self.linear = nn.Linear(spec.width - self._start, 1, bias=False) if self._start < spec.width else None

    def forward(self, features: Features) -> Tensor:
        """(batch, 1)."""
        out = features.extra(self.table).sum(1)  # (batch, fields with ids, 1)
        return out if self.linear is None else out + self.linear(features.flat()[:, self._start :])


class FieldMatrix(nn.Module):
    """The features as one vector per field, all of one width, for towers in which fields meet in pairs.

    A field of that width stays as it is. Another one (a number, a vector, an id with a `dim` of its own) is taken there
    by a matrix of its own, without a bias: a number x becomes x times a vector, as in a factorisation machine.

    Args:
        spec: the layout of the features.
        width: of the vectors; by default the one that most fields have, those with ids if there are any.

    Attributes: `fields`, the names of the rows of the matrix; `width`.
    """

    def __init__(self, spec: FeatureSpec, width: int | None = None) -> None:
        super().__init__()
        shown = [f for f in spec.fields if f.width]
        self.fields = tuple(f.name for f in shown)
        self.width = width or Counter(f.width for f in spec.categorical or shown).most_common(1)[0][0]
        runs = [(own, len(list(run))) for own, run in itertools.groupby(f.width for f in shown)]
        self._runs = runs  # (width, fields) of neighbours of one width
        self.maps = nn.ParameterList(
            nn.Parameter(nn.init.normal_(torch.empty(count, own, self.width), std=own**-0.5))
            for own, count in runs
            if own != self.width
        )

    def forward(self, features: Features) -> Tensor:
        """(batch, fields, width)."""
        maps = iter(self.maps)
        parts = []
        blocks = torch.split(features.flat(), [own * count for own, count in self._runs], dim=1)
        for (own, count), block in zip(self._runs, blocks, strict=True):
            vectors = block.reshape(len(block), count, own)
            parts.append(vectors if own == self.width else torch.einsum("bfi,fio->bfo", vectors, next(maps)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class Gate(nn.Module):
    """Experts mixed row by row: the sum over i of softmax(W x)_i f_i. With one expert there is no W.

    Args:
        in_features: the width of x, what the gate looks at.
        names: one for each expert: training tells the mean of its weight as `train/gate/<name>`.

    Attributes: `weights`, (batch, experts): the softmax on the last batch of training, without its graph.
    """

    weights: Tensor

    def __init__(self, in_features: int, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.layer = nn.Linear(in_features, len(names), bias=False) if len(names) > 1 else None

    def forward(self, x: Tensor, experts: Sequence[Tensor]) -> Tensor:
        """x (batch, in_features) and the vector of every expert, (batch, width) each, to (batch, width)."""
        if self.layer is None:
            return experts[0]
        scores: Tensor = self.layer(x)  # (batch, experts)
        weights = scores.softmax(1, dtype=torch.promote_types(scores.dtype, torch.float32))
        if self.training:
            self.weights = weights.detach()
        return (weights[..., None] * torch.stack(list(experts), dim=1)).sum(1)
