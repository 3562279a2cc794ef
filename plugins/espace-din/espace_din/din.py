"""Deep Interest Network (Zhou et al., KDD 2018, arXiv 1706.06978).

    v_U(A) = sum over j of a(e_j, v_A) e_j                        (3)

e_1 .. e_H are the events of a row's history, v_A is the target. a is a small network, the activation unit: one hidden layer,
then one number, which no softmax normalises, so that the size of v_U says how strong the interest is. The paper gives a the
event, the target and their "out product"; as in the authors' code that is here the difference and the product of the two,
element by element; that code has a softmax too, against the paper. v_U beside the other features goes through layers with
Dice (eq. 9, see dice.py).

The paper's mini-batch aware regularisation (section 5.1) belongs to the optimiser, not to a tower.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import espace
from espace_din.histories import Events, History, histories_of
from espace_din.layers import ACTIVATIONS, Activation, mlp
from espace_din.segments import repeat, softmax, total


class ActivationUnit(nn.Module):
    """a of eq. (3): how much an event counts for the target, by [event, target, event - target, event * target, side].

    The events of all rows stand end to end, so that the cost is that of the real ones.
    """

    def __init__(self, history: History, units: int, activation: Activation, *, bias: bool) -> None:
        super().__init__()
        self.width, self.side = history.width, history.event_width - history.width
        self.hidden = nn.Linear(4 * self.width + self.side, units)
        self.activation = ACTIVATIONS[activation](units)
        self.out = nn.Linear(units, 1, bias=bias)  # a softmax would take the bias away

    def forward(self, history: Events) -> Tensor:
        """One number for each event: (events,)."""
        out: Tensor = self.out(self.activation(self._hidden(*history)))  # (events, 1)
        return out[:, 0]

    def _hidden(self, target: Tensor, events: Tensor, offsets: Tensor) -> Tensor:
        """What `hidden` gives for that input, which is never built: what depends on the target only is computed by row."""
        event, of_target, difference, product, side = torch.split(
            self.hidden.weight, [self.width] * 4 + [self.side], dim=1
        )
        by_row = F.linear(target, of_target - difference, self.hidden.bias)  # (batch, units)
        products = events[:, : self.width] * repeat(target, offsets)  # (events, width)
        by_event = torch.addmm(repeat(by_row, offsets), products, product.t())  # (events, units)
        return torch.addmm(by_event, events, torch.cat([event + difference, side], dim=1).t())


class DIN(nn.Module):
    """Each history as the sum of its events, weighted by what they say about the target, beside the flat vector in an MLP.

    The defaults are the paper's for its own data (section 6.1, figure 2): a hidden layer of 36 in the activation unit, then
    200-80, Dice, no softmax.

    Args:
        target: the field that all histories are compared with; by default the one whose table each shares.
        history: the sequences to read; by default all that share the table of a field.
        side: `{history: sequences that go with it event by event}`, such as times; they are part of its events.
        softmax: normalise the weights over the events of a row.
    """

    def __init__(
        self,
        spec: espace.FeatureSpec,
        *,
        target: str | None = None,
        history: list[str] | None = None,
        side: dict[str, list[str]] | None = None,
        attention_units: espace.Count = 36,
        softmax: bool = False,
        hidden_units: list[espace.Count] = [200, 80],  # noqa: B006, it is read only
        activation: Activation = "dice",
        dropout: espace.Dropout = 0.0,
    ) -> None:
        super().__init__()
        self.histories = histories_of(spec, target, history, side)
        self.softmax = softmax
        units = [ActivationUnit(h, attention_units, activation, bias=not softmax) for h in self.histories]
        self.units = nn.ModuleList(units)
        width = spec.width + sum(h.event_width for h in self.histories)
        self.layers = mlp(width, hidden_units, ACTIVATIONS[activation], dropout)
        self.out_features = hidden_units[-1] if hidden_units else width

    def forward(self, features: espace.Features) -> Tensor:
        """(batch, spec.width) and the histories to (batch, out_features)."""
        read = [h.read(features) for h in self.histories]
        interests = [self._interest(unit, history) for unit, history in zip(self.units, read, strict=True)]
        out: Tensor = self.layers(torch.cat([features.flat(), *interests], dim=1))
        return out

    def _interest(self, unit: nn.Module, history: Events) -> Tensor:
        """v_U of eq. (3): (batch, event_width)."""
        weights = unit(history)  # (events,)
        if self.softmax:
            weights = softmax(weights, history.offsets)
        return total(weights[:, None] * history.events, history.offsets)
