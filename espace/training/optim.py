"""Adam for a model that is mostly tables: a dense gradient goes to torch's fused kernel, and of a table with a sparse
gradient only the rows looked up are read or written. Nothing here passes over a whole table in a step.

The rows are updated in one pass by a kernel, which numba compiles for a CPU and Triton for a GPU; without them, elsewhere, and
for other numbers than float32, by torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from types import ModuleType
from typing import Any, cast, overload

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.adam import adam
from torch.optim.optimizer import ParamsT

from espace.errors import EspaceError
from espace.training.missed import Missed

_FUSED_DEVICES = ("cpu", "cuda")
_BLOCK_FLOATS = 2**15  # of a table at a time on a CPU, so that they, their gradient and both moments stay in its cache
_SETTLED = 2**18  # rows at a time, so that the room they need does not grow with the table
_RADIX_KEYS = 2**15  # from so many on torch sorts by radix on a CPU; numpy does 16-bit keys always, 4 times as fast


class LazyAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba, ICLR 2015, algorithm 1), lazy where gradients are sparse.

    Of a table with a sparse gradient only the rows looked up change. The others keep their values and their moments:
    a row's moments average the gradients of its own look-ups. The bias correction counts the steps of the whole table, as
    in torch's SparseAdam, those in which no row was looked up included. The same input gives the same bits.

    With `exact` a row looked up again first makes the steps it has missed, with a gradient of zero (see
    `espace.training.missed`), so that the result is that of dense Adam, in each catching up to 5e-5 of its move. Whoever
    looks rows up has to call `catch_up` before, and whoever reads a whole table `settle`. A table then needs sparse
    gradients throughout.

    Args:
        params: parameters or groups of them. Dense and sparse gradients may be mixed within a group, and a table may get
            a sparse one in one step and a dense one in the next.
        lr, betas, eps: as in the paper.
        weight_decay: L2 added to the gradient; with a sparse gradient, to the rows looked up only.
        exact: whether rows catch up. Not with weight decay, which would be a gradient in every step missed.

    Raises EspaceError for an option out of range, for `exact` with weight decay, and in `step` for a sparse gradient that is not
    rows of a table.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        exact: bool = False,
    ) -> None:
        if not (min(lr, eps, weight_decay, *betas) >= 0 and max(betas) < 1):
            raise EspaceError(
                f"optimizer: lr {lr}, betas {tuple(betas)}, eps {eps} or weight_decay {weight_decay} is out of range."
                " None may be negative, and both betas have to be below 1."
            )
        # torch reads `fused` when it loads a state: the count of steps then goes to the device of its parameter.
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "fused": True, "exact": exact})
        if exact:
            for group in self.param_groups:
                _refuse_decay(group)
        self._meet_tables()

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

    @torch.no_grad()
    def catch_up(self, table: Tensor, rows: Tensor) -> None:
        """Let `rows` of `table`, any shape, duplicates allowed, make the steps they have missed, before they are looked up."""
        if table in self._missed:
            self._rows_of(table).catch_up(rows.flatten(), self._missed[table], self._used[table])

    def settle(self) -> None:
        """Let all rows of all tables make the steps they have missed: a pass over whole tables, for whoever reads them."""
        for table, missed in self._missed.items():
            for first in range(0, len(table), _SETTLED):
                self.catch_up(table, torch.arange(first, min(first + _SETTLED, len(table)), device=table.device))
            missed.settled = missed.step

    def state_dict(self) -> dict[str, Any]:
        """As of any optimiser, and what rows of tables have missed: they need not be settled."""
        params = [p for group in self.param_groups for p in group["params"]]
        missed = {i: self._missed[p].state() for i, p in enumerate(params) if p in self._missed}
        return {**super().state_dict(), "missed": missed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`, with the same bits."""
        super().load_state_dict(state_dict)
        params = [p for group in self.param_groups for p in group["params"]]
        for p in params:
            state = self.state.get(p, {})
            state.update({name: _laid_out(t, p) for name, t in state.items() if t.shape == p.shape})
        for i, state in state_dict.get("missed", {}).items():
            self._missed[params[i]].load(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Torch calls it with what was saved or copied."""
        super().__setstate__(state)
        self._meet_tables()

    def _meet_tables(self) -> None:
        self._rows: dict[Tensor, tuple[int, Any]] = {}  # of a table: where it is, and what updates it
        self._missed: dict[Tensor, Missed] = {}  # of tables whose rows catch up
        self._used: dict[Tensor, dict[str, Any]] = {}  # the options of their last step
        for group in self.param_groups:
            for p in (p for p in group["params"] if "seen" in self.state.get(p, {})):
                self.state[p]["seen"] = self.state[p]["seen"].int()  # torch loads it as a float
                self._meet(p, _options(group), int(self.state[p]["step"]))

    def _meet(self, table: Tensor, options: dict[str, Any], step: int) -> None:
        """From this step on the rows of a table miss steps with these options."""
        _refuse_decay(options)
        self._missed[table], self._used[table] = Missed(options, step), options

    def _step_group(self, group: dict[str, Any]) -> None:
        dense = [p for p in group["params"] if p.grad is not None and not p.grad.is_sparse]
        tables = [p for p in group["params"] if p.grad is not None and p.grad.is_sparse]
        with _beside(dense) if tables else nullcontext():
            if dense:
                grads = [_laid_out(p.grad, p) for p in dense if p.grad is not None]
                _adam(dense, grads, [self._state_of(p) for p in dense], group)
        for table in tables:
            self._step_rows(table, _options(group))
        if dense and dense[0].is_cuda:
            torch.cuda.current_stream(dense[0].device).wait_stream(_side(dense[0].device))

    def _step_rows(self, table: Tensor, options: dict[str, Any]) -> None:
        """One step on the rows of `table`, (rows, width), that its sparse gradient names."""
        grad = _rows_checked(table.grad)
        state = self._state_of(table)
        if self.defaults["exact"]:
            self._miss_no_step(table, grad._indices()[0], options)
        state["step"] += 1
        self._rows_of(table).step(grad, state["step"], options)

    def _miss_no_step(self, table: Tensor, rows: Tensor, options: dict[str, Any]) -> None:
        """Before a step on `rows`, of which other ranks have looked up some."""
        if table not in self._missed:
            self._meet(table, options, 0)
        if self._used[table] | {"lr": 0} != options | {"lr": 0}:
            self.settle()
            self._meet(table, options, self._missed[table].step)
        if dist.is_available() and dist.is_initialized():
            self.catch_up(table, rows)
        self._missed[table].add(options["lr"])

    def _rows_of(self, table: Tensor) -> Any:
        """What updates rows of a table."""
        place, kept = table.data_ptr(), self._rows.get(table)
        if kept is None or kept[0] != place:  # a trainer moves table and state when it ends
            kernels = _kernels(table.device.type) if table.dtype == torch.float32 else None
            kind: Any = _TorchRows if kernels is None else kernels.RowAdam
            self._rows[table] = kept = place, kind(table, self.state[table])
        return kept[1]

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        """The count of steps and both moments of a parameter."""
        state = cast("dict[str, Tensor]", self.state[p])
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            if self.defaults["exact"] and p.grad is not None and p.grad.is_sparse:
                state["seen"] = torch.zeros(len(p), dtype=torch.int32, device=p.device)
        return state


def settle(parameters: Sequence[nn.Parameter], saved: Mapping[str, Any]) -> None:
    """Let the tables among `parameters` catch up as the LazyAdam would whose `state_dict()` is `saved`; it may have had more
    parameters behind these."""
    tables = [i for i in saved.get("missed", {}) if i < len(parameters)]
    if not tables:
        return
    optimizer = LazyAdam([{"params": [parameters[i]]} for i in tables], exact=True)
    groups = [
        next(g for g in saved["param_groups"] if i in g["params"]) | {"params": [n]} for n, i in enumerate(tables)
    ]
    chosen = {name: {n: saved[name][i] for n, i in enumerate(tables)} for name in ("state", "missed")}
    optimizer.load_state_dict({**chosen, "param_groups": groups})
    optimizer.settle()


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


@contextmanager
def _beside(params: Sequence[Tensor]) -> Iterator[None]:
    """On a GPU, beside what follows: the dense parameters of such a model keep few of its processors busy."""
    if not params or not params[0].is_cuda:
        yield
        return
    side = _side(params[0].device)
    side.wait_stream(torch.cuda.current_stream(params[0].device))
    with torch.cuda.stream(side):
        yield


@cache
def _side(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _adam(
    params: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]], options: Mapping[str, Any]
) -> None:
    """One step of torch's Adam, in place; counts the step."""
    adam(
        _by_memory(params),
        _by_memory(grads),
        _by_memory(s["exp_avg"] for s in states),
        _by_memory(s["exp_avg_sq"] for s in states),
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


def _by_memory(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Matrices that lie by columns turned, so that torch's fused kernel does not copy them."""
    return [t.T if t.dim() == 2 and not t.is_contiguous() else t for t in tensors]


def _laid_out(x: Tensor, like: Tensor) -> Tensor:
    """The same numbers with the strides of `like`, on which torch's fused kernels rely and which they do not check."""
    return x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x)


class _TorchRows:
    """Adam on rows of one table, as `espace.training.kernels.RowAdam`, for every device and dtype."""

    def __init__(self, table: Tensor, state: Mapping[str, Tensor]) -> None:
        self._stored = {"param": table, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        self._seen = state.get("seen")

    def step(self, grad: Tensor, step: Tensor, options: Mapping[str, Any]) -> None:
        """Step number `step`, (), on the rows of a sparse gradient."""
        for rows, values in _blocks(_summed(grad)) if grad.device.type == "cpu" else [_summed_on_device(grad)]:
            block = self._read(rows) | {"step": step - 1}
            _adam([block["param"]], [values], [block], options)
            self._write(rows, block)
            if self._seen is not None:
                self._seen.index_copy_(0, rows, step.int().expand(len(rows)))

    def catch_up(self, rows: Tensor, missed: Missed, options: Mapping[str, Any]) -> None:
        """Bring `rows`, (n,), through all steps that they have missed."""
        assert self._seen is not None, "kept where rows catch up"
        rows = rows.long()  # on a device some stand there twice, and are written twice alike
        rows = torch.unique(rows) if rows.device.type == "cpu" else rows
        last, block = self._seen[rows].long(), self._read(rows)
        self._write(rows, _brought(block, last, missed, options))
        self._seen.index_fill_(0, rows, missed.step)

    def _read(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: t.index_select(0, rows) for name, t in self._stored.items()}

    def _write(self, rows: Tensor, block: Mapping[str, Tensor]) -> None:
        for name, t in self._stored.items():
            t.index_copy_(0, rows, block[name])


def _brought(
    block: Mapping[str, Tensor], last: Tensor, missed: Missed, options: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Rows, (n, width) each, that were last at step `last`, (n,), through the steps that they have missed."""
    param, first, second = (block[name] for name in ("param", "exp_avg", "exp_avg_sq"))
    (beta1, beta2), root = options["betas"], second.sqrt()
    rules = torch.from_numpy(missed.rules).to(param.device)[last].to(param.dtype)
    a, x, b, y = rules[:, :, None].unbind(1)
    moved = first * a / (root * x + options["eps"]) + first * b / (root * y + options["eps"])
    if missed.unruled >= missed.settled:
        rows = ((last < missed.step) & (rules[:, 0] < 0)).nonzero()[:, 0]
        moved[rows] = _sum((first[rows], root[rows]), last[rows], missed, options)
    gap = (missed.step - last)[:, None].to(param.dtype)
    return {
        "param": torch.where(gap > 0, param - moved, param),
        "exp_avg": first * beta1**gap,
        "exp_avg_sq": second * beta2**gap,
    }


def _sum(moments: tuple[Tensor, Tensor], last: Tensor, missed: Missed, options: Mapping[str, Any]) -> Tensor:
    """The sum that `Missed` tells of, term by term; `moments` are m and sqrt(v), (n, width) each."""
    first, root = moments
    (beta1, beta2), moved = options["betas"], torch.zeros_like(root)
    sizes, roots = (torch.from_numpy(x).to(root.device, root.dtype) for x in (missed.sizes, missed.roots))
    longest = int((missed.step - last).max()) if len(last) else 0
    for k in range(1, min(longest, missed.window) + 1):
        at = (last + k).clamp(max=missed.step)[:, None]
        w, u = sizes[at] * beta1**k, beta2 ** (k / 2) / roots[at]
        moved += torch.where((last + k <= missed.step)[:, None], first * w / (root * u + options["eps"]), 0)
    return moved


def _blocks(grad: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows, (n,), and values, (n, width), of a summed gradient, in pieces."""
    rows, values = grad.indices()[0], grad.values()
    size = _BLOCK_FLOATS // values.shape[1] + 1
    return zip(torch.split(rows, size), torch.split(values, size), strict=True)


def _values(grad: Tensor) -> Tensor:
    """The numbers of a dense or a summed gradient, to be read and scaled in place."""
    return grad.values() if grad.is_sparse else grad


def _rows_checked(grad: Tensor | None) -> Tensor:
    """A sparse gradient. Raises EspaceError unless it is rows of a table."""
    assert grad is not None, "asked of what has one"
    if grad.dim() != 2 or grad.sparse_dim() != 1:
        raise EspaceError(
            f"optimizer: a sparse gradient of shape {tuple(grad.shape)} has {grad.sparse_dim()} sparse dimensions; it has"
            " to be rows of a table (rows, width), as nn.Embedding(sparse=True) gives. Make it dense with grad.to_dense()."
        )
    return grad


def _summed(grad: Tensor) -> Tensor:
    """A sparse gradient with every row once, ascending: the sum of its look-ups, added in the order they were made."""
    if _rows_checked(grad).is_coalesced():
        return grad
    found, positions = _sorted(grad._indices()[0], len(grad))
    rows, counts = torch.unique_consecutive(found, return_counts=True)
    values = F.embedding_bag(positions, grad._values(), counts.cumsum(0) - counts, mode="sum")
    return torch.sparse_coo_tensor(rows[None], values, grad.shape, is_coalesced=True, check_invariants=False)


def _summed_on_device(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Rows, (n,), and the sums of their look-ups, (n, width): each row once, and the last one again until there are as many
    as look-ups. So no shape depends on numbers, and the host does not wait for the device to tell how many rows there are.
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
        order = torch.from_numpy(_radix_order(rows.numpy()))
        return rows.index_select(0, order), order
    found, order = torch.sort(rows.int() if size <= 2**31 else rows, stable=True)
    return found.long(), order


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a step depends on besides gradients."""
    return {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}


def _refuse_decay(options: Mapping[str, Any]) -> None:
    if options["weight_decay"]:
        raise EspaceError(
            f"optimizer: with weight_decay {options['weight_decay']:g} dense Adam moves every row in every step, so rows cannot"
            " catch up. Use tables: lazy, where only rows looked up decay, or dense."
        )


def load_kernels() -> None:
    """Let what updates rows on a CPU be there when the first step needs it. If it cannot be, that step tells why."""
    kernels = _kernels("cpu")
    if kernels is not None:
        with suppress(Exception):
            kernels.load()


@cache
def _kernels(device: str) -> ModuleType | None:
    """The kernels for a kind of device; None where there are none, or what compiles them is not installed."""
    name = {"cpu": "kernels", "cuda": "triton_kernels"}.get(device)
    try:
        return importlib.import_module(f"espace.{name}") if name else None
    except ImportError:
        return None


def _radix_order(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The stable order of `keys`, each below 2**32, by their low and then their high 16 bits."""
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    return order[np.argsort((keys >> 16).astype(np.uint16)[order], kind="stable")]
