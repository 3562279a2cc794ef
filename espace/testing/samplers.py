"""Laws of samplers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from espace.chain import Chain
from espace.testing.chains import CHAINS, random_labels
from espace.testing.law import law

_ROWS = 200
Sampled = tuple[NDArray[np.int64], NDArray[np.float32]]


class SamplerTests:
    """Laws of a sampler. Set `sampler` and `options`."""

    sampler: ClassVar[Callable[..., Any]]
    options: ClassVar[Mapping[str, Any]] = {}

    def build(self, chain: Chain) -> Any:
        """The sampler of a chain."""
        return type(self).sampler(chain, **self.options)

    def test_gives_positions_and_a_weight_of_each(self) -> None:
        for chain in map(Chain.parse, CHAINS):
            with law("any chain will do"):
                rows, weights = _sampled(self.build(chain), *_batch(chain))
            _check(rows, weights, _ROWS)

    def test_a_row_of_weight_zero_stays_out(self) -> None:
        for chain in map(Chain.parse, CHAINS):
            labels, weights = _batch(chain)
            weights[::3] = 0.0
            rows, new = _sampled(self.build(chain), labels, weights)
            assert not new[weights[rows] == 0].any(), "a row of weight 0 keeps it: no loss and no metric may see it"

    def test_unknown_labels_are_allowed(self) -> None:
        self._with_all_labels(-1, "labels may be unknown, which is -1")

    def test_a_batch_in_which_nothing_happened_is_allowed(self) -> None:
        self._with_all_labels(0, "a batch may have no positive row")

    def test_no_rows_are_allowed(self) -> None:
        for chain in map(Chain.parse, CHAINS):
            with law("a batch may have no rows"):
                rows, weights = _sampled(self.build(chain), *_batch(chain, rows=0))
            _check(rows, weights, 0)

    def test_chance_comes_from_the_generator_only(self) -> None:
        for chain in map(Chain.parse, CHAINS):
            found = []
            for seed in (1, 2):
                random.seed(seed)
                np.random.seed(seed)
                torch.manual_seed(seed)
                found.append(_sampled(self.build(chain), *_batch(chain)))
            assert _same(*found), "the same batch and generator give the same rows, so that a run can be repeated"

    def test_other_batches_leave_no_trace(self) -> None:
        for chain in map(Chain.parse, CHAINS):
            used = self.build(chain)
            for seed in range(3):
                _sampled(used, *_batch(chain, seed=seed), seed=seed)
            same = _same(_sampled(used, *_batch(chain)), _sampled(self.build(chain), *_batch(chain)))
            assert same, "what it gives depends on this batch only, since a resumed run has not seen the ones before"

    def test_leaves_the_batch_as_it_is(self) -> None:
        for chain in map(Chain.parse, CHAINS):
            labels, weights = _batch(chain)
            _sampled(self.build(chain), labels, weights)
            before = _batch(chain)
            same = np.array_equal(labels, before[0]) and np.array_equal(weights, before[1])
            assert same, "labels and weights are not changed in place"

    def _with_all_labels(self, value: int, told: str) -> None:
        for chain in map(Chain.parse, CHAINS):
            labels, weights = _batch(chain)
            with law(told):
                rows, new = _sampled(self.build(chain), np.full_like(labels, value), weights)
            _check(rows, new, _ROWS)


def _batch(chain: Chain, rows: int = _ROWS, seed: int = 0) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Labels, some of them unknown, and weights from 0.5 to 2."""
    torch.manual_seed(seed)
    labels = random_labels(chain, rows).values
    unknown = torch.rand(rows) < 0.1
    labels[unknown, -1] = -1
    return labels.numpy(), (0.5 + 1.5 * torch.rand(rows)).numpy()


def _sampled(sampler: Any, labels: NDArray[np.int8], weights: NDArray[np.float32], seed: int = 7) -> Sampled:
    rows, new = sampler(labels, weights, np.random.default_rng(seed))
    return rows, new


def _check(rows: NDArray[np.int64], weights: NDArray[np.float32], given: int) -> None:
    assert rows.ndim == 1, "positions are (rows,)"
    assert rows.dtype == np.int64, f"positions are int64, not {rows.dtype}"
    assert ((rows >= 0) & (rows < given)).all(), f"a position is one of the {given} rows of the batch"
    assert weights.shape == rows.shape, "there is one weight for every position"
    assert weights.dtype == np.float32, f"weights are float32, not {weights.dtype}"
    assert np.isfinite(weights).all(), "weights are finite"
    assert (weights >= 0).all(), "weights are not negative"


def _same(one: Sampled, other: Sampled) -> bool:
    return np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])
