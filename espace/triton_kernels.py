"""The sparse half of Adam on a GPU as one pass over the rows looked up, compiled by Triton on first use.

Look-ups are sorted by row, and a program takes some of them, adds up those of each row, and moves the rows that begin and
end with it. Of a row that goes on in the next programs each leaves its sum, and a second pass adds those up. So nobody waits
for anybody, a row of a hundred thousand look-ups costs little more than as many rows, and the same look-ups give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from espace.missed import Missed

_LOOK_UPS, _CUT = 64, 64  # look-ups that a program takes; sums of a row that it adds at a time
_STEPS = 2**12  # room for what is known of so many steps, at first


class RowAdam:
    """Adam on rows of one table, (rows, width) float32, contiguous, on a GPU. All tensors are changed in place.

    Args:
        table: the table.
        state: its two moments "exp_avg" and "exp_avg_sq", (rows, width), its count of steps "step", (), and, where rows catch
            up, "seen", the last step that each row has had, (rows,) int32.
    """

    def __init__(self, table: Tensor, state: Mapping[str, Tensor]) -> None:
        self._tensors = table.detach(), state["exp_avg"], state["exp_avg_sq"]
        self._count, self._seen = state["step"], state.get("seen")
        self._missed: Missed | None = None
        self._known = 0  # steps of it that stand in _steps
        self._steps = table.new_empty(
            0, 8
        )  # of each step its rule, lr_j / (1 - beta1^j), sqrt(1 - beta2^j), and both fades

    def step(self, grad: Tensor, step: Tensor, options: Mapping[str, Any]) -> None:
        """Step number `step`, (), on the rows of a sparse gradient, summed or not."""
        rows, grads = grad._indices()[0], grad._values().contiguous()
        n, width = grads.shape
        if n:
            found, order = torch.sort(rows.int(), stable=True)
            programs = triton.cdiv(n, _LOOK_UPS)
            begun, ended = grads.new_empty(2, programs, width)
            seen = step.int() if self._seen is None else self._seen  # not looked at
            size = {"look_ups": _LOOK_UPS, "padded": max(triton.next_power_of_2(width), 16)}
            given = (*self._tensors, seen, step, found, begun, ended, n, width, *_numbers(options))
            _step[programs,](order, grads, *given, marks=self._seen is not None, **size)
            _step_cut[programs,](programs, *given, marks=self._seen is not None, at_once=_CUT, **size)
        if self._missed is not None:
            self._learn(self._missed)

    def catch_up(self, rows: Tensor, missed: Missed, options: Mapping[str, Any]) -> None:
        """Bring `rows`, (n,), through all steps that they have missed."""
        assert self._seen is not None, "kept where rows catch up"
        self._learn(missed)
        if not len(rows):
            return
        rows, width = rows.contiguous(), self._tensors[0].shape[1]
        window = min(missed.window, 2**30)
        size = {"look_ups": _LOOK_UPS, "padded": triton.next_power_of_2(width)}
        given = (*self._tensors, self._seen, self._count, rows, self._steps, len(rows), width, window, options["eps"])
        _catch_up[triton.cdiv(len(rows), _LOOK_UPS),](*given, **size)

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
        device = self._steps.device
        new = new.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else new
        self._steps[start : start + len(new)] = new
        self._known = missed.step


def _numbers(options: Mapping[str, Any]) -> tuple[float, ...]:
    """lr, the logarithms of both betas, what they leave of 1, beta2, eps, weight decay."""
    beta1, beta2 = options["betas"]
    logs = (math.log(beta) if beta else -math.inf for beta in (beta1, beta2))
    return (options["lr"], *logs, 1 - beta1, 1 - beta2, beta2, options["eps"], options["weight_decay"])


@triton.jit
def _move(table, first, second, at, which, grad, step, lr, log1, log2, back1, back2, beta2, eps, decay):
    """One step of the numbers at `at`, in the order of operations of torch's fused kernel."""
    count = tl.load(step).to(tl.float64)
    size = (lr / (1 - tl.exp(count * log1))).to(tl.float32)
    root = tl.sqrt(1 - tl.exp(count * log2)).to(tl.float32)
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
    program = tl.program_id(0)
    place, column = tl.arange(0, look_ups), tl.arange(0, padded)
    at = program * look_ups + place
    inside, in_row = at < n, column < width
    row = tl.load(found + at, inside, other=-1)
    starts = (row != tl.load(found + at - 1, inside & (at > 0), other=-1)).to(tl.int32)
    ends = row != tl.load(found + at + 1, at + 1 < n, other=-1)
    from_here = tl.cumsum(starts, 0) > 0  # the row started in this program
    here = inside[:, None] & in_row[None, :]
    source = tl.load(order + at, inside, other=0)
    grad = tl.load(grads + source[:, None] * width + column[None, :], here, other=0.0)
    same = (row[:, None] == row[None, :]).to(tl.float32)
    sums = tl.dot(same, grad, input_precision="tf32x3")  # as exact as float32, since ones and zeros are exact in tf32
    whole = ends & from_here & inside
    which, to = whole[:, None] & in_row[None, :], row.to(tl.int64)[:, None] * width + column[None, :]
    _move(table, first, second, to, which, sums, step, lr, log1, log2, back1, back2, beta2, eps, decay)
    if marks:
        tl.store(seen + row, tl.broadcast_to(tl.load(step).to(tl.int32), (look_ups,)), whole)
    last = place == look_ups - 1
    to = tl.broadcast_to(program * width + column[None, :], (look_ups, padded))
    tl.store(ended + to, sums, ((ends | last) & ~from_here)[:, None] & here)
    tl.store(begun + to, sums, (last & ~ends & from_here)[:, None] & here)


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
        to = row.to(tl.int64) * width + column
        _move(table, first, second, to, column < width, sums, step, lr, log1, log2, back1, back2, beta2, eps, decay)
        if marks:
            tl.store(seen + row, tl.load(step).to(tl.int32))


