"""The sparse half of Adam on a GPU as one pass over the rows looked up, compiled by Triton on first use.

Look-ups are sorted by row, and a program takes some of them one after the other, adds up those of each row, and moves
the rows that begin and end with it. Of a row that goes on in the next programs each leaves its sum, and a second pass
adds those up. So nobody waits for anybody, a row of a hundred thousand look-ups costs little more than as many rows,
and the same look-ups give the same bits. A program is one warp with a column for each thread: what is skipped for one
row costs the others nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from espace.training.missed import Missed, Options

_LOOK_UPS = 64  # that a program takes
_CUT = 32  # sums of a row that are added at a time
_CHECKED = 256  # rows that a program looks at for missed steps
_PROGRAMS = 8_192  # that bring rows up to date
_STEPS = 2**12  # room for what is known of so many steps, at first


class RowAdam:
    """Adam on rows of one table, (rows, width) float32, contiguous, on a GPU. All tensors are changed in place.

    Args:
        table: the table.
        state: its two moments "exp_avg" and "exp_avg_sq", (rows, width), its count of steps "step", (), and, where rows
            catch up, "seen", the last step that each row has had, (rows,) int32.
    """

    def __init__(self, table: Tensor, state: Mapping[str, Tensor]) -> None:
        self._tensors = table.detach(), state["exp_avg"], state["exp_avg_sq"]
        self._count, self._seen = state["step"], state.get("seen")
        self._missed: Missed | None = None
        self._known = 0  # steps of it that stand in _steps
        self._steps = table.new_empty(0, 8)  # as `Missed.table`

    def step(self, grad: Tensor, step: Tensor, options: Options) -> None:
        """Step number `step`, (), on the rows of a sparse gradient, summed or not."""
        rows, grads = grad._indices()[0], grad._values().contiguous()
        n, width = grads.shape
        if n:
            found, order = torch.sort(rows.int(), stable=True)
            programs = triton.cdiv(n, _LOOK_UPS)
            begun, ended = grads.new_empty(2, programs, width)
            seen = step.int() if self._seen is None else self._seen  # not looked at
            given = (*self._tensors, seen, step, found, begun, ended, n, width, *_numbers(options))
            size = {"marks": self._seen is not None, "look_ups": _LOOK_UPS, "padded": _padded(width), "num_warps": 1}
            _step[programs,](order, grads, *given, **size)
            _step_cut[programs,](programs, *given, at_once=_CUT, **size)
        if self._missed is not None:
            self._learn(self._missed)

    def catch_up(self, rows: Tensor, missed: Missed, options: Options) -> None:
        """Bring `rows`, (n,), through all steps that they have missed."""
        assert self._seen is not None, "kept where rows catch up"
        self._learn(missed)
        if not len(rows):
            return
        n, width, window = len(rows), self._tensors[0].shape[1], min(missed.window, 2**30)
        late = rows.new_empty(2, n, dtype=torch.int32)
        count = rows.new_zeros((), dtype=torch.int32)
        _find_late[triton.cdiv(n, _CHECKED),](
            self._seen, self._count, rows.contiguous(), late, count, n, looked_at=_CHECKED
        )
        given = (*self._tensors, self._count, late, count, self._steps, n, width, window, options["eps"])
        _catch_up[min(n, _PROGRAMS),](*given, padded=_padded(width), num_warps=1)

    def _learn(self, missed: Missed) -> None:
        """Copy what is new of the steps to the device; rules change for as long as their window is open."""
        if missed is not self._missed:
            self._missed, self._known = missed, -1
        if missed.step == self._known:
            return
        start = max(self._known - len(missed.moments), 0)
        if missed.step >= len(self._steps):
            start, self._steps = 0, self._steps.new_empty(max(2 * missed.step, _STEPS), 8)
        new = torch.from_numpy(missed.table(start)).to(torch.float32)
        new = new.pin_memory() if self._steps.is_cuda else new
        self._steps[start : start + len(new)].copy_(new, non_blocking=True)
        self._known = missed.step


def _padded(width: int) -> int:
    """Threads of a program, for a column each; Triton wants a power of two."""
    return int(triton.next_power_of_2(width))


def _numbers(options: Options) -> tuple[float, ...]:
    """lr, the logarithms of both betas, what they leave of 1, beta2, eps, weight decay."""
    beta1, beta2 = options["betas"]
    logs = (math.log(beta) if beta else -math.inf for beta in (beta1, beta2))
    return (options["lr"], *logs, 1 - beta1, 1 - beta2, beta2, options["eps"], options["weight_decay"])


@triton.jit
def _corrections(step, lr, log1, log2):
    """The step size and the root of the second bias correction."""
    count = tl.load(step).to(tl.float64)
    return (lr / (1 - tl.exp(count * log1))).to(tl.float32), tl.sqrt(1 - tl.exp(count * log2)).to(tl.float32)


@triton.jit
def _move(table, first, second, row, grad, width, size, root, back1, back2, beta2, eps, decay, padded: tl.constexpr):
    """One step of a row, in the order of operations of torch's fused kernel."""
    column = tl.arange(0, padded)
    which, at = column < width, row.to(tl.int64) * width + column
    p, m, v = tl.load(table + at, which), tl.load(first + at, which), tl.load(second + at, which)
    grad += decay * p
    m += back1 * (grad - m)
    v = beta2 * v + back2 * grad * grad
    tl.store(first + at, m, which)
    tl.store(second + at, v, which)
    tl.store(table + at, p - size * m / (tl.sqrt(v) / root + eps), which)


