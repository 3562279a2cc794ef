"""Laws of samplers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from espace.chain.chain import Chain
from espace.contracts import Sampler, Score, ScoredSampler
from espace.testing.chains import CHAINS, random_labels
from espace.testing.law import law

_ROWS = 200
_DRAWS = 400


class Sampled(NamedTuple):
    """What a sampler gives; labels are those of the batch where it gives none."""

    rows: NDArray[np.int64]
    weights: NDArray[np.float32]
    labels: NDArray[np.int8]


class SamplerTests:
    """Laws of a sampler. Set `sampler`, `options`, and the `chains` that they are for."""

    sampler: ClassVar[Callable[..., Sampler | ScoredSampler]]
    options: ClassVar[Mapping[str, object]] = {}
    chains: ClassVar[Sequence[Sequence[str]]] = CHAINS

    def build(self, chain: Chain) -> Sampler | ScoredSampler:
        """The sampler of a chain."""
        return type(self).sampler(chain, **self.options)

    def test_gives_positions_and_a_weight_of_each(self) -> None:
        for chain in map(Chain.parse, self.chains):
            with law("any chain will do"):
                found = _sampled(self.build(chain), *_batch(chain))
            _check(found, chain, _ROWS)

    def test_a_row_of_weight_zero_stays_out(self) -> None:
        for chain in map(Chain.parse, self.chains):
            labels, weights = _batch(chain)
            weights[::3] = 0.0
            rows, new, _ = _sampled(self.build(chain), labels, weights)
            assert not new[weights[rows] == 0].any(), "a row of weight 0 keeps it: no loss and no metric may see it"

    def test_unknown_labels_are_allowed(self) -> None:
        self._with_all_labels(-1, "labels may be unknown, which is -1")

    def test_a_batch_in_which_nothing_happened_is_allowed(self) -> None:
        self._with_all_labels(0, "a batch may have no positive row")

    def test_no_rows_are_allowed(self) -> None:
        for chain in map(Chain.parse, self.chains):
            with law("a batch may have no rows"):
                found = _sampled(self.build(chain), *_batch(chain, rows=0))
            _check(found, chain, 0)

    def test_chance_comes_from_the_generator_only(self) -> None:
        for chain in map(Chain.parse, self.chains):
            found = []
            for seed in (1, 2):
                random.seed(seed)
                np.random.seed(seed)
                torch.manual_seed(seed)
                found.append(_sampled(self.build(chain), *_batch(chain)))
            assert _same(*found), "the same batch and generator give the same rows, so that a run can be repeated"

    def test_other_batches_leave_no_trace(self) -> None:
        for chain in map(Chain.parse, self.chains):
            used = self.build(chain)
            for seed in range(3):
                _sampled(used, *_batch(chain, seed=seed), seed=seed)
            same = _same(_sampled(used, *_batch(chain)), _sampled(self.build(chain), *_batch(chain)))
            assert same, "what it gives depends on this batch only, since a resumed run has not seen the ones before"

    def test_leaves_the_batch_as_it_is(self) -> None:
        for chain in map(Chain.parse, self.chains):
            labels, weights = _batch(chain)
            _sampled(self.build(chain), labels, weights)
            before = _batch(chain)
            same = np.array_equal(labels, before[0]) and np.array_equal(weights, before[1])
            assert same, "labels and weights are not changed in place"

    def test_uses_rows_as_often_as_its_rates_say(self) -> None:
        for chain in map(Chain.parse, self.chains):
            rates: Mapping[str, Sequence[float]] = getattr(self.build(chain), "rates", dict)()
            for name, each in rates.items():
                transition = next((t for t in chain.transitions if t.name == name), None)
                assert transition is not None, f"rates are for transitions of the chain, and '{name}' is none"
                assert len(each) == len(transition.classes), f"'{name}' has a rate for every outcome and for nothing"
                assert min(each) > 0, "a rate is above 0: what is never used cannot be made up for"
            if rates:
                self._keeps_to(chain, rates)

    def _keeps_to(self, chain: Chain, rates: Mapping[str, Sequence[float]]) -> None:
        """Of many draws, the weight of the rows of every path is what the rates make of it, up to one common factor."""
        torch.manual_seed(0)
        labels, weights = random_labels(chain, _ROWS).values.numpy(), np.ones(_ROWS, np.float32)
        paths = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
        expected = np.bincount(paths, _rate_of_each_row(chain, labels, rates))
        draws = (_sampled(self.build(chain), labels, weights, seed) for seed in range(_DRAWS))
        used = np.stack([np.bincount(paths[rows], new, len(expected)) for rows, new, _ in draws])  # (draws, paths)
        gap = used / expected.sum() - used.sum(1, keepdims=True) * (expected / expected.sum() ** 2)
        error = gap.std(0) / np.sqrt(_DRAWS)
        assert (abs(gap.mean(0)) <= 5 * error + 1e-6).all(), (
            "rows of a class are used as often, on average, as rates() says"
        )

    def _with_all_labels(self, value: int, told: str) -> None:
        for chain in map(Chain.parse, self.chains):
            labels, weights = _batch(chain)
            with law(told):
                found = _sampled(self.build(chain), np.full_like(labels, value), weights)
            _check(found, chain, _ROWS)


def _batch(chain: Chain, rows: int = _ROWS, seed: int = 0) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Labels, some of them unknown, and weights from 0.5 to 2."""
    torch.manual_seed(seed)
    labels = random_labels(chain, rows).values
    unknown = torch.rand(rows) < 0.1
    labels[unknown, -1] = -1
    return labels.numpy(), (0.5 + 1.5 * torch.rand(rows)).numpy()


