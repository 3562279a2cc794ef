"""Judging predictions: every probability in its own space, every loss term over its own rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric

from espace.chain.chain import Chain
from espace.chain.labels import Labels
from espace.chain.probability import Probabilities
from espace.chain.scored import Scored, ScoredValue
from espace.chain.spaces import Space
from espace.data.batch import Batch
from espace.errors import NonFiniteError
from espace.model.blocks import Gate
from espace.model.named import NamedModules
from espace.model.returned import check_numbers, check_terms

Objective = Callable[[Probabilities, Labels], Mapping[str, tuple[Tensor, Tensor]]]
_LEAST_REST = math.log(1e-7)  # what a ratio of two heads leaves of 1 at least, so that one above 1 can be judged

_JUDGED_TOGETHER = 65_536  # rows: a metric's call costs as much as some thousands of them


class Terms:
    """Loss terms as sums over rows and row counts, so that a mean is the same however the rows were divided.

    sums, rows: `(terms,)`; `rows` is the weighted number of rows of each term's divisor.
    """

    def __init__(self, names: list[str], sums: Tensor, rows: Tensor) -> None:
        self.names, self.sums, self.rows = names, sums, rows

    @classmethod
    def of(cls, objective: Objective, p: Probabilities, batch: Batch) -> Terms:
        """The terms of one batch, row weights applied."""
        found = objective(p, Labels(p.chain, batch.labels, batch.amounts, batch.counts))
        check_terms(found, len(batch.weights))
        sums = torch.stack([torch.dot(value, batch.weights.to(value.dtype)) for value, _ in found.values()])
        rows = torch.stack([torch.dot(rows, batch.weights.to(rows.dtype)) for _, rows in found.values()])
        return cls(list(found), sums, rows)

    def __add__(self, other: Terms) -> Terms:
        return Terms(self.names, self.sums + other.sums, self.rows + other.rows)

    def copy(self) -> Terms:
        """The same in memory of its own."""
        return Terms(self.names, self.sums.clone(), self.rows.clone())

    def total(self) -> Terms:
        """The same of all ranks together, without gradients."""
        both = torch.stack([self.sums.detach(), self.rows.detach()])
        if _ranks() > 1:
            dist.all_reduce(both)
        return Terms(self.names, both[0], both[1])

    def means(self, total: Terms | None = None) -> dict[str, Tensor]:
        """{term: mean over its rows}, 0 for a term without rows. With the `total` of all ranks, over the rows of all,
        and scaled by the number of ranks, since DDP divides gradients by it."""
        sums, rows = (self.sums, self.rows.detach()) if total is None else (self.sums * _ranks(), total.rows)
        return dict(zip(self.names, (sums / rows.where(rows > 0, torch.ones_like(rows))).unbind(), strict=True))


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class Utilisation(nn.Module):
    """The mean weight of each expert at each gate, over the rows of all ranks since it was last asked.

    Row weights count. Kept on the device as sums, `used`, (experts of all gates,), so that a step waits for nothing;
    saved in checkpoints.
    """

    used: Tensor

    def __init__(self, gates: Sequence[Gate]) -> None:
        super().__init__()
        self._gates = tuple(gates)  # a tuple, since they are the model's
        if gates:
            self.register_buffer("used", torch.zeros(sum(len(gate.names) for gate in gates)))

    def add(self, rows: Tensor) -> None:
        """Add what the gates used on the last batch; rows: the weights of its rows, (batch,)."""
        if self._gates:
            weights = torch.cat([gate.weights for gate in self._gates], dim=1)  # (batch, experts of all gates)
            used = (rows[:, None] * weights).sum(0)
            if _ranks() > 1:
                dist.all_reduce(used)
            self.used += used

    def take(self) -> dict[str, float]:
        """{expert's name at its gate: its mean weight}, those of a gate adding up to 1; then begin anew."""
        found: dict[str, float] = {}
        if self._gates:
            sums = torch.split(self.used, [len(gate.names) for gate in self._gates])
            shares = torch.cat([s / s.sum() for s in sums]).tolist()
            found = dict(zip((name for gate in self._gates for name in gate.names), shares, strict=True))
            self.used.zero_()
        return found


class TermMeans(Metric):
    """Means of loss terms over many batches, and the one loss that the weighting makes of them."""

    sums: Tensor
    rows: Tensor

    def __init__(self, names: list[str], weighting: Callable[[Mapping[str, Tensor]], Tensor]) -> None:
        super().__init__()
        self.names = names
        self.weighting = weighting
        self.add_state("sums", torch.zeros(len(names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros(len(names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, terms: Terms) -> None:
        """Add one batch."""
        self.sums += terms.sums.detach()
        self.rows += terms.rows.detach()

    def compute(self) -> dict[str, Tensor]:
        """{"loss": scalar, "loss/<term>": scalar}."""
        means = self.sums / self.rows.where(self.rows > 0, torch.ones_like(self.rows))
        terms = dict(zip(self.names, means.unbind(), strict=True))
        with torch.no_grad():
            loss = self.weighting(terms)
        return {"loss": loss, **{f"loss/{name}": value for name, value in terms.items()}}


@runtime_checkable
class Curved(Protocol):
    """A metric that has a picture."""

    def curve(self) -> Mapping[str, Tensor]:
        """`{predicted, observed, rows}`, (points,) each."""
        ...


class Judge(nn.Module):
    """All metrics of all spaces, and the loss.

    Args:
        chain: the chain.
        spaces: what is judged where.
        metrics: `{space: {name: metric}}`; copied, so that one metric may judge several.
        terms: the running means of the loss terms.
    """

    def __init__(
        self,
        chain: Chain,
        spaces: Mapping[str, Space],
        metrics: Mapping[str, Mapping[str, Metric]],
        terms: TermMeans,
    ) -> None:
        super().__init__()
        self.chain = chain
        self.spaces = dict(spaces)
        self.metrics = NamedModules({s: NamedModules({n: m.clone() for n, m in metrics[s].items()}) for s in spaces})
        self.terms = terms
        self._waiting: dict[str, list[Scored | ScoredValue]] = {space: [] for space in spaces}
        self._rows_waiting = 0

    @torch.no_grad()
    def update(self, p: Probabilities, batch: Batch, objective: Objective) -> None:
        """Judge one batch, together with others. Raises NonFiniteError for a prediction that is not finite."""
        self.terms.update(Terms.of(objective, p, batch))
        labels = Labels(self.chain, batch.labels, batch.amounts, batch.counts)
        for name, space in self.spaces.items():
            if name in self.chain.expectations:
                found: Scored | ScoredValue = _scored_value(p, batch, labels, space.stage, space.given)
            else:
                found = scored(p, batch, labels, *space)
            self._waiting[name].append(found)
        self._rows_waiting += len(batch)
        if self._rows_waiting >= _JUDGED_TOGETHER:
            self._judge_waiting()

    def _judge_waiting(self) -> None:
        for space, pieces in self._waiting.items():
            if pieces:
                together = _together(pieces)
                for metric in self._of(space).values():
                    metric.update(together)
                pieces.clear()
        self._rows_waiting = 0

    def compute(self) -> dict[str, float]:
        """{"loss": ..., "<space>/<metric>": ...}; NaN where something is undefined.

        Raises as `update`, and PluginError for a metric that computes anything but numbers by name.
        """
        self._judge_waiting()
        found = {name: float(value) for name, value in self.terms.compute().items()}
        for space in self.spaces:
            for name, metric in self._of(space).items():
                values = check_numbers(name, metric, metric.compute())
                found |= {f"{space}/{key}": value for key, value in values.items()}
        return found

    def reset(self) -> None:
        """Forget everything."""
        self.terms.reset()
        self._rows_waiting = 0
        for space in self.spaces:
            self._waiting[space].clear()
            for metric in self._of(space).values():
                metric.reset()

    def _of(self, space: str) -> dict[str, Metric]:
        metrics = self.metrics[space]
        assert isinstance(metrics, NamedModules), "as built"
        return {name: metric for name, metric in metrics.items() if isinstance(metric, Metric)}

    def curves(self) -> dict[str, dict[str, list[float]]]:
        """`{space: {predicted, observed, rows}}` of every calibration metric, for a picture."""
        self._judge_waiting()
        found = {}
        for space in self.spaces:
            for metric in self._of(space).values():
                if isinstance(metric, Curved):
                    found[space] = {k: v.tolist() for k, v in metric.curve().items()}
        return found


def scored(
    p: Probabilities,
    batch: Batch,
    labels: Labels,
    stage: str,
    given: str | None = None,
    potential: str | None = None,
    without: bool = False,
) -> Scored:
    """One probability beside its labels on the rows of its space, which are as in `Space`; what rows stand for, where
    labels are not known, is in their weights."""
    if potential is None:
        label, weights = labels.of(stage).float(), batch.weights * labels.known(stage, given)
    else:
        label = batch.extras[potential].float()
        inside = torch.isfinite(label)
        if without and given:
            inside &= labels.of(given) == 0
        weights = batch.weights * inside
    rows = (weights > 0).nonzero().squeeze(1)
    log_prob, log_not_prob = p.log_prob(stage, given), p.log_not_prob(stage, given)
    if p.is_ratio(stage, given):
        log_not_prob = log_not_prob.clamp(min=_LEAST_REST)
    extras = {name: column[rows] for name, column in batch.extras.items()}
    return Scored(log_prob[rows], log_not_prob[rows], label[rows], weights[rows], extras)


def _scored_value(p: Probabilities, batch: Batch, labels: Labels, amount: str, given: str | None) -> ScoredValue:
    """The expectation of a value beside its amounts, on the rows of its space where they are known."""
    observed = labels.amount(amount, given)
    weights = batch.weights * labels.known(amount, given)
    rows = (weights > 0).nonzero().squeeze(1)
    extras = {name: column[rows] for name, column in batch.extras.items()}
    return ScoredValue(p.value(amount, given)[rows], observed[rows], weights[rows], extras)


def _together(pieces: Sequence[Scored | ScoredValue]) -> Scored | ScoredValue:
    """Several Scored, or ScoredValue, as one."""
    first, *rest = pieces
    if not rest:
        return first
    names = [f.name for f in fields(first) if f.init and f.name != "extras"]
    columns: dict[str, Tensor] = {name: torch.cat([getattr(p, name) for p in pieces]) for name in names}
    extras = {name: torch.cat([p.extras[name] for p in pieces]) for name in first.extras}
    return type(first)(extras=extras, **columns)


def check_finite(loss: Tensor, total: Terms, where: str) -> None:
    """Raise NonFiniteError naming the terms, unless the loss and the sums of all ranks are finite."""
    if not (math.isfinite(float(loss)) and math.isfinite(float(total.sums.sum()))):
        values = ", ".join(f"{name} = {float(value):g}" for name, value in total.means().items())
        raise NonFiniteError(
            f"{where}: the loss is {float(loss):g} ({values}). The last checkpoint has finite weights."
            " Lower optimizer.lr, or look for extreme numbers among the features."
        )
