"""The sparse half of Adam as one pass over the rows looked up, compiled by numba on first use and kept on disk.

Rows go to threads in blocks, in turn: no row is written by two threads, nor a line of memory by many, and the look-ups
of a row are summed in the order they were made, so the result does not depend on the threads. A mark for every row of
the table says where its sum stands; it is cleared behind each step, so a step costs what it looks up, whatever the
table's size. Rows lie far apart, and waiting for memory is most of the cost: each loop asks for the rows that it will
need a little later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeAlias, TypeVar

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numpy.typing import NDArray
from torch import Tensor

from espace.training.missed import Floats, Missed, Options

if TYPE_CHECKING:
    from numba.core.typing.templates import Signature

Given = ParamSpec("Given")
Made = TypeVar("Made", covariant=True)

Numbers: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.int32] | NDArray[np.int64]
Tensors: TypeAlias = tuple[Numbers, Numbers, Numbers, NDArray[np.int32]]  # table, moments, last steps
Gradient: TypeAlias = tuple[Ids, Numbers]
StepRoom: TypeAlias = tuple[NDArray[np.int32], NDArray[np.int64], Numbers]  # marks, look-ups found, sums
Room: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int32]]  # look-ups found, their last steps
Steps: TypeAlias = tuple[Floats, Floats, Floats, Floats, int, int]  # sizes, roots, rules, fades, window, step

_FEW = 4_096  # look-ups that are not worth a second thread
_MOST_THREADS: int = vars(numba.config)["NUMBA_NUM_THREADS"]
_BLOCK = 6  # 2**6 rows next to each other belong to one thread
_AHEAD = 16  # rows from the one in hand to the one that memory is asked for


def load() -> None:
    """Load what `RowAdam` runs, or compile it where it never ran: half a second, or ten, in a thread."""
    options: Options = {"lr": 0.0, "betas": (0.9, 0.999), "eps": 1.0, "weight_decay": 0.0}
    number, row = torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64)
    rows = RowAdam(number, {"exp_avg": number, "exp_avg_sq": number, "seen": row.int()})
    rows.step(torch.sparse_coo_tensor(row[None], number, check_invariants=False), torch.ones(()), options)
    rows.catch_up(row, Missed(options, 0), options)
    pairs: tuple[tuple[Kernel[..., None], Kernel[..., None]], ...] = (
        (_step, _step_in_threads),
        (_catch_up, _catch_up_in_threads),
    )
    for alone, together in pairs:
        together.compile((*alone.signatures[0][:-2], types.int64))


class Kernel(Protocol[Given, Made]):
    """What numba makes of a function."""

    @property
    def signatures(self) -> Sequence[tuple[types.Type, ...]]:
        """The types for which it is compiled."""
        ...

    def compile(self, sig: tuple[types.Type, ...], /) -> object:
        """Compile it for these types."""
        ...

    def __call__(self, *args: Given.args, **kwargs: Given.kwargs) -> Made:
        """What the function gives."""
        ...


def _compiled(
    inline: Literal["never", "always"] = "never", parallel: bool = False
) -> Callable[[Callable[Given, Made]], Kernel[Given, Made]]:
    """Compiled by numba on first use and kept on disk, or not kept where there is no place for it."""

    def made(function: Callable[Given, Made]) -> Kernel[Given, Made]:
        found: Kernel[Given, Made]
        try:
            found = njit(error_model="numpy", cache=True, inline=inline, parallel=parallel)(function)
        except RuntimeError:
            found = njit(error_model="numpy", inline=inline, parallel=parallel)(function)
        return found

    return made


class RowAdam:
    """Adam on rows of one table, (rows, width) float32, contiguous, on the CPU. All tensors are changed in place.

    Args:
        table: the table.
        state: its two moments "exp_avg" and "exp_avg_sq", (rows, width), and, where rows catch up, "seen", the last
            step that each row has had, (rows,) int32.
    """

    def __init__(self, table: Tensor, state: Mapping[str, Tensor]) -> None:
        seen = state["seen"].numpy() if "seen" in state else np.empty(0, np.int32)
        self._tensors = table.detach().numpy(), state["exp_avg"].numpy(), state["exp_avg_sq"].numpy(), seen
        self._mark = np.zeros(len(table), np.int32)
        self._found, self._lasts = np.empty((0, 0), np.int64), np.empty((0, 0), np.int32)
        self._sums = np.empty((0, 0, 0), np.float32)

    def step(self, grad: Tensor, step: Tensor, options: Options) -> None:
        """Step number `step`, (), on the rows of a sparse gradient, summed or not."""
        rows, grads = grad._indices()[0], grad._values().contiguous()
        threads = self._threads_for(len(rows))
        if self._sums.shape[:2] != self._found.shape:
            self._sums = np.empty((*self._found.shape, grads.shape[1]), np.float32)
        gradient, room = (rows.numpy(), grads.numpy()), (self._mark, self._found, self._sums)
        _run(threads, _step, _step_in_threads, self._tensors, gradient, room, _numbers(options), int(step))

    def catch_up(self, rows: Tensor, missed: Missed, options: Options) -> None:
        """Bring `rows`, (n,), through all steps that they have missed."""
        threads, room = self._threads_for(len(rows)), (self._found, self._lasts)
        steps = missed.sizes, missed.roots, missed.rules, missed.fades, missed.window, missed.step
        _run(threads, _catch_up, _catch_up_in_threads, self._tensors, rows.numpy(), room, steps, _numbers(options))

    def _threads_for(self, look_ups: int) -> int:
        """How many threads are worth having, a power of two; there is room for each."""
        most = min(torch.get_num_threads(), _MOST_THREADS) if look_ups >= _FEW else 1
        threads = 1 << most.bit_length() - 1
        if self._found.shape[0] < threads or self._found.shape[1] < look_ups:
            self._found, self._lasts = (np.empty((threads, look_ups), kind) for kind in (np.int64, np.int32))
        return threads


def _run(threads: int, alone: Callable[..., None], together: Callable[..., None], *given: object) -> None:
    if threads == 1:
        alone(*given, 0, 1)
        return
    of_torch = torch.get_num_threads()
    numba.set_num_threads(threads)
    together(*given, threads)
    torch.set_num_threads(of_torch)  # numba's threads are OpenMP's too: when they start, torch gets as many


def _numbers(options: Options) -> Floats:
    """lr, beta1, beta2, eps, weight decay."""
    return np.array([options["lr"], *options["betas"], options["eps"], options["weight_decay"]])


@_compiled(inline="always")
def _row_step(
    table: Numbers,
    first: Numbers,
    second: Numbers,
    row: int,
    grad: Numbers,
    numbers: Floats,
    size: np.float32,
    root: np.float32,
) -> None:
    """One step of one row, in the order of operations of torch's fused kernel. `grad` is (width,)."""
    back1, back2 = np.float32(1.0 - numbers[1]), np.float32(1.0 - numbers[2])
    beta2, eps, decay = np.float32(numbers[2]), np.float32(numbers[3]), np.float32(numbers[4])
    for k in range(table.shape[1]):
        g = grad[k] + decay * table[row, k]
        first[row, k] += back1 * (g - first[row, k])
        second[row, k] = beta2 * second[row, k] + back2 * g * g
        table[row, k] -= size * first[row, k] / (np.sqrt(second[row, k]) / root + eps)