@triton.jit
def _step(
    order, grads, table, first, second, seen, step, found, begun, ended, n, width,
    lr, log1, log2, back1, back2, beta2, eps, decay,
    marks: tl.constexpr, look_ups: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    """Add up the look-ups of a program, row by row, and move the rows that are all there."""
    program, column = tl.program_id(0), tl.arange(0, padded)
    in_row, start = column < width, program * look_ups
    size, root = _corrections(step, lr, log1, log2)
    now = tl.load(step).to(tl.int32)
    row = tl.load(found + start)
    from_here = (row != tl.load(found + start - 1, start > 0, other=-1)).to(tl.int32)  # the row started in this program
    grad = tl.load(grads + tl.load(order + start) * width + column, in_row, other=0.0)
    sums = tl.zeros((padded,), tl.float32)
    at, stop = start, start + look_ups
    while at < tl.minimum(stop, n):
        sums += grad
        more = at + 1 < n
        after = tl.load(found + at + 1, more, other=-1)
        grad = tl.load(grads + tl.load(order + at + 1, more, other=0) * width + column, in_row, other=0.0)
        if after != row:
            if from_here > 0:
                _move(table, first, second, row, sums, width, size, root, back1, back2, beta2, eps, decay, padded)
                if marks:
                    tl.store(seen + row, now)
            else:
                tl.store(ended + program * width + column, sums, in_row)
            sums = tl.zeros((padded,), tl.float32)
            from_here = from_here * 0 + 1
            row = after
        at += 1
    if (stop < n) & (row == tl.load(found + stop - 1, stop < n, other=-1)):  # it goes on in the next program
        if from_here > 0:
            tl.store(begun + program * width + column, sums, in_row)
        else:
            tl.store(ended + program * width + column, sums, in_row)


@triton.jit
def _step_cut(
    programs, table, first, second, seen, step, found, begun, ended, n, width,
    lr, log1, log2, back1, back2, beta2, eps, decay,
    marks: tl.constexpr, at_once: tl.constexpr, look_ups: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    """Move the row that starts in a program of `_step` and goes on in the next, if there is one."""
    program, column = tl.program_id(0), tl.arange(0, padded)
    start, stop = program * look_ups, (program + 1) * look_ups
    row = tl.load(found + stop - 1, stop < n, other=-1)
    goes_on = (row >= 0) & (row == tl.load(found + stop, stop < n, other=-1))
    before = tl.load(found + start - 1, (start > 0) & (start < n), other=-1)
    if goes_on & (row != before):
        sums = tl.load(begun + program * width + column, column < width, other=0.0)
        other = program + 1
        while goes_on:
            which = other + tl.arange(0, at_once)
            same = row == tl.load(found + which * look_ups, which < programs, other=-1)
            more = same[:, None] & (column < width)[None, :]
            sums += tl.sum(tl.load(ended + which[:, None] * width + column[None, :], more, other=0.0), 0)
            goes_on = tl.sum(same.to(tl.int32), 0) == at_once
            other += at_once
        size, root = _corrections(step, lr, log1, log2)
        _move(table, first, second, row, sums, width, size, root, back1, back2, beta2, eps, decay, padded)
        if marks:
            tl.store(seen + row, tl.load(step).to(tl.int32))


@triton.jit
def _find_late(seen, step, rows, late, count, n, looked_at: tl.constexpr):
    """List each row that has missed steps once, with the last step that it had, and mark it."""
    at = tl.program_id(0) * looked_at + tl.arange(0, looked_at)
    now = tl.load(step).to(tl.int32)
    row = tl.load(rows + at, at < n, other=0).to(tl.int64)
    misses = (at < n) & (tl.load(seen + row) < now)
    last = tl.atomic_xchg(seen + row, tl.broadcast_to(now, (looked_at,)), mask=misses)
    misses &= last < now  # of look-ups of one row, the first to mark it
    ones = misses.to(tl.int32)
    to = tl.atomic_add(count, tl.sum(ones, 0)) + tl.cumsum(ones, 0) - 1
    tl.store(late + to, row.to(tl.int32), misses)
    tl.store(late + n + to, last, misses)


@triton.jit
def _catch_up(
    table, first, second, step, late, count, steps, n, width, window, eps, padded: tl.constexpr
):  # fmt: skip
    """The missed steps of the rows listed."""
    column, now = tl.arange(0, padded), tl.load(step).to(tl.int32)
    which = column < width
    i, listed = tl.program_id(0), tl.load(count)
    while i < listed:
        last, at = tl.load(late + n + i), tl.load(late + i).to(tl.int64) * width + column
        m, v = tl.load(first + at, which, other=0.0), tl.load(second + at, which, other=0.0)
        p, root, gap, rule = tl.load(table + at, which), tl.sqrt(v), now - last, steps + last * 8
        a, x, b, y = tl.load(rule), tl.load(rule + 1), tl.load(rule + 2), tl.load(rule + 3)
        moved = tl.zeros((padded,), tl.float32)
        if a >= 0:
            moved += m * a / (root * x + eps) + m * b / (root * y + eps)
        else:
            k = 1
            while k <= tl.minimum(gap, window):
                j, fade = steps + (last + k) * 8, steps + k * 8
                w, u = tl.load(j + 4) * tl.load(fade + 6), tl.sqrt(tl.load(fade + 7)) / tl.load(j + 5)
                moved += m * w / (root * u + eps)
                k += 1
        tl.store(table + at, p - moved, which)
        tl.store(first + at, m * tl.load(steps + gap * 8 + 6), which)
        tl.store(second + at, v * tl.load(steps + gap * 8 + 7), which)
        i += tl.num_programs(0)
