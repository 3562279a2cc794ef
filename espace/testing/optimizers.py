"""Laws of optimisers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from espace.registry.signature import accepts
from espace.testing.law import law
from espace.testing.states import reread


def _loss(model: nn.Module) -> Tensor:
    """The same squares each time."""
    rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(2))
    wanted = rows @ torch.tensor([1.0, -2.0, 0.5, 3.0])
    loss: Tensor = (model(rows).squeeze(1) - wanted).square().mean()
    return loss


class OptimizerTests:
    """Laws of an optimiser. Set `optimizer`, `options`, and `lr`, a rate at which a small problem is learnt."""

    optimizer: ClassVar[Callable[..., Any]]
    options: ClassVar[Mapping[str, object]] = {}
    lr: float = 0.01

    def build(self, lr: float | None = None) -> tuple[nn.Module, Any]:
        """A model of one layer, and a new optimiser of its two parameters, a group for each."""
        torch.manual_seed(1)
        model = nn.Linear(4, 1)
        groups = [{"params": [p], "lr": self.lr if lr is None else lr} for p in model.parameters()]
        told = ("dense",) if accepts(type(self).optimizer, 2) else ()
        return model, type(self).optimizer(groups, *told, **self.options)

    def train(self, model: nn.Module, optimizer: Any, steps: int) -> float:
        """The loss after some steps."""
        for _ in range(steps):
            optimizer.zero_grad()
            torch.autograd.backward(_loss(model))
            optimizer.step()
        return float(_loss(model).detach())

    def test_is_an_optimizer_of_torch(self) -> None:
        _, optimizer = self.build()
        assert isinstance(optimizer, torch.optim.Optimizer), "it is a torch.optim.Optimizer"
        assert [g["lr"] for g in optimizer.param_groups] == [self.lr] * 2, "its groups are those that it was given"

    def test_loses_less(self) -> None:
        model, optimizer = self.build()
        before = float(_loss(model).detach())
        assert self.train(model, optimizer, 100) < before, "the loss of a small problem falls"

    def test_nothing_moves_at_a_rate_of_nothing(self) -> None:
        for still in (0, 1):  # while the other moves
            model, optimizer = self.build()
            group = optimizer.param_groups[still]
            group["lr"] = 0.0
            before = [p.detach().clone() for p in group["params"]]
            self.train(model, optimizer, 3)
            same = all(torch.equal(a, b) for a, b in zip(before, group["params"], strict=True))
            assert same, "it goes by the lr of each group, which a schedule sets in every step"

    def test_a_run_that_is_resumed_ends_as_one_that_was_never_stopped(self) -> None:
        (whole, optimizer), (first, stopped), (second, resumed) = self.build(), self.build(), self.build()
        self.train(whole, optimizer, 20)
        self.train(first, stopped, 10)
        with law("its state is plain values and tensors, and it takes it back"):
            resumed.load_state_dict(reread(stopped.state_dict()))
        second.load_state_dict(first.state_dict())
        self.train(second, resumed, 10)
        same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
        assert same, "all that it remembers is in its state_dict"