@_compiled()
def _corrections(numbers: Floats, step: int) -> tuple[np.float32, np.float32]:
    """The step size and the root of the second bias correction, float32."""
    return np.float32(numbers[0] / (1.0 - numbers[1] ** step)), np.float32(np.sqrt(1.0 - numbers[2] ** step))


def _request(context: object, array: types.Array, row: types.Integer) -> tuple[Signature, Callable[..., object]]:
    """Let memory bring the first and the last number of a row of `array`, (rows,) or (rows, width): a hint."""

    def generate(target: Any, builder: ir.IRBuilder, signature: Signature, given: Sequence[ir.Value]) -> object:
        kind, (_, number) = signature.args[0], given
        int32, int64, pointer = ir.IntType(32), ir.IntType(64), cgutils.voidptr_t
        made: Any = make_array  # numba has no types
        there = made(kind)(target, builder, given[0])
        stride = builder.extract_value(there.strides, 0)
        start = builder.add(builder.ptrtoint(there.data, int64), builder.mul(builder.sext(number, int64), stride))
        last = builder.add(start, builder.sub(stride, int64(kind.dtype.bitwidth // 8)))
        hint = ir.FunctionType(ir.VoidType(), [pointer, int32, int32, int32])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer], hint)
        for place in (start, last) if kind.ndim > 1 else (start,):
            builder.call(prefetch, [builder.inttoptr(place, pointer), int32(1), int32(3), int32(1)])
        return target.get_dummy_value()

    return types.void(array, row), generate


_ask_for: Any = intrinsic(_request)  # numba's types say that a call never returns


@_compiled()
def _own(rows: Ids, thread: int, threads: int, found: NDArray[np.int64]) -> int:
    """Write the positions of this thread's look-ups among `rows`, (n,), into `found`, (n,); returns how many."""
    count = 0
    for i in range(len(rows)):
        found[count] = i
        count += ((rows[i] >> _BLOCK) & (threads - 1)) == thread
    return count


@_compiled()
def _step(
    tensors: Tensors, gradient: Gradient, room: StepRoom, numbers: Floats, step: int, thread: int, threads: int
) -> None:
    table, first, second, seen = tensors
    rows, grads = gradient
    mark, founds, sums_of = room
    found, sums, count = founds[thread], sums_of[thread], 0
    size, root = _corrections(numbers, step)
    own = _own(rows, thread, threads, found)
    for j in range(own):  # from here on `found` has rows, behind the positions that are still to come
        _ask_for(mark, rows[found[min(j + _AHEAD, own - 1)]])
        i = found[j]
        row = rows[i]
        place = mark[row]
        if place == 0:
            found[count] = row
            for k in range(grads.shape[1]):
                sums[count, k] = grads[i, k]
            count += 1
            mark[row] = count
        else:
            for k in range(grads.shape[1]):
                sums[place - 1, k] += grads[i, k]
    for place in range(count):
        ahead, row = found[min(place + _AHEAD, count - 1)], found[place]
        _ask_for(table, ahead)
        _ask_for(first, ahead)
        _ask_for(second, ahead)
        mark[row] = 0
        _row_step(table, first, second, row, sums[place], numbers, size, root)
        if len(seen):
            seen[row] = step


@_compiled()
def _catch_up(
    tensors: Tensors, rows: Ids, room: Room, steps: Steps, numbers: Floats, thread: int, threads: int
) -> None:
    table, first, second, seen = tensors
    found, lasts, count = room[0][thread], room[1][thread], 0
    rules, fades, step, eps = steps[2], steps[3], steps[5], np.float32(numbers[3])
    own = _own(rows, thread, threads, found)
    for j in range(own):
        _ask_for(seen, rows[found[min(j + _AHEAD, own - 1)]])
        row = rows[found[j]]
        found[count], lasts[count] = row, seen[row]
        count += seen[row] != step
        seen[row] = step
    for place in range(count):
        ahead, row, last = found[min(place + _AHEAD, count - 1)], found[place], lasts[place]
        _ask_for(table, ahead)
        _ask_for(first, ahead)
        _ask_for(second, ahead)
        rule, gap = rules[last], step - last
        if rule[0] < 0:
            _sum(table[row], first[row], second[row], last, gap, steps, numbers)
        else:
            a, x, b, y = np.float32(rule[0]), np.float32(rule[1]), np.float32(rule[2]), np.float32(rule[3])
            for k in range(table.shape[1]):
                m, root = first[row, k], np.sqrt(second[row, k])
                table[row, k] -= m * a / (root * x + eps) + m * b / (root * y + eps)
        fade1, fade2 = np.float32(fades[gap, 0]), np.float32(fades[gap, 1])
        for k in range(table.shape[1]):
            first[row, k] *= fade1
            second[row, k] *= fade2


@_compiled()
def _sum(table: Numbers, first: Numbers, second: Numbers, last: int, gap: int, steps: Steps, numbers: Floats) -> None:
    """The sum that `Missed` tells of, term by term, for one row: table, first and second are (width,)."""
    sizes, roots, _, fades, window, _ = steps
    if not first.any():
        return
    moved, root = np.zeros_like(first), np.sqrt(second)
    eps = np.float32(numbers[3])
    for missed in range(1, 1 + min(gap, window)):
        j = last + missed
        w, u = np.float32(sizes[j] * fades[missed, 0]), np.float32(np.sqrt(fades[missed, 1]) / roots[j])
        for k in range(len(moved)):
            moved[k] += first[k] * w / (root[k] * u + eps)
    for k in range(len(moved)):
        table[k] -= moved[k]


@_compiled(parallel=True)
def _step_in_threads(
    tensors: Tensors, gradient: Gradient, room: StepRoom, numbers: Floats, step: int, threads: int
) -> None:
    for thread in prange(threads):
        _step(tensors, gradient, room, numbers, step, thread, threads)


@_compiled(parallel=True)
def _catch_up_in_threads(tensors: Tensors, rows: Ids, room: Room, steps: Steps, numbers: Floats, threads: int) -> None:
    for thread in prange(threads):
        _catch_up(tensors, rows, room, steps, numbers, thread, threads)
