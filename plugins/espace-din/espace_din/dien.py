"""Deep Interest Evolution Network (Zhou et al., AAAI 2019, arXiv 1809.03672).

A GRU over the events of a history (eq. 2-5, see gru.py) gives states h_t, the interests. Each is taught to tell the next
event e[t+1] from another one, by a loss that is added to that of the chain:

    L_aux = -1/N sum over rows and t of log s(h_t, e[t+1]) + log(1 - s(h_t, e'[t+1]))     (6)
    L = L_target + alpha L_aux                                                            (7)

N is the number of rows, and s the sigmoid of the inner product. A second GRU follows the interests that concern the target
e_a, by its update gate:

    a_t = softmax over t of h_t W e_a                                                     (8)
    u'_t = a_t u_t, h'_t = (1 - u'_t) o h'_{t-1} + u'_t o c'_t                            (11, 12)

Its last state beside the other features goes through layers with Dice.

A tower sees no ids, so the negative e' is another event of the batch, drawn evenly from all of them; one that equals e[t+1]
does not count. The authors' code has a small network for s, and divides by all places of the batch, events or padding.
"""

from __future__ import annotations

import itertools
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

import espace
from espace_din.gru import GRU, Steps, last_of
from espace_din.histories import Events, History, histories_of
from espace_din.layers import ACTIVATIONS, Activation, mlp
from espace_din.segments import softmax


class Evolution(nn.Module):
    """The interests of one history, and how those that concern the target evolve."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self.extractor = GRU(history.event_width)
        self.attention = nn.Linear(history.width, history.event_width, bias=False)  # W of eq. (8)
        self.evolving = GRU(history.event_width)

    def forward(self, history: Events, teach: bool) -> tuple[Tensor, Tensor]:
        """The last state, (batch, event_width), and L_aux times N, (); 0 unless `teach`."""
        steps = Steps.of(history.offsets)
        events = history.events.index_select(0, steps.places)  # in the order of steps, as all below
        states = self.extractor(events, steps)
        interests = torch.cat(states)  # (events, event_width)
        weights = self._attention(history, interests, steps)  # (events,)
        last = last_of(self.evolving(interests, steps, weights), steps)
        return last, _taught(states, events) if teach else last.new_zeros(())

    def _attention(self, history: Events, interests: Tensor, steps: Steps) -> Tensor:
        """a_t of eq. (8): (events,)."""
        asked = self.attention(history.target).index_select(0, steps.owners)  # (events, event_width)
        scores = steps.row_by_row((interests * asked).sum(1))
        return softmax(scores, history.offsets).index_select(0, steps.places)


def _taught(states: list[Tensor], events: Tensor) -> Tensor:
    """Eq. (6) without 1/N, with negatives drawn now: ()."""
    pairs = len(events) - len(states[0])  # every event but the first one of a row follows a state
    before = torch.cat([events[:0], *(s[: len(after)] for s, after in itertools.pairwise(states))])
    others = events.index_select(0, negatives(pairs, len(events), events.device))
    return next_event_loss(before, events[len(events) - pairs :], others)


def negatives(pairs: int, events: int, device: torch.device) -> Tensor:
    """For each of the last `pairs` of `events`, the place of another event, all equally likely: (pairs,)."""
    positives = torch.arange(events - pairs, events, device=device)
    return (positives + torch.randint(1, max(events, 2), (pairs,), device=device)) % max(events, 1)


def next_event_loss(states: Tensor, following: Tensor, others: Tensor) -> Tensor:
    """The sum of eq. (6) over pairs, all (pairs, width): (). An other that equals the one that followed does not count."""
    positive = F.logsigmoid((states * following).sum(1))
    negative = F.logsigmoid(-(states * others).sum(1)) * (others != following).any(1)
    return -(positive + negative).sum()


class DIEN(nn.Module):
    """The last state of each history's evolving interest beside the flat vector in an MLP.

    The defaults are those of the authors' code, 200-80 with Dice, and alpha = 1 of the paper.

    Args:
        target: the field that all histories are compared with; by default the one whose table each shares.
        history: the sequences to read; by default all that share the table of a field.
        side: `{history: sequences that go with it event by event}`, such as times; they are part of its events.
        auxiliary: alpha of eq. (7), 0 for no auxiliary loss. Eq. (6) sums over time: with long histories take it smaller.
    """

    auxiliary_loss: Tensor = torch.zeros(())

    def __init__(
        self,
        spec: espace.FeatureSpec,
        *,
        target: str | None = None,
        history: list[str] | None = None,
        side: dict[str, list[str]] | None = None,
        auxiliary: Annotated[float, Ge(0)] = 1.0,
        hidden_units: list[espace.Count] = [200, 80],  # noqa: B006, it is read only
        activation: Activation = "dice",
        dropout: espace.Dropout = 0.0,
    ) -> None:
        super().__init__()
        self.histories = histories_of(spec, target, history, side)
        self.auxiliary = auxiliary
        self.evolutions = nn.ModuleList(Evolution(h) for h in self.histories)
        width = spec.width + sum(h.event_width for h in self.histories)
        self.layers = mlp(width, hidden_units, ACTIVATIONS[activation], dropout)
        self.out_features = hidden_units[-1] if hidden_units else width

    def forward(self, features: espace.Features) -> Tensor:
        """(batch, spec.width) and the histories to (batch, out_features); in training `auxiliary_loss` is alpha L_aux."""
        flat, teach = features.flat(), self.training and self.auxiliary > 0
        found = [e(h.read(features), teach) for h, e in zip(self.histories, self.evolutions, strict=True)]
        losses = torch.stack([loss for _, loss in found])
        self.auxiliary_loss = losses.sum() * (self.auxiliary / max(len(flat), 1))
        out: Tensor = self.layers(torch.cat([flat, *(last for last, _ in found)], dim=1))
        return out
