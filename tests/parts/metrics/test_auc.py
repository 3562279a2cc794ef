"""AUC equals scikit-learn's up to a number of rows, and beyond it to less than a thousandth, whatever is predicted."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

from espace.chain.scored import Scored
from espace.parts.metrics import logit
from espace.parts.metrics.auc import AUC
from tests.parts.metrics.draws import draw, gathered, judge, scored, take

Draw = Callable[[int], tuple[Tensor, Tensor, Tensor]]  # rows: their logits, labels and weights


def exact(rows: Scored) -> float:
    return float(roc_auc_score(rows.labels, logit(rows), sample_weight=rows.weights))


def rows_of(logits: Tensor, labels: Tensor, weights: Tensor) -> Scored:
    """Rows whose logits are these to the last bit."""
    return Scored(logits.clamp(max=0), -logits.clamp(min=0), labels, weights, {})


def shaped(change: Callable[[Tensor], Tensor]) -> Draw:
    """Scores with an AUC of about 0.75, changed without changing their order."""

    def drawn(rows: int) -> tuple[Tensor, Tensor, Tensor]:
        normal = torch.randn(rows, dtype=torch.float64)
        return change(normal), torch.bernoulli((normal - 2).sigmoid()), torch.ones(rows)

    return drawn


def by_label(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    logits, labels, weights = shaped(lambda x: x)(rows)
    order = labels.argsort(stable=True)
    return logits[order], labels[order], weights


def wide_then_narrow(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    logits, labels, weights = shaped(lambda x: x)(rows)
    return torch.cat([5 * logits[: rows // 3], 1e-7 * logits[rows // 3 :]]), labels, weights


def rare(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    logits, _, weights = shaped(lambda x: x)(rows)
    return logits, (torch.rand(rows) < 0.003 * logits.exp()).float(), weights


def in_turn(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.arange(rows) * 1e-9, (torch.arange(rows) % 2).float(), torch.ones(rows)


def heavy(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    logits, labels, _ = shaped(lambda x: x)(rows)
    return logits, labels, torch.randn(rows).mul(3).exp()


DRAWS: dict[str, Draw] = {
    "a bell": shaped(lambda x: x - 3),
    "almost the same everywhere": shaped(lambda x: 1e-9 * x - 3),
    "within a float32": shaped(lambda x: (1e-6 * x - 3).float()),
    "huge logits": shaped(lambda x: 1e3 * x + 1e5),
    "all scales": shaped(lambda x: x.sign() * 10 ** (8 * x.abs())),
    "two values": shaped(lambda x: (x > 0).double()),
    "half of them tie": shaped(lambda x: x.where(torch.rand(len(x)) < 0.5, 0.1)),
    "rising": shaped(lambda x: x.sort().values),
    "by label": by_label,
    "wide, then narrow": wide_then_narrow,
    "rare": rare,
    "the classes in turn": in_turn,
    "weights over six decades": heavy,
}


@pytest.mark.parametrize("name", DRAWS)
def test_it_is_that_of_scikit_learn_up_to_the_number_of_rows_that_fit(name: str) -> None:
    torch.manual_seed(0)
    rows = rows_of(*DRAWS[name](20_000))
    assert judge(AUC(), rows)["auc"] == pytest.approx(exact(rows), abs=1e-11)


@pytest.mark.parametrize("name", DRAWS)
def test_beyond_that_it_is_off_by_less_than_a_thousandth_in_bounded_memory(name: str) -> None:
    torch.manual_seed(0)
    metric, rows = AUC(max_rows=3000, bins=2000), rows_of(*DRAWS[name](60_000))
    for part in torch.arange(60_000).split(997):
        metric.update(take(rows, part))
    assert judge(metric)["auc"] == pytest.approx(exact(rows), abs=1e-3)
    kept = sum(tensor.nbytes for state in metric.metric_state.values() for tensor in state)
    assert kept <= 24 * (3000 + 5 * 2 * 2000), "one of the merged for every doubling of the rows"


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    std=st.sampled_from([1e-9, 1e-3, 0.05, 1.0, 1e4]),
    bins=st.sampled_from([1, 5, 50]),
    max_rows=st.sampled_from([1, 20, 100, 500]),
)
def test_its_error_is_within_the_stated_bound(seed: int, std: float, bins: int, max_rows: int) -> None:
    rows, metric = draw(400, seed=seed, std=std, mean=0.0), AUC(bins=bins, max_rows=max_rows)
    for part in torch.arange(400).split(37):
        metric.update(take(rows, part))
    bound = 4 * (1 + math.log2(max(1, 400 / max_rows))) / bins if max_rows < 400 else 1e-12
    assert abs(judge(metric)["auc"] - exact(rows)) <= bound


def test_ranks_that_merged_give_together_what_all_rows_do_and_go_on() -> None:
    torch.manual_seed(0)
    rows, ranks = rows_of(*DRAWS["a bell"](20_000)), [AUC(max_rows=900, bins=2000) for _ in range(3)]
    cuts = torch.arange(20_000).split(9_000)
    for rank, cut in zip(ranks, cuts, strict=True):
        for part in cut.split(300):
            rank.update(take(rows, part))
    assert gathered(ranks) == pytest.approx({"auc": exact(rows)}, abs=1e-3)
    for part in cuts[0].split(300):
        ranks[1].update(take(rows, part))
    assert judge(ranks[1])["auc"] == pytest.approx(exact(take(rows, torch.cat(cuts[:2]))), abs=1e-3)


def test_a_monotone_transform_of_the_scores_changes_nothing() -> None:
    rows = draw(20_000)
    stretched = scored(torch.expm1(logit(rows) / 3) * 5 - 2, rows.labels, rows.weights)
    assert judge(AUC(), stretched)["auc"] == pytest.approx(judge(AUC(), rows)["auc"], abs=1e-12)


def test_exchanging_the_classes_gives_one_minus_auc() -> None:
    rows = draw(2000)
    mirrored = scored(logit(rows), 1 - rows.labels, rows.weights)
    assert judge(AUC(), mirrored)["auc"] == pytest.approx(1 - judge(AUC(), rows)["auc"], abs=1e-12)


def test_equal_scores_are_worth_one_half() -> None:
    rows = scored(torch.full((100,), -6.1), (torch.arange(100) < 3).float())
    assert judge(AUC(), rows) == pytest.approx({"auc": 0.5}, abs=1e-12)


@pytest.mark.parametrize("size", [41.0, 1e4, 1e30])
def test_scores_of_any_size_are_told_apart(size: float) -> None:
    logits = torch.tensor([-size, 0.9 * size, size], dtype=torch.float64)
    assert judge(AUC(), rows_of(logits, torch.tensor([0.0, 0.0, 1.0]), torch.ones(3))) == {"auc": 1.0}


def test_without_positives_it_is_nan_and_not_zero() -> None:
    assert math.isnan(judge(AUC(), scored(torch.randn(10), torch.zeros(10)))["auc"])
