"""From a checked configuration to objects: chain, features, model, objective, weighting, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torchmetrics import Metric

from espace.chain import Chain, Transition
from espace.config import Component, Config
from espace.data.columns import FEATURE_TYPES, Feature, Sequence, is_categorical
from espace.data.encode import Encoder, Layout
from espace.data.stream import Sampler
from espace.embedding import Embedding
from espace.errors import ConfigError, EspaceError
from espace.features import FeatureSpec
from espace.model import Model
from espace.plugins import Registry
from espace.probability import Scored


def make(registry: Registry, kind: str, component: Component, *given: Any, where: str) -> Any:
    """Call the registered factory with what espace gives and the options of the YAML.

    Raises ConfigError when the factory refuses an option's value.
    """
    entry = registry.get(kind, component.type)
    try:
        return entry.factory(*given, **component.options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {component.type} cannot be built: {error}") from error


def chain_of(config: Config) -> Chain:
    """The chain of the configuration."""
    return Chain.parse(config.chain)


def features_of(config: Config) -> list[Feature]:
    """The features of the configuration, in its order."""
    return [FEATURE_TYPES[c.type](name, **c.options) for name, c in config.features.items()]


def labels_of(config: Config) -> dict[str, str]:
    """{stage: label column}, the name of the stage unless `labels` says otherwise."""
    return {stage: config.labels.get(stage, stage) for stage in chain_of(config).labelled}


def tower_of(config: Config, chain: Chain, transition: str) -> Component:
    """The tower of a transition: named by the transition, or by a stage it leads to, or the common one."""
    children = next(t.children for t in chain.transitions if t.name == transition)
    return next((config.towers[n] for n in (transition, *children) if n in config.towers), config.tower)


def build_model(config: Config, registry: Registry, layout: Layout) -> Model:
    """The model with freshly drawn parameters, from torch's random state."""
    chain, features = chain_of(config), features_of(config)
    names = [t.name for t in chain.transitions]
    sparse = config.optimizer.tables != "dense"
    embed = partial(Embedding, features, layout, dim=config.embedding.dim, std=config.embedding.std, sparse=sparse)
    embeddings = {"shared": embed()} if config.embedding.shared else {name: embed() for name in names}
    if not config.embedding.shared and config.sharing.type != "separate":
        raise ConfigError(
            f"sharing: {config.sharing.type} shares modules between transitions, but embedding.shared is false, so they have no"
            " common input. Set embedding.shared: true, or sharing: separate."
        )
    expert = partial(_tower, registry, config.tower, "tower")
    spec = next(iter(embeddings.values())).spec
    sharing = make(registry, "sharing", config.sharing, spec, names, expert, where="sharing")
    specs = sharing.specs if config.embedding.shared else {n: e.spec for n, e in embeddings.items()}
    towers = {n: _tower(registry, tower_of(config, chain, n), f"tower of {n}", specs[n]) for n in names}
    for embedding in embeddings.values():
        embedding.widen()
    widths = {name: tower.out_features for name, tower in towers.items()}
    link = make(registry, "links", config.link, chain, widths, where="link")
    model = Model(chain, embeddings, sharing, towers, link, _kinds(config, registry, chain))
    if config.link.type == "none":
        model.pass_on({name: getattr(tower, "logits", 0) for name, tower in towers.items()})
    return model


def kind_of(config: Config, transition: Transition) -> Component | None:
    """The stage kind of a transition, where it is not the default."""
    stage = config.stages.get(transition.outcomes[0])
    return None if stage is None or stage.kind.type == "binary" else stage.kind


def _kinds(config: Config, registry: Registry, chain: Chain) -> dict[str, nn.Module]:
    found = ((t, kind_of(config, t)) for t in chain.transitions)
    return {t.name: make(registry, "stages", kind, where=f"stages.{t.outcomes[0]}.kind") for t, kind in found if kind}


def _tower(registry: Registry, component: Component, where: str, spec: FeatureSpec) -> Any:
    tower = make(registry, "towers", component, spec, where=where)
    if not isinstance(getattr(tower, "out_features", None), int):
        raise EspaceError(f"{where}: '{component.type}' does not say how wide its output is. Set self.out_features.")
    return tower


def build_objective(config: Config, registry: Registry) -> Any:
    """The objective: callable, with `terms`."""
    return make(registry, "objectives", config.objective, chain_of(config), where="objective")


