"""Adam for a model that is mostly tables: a dense gradient goes to torch's fused kernel, and of a table with a sparse
gradient only the rows looked up are read or written. Nothing here passes over a whole table in a step.

The rows are updated in one pass by a kernel, which numba compiles for a CPU and Triton for a GPU; without them,
elsewhere, and for other numbers than float32, by torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from types import ModuleType
from typing import Any, cast, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from espace.errors import EspaceError
from espace.training.missed import Missed, Options
from espace.training.rows import Rows, TorchRows, adam_step, laid_out
from espace.training.sparse import rows_checked

_SETTLED = 2**18  # rows at a time, so that the room they need does not grow with the table


class LazyAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba, ICLR 2015, algorithm 1), lazy where gradients are sparse.

    Of a table with a sparse gradient only the rows looked up change. The others keep their values and their moments:
    a row's moments average the gradients of its own look-ups. The bias correction counts the steps of the whole table,
    as in torch's SparseAdam, those in which no row was looked up included. The same input gives the same bits.

    With `exact` a row looked up again first makes the steps it has missed, with a gradient of zero (see
    `espace.training.missed`), so that the result is that of dense Adam, in each catching up to 5e-5 of its move.
    Whoever looks rows up has to call `catch_up` before, and whoever reads a whole table `settle`. A table then needs
    sparse gradients throughout.

    Args:
        params: parameters or groups of them. Dense and sparse gradients may be mixed within a group, and a table may
            get a sparse one in one step and a dense one in the next.
        lr, betas, eps: as in the paper.
        weight_decay: L2 added to the gradient; with a sparse gradient, to the rows looked up only.
        exact: whether rows catch up. Not with weight decay, which would be a gradient in every step missed.

    Raises EspaceError for an option out of range, for `exact` with weight decay, and in `step` for a sparse gradient
    that is not rows of a table.
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
                _refuse_decay(_options(group))
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
        """Let `rows` of `table`, any shape, duplicates allowed, make the steps they have missed, before a look-up."""
        if table in self._missed:
            self._rows_of(table).catch_up(rows.flatten(), self._missed[table], self._used[table])

    def settle(self) -> None:
        """Let all rows of all tables make the steps they have missed: a pass over whole tables."""
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
        """Go on from `state_dict`, with the same bits. Raises ValueError when it is of other parameters."""
        super().load_state_dict(state_dict)
        params = [p for group in self.param_groups for p in group["params"]]
        for p in params:
            state = self.state.get(p, {})
            _check_state(p, state)
            state.update({name: laid_out(t, p) for name, t in state.items() if t.shape == p.shape})
        for i, state in state_dict.get("missed", {}).items():
            self._missed[params[i]].load(state)
            _check_seen(self.state[params[i]]["seen"], self._missed[params[i]].step)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Torch calls it with what was saved or copied."""
        super().__setstate__(state)
        self._meet_tables()

    def _meet_tables(self) -> None:
        self._rows: dict[Tensor, tuple[int, Rows]] = {}  # of a table: where it is, and what updates it
        self._missed: dict[Tensor, Missed] = {}  # of tables whose rows catch up
        self._used: dict[Tensor, Options] = {}  # the options of their last step
        for group in self.param_groups:
            for p in (p for p in group["params"] if "seen" in self.state.get(p, {})):
                self.state[p]["seen"] = self.state[p]["seen"].int()  # torch loads it as a float
                self._meet(p, _options(group), int(self.state[p]["step"]))

    def _meet(self, table: Tensor, options: Options, step: int) -> None:
        """From this step on the rows of a table miss steps with these options."""
        _refuse_decay(options)
        self._missed[table], self._used[table] = Missed(options, step), options

    def _step_group(self, group: dict[str, Any]) -> None:
        dense = [p for p in group["params"] if p.grad is not None and not p.grad.is_sparse]
        tables = [p for p in group["params"] if p.grad is not None and p.grad.is_sparse]
        with _beside(dense) if tables else nullcontext():
            if dense:
                grads = [laid_out(p.grad, p) for p in dense if p.grad is not None]
                adam_step(dense, grads, [self._state_of(p) for p in dense], _options(group))
        for table in tables:
            self._step_rows(table, _options(group))
        if dense and dense[0].is_cuda:
            torch.cuda.current_stream(dense[0].device).wait_stream(_side(dense[0].device))

    def _step_rows(self, table: Tensor, options: Options) -> None:
        """One step on the rows of `table`, (rows, width), that its sparse gradient names."""
        grad = rows_checked(table.grad)
        state = self._state_of(table)
        if self.defaults["exact"]:
            self._miss_no_step(table, grad._indices()[0], options)
        state["step"] += 1
        self._rows_of(table).step(grad, state["step"], options)

    def _miss_no_step(self, table: Tensor, rows: Tensor, options: Options) -> None:
        """Before a step on `rows`, of which other ranks have looked up some."""
        if table not in self._missed:
            self._meet(table, options, 0)
        if self._used[table] | {"lr": 0} != options | {"lr": 0}:
            self.settle()
            self._meet(table, options, self._missed[table].step)
        if dist.is_available() and dist.is_initialized():
            self.catch_up(table, rows)
        self._missed[table].add(options["lr"])

    def _rows_of(self, table: Tensor) -> Rows:
        """What updates rows of a table."""
        place, kept = table.data_ptr(), self._rows.get(table)
        if kept is None or kept[0] != place:  # a trainer moves table and state when it ends
            kernels = _kernels(table.device.type) if table.dtype == torch.float32 else None
            kind: Callable[[Tensor, Mapping[str, Tensor]], Rows] = TorchRows if kernels is None else kernels.RowAdam
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
    """Let the tables among `parameters` catch up as the LazyAdam would whose `state_dict()` is `saved`; it may have had
    more parameters behind these."""
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


def _options(group: Mapping[str, Any]) -> Options:
    """What a step depends on besides gradients."""
    return {"lr": group["lr"], "betas": group["betas"], "eps": group["eps"], "weight_decay": group["weight_decay"]}


def _check_state(p: Tensor, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError for what a kernel would write beside: it believes the shapes."""
    if not state:
        return
    wanted = {"step": (), "exp_avg": tuple(p.shape), "exp_avg_sq": tuple(p.shape)}
    wanted |= {"seen": (len(p),)} if "seen" in state else {}
    found = {name: tuple(t.shape) for name, t in state.items()}
    if found != wanted:
        raise ValueError(f"the state of a parameter is of {found} instead of {wanted}")


def _check_seen(seen: Tensor, step: int) -> None:
    """Raise ValueError unless every row has had its last step by now."""
    least, last = (int(end) for end in torch.aminmax(seen)) if len(seen) else (0, 0)
    if least < 0 or last > step:
        raise ValueError(f"rows of a table were last seen from step {least} to {last}, but there were {step} steps")


def _refuse_decay(options: Options) -> None:
    if options["weight_decay"]:
        raise EspaceError(
            f"optimizer: with weight_decay {options['weight_decay']:g} dense Adam moves every row in every step,"
            " so rows cannot catch up. Use tables: lazy, where only rows looked up decay, or dense."
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
        return importlib.import_module(f"espace.training.{name}") if name else None
    except ImportError:
        return None
