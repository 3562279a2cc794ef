"""What a row of a table misses while it is not looked up: dense Adam's steps with a gradient of zero, added up.

A row that was last brought to step t0, with moments m and v, misses the steps j = t0 + k. With a gradient of zero

    sum over k of  lr_j / (1 - beta1^j) * m beta1^k / ( sqrt(v beta2^k / (1 - beta2^j)) + eps )
        =  m * sum over k of  w_k / (sqrt(v) u_k + eps)
    w_k = lr_j beta1^k / (1 - beta1^j),   u_k = sqrt(beta2^k / (1 - beta2^j))

is what it moves. w and u hang on t0 alone, and u hardly changes while beta1^k lasts. So the sum is taken by the Gauss
rule of two nodes for the weights w / u^2, which has their moments 0 to 3: it is exact where eps does not count and
where nothing else does, and four numbers for every t0 are all that a row needs. Each step adds one k to the moments of
every t0 within a window. (The steps are those of Kingma and Ba, ICLR 2015, algorithm 1; a Gauss rule from four moments
is in any book on quadrature.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LAST = 1e-8  # of the first missed step's move; what comes after is not added
SPREAD = 1e-2  # variance of u over its squared mean, up to which the rule holds to 5e-5
_NUMBERS, _STEPS = ("step", "start", "unruled", "settled"), ("sizes", "roots", "fades", "rules")
_ALIKE = 1e-12  # of the squared mean: the least variance, which u has by rounding alone

Floats = NDArray[np.float64]


class Options(TypedDict):
    """What a step depends on besides gradients: the options of `LazyAdam`."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float


class Missed:
    """The steps that a table has had, and for each of them what a row misses that was last brought to it.

    Attributes:
        step: the number of steps.
        window: how many missed steps count; more than there are where they never fade.
        sizes, roots: (steps + 1,) or longer, lr_j / (1 - beta1^j) and sqrt(1 - beta2^j) of step j.
        fades: (steps + 1, 2) or longer, beta1^k and beta2^k.
        rules: (steps + 1, 4) or longer, a, x, b, y for which the sum is a / (sqrt(v) x + eps) + b / (sqrt(v) y + eps);
            a is -1 where it has to be added up.
        unruled: the last step without a rule for what follows.
        settled: a step that every row has had.
        start: the step from which on the steps are known.
        moments: (window, 4), the moments 0 to 3 of the last steps.
    """

    def __init__(self, options: Options, step: int) -> None:
        self.betas = options["betas"]
        self.step = self.start = step
        self.unruled, self.settled = step - 1, 0
        beta1, beta2 = self.betas
        fade = beta1 / math.sqrt(beta2) if beta1**2 < beta2 else 1.0
        self.window = 2**62 if fade == 1 else 1 if fade == 0 else math.ceil(math.log(LAST) / math.log(fade))
        j = np.arange(1, step + 1)
        self.sizes = np.concatenate([[0.0], options["lr"] / (1 - beta1**j)])  # as if lr had always been the same
        self.roots = np.concatenate([[0.0], np.sqrt(1 - beta2**j)])
        self.fades = np.array(self.betas) ** np.arange(step + 1)[:, None]
        self.rules = np.full((step + 1, 4), -1.0)
        k, power = np.arange(self.window if fade < 1 else 0, 0, -1)[:, None], np.arange(-2, 2)
        self._shares = beta1**k * beta2 ** (k * power / 2)  # (window, 4), in the moments of the t0 k steps back
        self.moments = np.zeros_like(self._shares)

    def add(self, lr: float) -> None:
        """One more step."""
        self.step += 1
        if self.step >= len(self.sizes):
            self._make_room()
        beta1, beta2 = self.betas
        size, root = lr / (1 - beta1**self.step), math.sqrt(1 - beta2**self.step)
        self.sizes[self.step], self.roots[self.step] = size, root
        self.fades[self.step] = beta1**self.step, beta2**self.step
        known = min(len(self.moments), self.step - self.start)
        if not known:
            self.unruled = self.step
            return
        self.moments[:-1] = self.moments[1:]
        self.moments[-1] = 0
        self.moments += self._shares * (size * root ** np.arange(2.0, -2.0, -1.0))
        first = self.step - known
        self.rules[first : self.step] = rules = _gauss(self.moments[-known:])
        without = np.flatnonzero(rules[:, 0] < 0)
        if len(without):
            self.unruled = first + int(without[-1])

    def table(self, start: int) -> Floats:
        """What is known of the steps from `start` on, (steps, 8): their rules, sizes, roots and fades."""
        steps = slice(start, self.step + 1)
        return np.column_stack([self.rules[steps], self.sizes[steps], self.roots[steps], self.fades[steps]])

    def state(self) -> dict[str, int | Tensor]:
        """Everything, to go on from."""
        numbers: dict[str, int] = {name: getattr(self, name) for name in _NUMBERS}
        steps = {name: torch.from_numpy(getattr(self, name)[: self.step + 1].copy()) for name in _STEPS}
        return {**numbers, **steps, "moments": torch.from_numpy(self.moments.copy())}

    def load(self, state: Mapping[str, int | Tensor]) -> None:
        """Go on from `state()` of another, made with the same betas. Raises ValueError for what is none."""
        if any(type(state[name]) is not int for name in _NUMBERS):
            raise ValueError(f"{', '.join(_NUMBERS)} of a table are not all whole numbers")
        for name in (*_STEPS, "moments"):
            found, own = state[name], getattr(self, name)
            rows = len(own) if name == "moments" else int(state["step"]) + 1
            if not isinstance(found, Tensor) or found.dtype != torch.float64 or found.shape != (rows, *own.shape[1:]):
                raise ValueError(f"{name}, of the steps of a table, is not of ({rows}, ...)")
        for name in (*_NUMBERS, *_STEPS, "moments"):
            found = state[name]
            setattr(self, name, found.numpy().copy() if isinstance(found, Tensor) else found)

    def _make_room(self) -> None:
        more = self.step + 1_024
        self.sizes, self.roots = (np.concatenate([known, np.zeros(more)]) for known in (self.sizes, self.roots))
        self.fades = np.concatenate([self.fades, np.zeros((more, 2))])
        self.rules = np.concatenate([self.rules, np.full((more, 4), -1.0)])


def _gauss(moments: Floats) -> Floats:
    """Two weights and nodes from the moments 0 to 3 of w / u^2, (n, 4): a, x, b, y, (n, 4)."""
    total = moments[:, 0]
    with np.errstate(all="ignore"):
        mean, second, third = moments.T[1:] / total
        square = mean * mean
        variance = np.maximum(second - square, _ALIKE * square)
        skew = (third - mean * (3 * second - 2 * square)) / (2 * variance)
        root = np.sqrt(skew * skew + variance)
        share, x, y = (root - skew) / (2 * root), mean + skew + root, mean + skew - root
        rules = np.array([total * share * x * x, x, total * (1 - share) * y * y, y]).T
    rules[variance > SPREAD * square] = -1
    rules[total == 0] = 0, 1, 0, 1
    return rules
