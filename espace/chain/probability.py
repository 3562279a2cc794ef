"""Logits to probabilities of a chain, exactly: log space, both tails, no epsilon, no clamp, no product of sigmoids.

Forward, the total probability over the parents u of a stage v, which exclude each other:

    log P(v) = logsumexp_u( log P(u) + log P(v | u) )

The other tail is that no edge into v is taken. Of a set E of edges that exclude each other, let u be the latest parent.
Either u is not reached, or it is and another of its outcomes o happens:

    log P(none of E) = logsumexp( log P(none of E - edges of u + edges into u), log P(u) + logsumexp_o log P(o | u) )

Stages behind the same u share what is not reached before it, so both tails of all stages of an ordinary chain take as
many sums as it has transitions, each of positive numbers. A *joint* head gives P(v) itself: to all sums over the entire
space its transition leaves the root. P(v | u) is then the ratio P(v) / P(u), which may exceed 1, and log P(not v | u)
the logarithm of what is left of 1, -inf where nothing is. On the chain of ESMM (Ma et al., SIGIR 2018) log
P(conversion) is the logarithm of eq. (1), pCTR x pCVR.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from espace.chain.chain import Chain
from espace.chain.grammar import Transition, Value
from espace.chain.kinds import AmountKind, Kind, OutcomeKind, PositiveKind, of_stage, of_value
from espace.errors import ChainError, did_you_mean

Edges = frozenset[tuple[int, str]]  # (place of a transition in the chain, one of its classes)


class Probabilities:
    """Every probability of `chain`, from the logits of its transitions.

    Args:
        chain: the chain.
        logits: `{transition name: (batch, K)}` with one column per named outcome. Half precision is widened to float32.
        kinds: `{transition name: stage kind}` for transitions of one outcome that are not the sigmoid of their logit:
            called with (batch, kind.logits), gives log P(outcome given parent) and log P(not outcome given parent),
            (batch,) each. And for every value, with `log_density(z, amounts)` and either `log_mean(z)` or `mean(z)`,
            (batch,) each.
        joint: stages whose logits are those of P(stage) over all impressions instead of P(stage given parent).

    Raises ChainError when a transition or value has no logits or theirs have another shape than (batch, K), for a value
    without a kind, and for a stage that cannot be joint.
    """

    def __init__(
        self,
        chain: Chain,
        logits: Mapping[str, Tensor],
        kinds: Mapping[str, Kind] | None = None,
        joint: Collection[str] = (),
    ) -> None:
        self.chain = chain
        self.joint = frozenset(joint)
        for stage in joint:
            if problem := chain.why_not_joint(stage):
                raise ChainError(f"joint head: {problem}")
        kinds = kinds or {}
        self._steps = {t: _log_classes(t, logits, of_stage(kinds.get(t.name))) for t in chain.transitions}
        self._amounts = {v.amount: _kind_and_logits(v, logits, kinds) for v in chain.values}
        self._places = {t: place for place, t in enumerate(chain.transitions)}
        first = chain.transitions[0]
        self._certain = torch.zeros_like(self._steps[first][first.outcomes[0]])  # (batch,), log of 1
        self._reach: dict[tuple[str, str], Tensor] = {}
        self._none: dict[tuple[Edges, str], Tensor | None] = {}

    def log_prob(self, stage: str, given: str | None = None) -> Tensor:
        """log P(stage), or log P(stage given an earlier stage): (batch,). That of a ratio of two heads may be above 0.

        Raises ChainError for an unknown name, or when `given` does not come before `stage`.
        """
        start = self._start(stage, given)
        return self._log_reach(stage, start)

    def log_not_prob(self, stage: str, given: str | None = None) -> Tensor:
        """log P(not stage), or log P(not stage given an earlier stage): (batch,). Raises as `log_prob`.

        -inf, with no gradient, where a ratio of two heads is 1 or more.
        """
        start = self._start(stage, given)
        if start == stage:
            raise ChainError(f"log_not_prob: '{stage}' given '{stage}' is certain, so its complement has no logarithm.")
        if self._is_ratio(stage, start):
            return _log_rest(self._log_reach(stage, start))
        log_p = self._log_none(self._edges_into(stage, start), start)
        assert log_p is not None  # every transition has a class besides `stage`
        return log_p

    def logit(self, stage: str, given: str | None = None) -> Tensor:
        """log P - log(1 - P), finite and exact in both tails: (batch,); inf where a ratio of two heads is 1 or more.
        Raises as `log_prob`."""
        return self.log_prob(stage, given) - self.log_not_prob(stage, given)

    def prob(self, stage: str, given: str | None = None) -> Tensor:
        """P(stage), or P(stage given an earlier stage): (batch,). Raises as `log_prob`."""
        return self.log_prob(stage, given).exp()

    def value(self, amount: str, given: str | None = None) -> Tensor:
        """E[amount], 0 where its parent does not happen, or E[amount given an earlier stage]: (batch,).

        E[amount] = P(parent) E[amount given parent], the product taken in log space where the amount is positive.
        Raises ChainError for an unknown value, or when `given` is neither its parent nor before that.
        """
        log_p = self.log_prob(self.chain.value(amount).parent, given)
        kind, z = self._amounts[amount]
        if isinstance(kind, PositiveKind):
            return (log_p + kind.log_mean(z)).exp()
        return log_p.exp() * kind.mean(z)

    def log_density(self, amount: str, observed: Tensor) -> Tensor:
        """log p(observed given parent), of an atom the logarithm of its probability: (batch,).

        observed: (batch,), NaN where there is none; there the result is 0, and so is its gradient.
        """
        self.chain.value(amount)
        kind, z = self._amounts[amount]
        rows = (~observed.isnan()).nonzero().squeeze(1)
        found = kind.log_density(z.index_select(0, rows), observed.index_select(0, rows).to(z.dtype))
        return z.new_zeros(len(z)).index_add(0, rows, found)

    def reweighted(self, rates: Mapping[str, Sequence[float]]) -> Probabilities:
        """Those of the same rows when each counts with the product of the rates of the classes that it takes.

        With W(u), what a row at u counts for on average below u, and w(c) the rate of class c of the transition at u:

            P'(c | u) = P(c | u) w(c) W(c) / sum of the same over its classes
            W(u) = product of these sums over transitions

        rates: `{transition name: (K + 1) positive numbers}`, the last for else or nothing; 1 where there are none. No
        stage may be joint. Transitions from which nothing leads to a rate stay as they are to the bit.
        """
        found = copy.copy(self)
        found._steps, found._reach, found._none = dict(self._steps), {}, {}
        log_w: dict[str | None, Tensor] = {}  # of stages below which a row counts for something else than 1
        for t in reversed(self.chain.transitions):
            log_rates = [math.log(rate) for rate in rates.get(t.name, [1.0] * len(t.classes))]
            if any(log_rates) or any(c in log_w for c in t.children):
                weighted = [
                    log_p + log_rate + log_w.get(c, 0.0)
                    for (c, log_p), log_rate in zip(self._steps[t].items(), log_rates, strict=True)
                ]
                found._steps[t] = dict(zip(t.classes, _normalised(weighted), strict=True))
                log_w[t.parent] = _log_sum(weighted) + log_w.get(t.parent, 0.0)
        return found

    def alone(self, stage: str) -> Probabilities:
        """The same numbers, of which only P(stage given its parents) learns: all other transitions are constants.

        Raises ChainError for an unknown stage.
        """
        self.chain.check(stage)
        into, found = self.chain.arrivals(stage), copy.copy(self)
        found._reach, found._none = {}, {}
        found._steps = {
            t: steps if t in into else {c: log_p.detach() for c, log_p in steps.items()}
            for t, steps in self._steps.items()
        }
        return found

    def log_nothing(self, transition: Transition) -> Tensor:
        """log P(none of the named outcomes given the parent), the last class of a transition: (batch,)."""
        if self._is_joint(transition):
            return self.log_not_prob(transition.outcomes[0], transition.parent)
        return self._steps[transition][transition.otherwise]

    def is_ratio(self, stage: str, given: str | None = None) -> bool:
        """Whether P(stage given ...) is a ratio of two heads, which may exceed 1. Raises as `log_prob`."""
        return self._is_ratio(stage, self._start(stage, given))

    def _is_ratio(self, stage: str, start: str) -> bool:
        return start != self.chain.root and bool(self.chain.between(self.joint, stage, start))

    def _is_joint(self, transition: Transition) -> bool:
        return transition.outcomes[0] in self.joint

    def _start(self, stage: str, given: str | None) -> str:
        self.chain.check(stage)
        start = self.chain.root if given is None else given
        self.chain.check(start)
        if not self.chain.leads(start, stage):
            raise ChainError(
                f"P({stage} given {start}): '{start}' does not come before '{stage}' in this chain."
                f" Its earlier stages are {', '.join(sorted(self.chain.ancestors(stage))) or 'none'}."
            )
        return start

    def _log_reach(self, stage: str, start: str) -> Tensor:
        """log P(stage given start), forward over the parents that `start` leads to."""
        if stage == start:
            return self._certain
        if (stage, start) not in self._reach:
            arrivals = (t for t in self.chain.arrivals(stage) if self.chain.leads(start, t.parent))
            self._reach[stage, start] = _log_sum([self._log_arrival(t, stage, start) for t in arrivals])
        return self._reach[stage, start]

    def _log_arrival(self, transition: Transition, stage: str, start: str) -> Tensor:
        """log P(stage is reached through transition, given start)."""
        parent, log_p = transition.parent, self._steps[transition][stage]
        if self._is_joint(transition):
            if start == self.chain.root:
                return log_p
            log_p = log_p - self._log_reach(parent, self.chain.root)
        return self._after(parent, start, log_p)

    def _after(self, parent: str, start: str, log_p: Tensor) -> Tensor:
        """log P(parent given start) + log_p."""
        return log_p if parent == start else self._log_reach(parent, start) + log_p

    def _edges_into(self, stage: str, start: str) -> Edges:
        """The ways into `stage` on which `start` lies."""
        arrivals = self.chain.arrivals(stage)
        return frozenset((self._places[t], stage) for t in arrivals if self.chain.leads(start, t.parent))

    def _log_none(self, edges: Edges, start: str) -> Tensor | None:
        """log P(none of `edges`, which exclude each other, is taken given start); None where one of them has to be."""
        if (edges, start) not in self._none:
            place, _ = max(edges)
            latest = self.chain.transitions[place]
            parent = self.chain.root if self._is_joint(latest) else latest.parent
            others = [log_p for outcome, log_p in self._steps[latest].items() if (place, outcome) not in edges]
            terms = [self._after(parent, start, _log_sum(others))] if others else []
            if parent != start:
                before = frozenset(e for e in edges if e[0] != place) | self._edges_into(parent, start)
                log_p = self._log_none(before, start)
                terms += [] if log_p is None else [log_p]
            self._none[edges, start] = _log_sum(terms) if terms else None
        return self._none[edges, start]


def _log_classes(
    transition: Transition, logits: Mapping[str, Tensor], kind: OutcomeKind | None
) -> dict[str | None, Tensor]:
    """log P of every class of one transition: `{outcome: (batch,)}`; None is "nothing".

    `log_softmax([z_1 .. z_K, 0])`, for one outcome a sigmoid, unless a stage kind says otherwise.
    """
    count = len(transition.outcomes) if kind is None else kind.logits
    z = _logits_of(transition.name, logits, count)
    if kind is not None:
        both = list(kind(z))
    elif count == 1:
        both = [F.logsigmoid(z[:, 0]), F.logsigmoid(-z[:, 0])]
    else:
        both = list(F.log_softmax(F.pad(z, (0, 1)), dim=1).unbind(1))
    return dict(zip(transition.classes, both, strict=True))


def _log_rest(log_p: Tensor) -> Tensor:
    """log(1 - p) of log p, (batch,), to the precision of log p; -inf where p is 1 or more."""
    safe = log_p.where(log_p < 0, torch.full_like(log_p, -1.0))  # its gradient is finite on the rows that are not used
    near, far = torch.log(-torch.expm1(safe)), torch.log1p(-torch.exp(safe.clamp(max=-0.1)))
    return near.where(safe > -math.log(2), far).where(log_p < 0, torch.full_like(log_p, -torch.inf))


def _kind_and_logits(
    value: Value, logits: Mapping[str, Tensor], kinds: Mapping[str, Kind]
) -> tuple[AmountKind, Tensor]:
    """How an amount is distributed, and the numbers that say it: (batch, kind.logits)."""
    if value.name not in kinds:
        raise ChainError(f"kinds: none for the value '{value.name}'.{did_you_mean(value.name, kinds)}")
    kind = of_value(kinds[value.name])
    return kind, _logits_of(value.name, logits, kind.logits)


def _logits_of(name: str, logits: Mapping[str, Tensor], count: int) -> Tensor:
    """(batch, count), float32 or float64."""
    if name not in logits:
        raise ChainError(f"logits: none for '{name}'.{did_you_mean(name, logits)}")
    z = logits[name]
    if z.dim() != 2 or z.shape[1] != count:
        raise ChainError(f"logits: '{name}' has shape {tuple(z.shape)}; it has to be (batch, {count}).")
    return z if z.dtype in (torch.float32, torch.float64) else z.float()


def _normalised(log_weights: list[Tensor]) -> list[Tensor]:
    """log of shares that add up to 1, (batch,) each; of two exact in both tails."""
    if len(log_weights) == 2:
        z = log_weights[0] - log_weights[1]
        return [F.logsigmoid(z), F.logsigmoid(-z)]
    return list(F.log_softmax(torch.stack(log_weights, dim=1), dim=1).unbind(1))


def _log_sum(terms: list[Tensor]) -> Tensor:
    """logsumexp over a list of (batch,) tensors."""
    if len(terms) == 1:
        return terms[0]
    if len(terms) == 2:
        return torch.logaddexp(terms[0], terms[1])
    return torch.logsumexp(torch.stack(terms), dim=0)
