"""Laws of metrics, random rows to judge, and what the ranks of a distributed run would agree on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from itertools import pairwise
from typing import ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torchmetrics import Metric

from espace.chain.scored import Scored, ScoredValue
from espace.testing.law import law

_ROWS = 300
Rows = TypeVar("Rows", bound=Scored | ScoredValue)


class MetricTests:
    """Laws of a metric. Set `metric` and `options`; `counts` to the names that count something, and are 0 without rows.

    The rows have predictions in float32 and two extra columns: `user`, integers, and `true`, probabilities, some of
    them NaN. Those of a metric with `of_values` have amounts and expectations instead of labels and probabilities. A
    metric that keeps rows up to a limit needs `options` with a limit of a few hundred.
    """

    metric: ClassVar[Callable[..., Metric]]
    options: ClassVar[Mapping[str, object]] = {}
    counts: ClassVar[tuple[str, ...]] = ()

    def build(self) -> Metric:
        """A metric that has seen nothing."""
        return type(self).metric(**self.options)

    def example(self, rows: int = _ROWS, seed: int = 0) -> Scored | ScoredValue:
        """Rows with predictions in float32, as a model gives them.

        For `of_values` they are of a value, some of whose amounts are 0.
        """
        wide = example_scored(rows, seed=seed)
        if not getattr(self.build(), "of_values", False):
            return replace(wide, log_prob=wide.log_prob.float(), log_not_prob=wide.log_not_prob.float())
        expected = wide.log_prob.exp() * 50
        amounts = wide.labels * expected * (0.5 * torch.randn(rows)).exp()
        return ScoredValue(expected.float(), amounts.float(), wide.weights, wide.extras)

    def test_names_do_not_depend_on_the_rows(self) -> None:
        rows = self.example()
        cases = [rows, self.example(0), *(replace(rows, labels=torch.full_like(rows.labels, y)) for y in (0.0, 1.0))]
        found = [_computed(self.build(), case) for case in cases]
        assert found[0], "a metric computes {name: number}"
        same = all(values.keys() == found[0].keys() for values in found)
        assert same, "compute gives the same names whatever the rows are, since `monitor` may ask for any of them"
        numbers = all(value.shape == () for values in found for value in values.values())
        assert numbers, "each value is one number, a tensor of shape ()"

    def test_pieces_give_what_the_whole_gives(self) -> None:
        rows = self.example()
        ends = [[0, 0, 7, 150, 150, _ROWS], [0, 1, 200, _ROWS], [*range(0, _ROWS + 1, 4)], [*range(_ROWS + 1)]]
        cut = ([take(rows, slice(a, b)) for a, b in pairwise(at)] for at in ends)
        whole = judge(self.build(), rows)
        same = all(_close(judge(self.build(), *pieces), whole) for pieces in cut)
        assert same, "reading in pieces gives what reading at once gives, to nine digits: add up, in float64"

    def test_the_order_of_rows_does_not_matter(self) -> None:
        rows = self.example()
        same = _close(judge(self.build(), take(rows, torch.arange(_ROWS).flip(0))), judge(self.build(), rows))
        assert same, "the order of the rows does not matter"

    def test_rows_of_weight_zero_count_for_nothing(self) -> None:
        rows = self.example()
        hidden = torch.arange(_ROWS) % 3 == 0
        weighted = replace(rows, weights=torch.where(hidden, 0.0, rows.weights))
        same = _close(judge(self.build(), weighted), judge(self.build(), take(rows, ~hidden)))
        assert same, "rows of weight 0 count for nothing"

    def test_no_rows_give_nan(self) -> None:
        with law("a part may have no rows in the space of a metric"):
            values = judge(self.build(), self.example(0))
        wrong = [name for name, v in values.items() if not math.isnan(v) and not (name in self.counts and v == 0)]
        assert not wrong, (
            f"without rows a metric is NaN, and a count (`counts`) is 0; these are not: {', '.join(wrong)}"
        )

    def test_one_class_alone_gives_no_infinity(self) -> None:
        for label in (0.0, 1.0):
            with law("all rows may have one label"):
                values = judge(self.build(), replace(self.example(), labels=torch.full((_ROWS,), label)))
            wrong = [name for name, value in values.items() if math.isinf(value)]
            assert not wrong, f"a metric is NaN where it is undefined, never infinite; these are: {', '.join(wrong)}"

    def test_ranks_together_give_what_one_gives(self) -> None:
        rows, ranks = self.example(), [self.build() for _ in range(4)]
        for rank, cut in zip(ranks, (slice(0, 250), slice(250, _ROWS), slice(0, 0)), strict=False):
            rank.update(take(rows, cut))  # the last one has seen no batch
        told = "the states of all ranks, put together by dist_reduce_fx, give what one process gives"
        with law(told):
            together = gathered(ranks)
        assert _close(together, judge(self.build(), rows)), told

    def test_memory_does_not_grow_with_the_rows(self) -> None:
        metric = self.build()
        metric.update(self.example(2_000))
        before = _size(metric)
        for seed in range(1, 10):
            metric.update(self.example(2_000, seed))
        grown = _size(metric) - before
        assert grown < 18_000, f"memory does not grow with the rows: 18,000 more rows took {grown:,} more bytes"

    def test_reset_forgets(self) -> None:
        metric = self.build()
        judge(metric, self.example(seed=1))
        metric.reset()
        same = _close(judge(metric, self.example()), judge(self.build(), self.example()))
        assert same, "reset forgets all rows: what is remembered is an add_state"

    def test_a_copy_lives_on_its_own(self) -> None:
        metric = self.build()
        metric.update(self.example())
        copy.deepcopy(metric).update(self.example(seed=1))
        same = _close(judge(metric), judge(self.build(), self.example()))
        assert same, "a copy lives on its own, since every probability gets one"


def scored(logits: Tensor, labels: Tensor, weights: Tensor | None = None, **extras: Tensor) -> Scored:
    """Predictions with these logits, (rows,), beside their labels."""
    weights = torch.ones(len(logits)) if weights is None else weights
    return Scored(logsigmoid(logits), logsigmoid(-logits), labels.float(), weights.float(), extras)


def example_scored(
    rows: int, *, seed: int = 0, mean: float = -1.0, std: float = 1.5, users: int = 30, weights: bool = True
) -> Scored:
    """Labels drawn from the predictions themselves; half of the logits are rounded, so that many tie. In float64."""
    torch.manual_seed(seed)
    logits = mean + std * torch.randn(rows, dtype=torch.float64)
    logits = torch.where(torch.rand(rows) < 0.5, logits, (4 * logits).round() / 4)
    labels = torch.bernoulli(logits.sigmoid())
    weight = torch.randint(1, 4, (rows,)) if weights else None
    user = torch.randint(0, users, (rows,))
    true = (logits + 0.5 * torch.randn(rows)).sigmoid().where(torch.rand(rows) < 0.9, torch.nan)
    return scored(logits, labels, weight, user=user, true=true)


def take(rows: Rows, index: Tensor | slice) -> Rows:
    """Some of the rows."""
    columns = {f.name: getattr(rows, f.name) for f in fields(rows) if f.init and f.name not in ("extras", "made")}
    taken = {name: column[index] for name, column in columns.items()}
    return type(rows)(**taken, extras={name: column[index] for name, column in rows.extras.items()})


def judge(metric: Metric, *parts: Scored | ScoredValue) -> dict[str, float]:
    """What the metric computes after it has seen these rows too."""
    return {name: value.item() for name, value in _computed(metric, *parts).items()}


def gathered(ranks: list[Metric]) -> dict[str, float]:
    """What rank 0 computes when torch.distributed gathers the states of all ranks."""
    heard: list[list[Tensor]] = []
    for rank in ranks:
        said: list[Tensor] = []

        def listen(state: Tensor, group: object, said: list[Tensor] = said) -> list[Tensor]:
            said.append(state)
            return [state]

        with rank.sync_context(dist_sync_fn=listen, distributed_available=lambda: True):
            heard.append(said)
    states = zip(*heard, strict=True)

    def gather(_: Tensor, group: object) -> list[Tensor]:
        same = list(next(states))
        assert len({state.dtype for state in same}) == 1, "ranks would exchange different types"
        return same

    ranks[0].dist_sync_fn, ranks[0].distributed_available_fn = gather, lambda: True
    return judge(ranks[0])


def _computed(metric: Metric, *parts: Scored | ScoredValue) -> dict[str, Tensor]:
    for part in parts:
        metric.update(part)
    values: dict[str, Tensor] = metric.compute()
    return values


def _close(values: Mapping[str, float], others: Mapping[str, float]) -> bool:
    return values.keys() == others.keys() and all(
        math.isclose(a, others[name], rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(a) and math.isnan(others[name]))
        for name, a in values.items()
    )


def _size(metric: Metric) -> int:
    """Bytes of all states."""
    states = [s if isinstance(s, list) else [s] for s in metric.metric_state.values()]
    return sum(tensor.nbytes for state in states for tensor in state)
