"""No link: a transition's head sees its own tower only."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

import espace


class NoLink(nn.Module):
    """Hands the vectors on as they are. `widths` tells each head what it will see."""

    def __init__(self, chain: espace.Chain, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.widths = dict(widths)

    def forward(self, vectors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """{transition: (batch, width)}, unchanged."""
        return vectors


@espace.hookimpl
def register_links(register: espace.Register[espace.Link]) -> None:
    """Bring `none`."""
    register("none", NoLink)
