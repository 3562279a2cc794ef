"""Columns of test rows in the place of a model: the truth of a simulator, or what another model predicted for a log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espace.chain.chain import Chain
from espace.chain.probability import Probabilities
from espace.config import Config
from espace.data.auditing import audit
from espace.data.auditing.scan import Task, scan_other
from espace.data.batch import Batch
from espace.data.encoding.encode import Encoder
from espace.data.stream.plan import Plan
from espace.data.stream.stream import Stream
from espace.errors import DataError
from espace.registry.registry import Registry
from espace.runs.build import build_objective, build_weighting, chain_of, labels_of
from espace.runs.evaluating import Evaluated, See, evaluate
from espace.runs.inputs import extras_of, rows_at_once
from espace.runs.opening import open_parts

_LEAST = 1e-35  # what stands for a probability of 0, so that its logarithm is a number, in float32 too


class FromColumns(nn.Module):
    """A model whose conditionals are columns: z_k = log P_k - log(1 - sum of P), exact to the rounding of float64.

    columns: `{outcome, or outcome given its parent: column}` for every outcome of every transition.
    """

    def __init__(self, chain: Chain, columns: Mapping[str, str]) -> None:
        super().__init__()
        self.chain = chain
        names = {address: name for name, address in chain.addresses.items()}
        self._columns = {
            t.name: [columns[names[o, None if t.parent == chain.root else t.parent]] for o in t.outcomes]
            for t in chain.transitions
        }

    def forward(self, batch: Batch) -> Probabilities:
        """The probabilities in float64.

        Raises DataError where a column is missing, or outcomes have more than 1 together.
        """
        return Probabilities(self.chain, {t: self._logits(batch, columns) for t, columns in self._columns.items()})

    def _logits(self, batch: Batch, columns: list[str]) -> Tensor:
        p = torch.stack([batch.extras[column] for column in columns], dim=1)  # (batch, K)
        for column, values in zip(columns, p.unbind(1), strict=True):
            if missing := int(values.isnan().sum()):
                what = f"the column '{column}' is null in {missing:,} of {len(p):,} test rows that were read together"
                raise DataError(f"{what}. Every row needs its probability: fill them, or leave the rows out.")
        rest = 1 - p.sum(1, keepdim=True)
        if (over := int((rest < -1e-6).sum())) > 0:
            what = f"{' + '.join(columns)} is above 1 in {over:,} of {len(p):,} test rows that were read together"
            raise DataError(f"{what}, though these outcomes exclude each other. Mend the columns.")
        return p.clamp(min=_LEAST).log() - rest.clamp(min=_LEAST).log()


@dataclass(frozen=True)
class _Run:
    """Columns in the place of a run."""

    registry: Registry
    model: FromColumns
    weighting: nn.Module

    @torch.no_grad()
    def forward(self, batch: Batch) -> Probabilities:
        probabilities: Probabilities = self.model(batch)
        return probabilities


def judge_columns(config: Config, registry: Registry, columns: Mapping[str, str], see: See) -> Evaluated:
    """Judge columns on the test rows by the metrics of `config`; `see` is shown every batch with its probabilities.

    Raises DataError naming place and value for a column that holds no probabilities, or labels that contradict the
    chain.
    """
    chain, labels, data = chain_of(config), labels_of(config), config.data
    extras = extras_of(config) | dict.fromkeys(columns.values(), "probability")
    part = open_parts(config, registry, ["test"])["test"]
    encoder = Encoder(
        [],
        chain,
        labels,
        dim=1,
        weight=data.weight,
        extras=extras,
        policy=data.violations,
        known_by=data.known_by,
        tables={},
        numbers={},
    )
    task = Task([], chain, labels, data.violations, data.weight, extras, known_by=data.known_by)
    scan = scan_other(task, part, encoder, lambda what, done, total: None)
    if problems := audit.errors(part, scan, chain, labels, data.violations, (), {}):
        raise DataError("\n".join(problems))
    weighting = build_weighting(config, registry, build_objective(config, registry))
    run = _Run(registry, FromColumns(chain, columns), weighting)
    encoder = encoder.counting(scan.tally.known.counts(chain))
    stream = Stream(part, encoder, Plan(scan.counts, rows_at_once(config), 0, False, 0))
    return evaluate(config, run, stream, see=see)
