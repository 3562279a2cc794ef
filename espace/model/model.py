"""The model: embedding -> sharing -> tower -> link -> head -> probabilities and values of the chain."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn

from espace.chain.chain import Chain
from espace.chain.grammar import Transition
from espace.chain.kinds import as_kind, of_stage, of_value
from espace.chain.probability import Probabilities
from espace.data.batch import Batch
from espace.model.blocks import Gate
from espace.model.compiling import Compiled
from espace.model.features import FeatureSpec
from espace.model.named import NamedModules
from espace.model.returned import check_names, check_vectors

TowerFactory = Callable[[FeatureSpec], nn.Module]


@runtime_checkable
class Wide(Protocol):
    """A module that says how wide its vectors are, as a `Link` does."""

    @property
    def widths(self) -> Mapping[str, int]:
        """`{transition: width of its vector}`."""
        ...


class Asking(Protocol):
    """A module that asks for something to be added to the loss."""

    auxiliary_loss: Tensor


class Model(nn.Module):
    """From a batch to every probability of `chain`.

    Args:
        chain: the chain.
        embeddings: one module that all transitions share, under the name "shared", or one per transition (ESMM-NS).
        sharing: `sharing(features) -> {transition: features}`, with `specs` per transition.
        towers: `{transition: tower}`, with `out_features`.
        link: `link({transition: (batch, width)}) -> the same`, with `widths` per transition.
        kinds: `{transition: stage kind}` of those that are not the sigmoid, or softmax, of their logits, and of every
            value.
        joint: stages whose head gives P(stage) over all impressions instead of P(stage given parent).

    Attributes: `gates`, those of `sharing` that have something to weigh.
    """

    def __init__(
        self,
        chain: Chain,
        embeddings: Mapping[str, nn.Module],
        sharing: nn.Module,
        towers: Mapping[str, nn.Module],
        link: nn.Module,
        kinds: Mapping[str, nn.Module] | None = None,
        joint: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.chain = chain
        self.joint = frozenset(joint)
        self.embeddings = NamedModules(embeddings)
        self.sharing = sharing
        self.towers = NamedModules(towers)
        self.link = link
        parts = [m for module in (sharing, self.towers, link) for m in module.modules()]
        self.gates = [m for m in sharing.modules() if isinstance(m, Gate) and m.layer is not None]
        self._auxiliary = [m for m in parts if _asks(m)]
        self.kinds = NamedModules(kinds or {})
        self._kinds = {name: as_kind(module) for name, module in self.kinds.items()}
        self._compiled: dict[str, Compiled] = {}
        assert isinstance(link, Wide), "a link has widths"
        self._widths = {name: _width_of(tower) for name, tower in towers.items()}
        self._linked = dict(link.widths)
        self.heads = NamedModules({t.name: nn.Linear(link.widths[t.name], self._logits(t)) for t in chain.heads})

    def _logits(self, transition: Transition) -> int:
        """How many numbers the head of a transition gives."""
        kind = self._kinds.get(transition.name)
        return len(transition.outcomes) if kind is None else int(kind.logits)

    def forward(self, batch: Batch) -> Probabilities:
        """Every probability of every row."""
        if "shared" in self.embeddings:
            features = self.sharing(self.embeddings["shared"](batch))
            check_names("sharing", features, self._widths)
        else:
            features = {name: embedding(batch) for name, embedding in self.embeddings.items()}
        vectors = {name: tower(features[name]) for name, tower in (self._compiled or self.towers).items()}
        check_vectors("tower", vectors, self._widths, len(batch))
        linked: Mapping[str, Tensor] = self.link(vectors)
        check_vectors("link", linked, self._linked, len(batch))
        with torch.autocast(
            next(iter(linked.values())).device.type, enabled=False
        ):  # a bfloat16 logit knows few numbers
            logits = {name: _widened(self._head(name), linked[name]) for name in self.heads}
        return Probabilities(self.chain, logits, self._kinds, self.joint)

    def starts(self) -> dict[str, Tensor]:
        """A copy of the biases of all heads, `{transition: (logits,)}`; what they say of a row unknown."""
        return {name: self._head(name).bias.detach().clone() for name in self.heads}

    def constant(self, logits: Mapping[str, Tensor], rows: int) -> Probabilities:
        """Every probability of so many rows where heads give the same `{transition: (logits,)}` for all."""
        same = {name: found.expand(rows, -1) for name, found in logits.items()}
        return Probabilities(self.chain, same, self._kinds, self.joint)

    def auxiliary_loss(self) -> Tensor | None:
        """What towers ask to be added to the loss of the batch just seen, (); None where none of them does."""
        if not self._auxiliary:
            return None
        found = [module.auxiliary_loss for module in self._auxiliary]
        for module, loss in zip(self._auxiliary, found, strict=True):
            module.auxiliary_loss = loss.detach()  # the way back to the weights must not outlive the step
        return torch.stack(found).sum()

    def compile_towers(self, tell: Callable[[str], None], backend: str = "inductor") -> None:
        """Train with towers that torch compiles at the first batch. `tell` gets a line for each that it cannot."""

        def told(name: str) -> Callable[[str], None]:
            return lambda why: tell(f"compile: the tower of {name} is used as it is: {why}")

        self._compiled = {name: Compiled(tower, told(name), backend) for name, tower in self.towers.items()}

    @torch.no_grad()
    def pass_on(self, logits: Mapping[str, int]) -> None:
        """Let every head begin with a weight of 1 on the first `logits[transition]` numbers of its tower's vector.

        They are logits already, such as the sum of a factorisation machine, which the paper adds to the others as it
        is.
        """
        for name, count in logits.items():
            self._head(name).weight[:, :count] = 1.0

    @torch.no_grad()
    def start_at(
        self, outcomes: Mapping[str, list[int]], amounts: Mapping[str, tuple[float, float, float]] | None = None
    ) -> None:
        """Set every head's bias to the log-odds of its base rates, so that step 1 already predicts the mean.

        outcomes: `{transition: rows of each class}`, the last being else or nothing, among the rows whose parent
        happened, or among all where the head is joint; amounts: `{value: mean, variance and share of zeros}` where its
        parent happened.
        """
        for name, counts in outcomes.items():
            *named, nothing = counts
            kind = of_stage(self._kinds.get(name))
            if kind is None:
                logits = [math.log((n + 1) / (nothing + 1)) for n in named]
            else:
                logits = list(kind.start((named[0] + 1) / (named[0] + nothing + 2)))
            self._start_head(name, logits)
        for amount, moments in (amounts or {}).items():
            name = self.chain.value(amount).name
            self._start_head(name, of_value(self._kinds.get(name)).start(*moments))

    def _start_head(self, name: str, logits: Sequence[float]) -> None:
        self._head(name).bias.copy_(torch.tensor(logits))

    def _head(self, name: str) -> nn.Linear:
        head = self.heads[name]
        assert isinstance(head, nn.Linear), "as built"
        return head


def _width_of(tower: nn.Module) -> int:
    width = tower.out_features
    assert isinstance(width, int), "a tower has out_features"
    return width


def _asks(module: nn.Module) -> TypeGuard[Asking]:
    return hasattr(type(module), "auxiliary_loss")


def _widened(head: nn.Linear, vector: Tensor) -> Tensor:
    logits: Tensor = head(vector.to(head.weight.dtype))
    return logits