@triton.jit
def _catch_up(
    table, first, second, seen, step, rows, steps, n, width, window, eps, look_ups: tl.constexpr, padded: tl.constexpr
):  # fmt: skip
    """The missed steps of rows; a row that stands there twice is moved by whoever marks it first."""
    at = tl.program_id(0) * look_ups + tl.arange(0, look_ups)
    now = tl.load(step).to(tl.int32)
    row = tl.load(rows + at, at < n, other=0).to(tl.int64)
    late = (at < n) & (tl.load(seen + row) < now)
    last = tl.atomic_xchg(seen + row, tl.broadcast_to(now, (look_ups,)), mask=late)
    late &= last < now
    if tl.sum(late.to(tl.int32), 0) > 0:
        _bring(table, first, second, row, tl.where(late, last, now), now, late, steps, width, window, eps, padded)


@triton.jit
def _bring(table, first, second, row, last, now, late, steps, width, window, eps, padded: tl.constexpr):
    """The rows that are `late` from step `last` to `now`."""
    column = tl.arange(0, padded)
    which, to = late[:, None] & (column < width)[None, :], row[:, None] * width + column[None, :]
    m, v = tl.load(first + to, which, other=0.0), tl.load(second + to, which, other=0.0)
    root = tl.sqrt(v)
    rule = steps + last * 8
    a, x = tl.load(rule, late, other=0.0)[:, None], tl.load(rule + 1, late, other=1.0)[:, None]
    b, y = tl.load(rule + 2, late, other=0.0)[:, None], tl.load(rule + 3, late, other=1.0)[:, None]
    ruled = a >= 0
    moved = tl.where(ruled, m * a / (root * x + eps) + m * b / (root * y + eps), 0.0)
    one_by_one = tl.where(late & (tl.load(rule, late, other=0.0) < 0), tl.minimum(now - last, window), 0)
    k = 1
    while tl.sum((k <= one_by_one).to(tl.int32), 0) > 0:
        there = k <= one_by_one
        j, fade = steps + (last + k) * 8, steps + k * 8
        w = tl.load(j + 4, there, other=0.0) * tl.load(fade + 6)
        u = tl.sqrt(tl.load(fade + 7)) / tl.load(j + 5, there, other=1.0)
        moved += tl.where(there[:, None], m * w[:, None] / (root * u[:, None] + eps), 0.0)
        k += 1
    gap = steps + (now - last) * 8
    tl.store(table + to, tl.load(table + to, which, other=0.0) - moved, which)
    tl.store(first + to, m * tl.load(gap + 6, late, other=0.0)[:, None], which)
    tl.store(second + to, v * tl.load(gap + 7, late, other=0.0)[:, None], which)
