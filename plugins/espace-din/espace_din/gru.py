"""A GRU over histories of different lengths, without padding, with or without an attentional update gate (DIEN's AUGRU)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Steps:
    """The events of all rows in the order of a recurrence: the first ones of all rows, then the second ones, and so on.

    Within a step the rows stand from the longest history to the shortest, so that those with an event are the first ones.

    Attributes:
        rows: the rows in that order, (batch,).
        counts: the events of each step; one step of none where there is no event, so that all that follows has a gradient.
        places: where each event stands row by row, (events,).
        owners: the row of each event, (events,).
    """

    rows: Tensor
    counts: list[int]
    places: Tensor
    owners: Tensor

    @classmethod
    def of(cls, offsets: Tensor) -> Steps:
        """From the offsets of the rows, (batch + 1,)."""
        lengths, rows = offsets.diff().sort(descending=True, stable=True)
        longest = int(lengths[0]) if len(lengths) else 0
        step = torch.arange(longest, device=offsets.device)[:, None]
        happens = step < lengths  # (steps, batch)
        places = (offsets[rows] + step)[happens]
        return cls(rows, happens.sum(1).tolist() or [0], places, rows.expand_as(happens)[happens])

    def row_by_row(self, values: Tensor) -> Tensor:
        """(events,) in this order to (events,) row by row."""
        return torch.empty_like(values).index_copy(0, self.places, values)


class GRU(nn.Module):
    """States as wide as the events, from zero on (Zhou et al., AAAI 2019):

        u_t = sigmoid(W^u i_t + U^u h_{t-1} + b^u)                    (2)
        r_t = sigmoid(W^r i_t + U^r h_{t-1} + b^r)                    (3)
        c_t = tanh(W^h i_t + r_t o U^h h_{t-1} + b^h)                 (4), c: h with a tilde in the paper
        h_t = (1 - u_t) o h_{t-1} + u_t o c_t                         (5)

    With attention a_t, a number for each event, a_t u_t stands in the place of u_t (11, 12): the AUGRU. All is done in the
    precision of the weights, whatever autocast says.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.input = nn.Linear(width, 3 * width)  # W and b of u, r, h
        self.state = nn.Linear(width, 3 * width, bias=False)  # U of u, r, h

    def forward(self, events: Tensor, steps: Steps, attention: Tensor | None = None) -> list[Tensor]:
        """The states after each step, (rows with an event, width).

        events: (events, width) and attention: (events,), in the order of `steps`.
        """
        with torch.autocast(events.device.type, enabled=False):
            gates = torch.split(self.input(events.to(self.input.weight.dtype)), steps.counts)
            weights = [None] * len(gates) if attention is None else torch.split(attention[:, None], steps.counts)
            states, state = [], gates[0].new_zeros(len(gates[0]), self.width)
            for gate, weight in zip(gates, weights, strict=True):
                state = self._step(gate, state[: len(gate)], weight)
                states.append(state)
        return states

    def _step(self, gate: Tensor, state: Tensor, weight: Tensor | None) -> Tensor:
        """gate: (rows, 3 width), what the input says; state: (rows, width); weight: (rows, 1) or None."""
        own, both = self.state(state), 2 * self.width
        update, reset = torch.sigmoid(gate[:, :both] + own[:, :both]).chunk(2, dim=1)
        candidate = torch.tanh(gate[:, both:] + reset * own[:, both:])
        return torch.lerp(state, candidate, update if weight is None else weight * update)


def last_of(states: list[Tensor], steps: Steps) -> Tensor:
    """The last state of every row, zeros where it has no event: (batch, width)."""
    after = [*steps.counts[1:], 0]
    ended = torch.cat([s[n:] for s, n in zip(reversed(states), reversed(after), strict=True)])  # in the order of rows
    return ended.new_zeros(len(steps.rows), ended.shape[1]).index_copy(0, steps.rows[: len(ended)], ended)
