"""Sparse gradients of tables: the look-ups of each row summed, their norm, gradients scaled by it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from espace.errors import EspaceError

_RADIX_KEYS = 2**15  # from so many on torch sorts by radix on a CPU; numpy does 16-bit keys always, 4 times as fast


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients in place so that their common 2-norm is at most `max_norm`; returns the norm before, ().

    As `torch.nn.utils.clip_grad_norm_`, which crashes on sparse gradients. Of those the look-ups of each row are summed
    first, and stay summed for the optimiser. Raises EspaceError for a sparse gradient that is not rows of a table.
    """
    params = [p for p in parameters if p.grad is not None]
    for p in params:
        if p.grad is not None and p.grad.is_sparse:
            p.grad = summed(p.grad)
    values = [_values(p.grad) for p in params if p.grad is not None]
    if not values:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(v) for v in values]))
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for v in values:
        v.mul_(scale)
    return norm


def _values(grad: Tensor) -> Tensor:
    """The numbers of a dense or a summed gradient, to be read and scaled in place."""
    return grad.values() if grad.is_sparse else grad


def rows_checked(grad: Tensor | None) -> Tensor:
    """A sparse gradient. Raises EspaceError unless it is rows of a table."""
    assert grad is not None, "asked of what has one"
    if grad.dim() != 2 or grad.sparse_dim() != 1:
        raise EspaceError(
            f"optimizer: a sparse gradient of shape {tuple(grad.shape)} has {grad.sparse_dim()} sparse dimensions;"
            " it has to be rows of a table (rows, width), as nn.Embedding(sparse=True) gives. Make it dense with"
            " grad.to_dense()."
        )
    return grad


def summed(grad: Tensor) -> Tensor:
    """A sparse gradient with every row once, ascending: the sum of its look-ups, added in the order they were made."""
    if rows_checked(grad).is_coalesced():
        return grad
    found, positions = _sorted(grad._indices()[0], len(grad))
    rows, counts = torch.unique_consecutive(found, return_counts=True)
    values = F.embedding_bag(positions, grad._values(), counts.cumsum(0) - counts, mode="sum")
    return torch.sparse_coo_tensor(rows[None], values, grad.shape, is_coalesced=True, check_invariants=False)


def summed_on_device(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Rows, (n,), and the sums of their look-ups, (n, width): each row once, and the last one again until there are as
    many as look-ups. So no shape depends on numbers, and the host does not wait for the device to tell how many rows
    there are.
    """
    rows, values = grad._indices()[0], grad._values()
    if not len(rows):
        return rows, values
    found, positions = _sorted(rows, len(grad))
    place = (found.diff(prepend=found[:1]) != 0).cumsum(0)  # (n,), of each look-up among the distinct rows
    sums = torch.zeros_like(values).index_put_((place,), values.index_select(0, positions), accumulate=True)
    distinct = torch.empty_like(found).scatter_(0, place, found)
    each = torch.minimum(torch.arange(len(rows), device=rows.device), place[-1])
    return distinct.index_select(0, each), sums.index_select(0, each)


def _sorted(rows: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """`rows`, (n,), each below `size`, in ascending order, and where each one stood; equal rows keep their order."""
    if rows.device.type == "cpu" and len(rows) < _RADIX_KEYS and size <= 2**32:
        order = torch.from_numpy(radix_order(rows.numpy()))
        return rows.index_select(0, order), order
    found, order = torch.sort(rows.int() if size <= 2**31 else rows, stable=True)
    return found.long(), order


def radix_order(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The stable order of `keys`, each below 2**32, by their low and then their high 16 bits."""
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    return order[np.argsort((keys >> 16).astype(np.uint16)[order], kind="stable")]
