"""The average of the last weights, which is judged and kept instead of them: Polyak and Juditsky (SIAM J. Control
Optim. 1992, section 2) with exponential weights, as in Adam (Kingma and Ba, ICLR 2015, section 7.2).

Tables are left as they are: a row changes in few steps, and a pass over a whole table in every step would cost more
than the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from espace.model.embedding import Table


class Average:
    """Averages of the weights and running statistics of modules, all but those of embedding tables.

    After step t an average moves by 1 - min(decay, (1 + t) / (10 + t)) of the way to the weights, so that the first
    ones, far from where training ends, are soon forgotten.

    Args:
        modules: by name.
        decay: between 0 and 1; about the last 1 / (1 - decay) steps count.
    """

    def __init__(self, modules: dict[str, nn.Module], decay: float) -> None:
        self.decay = decay
        tables = {id(t) for m in modules.values() for s in m.modules() if isinstance(s, Table) for t in s.parameters()}
        state = {f"{n}.{k}": t for n, m in modules.items() for k, t in m.state_dict(keep_vars=True).items()}
        self._now = {n: t.detach() for n, t in state.items() if t.is_floating_point() and id(t) not in tables}
        self._mean = {n: t.clone() for n, t in self._now.items()}
        self._stands = False  # the averages, where the weights are

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After the optimiser's step of this number, counted from 1."""
        if self._mean:
            share = 1 - min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_([*self._mean.values()], [*self._now.values()], share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages stand where the weights are."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        self._stands = not self._stands
        for name, mean in self._mean.items():
            now, kept = self._now[name], self._now[name].clone()
            now.copy_(mean)
            mean.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """The averages, by name; none while they stand where the weights are."""
        return {} if self._stands else dict(self._mean)

    def load(self, state: Any) -> None:
        """Take them back. Raises ValueError where they are not those of these weights."""
        shapes = {n: t.shape for n, t in state.items()} if isinstance(state, dict) else None
        if shapes != {n: t.shape for n, t in self._mean.items()}:
            raise ValueError("the averages are not those of these weights")
        for name, mean in self._mean.items():
            mean.copy_(state[name])
