"""Behavior Sequence Transformer (Chen et al., DLP-KDD 2019, arXiv 1905.06874).

The latest events of a history and the target, each beside a vector of its position (section 2.1), go through a transformer:

    Attention(Q, K, V) = softmax(Q K^T / sqrt(d)) V                                       (1)
    MH(E) = Concat(head_1, .., head_h) W^H                                                (2)
    head_i = Attention(E W^Q, E W^K, E W^V)                                               (3)
    S' = LayerNorm(S + Dropout(MH(S)))                                                    (5)
    F = LayerNorm(S' + Dropout(LeakyReLU(S' W1 + b1) W2 + b2))                            (6)

Each head has matrices of its own and a d of the width divided by the heads, and W1 widens four times, as in Vaswani et al.
(NIPS 2017), since the paper does not say. What comes out at every place (figure 1; section 2.3 may mean the target's alone),
beside the other features, goes through layers with LeakyReLU.

The paper's position is the time since the event. A tower is not told the time, so that it is here the place counted back from
the target; times, in buckets, can stand beside the history as one of its `side` sequences. Beside the target these are zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import espace
from espace_din.histories import Events, History, histories_of
from espace_din.layers import mlp

_LEAST_POSITION = 4  # numbers of a position's vector; the paper's embeddings are 4 to 64 wide


class Block(nn.Module):
    """Self-attention and a feed-forward network (eq. 1-3, 5, 6)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.Linear(width, 3 * width, bias=False)  # W^Q, W^K, W^V of all heads
        self.joined = nn.Linear(width, width, bias=False)  # W^H
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.LeakyReLU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (batch, places, width), to the same; mask: (batch, places), true where there is an event."""
        x = self.norms[0](x + self.dropout(self._attend(x, mask)))
        out: Tensor = self.norms[1](x + self.dropout(self.feed_forward(x)))
        return out

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        by_head = self.projections(x).unflatten(2, (3, self.heads, -1))  # (batch, places, 3, heads, d)
        query, key, value = by_head.permute(2, 0, 3, 1, 4)  # each (batch, heads, places, d)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        joined: Tensor = self.joined(seen.transpose(1, 2).flatten(2))
        return joined


class Transformer(nn.Module):
    """The blocks over the latest `length` events of one history and the target."""

    def __init__(self, history: History, length: int, blocks: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.length, self.event_width = length, history.event_width
        more = -(self.event_width + _LEAST_POSITION) % heads  # so that the heads share the width evenly
        self.width = self.event_width + _LEAST_POSITION + more
        self.positions = nn.Parameter(torch.empty(length + 1, self.width - self.event_width).normal_(std=0.01))
        self.blocks = nn.ModuleList(Block(self.width, heads, dropout) for _ in range(blocks))
        self.out_features = (length + 1) * self.width

    def forward(self, history: Events) -> Tensor:
        """(batch, out_features): the places from the earliest to the target, zeros where there is no event."""
        events, mask = latest(history.events, history.offsets, self.length)
        target = F.pad(history.target, (0, self.event_width - history.target.shape[1]))[:, None]
        x = torch.cat([events, target], dim=1)  # (batch, places, event_width)
        mask = F.pad(mask, (0, 1), value=True)
        places = x.shape[1]
        positions = self.positions[:places].flip(0).expand(len(x), -1, -1)  # counted back from the target
        x = torch.cat([x, positions.to(x.dtype)], dim=2)
        for block in self.blocks:
            x = block(x, mask)
        x = x.masked_fill(~mask[:, :, None], 0.0)
        return F.pad(x, (0, 0, self.length + 1 - places, 0)).flatten(1)


def latest(events: Tensor, offsets: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The last `length` events of each row, or what the longest row has, with zeros before them where a row has fewer.

    events: (events, width), to (batch, places, width) and the mask (batch, places), true where an event is.
    """
    lengths = offsets.diff().clamp(max=length)
    places = int(lengths.max()) if len(lengths) else 0
    back = torch.arange(places, 0, -1, device=offsets.device)
    mask = back <= lengths[:, None]
    kept = (offsets[1:, None] - back)[mask]
    padded = events.new_zeros(*mask.shape, events.shape[1])
    return padded.masked_scatter(mask[:, :, None], events.index_select(0, kept)), mask


class BST(nn.Module):
    """A transformer over the latest events of each history and its target, beside the flat vector in an MLP.

    The defaults are the paper's (table 3): the latest 20 events, one block of 8 heads, dropout 0.2 in it, then 1024-512-256.

    Args:
        target: the field that closes each history; by default the one whose table it shares.
        history: the sequences to read; by default all that share the table of a field.
        side: `{history: sequences that go with it event by event}`, such as times; they are part of its events.
        length: how many events are read, the latest.
    """

    def __init__(
        self,
        spec: espace.FeatureSpec,
        *,
        target: str | None = None,
        history: list[str] | None = None,
        side: dict[str, list[str]] | None = None,
        length: espace.Count = 20,
        blocks: espace.Count = 1,
        heads: espace.Count = 8,
        dropout: espace.Dropout = 0.2,
        hidden_units: list[espace.Count] = [1024, 512, 256],  # noqa: B006, it is read only
    ) -> None:
        super().__init__()
        self.histories = histories_of(spec, target, history, side)
        transformers = [Transformer(h, length, blocks, heads, dropout) for h in self.histories]
        self.transformers = nn.ModuleList(transformers)
        width = spec.width + sum(t.out_features for t in transformers)
        self.layers = mlp(width, hidden_units, lambda units: nn.LeakyReLU())
        self.out_features = hidden_units[-1] if hidden_units else width

    def forward(self, features: espace.Features) -> Tensor:
        """(batch, spec.width) and the histories to (batch, out_features)."""
        read = [t(h.read(features)) for h, t in zip(self.histories, self.transformers, strict=True)]
        out: Tensor = self.layers(torch.cat([features.flat(), *read], dim=1))
        return out
