"""Whether training has diverged: whether the weights that it leaves are far worse than base rates alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from espace.contracts import Objective
from espace.data.stream.stream import Stream
from espace.errors import DivergedError
from espace.model.model import Model
from espace.training.judging import TermMeans, Terms

_FAR = 3.0  # nats a row: an average likelihood exp(3) = 20 times too low
_TIMES = 3.0  # of the size of the term, whose unit need not be nats


@torch.no_grad()
def base_terms(model: Model, starts: Mapping[str, Tensor], objective: Objective, stream: Stream) -> dict[str, float]:
    """{term: its mean over a stream} of a model that says the same of all rows: the logits `starts` of every head."""
    means = TermMeans(list(objective.terms), lambda terms: torch.zeros(()))
    for batch in stream:
        means.update(Terms.of(objective, model.constant(starts, len(batch)), batch))
    found = means.compute()
    return {name: float(found[f"loss/{name}"]) for name in objective.terms}


def may_have_diverged(metrics: Mapping[str, float], model: Model) -> bool:
    """Whether it is worth a look: the terms of probabilities are not below 0, so small ones are far above nothing."""
    terms = [value for name, value in metrics.items() if name.startswith("loss/")]
    return bool(model.chain.values) or any(value > _FAR for value in terms)


def refuse_diverged(metrics: Mapping[str, float], base: Mapping[str, float], part: str, folder: Path) -> None:
    """Raise DivergedError where a loss term is far above that of base rates alone. metrics: of the trained weights."""
    far = {n: v for n, v in base.items() if metrics[f"loss/{n}"] - v > max(_FAR, _TIMES * abs(v))}
    if far:
        told = ", ".join(f"{metrics[f'loss/{n}']:.4g} of {n} where they have {v:.4g}" for n, v in far.items())
        raise DivergedError(
            f"{folder}: training has diverged. On the {part} rows the best weights have a loss far above that of base"
            f" rates alone: {told}. Results and checkpoints are kept there, but what they predict is of no use. Lower"
            " optimizer.lr, set trainer.gradient_clip_val, or look for huge numbers among the features."
        )
