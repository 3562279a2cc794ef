"""Towers through torch.compile, each by itself, and as they are where that does not work."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from espace.model.features import Features


class Compiled:
    """A tower compiled at its first call in training, for batches of any size.

    Args:
        tower: the tower. Evaluation uses it as it is, since it would be compiled once more for it.
        tell: called with the reason, in one line, when the tower cannot be compiled; it is then used as it is.
        backend: of torch.compile.
    """

    def __init__(self, tower: nn.Module, tell: Callable[[str], None], backend: str = "inductor") -> None:
        self.tower = tower
        self._tell = tell
        self._compiled: Callable[[Features], Tensor] | None = torch.compile(
            tower, fullgraph=True, dynamic=True, backend=backend
        )

    def __call__(self, features: Features) -> Tensor:
        """What the tower gives."""
        alone = len(features.flat()) == 1  # torch would compile once more for it
        if self._compiled is not None and self.tower.training and not alone:
            try:
                return self._compiled(features)
            except Exception as error:  # of many kinds; if it is the tower's own, the tower raises it below
                self._compiled = None
                self._tell(_first_line(error))
        plain: Tensor = self.tower(features)
        return plain


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
