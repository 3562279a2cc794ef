"""Logits to probabilities of a chain, exactly: log space, both tails, no epsilon, no clamp, no product of sigmoids.

Forward, the total probability over the parents u of a stage v, which exclude each other:

    log P(v) = logsumexp_u( log P(u) + log P(v | u) )

Backward from the target v, the other tail, with o over all outcomes of the transition at u that can lead to v:

    log P(not v | u) = logsumexp_o( log P(o | u) + log P(not v | o) )

where log P(not v | o) is 0 for an outcome that cannot lead to v ("nothing" among them) and v itself is left out.
On the chain of ESMM (Ma et al., SIGIR 2018) log P(conversion) is the logarithm of eq. (1), pCTR x pCVR.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from espace.chain import Chain, Transition
from espace.errors import ChainError, did_you_mean


class Probabilities:
    """Every probability of `chain`, from the logits of its transitions.

    Args:
        chain: the chain.
        logits: `{transition name: (batch, K)}` with one column per named outcome. Half precision is widened to float32.
        kinds: `{transition name: stage kind}` for transitions of one outcome that are not the sigmoid of their logit: called
            with (batch, kind.logits), gives log P(outcome given parent) and log P(not outcome given parent), (batch,) each.

    Raises ChainError when a transition has no logits or theirs have another shape than (batch, K).
    """

    def __init__(self, chain: Chain, logits: Mapping[str, Tensor], kinds: Mapping[str, Any] | None = None) -> None:
        self.chain = chain
        self._steps = {t: _log_classes(t, logits, (kinds or {}).get(t.name)) for t in chain.transitions}
        first = chain.transitions[0]
        self._certain = torch.zeros_like(self._steps[first][first.outcomes[0]])  # (batch,), log of 1
        self._reach: dict[tuple[str, str], Tensor] = {}
        self._miss: dict[tuple[str, str], Tensor] = {}

    def log_prob(self, stage: str, given: str | None = None) -> Tensor:
        """log P(stage), or log P(stage given an earlier stage): (batch,).

        Raises ChainError for an unknown name, or when `given` does not come before `stage`.
        """
        start = self._start(stage, given)
        return self._log_reach(stage, start)

    def log_not_prob(self, stage: str, given: str | None = None) -> Tensor:
        """log P(not stage), or log P(not stage given an earlier stage): (batch,). Raises as `log_prob`."""
        start = self._start(stage, given)
        if start == stage:
            raise ChainError(f"log_not_prob: '{stage}' given '{stage}' is certain, so its complement has no logarithm.")
        return self._log_miss(start, stage)

    def logit(self, stage: str, given: str | None = None) -> Tensor:
        """log P - log(1 - P), finite and exact in both tails: (batch,). Raises as `log_prob`."""
        return self.log_prob(stage, given) - self.log_not_prob(stage, given)

    def prob(self, stage: str, given: str | None = None) -> Tensor:
        """P(stage), or P(stage given an earlier stage): (batch,). Raises as `log_prob`."""
        return self.log_prob(stage, given).exp()

    def log_nothing(self, transition: Transition) -> Tensor:
        """log P(none of the named outcomes given the parent), the last class of a transition: (batch,)."""
        return self._steps[transition][transition.otherwise]

    def _start(self, stage: str, given: str | None) -> str:
        self.chain.check(stage)
        start = self.chain.root if given is None else given
        self.chain.check(start)
        if not self.chain.leads(start, stage):
            raise ChainError(
                f"P({stage} given {start}): '{start}' does not come before '{stage}' in this chain. Its earlier stages are"
                f" {', '.join(sorted(self.chain.ancestors(stage))) or 'none'}."
            )
        return start

    def _log_reach(self, stage: str, start: str) -> Tensor:
        """log P(stage given start), forward over the parents that `start` leads to."""
        if (stage, start) not in self._reach:
            if stage == start:
                self._reach[stage, start] = self._certain
            else:
                arrivals = (t for t in self.chain.arrivals(stage) if self.chain.leads(start, t.parent))
                self._reach[stage, start] = _log_sum(
                    [
                        self._steps[t][stage]
                        if t.parent == start
                        else self._log_reach(t.parent, start) + self._steps[t][stage]
                        for t in arrivals
                    ]
                )
        return self._reach[stage, start]

    def _log_miss(self, start: str, target: str) -> Tensor:
        """log P(not target given start), backward over the one transition at `start` that can lead to `target`."""
        if (start, target) not in self._miss:
            step = next(t for t in self.chain.departures(start) if any(self.chain.leads(c, target) for c in t.children))
            self._miss[start, target] = _log_sum(
                [
                    log_p + self._log_miss(outcome, target)
                    if outcome is not None and self.chain.leads(outcome, target)
                    else log_p
                    for outcome, log_p in self._steps[step].items()
                    if outcome != target
                ]
            )
        return self._miss[start, target]


def _log_classes(transition: Transition, logits: Mapping[str, Tensor], kind: Any) -> dict[str | None, Tensor]:
    """log P of every class of one transition: `{outcome: (batch,)}`; None is "nothing".

    `log_softmax([z_1 .. z_K, 0])`, for one outcome a sigmoid, unless a stage kind says otherwise.
    """
    if transition.name not in logits:
        raise ChainError(f"logits: none for '{transition.name}'.{did_you_mean(transition.name, logits)}")
    z = logits[transition.name]  # (batch, K)
    count = len(transition.outcomes) if kind is None else kind.logits
    if z.dim() != 2 or z.shape[1] != count:
        raise ChainError(f"logits: '{transition.name}' has shape {tuple(z.shape)}; it has to be (batch, {count}).")
    if z.dtype not in (torch.float32, torch.float64):
        z = z.float()
    if kind is not None:
        both = list(kind(z))
    elif count == 1:
        both = [F.logsigmoid(z[:, 0]), F.logsigmoid(-z[:, 0])]
    else:
        both = list(F.log_softmax(F.pad(z, (0, 1)), dim=1).unbind(1))
    return dict(zip(transition.classes, both, strict=True))


def _log_sum(terms: list[Tensor]) -> Tensor:
    """logsumexp over a list of (batch,) tensors."""
    if len(terms) == 1:
        return terms[0]
    if len(terms) == 2:
        return torch.logaddexp(terms[0], terms[1])
    return torch.logsumexp(torch.stack(terms), dim=0)


@dataclass(frozen=True)
class Scored:
    """Predictions of one probability beside its labels, on the rows of one space only: what a metric judges.

    log_prob, log_not_prob: (rows,) float; labels: (rows,) float32, 0 or 1; weights: (rows,) float32;
    extras: other columns of those rows by name, (rows,), such as group keys (int64); made: what one metric has made of them
    and another can use.
    """

    log_prob: Tensor
    log_not_prob: Tensor
    labels: Tensor
    weights: Tensor
    extras: Mapping[str, Tensor]
    made: dict[object, Any] = field(default_factory=dict, init=False, repr=False, compare=False)


@dataclass(frozen=True)
class Term:
    """What a loss term is, for people: printed by `espace show` and in the audit.

    stages: whose `stages.<name>.weight` it takes; given: the stage that has to have happened in its rows, None for all rows;
    loss: of one row; rows: on which it is judged; divisor: by the number of which rows it is divided.
    """

    stages: tuple[str, ...]
    given: str | None
    loss: str
    rows: str
    divisor: str
