"""The stack of dense layers above a history, with the activations of these papers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

from torch import nn

from espace_din.dice import Dice

Activation: TypeAlias = Literal["dice", "prelu", "relu"]

ACTIVATIONS: Mapping[str, Callable[[int], nn.Module]] = {
    "dice": Dice,
    "prelu": nn.PReLU,
    "relu": lambda units: nn.ReLU(),
}


def mlp(
    in_features: int, hidden_units: Sequence[int], activation: Callable[[int], nn.Module], dropout: float = 0.0
) -> nn.Sequential:
    """Linear, activation, dropout for each of `hidden_units`: (batch, in_features) to (batch, the last of them)."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise([in_features, *hidden_units]):
        layers += [nn.Linear(before, after), activation(after)]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)
