"""Adam for a model that is mostly tables: a dense gradient goes to torch's fused kernel, and of a table with a sparse
gradient only the rows looked up are read or written. Nothing here passes over a whole table in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.optim.adam import adam
from torch.optim.optimizer import ParamsT

from espace.errors import EspaceError

_FUSED_DEVICES = ("cpu", "cuda")
_BLOCK_FLOATS = 2**15  # of a table at a time on a CPU, so that they, their gradient and both moments stay in its cache
_RADIX_KEYS = 2**15  # from so many on torch sorts by radix on a CPU; numpy does 16-bit keys always, 4 times as fast


class LazyAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba, ICLR 2015, algorithm 1), lazy where gradients are sparse.

    Of a table with a sparse gradient only the rows looked up change. The others keep their values and their moments:
    a row's moments average the gradients of its own look-ups. The bias correction counts the steps of the whole table, as
    in torch's SparseAdam, those in which no row was looked up included. The same input gives the same bits.

    Args:
        params: parameters or groups of them. Dense and sparse gradients may be mixed within a group, and a table may get
            a sparse one in one step and a dense one in the next.
        lr, betas, eps: as in the paper.
        weight_decay: L2 added to the gradient; with a sparse gradient, to the rows looked up only.

    Raises EspaceError for an option out of range, and in `step` for a sparse gradient that is not rows of a table.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not (min(lr, eps, weight_decay, *betas) >= 0 and max(betas) < 1):
            raise EspaceError(
                f"optimizer: lr {lr}, betas {tuple(betas)}, eps {eps} or weight_decay {weight_decay} is out of range."
                " None may be negative, and both betas have to be below 1."
            )
        # torch reads `fused` when it loads a state: the count of steps then goes to the device of its parameter.
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "fused": True}
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        dense = [p for p in group["params"] if p.grad is not None and not p.grad.is_sparse]
        tables = [p for p in group["params"] if p.grad is not None and p.grad.is_sparse]
        if dense:
            _adam(dense, [p.grad for p in dense], [self._state_of(p) for p in dense], group)
        for table in tables:
            _step_rows(table, self._state_of(table), group)

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        """The count of steps and both moments of a parameter."""
        state = cast("dict[str, Tensor]", self.state[p])
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients in place so that their common 2-norm is at most `max_norm`; returns the norm before, ().

    As `torch.nn.utils.clip_grad_norm_`, which crashes on sparse gradients. Of those the look-ups of each row are summed
    first, and stay summed for the optimiser. Raises EspaceError for a sparse gradient that is not rows of a table.
    """
    params = [p for p in parameters if p.grad is not None]
    for p in params:
        if p.grad is not None and p.grad.is_sparse:
            p.grad = _summed(p.grad)
    values = [_values(p.grad) for p in params if p.grad is not None]
    if not values:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(v) for v in values]))
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for v in values:
        v.mul_(scale)
    return norm


def _adam(params: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]], options: dict[str, Any]) -> None:
    """One step of torch's Adam, in place; counts the step."""
    adam(
        params,
        grads,
        [s["exp_avg"] for s in states],
        [s["exp_avg_sq"] for s in states],
        [],
        [s["step"] for s in states],
        fused=all(p.device.type in _FUSED_DEVICES for p in params),
        amsgrad=False,
        beta1=options["betas"][0],
        beta2=options["betas"][1],
        lr=options["lr"],
        weight_decay=options["weight_decay"],
        eps=options["eps"],
        maximize=False,
    )


def _step_rows(table: Tensor, state: dict[str, Tensor], options: dict[str, Any]) -> None:
    """One step of Adam on the rows of `table`, (rows, width), that its sparse gradient names."""
    assert table.grad is not None
    grad = _summed(table.grad)
    stored = {"param": table, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
    for rows, values in _blocks(grad):
        block = {name: t.index_select(0, rows) for name, t in stored.items()} | {"step": state["step"].clone()}
        _adam([block["param"]], [values], [block], options)
        for name, t in stored.items():
            t.index_copy_(0, rows, block[name])
    state["step"] += 1


def _blocks(grad: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows, (n,), and values, (n, width), of a summed gradient, in pieces on a CPU."""
    rows, values = grad.indices()[0], grad.values()
    size = _BLOCK_FLOATS // values.shape[1] if grad.device.type == "cpu" else len(rows)
    return zip(torch.split(rows, size + 1), torch.split(values, size + 1), strict=True)


def _values(grad: Tensor) -> Tensor:
    """The numbers of a dense or a summed gradient, to be read and scaled in place."""
    return grad.values() if grad.is_sparse else grad


def _summed(grad: Tensor) -> Tensor:
    """A sparse gradient with every row once, ascending: the sum of its look-ups, added in the order they were made."""
    if grad.dim() != 2 or grad.sparse_dim() != 1:
        raise EspaceError(
            f"optimizer: a sparse gradient of shape {tuple(grad.shape)} has {grad.sparse_dim()} sparse dimensions; it has"
            " to be rows of a table (rows, width), as nn.Embedding(sparse=True) gives. Make it dense with grad.to_dense()."
        )
    if grad.is_coalesced():
        return grad
    found, positions = _sorted(grad._indices()[0], len(grad))
    rows, counts = torch.unique_consecutive(found, return_counts=True)
    values = F.embedding_bag(positions, grad._values(), counts.cumsum(0) - counts, mode="sum")
    return torch.sparse_coo_tensor(rows[None], values, grad.shape, is_coalesced=True, check_invariants=False)


def _sorted(rows: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """`rows`, (n,), each below `size`, in ascending order, and where each one stood; equal rows keep their order."""
    if rows.device.type == "cpu" and len(rows) < _RADIX_KEYS and size <= 2**32:
        order = torch.from_numpy(_radix_order(rows.numpy()))
        return rows.index_select(0, order), order
    found, order = torch.sort(rows.int() if size <= 2**31 else rows, stable=True)
    return found.long(), order


def _radix_order(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The stable order of `keys`, each below 2**32, by their low and then their high 16 bits."""
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    return order[np.argsort((keys >> 16).astype(np.uint16)[order], kind="stable")]
