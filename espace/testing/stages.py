"""Laws of stage kinds."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor, nn

from espace.contracts import StageKind, ValueKind
from espace.testing.law import law

if TYPE_CHECKING:
    from typing_extensions import Self

_ROWS = 64
_RATES = (1e-4, 0.01, 0.1, 0.5, 0.9)
_FAR = 40.0
_HUGE = 1e30  # a limit beyond is none
_SPAN, _POINTS = 150.0, 30_001  # the integrals, in the variable of `_within`


class _Module(Protocol):
    """What is used here of an nn.Module: torch has no type that says contract and module at once."""

    def double(self) -> Self: ...

    def float(self) -> Self: ...

    def eval(self) -> Self: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def state_dict(self) -> Mapping[str, object]: ...

    def load_state_dict(self, state: Mapping[str, object], /) -> object: ...


class StageModule(StageKind, _Module, Protocol):
    """A stage kind of what happens or not, as torch calls it."""

    def __call__(self, z: Tensor, /) -> tuple[Tensor, Tensor]: ...


class ValueModule(ValueKind, _Module, Protocol):
    """A stage kind of amounts."""


class StageTests:
    """Laws of a stage kind of what happens or not. Set `stage` and `options`."""

    stage: ClassVar[Callable[..., StageModule]]
    options: ClassVar[Mapping[str, object]] = {}

    def build(self, seed: int = 1) -> StageModule:
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
        _all_learn(kind, z)

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


class ValueTests:
    """Laws of a stage kind of amounts. Set `stage` and `options`; `atoms` to the amounts that have a probability rather
    than a density, and `continuous` to False where there are no others."""

    stage: ClassVar[Callable[..., ValueModule]]
    options: ClassVar[Mapping[str, object]] = {}
    atoms: ClassVar[tuple[float, ...]] = ()
    continuous: ClassVar[bool] = True

    def build(self, seed: int = 1) -> ValueModule:
        """The kind in float64, from a fixed seed."""
        torch.manual_seed(seed)
        return type(self).stage(**self.options).double()

    def amounts(self, kind: ValueModule, rows: int = _ROWS) -> Tensor:
        """Amounts within the limits, some of them atoms: (rows,) float64."""
        generator = torch.Generator().manual_seed(4)
        t = torch.randn(rows, generator=generator, dtype=torch.float64)
        amounts, _ = _within(kind.limits, t)
        for number, atom in enumerate(self.atoms):
            amounts[number :: 2 * len(self.atoms) if self.continuous else len(self.atoms)] = atom
        return amounts

    def test_gives_one_log_density_and_one_mean_per_row(self) -> None:
        kind = self.build()
        told = "it says how many numbers of the head it reads: set `logits`"
        assert isinstance(getattr(kind, "logits", None), int), told
        low, high = getattr(kind, "limits", (1, 0))
        assert low < high, "it says the least and the largest amount that there can be: set `limits`"
        z = _logits(kind)
        found = [torch.as_tensor(kind.log_density(z, self.amounts(kind))), torch.as_tensor(_mean(kind, z))]
        assert [t.shape for t in found] == [(_ROWS,)] * 2, "log_density and the mean are (batch,) each"

    def test_the_density_integrates_to_one(self) -> None:
        total, _ = self._integrals(self.build())
        close = torch.allclose(total, torch.ones_like(total), atol=1e-4)
        assert close, f"the density, with the probabilities of `atoms`, adds up to 1, not to {float(total[0]):.4f}"

    def test_the_mean_is_that_of_the_density(self) -> None:
        kind = self.build()
        _, mean = self._integrals(kind)
        close = torch.allclose(_mean(kind, _logits(kind)[:4]), mean, rtol=1e-3, atol=1e-4)
        assert close, "log_mean, or mean, is the mean of the amounts under log_density"

    def _integrals(self, kind: ValueModule) -> tuple[Tensor, Tensor]:
        """Over the density, and over it times the amount, of 4 rows of logits: (4,) each."""
        x, steps = torch.tensor(self.atoms, dtype=torch.float64), torch.ones(len(self.atoms), dtype=torch.float64)
        if self.continuous:
            grid, steps_of_grid = _within(kind.limits, torch.linspace(-_SPAN, _SPAN, _POINTS, dtype=torch.float64))
            x, steps = torch.cat([x, grid]), torch.cat([steps, steps_of_grid * 2 * _SPAN / (_POINTS - 1)])
        z = _logits(kind)[:4].detach()
        with law("log_density takes any number of rows"):
            density = [kind.log_density(row.expand(len(x), -1), x).exp() for row in z]
        weighted = torch.stack(density) * steps
        return weighted.sum(1), weighted @ x

    def test_gradients_are_those_of_finite_differences(self) -> None:
        kind = self.build()
        x, z = self.amounts(kind, 8), _logits(kind)[:8].detach().requires_grad_()
        with law("the gradients of log_density and of the mean are those that finite differences find"):
            torch.autograd.gradcheck(lambda z: kind.log_density(z, x), (z,))
            torch.autograd.gradcheck(lambda z: _mean(kind, z), (z,))

    def test_is_finite_far_out(self) -> None:
        kind = self.build().float()
        for far in (-_FAR, _FAR):
            x = self.amounts(kind).float()
            z = torch.full((len(x), kind.logits), far, requires_grad=True)
            logarithm = kind.log_mean(z) if hasattr(kind, "log_mean") else _mean(kind, z)
            for value in (kind.log_density(z, x), logarithm):
                (grad,) = torch.autograd.grad(value.sum(), z, retain_graph=True)
                finite = torch.isfinite(value).all() and torch.isfinite(grad).all()
                assert finite, (
                    f"at logits of {far:g} log_density, the logarithm of the mean and their gradients are finite"
                )

    def test_starts_at_the_mean(self) -> None:
        for scale in (1.0, 0.1):
            kind = self.build()
            x = self.amounts(kind) * (scale if self.continuous else 1.0)
            mean, variance, zeros = float(x.mean()), float(x.var(correction=0)), float((x == 0).double().mean())
            logits = torch.tensor([kind.start(mean, variance, zeros)], dtype=torch.float64)
            assert logits.shape == (1, kind.logits), "start(mean, variance, zeros) gives one number for each logit"
            found = float(_mean(kind, logits))
            assert math.isclose(found, mean, rel_tol=1e-3), (
                f"start gives the logits at which the mean is {mean:.4g}, not {found:.4g}"
            )

    def test_every_logit_and_parameter_learns(self) -> None:
        kind = self.build()
        z = _logits(kind)
        torch.autograd.backward(kind.log_density(z, self.amounts(kind)).sum())
        _all_learn(kind, z)

    def test_rows_do_not_see_each_other(self) -> None:
        kind = self.build().eval()
        z, x, order = _logits(kind), self.amounts(kind), torch.tensor([3, 1])
        with law("any rows will do, however many"):
            densities = kind.log_density(z[order], x[order]), kind.log_density(z, x)[order]
            means = _mean(kind, z[order]), _mean(kind, z)[order]
            kind.log_density(z[:0], x[:0])
        same = torch.allclose(*densities) and torch.allclose(*means)
        assert same, "density and mean of a row depend on that row only"

    def test_saves_and_loads_to_the_same_bits(self) -> None:
        kind, other = self.build(seed=1), self.build(seed=2)
        z, x = _logits(kind), self.amounts(kind)
        kind.start(float(x.mean()), float(x.var()), float((x == 0).double().mean()))
        file = io.BytesIO()
        torch.save(kind.state_dict(), file)
        file.seek(0)
        with law("what one saves another one of the same options loads"):
            other.load_state_dict(torch.load(file, weights_only=True))
        same = torch.equal(kind.log_density(z, x), other.log_density(z, x)) and torch.equal(
            _mean(kind, z), _mean(other, z)
        )
        assert same, "all that an amount depends on is a parameter or a buffer, so that it is saved, start included"


def _mean(kind: ValueModule, z: Tensor) -> Tensor:
    if hasattr(kind, "log_mean"):
        mean: Tensor = kind.log_mean(z).exp()
    else:
        assert hasattr(kind, "mean"), "it has log_mean, or mean"
        mean = kind.mean(z)
    return mean


def _within(limits: tuple[float, float], t: Tensor) -> tuple[Tensor, Tensor]:
    """From all numbers to those between the limits, and the derivative: an exponential from each finite limit."""
    low, high = limits
    if high < _HUGE:
        return low + (high - low) * t.sigmoid(), (high - low) * t.sigmoid() * (-t).sigmoid()
    return (low + t.exp(), t.exp()) if low > -_HUGE else (t.sinh(), t.cosh())


def _logits(kind: StageModule | ValueModule) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(_ROWS, kind.logits, generator=generator, dtype=torch.float64).requires_grad_()


def _all_learn(kind: StageModule | ValueModule, z: Tensor) -> None:
    """Every column of the logits, (batch, logits), and every parameter has a gradient."""
    assert z.grad is not None
    assert z.grad.any(dim=0).all(), "every logit gets a gradient"
    dead = [n for n, p in kind.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not dead, f"every parameter gets a gradient; these do not: {', '.join(dead)}"
