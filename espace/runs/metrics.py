"""Which metrics judge which probabilities and values of a chain, and by which names they are asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torchmetrics import Metric

from espace.chain.scored import Scored, ScoredValue
from espace.config import Component, Config
from espace.data.encoding.table import Extra
from espace.errors import ConfigError
from espace.model.returned import check_numbers
from espace.registry.registry import Registry
from espace.runs.build import build_objective, chain_of, make, spaces_of
from espace.runs.inputs import extras_of


def build_metrics(config: Config, registry: Registry) -> dict[str, dict[str, Metric]]:
    """`{what is judged: {name: metric}}`, each to be copied.

    They are all metrics of its kind, those with `of` where they name it.

    Raises ConfigError when `of` names what a metric cannot judge, and when two numbers would have one name.
    """
    return {
        space: {n: metric for n, (metric, _) in found.items()} for space, found in _judging(config, registry).items()
    }


def metric_names(config: Config, registry: Registry) -> list[str]:
    """Every name that `monitor` may take. Raises as `build_metrics`."""
    found = ["val/loss", *(f"val/loss/{term}" for term in build_objective(config, registry).terms)]
    for space, judging in _judging(config, registry).items():
        found += [f"val/{space}/{value}" for _, values in judging.values() for value in values]
    return found


def _judging(config: Config, registry: Registry) -> dict[str, dict[str, tuple[Metric, list[str]]]]:
    """`{what is judged: {name: (metric, the names that it computes)}}`. Raises as `build_metrics`."""
    expectations, nothing = chain_of(config).expectations, _nothing_scored(extras_of(config))
    found: dict[str, dict[str, tuple[Metric, list[str]]]] = {space: {} for space in spaces_of(config)}
    problems = []
    for name, part in config.metrics.items():
        metric = make(registry, "metrics", part, where=f"metrics.{name}")
        of_values = getattr(metric, "of_values", False)
        values = _values_of(name, metric, nothing[of_values])
        own = [space for space in found if (space in expectations) == of_values]
        problems += [_not_judged(name, part.type, space, of_values) for space in part.of or () if space not in own]
        judged = own if part.of is None else [space for space in own if space in part.of]
        problems += [p for space in judged if (p := _computed_twice(name, part, values, space, found[space]))][:1]
        for space in judged:
            found[space][name] = metric, values
    problems += _like_a_term(found, build_objective(config, registry).terms)
    if problems:
        raise ConfigError(problems)
    return found


def _like_a_term(found: Mapping[str, Mapping[str, tuple[Metric, list[str]]]], terms: Collection[str]) -> list[str]:
    """Metrics of a stage called loss that have the name of a term of the loss."""
    computed = [value for _, values in found.get("loss", {}).values() for value in values if value in terms]
    return [
        f"chain: '{value}' of the stage 'loss' and the loss term of '{value}' would both be val/loss/{value}. Rename"
        " one of the two stages."
        for value in computed
    ]


def _not_judged(name: str, kind: str, space: str, of_values: bool) -> str:
    what = ["the expectation of a value", "a probability"]
    asked, right = what[::-1] if of_values else what
    return f"metrics.{name}.of: '{space}' is {asked}, but {kind} judges {right}. Name {right}, or take another metric."


def _computed_twice(
    name: str, part: Component, values: list[str], space: str, others: Mapping[str, tuple[Metric, list[str]]]
) -> str | None:
    for other, (_, computed) in others.items():
        if both := [value for value in values if value in computed]:
            mend = (
                "Give it a name" if "name" in part.options else "Remove one of them, or let each judge others with of"
            )
            return f"metrics.{name}: it computes '{both[0]}' of '{space}', and so does metrics.{other}. {mend}."
    return None


def _values_of(name: str, metric: Metric, nothing: Scored | ScoredValue) -> list[str]:
    """The names that a metric computes, asked of a copy that saw no row."""
    copy = metric.clone()
    copy.update(nothing)
    return list(check_numbers(name, metric, copy.compute()))


def _nothing_scored(extras: Mapping[str, Extra]) -> dict[bool, Scored | ScoredValue]:
    """What metrics of probabilities (False) and of values (True) judge, without a row."""
    none = torch.empty(0)
    keys = {
        name: torch.empty(0, dtype=torch.int64 if kind == "key" else torch.float64) for name, kind in extras.items()
    }
    return {False: Scored(none, none, none, none, keys), True: ScoredValue(none, none, none, keys)}
