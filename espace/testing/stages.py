"""Laws of stage kinds."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from espace.testing.law import law

_ROWS = 64
_RATES = (1e-4, 0.01, 0.1, 0.5, 0.9)
_FAR = 40.0


class StageTests:
    """Laws of a stage kind. Set `stage` and `options`."""

    stage: ClassVar[Callable[..., nn.Module]]
    options: ClassVar[Mapping[str, Any]] = {}

    def build(self, seed: int = 1) -> Any:
        """The kind in float64, from a fixed seed."""
        torch.manual_seed(seed)
        return type(self).stage(**self.options).double()

    def test_gives_both_tails_of_one_probability_per_row(self) -> None:
        kind = self.build()
        assert isinstance(getattr(kind, "logits", None), int), (
            "it says how many numbers of the head it reads: set `logits`"
        )
        found = [torch.as_tensor(tail) for tail in kind(_logits(kind))]
        assert [t.shape for t in found] == [(_ROWS,)] * 2, "it gives log P and log(1 - P), (batch,) each"
        assert torch.allclose(torch.stack(found).exp().sum(0), torch.ones(1).double()), "P and 1 - P add up to 1"

    def test_both_tails_are_finite_far_out(self) -> None:
        kind = self.build().float()
        for far in (-_FAR, _FAR):
            z = torch.full((2, kind.logits), far, requires_grad=True)
            for tail in kind(z):
                (grad,) = torch.autograd.grad(tail.sum(), z, retain_graph=True)
                finite = torch.isfinite(tail).all() and torch.isfinite(grad).all()
                assert finite, (
                    f"at logits of {far:g} both logarithms and their gradients are finite: no log of a rounded 0"
                )

    def test_starts_at_the_rate(self) -> None:
        kind = self.build()
        for rate in _RATES:
            logits = torch.tensor([kind.start(rate)], dtype=torch.float64)
            assert logits.shape == (1, kind.logits), "start(rate) gives one number for each logit"
            close = torch.allclose(kind(logits)[0].exp(), logits.new_tensor(rate), rtol=1e-3)
            assert close, f"start(rate) gives the logits at which P is the rate; at {rate:g} it is another"

    def test_every_logit_and_parameter_learns(self) -> None:
        kind = self.build()
        z = _logits(kind)
        log_prob, log_not_prob = kind(z)
        torch.autograd.backward(log_prob.sum() + 2 * log_not_prob.sum())
        assert z.grad is not None
        assert z.grad.any(dim=0).all(), "every logit gets a gradient"
        dead = [n for n, p in kind.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
        assert not dead, f"every parameter gets a gradient; these do not: {', '.join(dead)}"

    def test_rows_do_not_see_each_other(self) -> None:
        kind = self.build().eval()
        z, order = _logits(kind), torch.tensor([3, 1])
        with law("any rows will do, however many"):
            same = torch.allclose(torch.stack(kind(z[order])), torch.stack(kind(z))[:, order])
        assert same, "P of a row depends on that row only"

    def test_saves_and_loads_to_the_same_bits(self) -> None:
        kind, other = self.build(seed=1), self.build(seed=2)
        file = io.BytesIO()
        torch.save(kind.state_dict(), file)
        file.seek(0)
        with law("what one saves another one of the same options loads"):
            other.load_state_dict(torch.load(file, weights_only=True))
        same = torch.equal(torch.stack(kind(_logits(kind))), torch.stack(other(_logits(kind))))
        assert same, "all that P depends on is a parameter or a buffer, so that it is saved"


def _logits(kind: Any) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(_ROWS, kind.logits, generator=generator, dtype=torch.float64).requires_grad_()