def term_weights(config: Config, objective: Any) -> dict[str, float]:
    """{term: weight} from `stages`. Raises ConfigError when the outcomes of one term have different weights."""
    found = {}
    for name, term in objective.terms.items():
        weights = {config.stages[s].weight if s in config.stages else 1.0 for s in term.stages}
        if len(weights) > 1:
            raise ConfigError(
                f"stages: {', '.join(term.stages)} are judged by one loss term, so they need one weight, not"
                f" {' and '.join(map(str, sorted(weights)))}."
            )
        found[name] = weights.pop()
    return found


def build_weighting(config: Config, registry: Registry, objective: Any) -> nn.Module:
    """The module that makes one loss of the terms."""
    module = make(registry, "weightings", config.weighting, term_weights(config, objective), where="weighting")
    assert isinstance(module, nn.Module)
    return module


def build_sampler(config: Config, registry: Registry) -> Sampler | None:
    """The sampler of training batches; None where there is nothing to do."""
    if config.sampler.type == "none":
        return None
    sampler: Sampler = make(registry, "samplers", config.sampler, chain_of(config), where="sampler")
    return sampler


def build_metrics(config: Config, registry: Registry) -> dict[str, Metric]:
    """One metric of each kind, to be copied for every probability."""
    return {n: make(registry, "metrics", c, where=f"metrics.{n}") for n, c in config.metrics.items()}


def spaces_of(config: Config) -> dict[str, tuple[str, str | None, str | None]]:
    """What is judged where: `{name: (stage, given, column of potential outcomes)}`.

    Every probability of the chain on its own space, and those with potential outcomes (`data.potential`) on all rows too.
    """
    chain = chain_of(config)
    found: dict[str, tuple[str, str | None, str | None]] = {
        name: (stage, given, None) for name, (stage, given) in chain.addresses.items()
    }
    for name, column in config.data.potential.items():
        stage, given = chain.addresses[name]
        found[f"{name}_entire_space"] = (stage, given, column)
    return found


def metric_names(config: Config, registry: Registry) -> list[str]:
    """Every name that `monitor` may take."""
    objective = build_objective(config, registry)
    found = ["val/loss", *(f"val/loss/{term}" for term in objective.terms)]
    nothing = _nothing_scored(extras_of(config))
    values = [name for metric in build_metrics(config, registry).values() for name in _values_of(metric, nothing)]
    return found + [f"val/{space}/{value}" for space in spaces_of(config) for value in values]


def _values_of(metric: Metric, nothing: Scored) -> list[str]:
    """The names that a metric computes, asked of a copy that saw no row."""
    copy = metric.clone()
    copy.update(nothing)
    return list(copy.compute())


def _nothing_scored(extras: Mapping[str, Any]) -> Scored:
    none = torch.empty(0)
    keys = {
        name: torch.empty(0, dtype=torch.int64 if kind == "key" else torch.float64) for name, kind in extras.items()
    }
    return Scored(none, none, none, none, keys)


def build_encoder(
    config: Config, tables: Mapping[str, Any], numbers: Mapping[str, Any], extras: Mapping[str, Any] | None = None
) -> Encoder:
    """The encoder, from what was learnt of the data."""
    return Encoder(
        features_of(config),
        chain_of(config),
        labels_of(config),
        dim=config.embedding.dim,
        weight=config.data.weight,
        extras=extras_of(config) if extras is None else extras,
        policy=config.data.violations,
        tables=tables,
        numbers=numbers,
    )


def rows_at_once(config: Config) -> int:
    """Rows to judge or predict in one go: so few that what towers hold of them stays in a processor's cache.

    Each event of a history is as much work as a row. 16,384 rows with histories of 50 took 5 times as long as 8 times 2,048.
    """
    return 2_048 if any(isinstance(f, Sequence) for f in features_of(config)) else 4_096


def extras_of(config: Config) -> dict[str, Any]:
    """Columns that metrics want besides the labels: group keys of metrics with an option `by`, potential outcomes."""
    keys = {c.options["by"]: "key" for c in config.metrics.values() if isinstance(c.options.get("by"), str)}
    return {**keys, **dict.fromkeys(config.data.potential.values(), "value")}


def layout_without_data(config: Config) -> Layout:
    """A layout with empty vocabularies (hashed features have their real size): enough to count everything but the tables."""
    features = features_of(config)
    tables = {f.name: getattr(f, "buckets", None) or 0 for f in features if is_categorical(f)}
    sizes = {n: t if isinstance(t, int) else len(t) + 1 for n, t in tables.items()}
    return build_encoder(config, sizes, {}).layout