def _sampled(
    sampler: Sampler | ScoredSampler, labels: NDArray[np.int8], weights: NDArray[np.float32], seed: int = 7
) -> Sampled:
    probability = np.linspace(0.02, 0.98, len(labels))
    score: list[Score] = [lambda rows: probability[rows]] if hasattr(sampler, "scored_by") else []
    rows, new, *changed = sampler(labels, weights, np.random.default_rng(seed), *score)
    return Sampled(rows, new, changed[0] if changed else labels[rows] if _inside(rows, len(labels)) else labels)


def _inside(rows: NDArray[np.int64], given: int) -> bool:
    return rows.ndim == 1 and rows.dtype == np.int64 and bool(((rows >= 0) & (rows < given)).all())


def _check(found: Sampled, chain: Chain, given: int) -> None:
    rows, weights, labels = found
    assert rows.ndim == 1, "positions are (rows,)"
    assert rows.dtype == np.int64, f"positions are int64, not {rows.dtype}"
    assert _inside(rows, given), f"a position is one of the {given} rows of the batch"
    assert weights.shape == rows.shape, "there is one weight for every position"
    assert weights.dtype == np.float32, f"weights are float32, not {weights.dtype}"
    assert np.isfinite(weights).all(), "weights are finite"
    assert (weights >= 0).all(), "weights are not negative"
    assert labels.shape == (len(rows), len(chain.stages) - 1), (
        "labels, if it gives any, are (rows, stages but the root)"
    )
    assert labels.dtype == np.int8, f"labels are int8, not {labels.dtype}"
    assert np.isin(labels, (1, 0, -1, -2)).all(), (
        "a label is 1, 0, -1 for not known, or -2 for a negative without parent"
    )


def _same(one: Sampled, other: Sampled) -> bool:
    same = np.array_equal(one.rows, other.rows) and np.array_equal(one.weights, other.weights)
    return same and np.array_equal(one.labels, other.labels)


def _rate_of_each_row(
    chain: Chain, labels: NDArray[np.int8], rates: Mapping[str, Sequence[float]]
) -> NDArray[np.float64]:
    """The product of the rates of the classes that each row takes: (rows,)."""
    found = np.ones(len(labels))
    happened = {chain.root: np.ones(len(labels), np.bool_), **dict(zip(chain.stages[1:], (labels == 1).T, strict=True))}
    for transition in (t for t in chain.transitions if t.name in rates):
        taken = np.stack([happened[o] for o in transition.outcomes])
        classes = np.where(taken.any(axis=0), taken.argmax(axis=0), len(taken))
        here = happened[transition.parent]
        found[here] *= np.asarray(rates[transition.name], float)[classes[here]]
    return found
