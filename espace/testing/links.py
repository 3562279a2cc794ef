"""Laws of links."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from espace.chain.chain import Chain
from espace.model.features import Features, FeatureSpec, Field
from espace.testing.chains import CHAINS
from espace.testing.law import law
from espace.testing.modules import ModuleLaws

_CHAIN = Chain.parse(CHAINS[1])
_WIDTH = 5


class LinkTests(ModuleLaws):
    """Laws of a link. Set `link` and `options`."""

    link: ClassVar[Callable[..., nn.Module]]
    spec = FeatureSpec(tuple(Field(t.name, "vector", _WIDTH) for t in _CHAIN.transitions), {})

    def build(self, spec: FeatureSpec | None = None, seed: int = 1) -> nn.Module:
        """The link of a chain with choices, in float64; what it gets are vectors of one width."""
        torch.manual_seed(seed)
        return self._for(_CHAIN)

    def outputs(self, module: nn.Module, features: Features) -> Tensor:
        """Each field of `features` is the vector of one transition."""
        linked = module({field.name: features.field(field.name) for field in features.spec.fields})
        return torch.cat([linked[field.name] for field in features.spec.fields], dim=1)

    def _for(self, chain: Chain) -> nn.Module:
        return type(self).link(chain, {t.name: _WIDTH for t in chain.heads}, **self.options).double()

    def test_every_transition_gets_a_vector_of_the_promised_width(self) -> None:
        for chain in map(Chain.parse, CHAINS):
            names = {t.name for t in chain.heads}
            with law("a link works under any chain"):
                link = self._for(chain)
                out = link({name: torch.randn(4, _WIDTH, dtype=torch.float64) for name in names})
            widths: Mapping[str, int] = getattr(link, "widths", {})
            assert set(out) == names == set(widths), "there is a vector and a width for every one of chain.heads"
            for name, vector in out.items():
                told = f"the vectors are as wide as widths says, not {tuple(vector.shape)}"
                assert vector.shape == (4, widths[name]), told
