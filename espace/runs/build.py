"""From a checked configuration to objects: chain, features, model, objective, weighting, metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias

from torch import nn

from espace.chain.chain import Chain
from espace.chain.grammar import Transition, Value
from espace.chain.scores import Score, parse, predictions
from espace.chain.spaces import Space, spaces
from espace.config import Component, Config
from espace.config.schema import Optimizer
from espace.contracts import Link, Objective, Sampler, ScoredSampler, Sharing, StageKind, Tower, ValueKind
from espace.data.encoding.columns import FEATURE_TYPES, Feature
from espace.data.encoding.encode import Layout
from espace.errors import ConfigError, EspaceError
from espace.model.embedding import Embedding
from espace.model.features import FeatureSpec
from espace.model.model import Model
from espace.registry.registry import Registry
from espace.registry.signature import accepts

Tables: TypeAlias = Literal["exact", "lazy", "dense"]

_TOO_LARGE = re.compile("overflow|can't allocate|out of memory", re.I)


def make(registry: Registry, kind: str, component: Component | Optimizer, *given: object, where: str) -> Any:
    """Call the registered factory with what espace gives and the options of the YAML.

    Raises ConfigError when the factory refuses an option's value.
    """
    entry = registry.get(kind, component.type)
    try:
        return entry.factory(*given, **component.options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {component.type} cannot be built: {_said(error)}") from error


def _said(error: Exception) -> str:
    """What torch says, without the frames of its own."""
    return str(error).partition("\nException raised from")[0].partition("\nframe #0")[0]


def chain_of(config: Config) -> Chain:
    """The chain of the configuration."""
    return Chain.parse(config.chain)


def features_of(config: Config) -> list[Feature]:
    """The features of the configuration, in its order."""
    return [FEATURE_TYPES[c.type](name, **c.options) for name, c in config.features.items()]


def labels_of(config: Config) -> dict[str, str]:
    """{stage or value: its column}, the one of its name unless `labels` says otherwise."""
    chain = chain_of(config)
    return {name: config.labels.get(name, name) for name in (*chain.labelled, *(v.amount for v in chain.values))}


def scores_of(config: Config) -> dict[str, Score]:
    """The formulas under `scores`, by name."""
    return {name: parse(text, predictions(chain_of(config))) for name, text in config.scores.items()}


def tower_of(config: Config, chain: Chain, transition: str) -> Component:
    """The tower of a transition: named by the transition, or by a stage it leads to, or the common one."""
    children = next(t.children for t in chain.heads if t.name == transition)
    return next((config.towers[n] for n in (transition, *children) if n in config.towers), config.tower)


def tables_of(config: Config, registry: Registry) -> Tables:
    """How rows of tables are treated: an optimiser that is not told gets the gradients of whole tables."""
    if not accepts(registry.get("optimizers", config.optimizer.type).factory, 2):
        return "dense"
    return config.optimizer.tables or ("lazy" if config.optimizer.options.get("weight_decay") else "exact")


def build_model(config: Config, registry: Registry, layout: Layout, drawn: bool = True) -> Model:
    """The model with freshly drawn parameters, from torch's random state; unless `drawn`, its tables are empty.

    Raises ConfigError also for one that no memory holds.
    """
    with _of_a_size_that_can_be():
        return _built(config, registry, layout, drawn)


@contextmanager
def _of_a_size_that_can_be() -> Iterator[None]:
    """Turns what torch and Python say of sizes beyond all numbers or all memory into a ConfigError."""
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:
        said = _said(error)
        if not isinstance(error, MemoryError | OverflowError) and not _TOO_LARGE.search(said):
            raise
        raise ConfigError(
            f"the model is too large to be built here: {said or 'there is not enough memory'}. Make the widths of"
            " embedding, sharing and towers smaller, or tables by min_count or buckets."
        ) from error


def _built(config: Config, registry: Registry, layout: Layout, drawn: bool) -> Model:
    chain, features = chain_of(config), features_of(config)
    names = [t.name for t in chain.heads]
    sparse = tables_of(config, registry) != "dense"
    std = config.embedding.std if drawn else None
    embed = partial(Embedding, features, layout, dim=config.embedding.dim, std=std, sparse=sparse)
    embeddings = {"shared": embed()} if config.embedding.shared else {name: embed() for name in names}
    if not config.embedding.shared and config.sharing.type != "separate":
        raise ConfigError(
            f"sharing: {config.sharing.type} shares modules between transitions, but embedding.shared is false, so they"
            " have no common input. Set embedding.shared: true, or sharing: separate."
        )
    features_at = {n: embeddings["shared" if config.embedding.shared else n].spec for n in names}
    sharing = _sharing(config, registry, features_at[names[0]], names)
    specs = sharing.specs if config.embedding.shared else features_at
    towers = {n: _tower(registry, tower_of(config, chain, n), f"tower of {n}", features_at[n], specs[n]) for n in names}
    for embedding in embeddings.values():
        embedding.widen()
    widths = {name: tower.out_features for name, tower in towers.items()}
    link: Link = make(registry, "links", config.link, chain, widths, where="link")
    stages, values = _kinds(config, registry, chain)
    kinds = {name: _module(kind) for name, kind in (*stages.items(), *values.items())}
    trained = (_module(sharing), {name: _module(tower) for name, tower in towers.items()}, _module(link))
    model = Model(chain, embeddings, *trained, kinds, joint_of(config))
    if config.link.type == "none":
        model.pass_on({t.name: getattr(towers[t.name], "logits", 0) for t in chain.transitions})
    return model


def _module(part: object) -> nn.Module:
    """A part as what torch trains: it has no type that says contract and module at once."""
    assert isinstance(part, nn.Module), f"a part that is trained is an nn.Module, not a {type(part).__name__}"
    return part


def kind_of(config: Config, transition: Transition) -> Component | None:
    """The stage kind of a transition, where it is not the default."""
    stage = config.stages.get(transition.outcomes[0])
    return None if stage is None or stage.kind.type == "binary" else stage.kind


def joint_of(config: Config) -> frozenset[str]:
    """The stages whose head gives P(stage) instead of P(stage given parent)."""
    return frozenset(name for name, stage in config.stages.items() if stage.head == "joint")


def _kinds(config: Config, registry: Registry, chain: Chain) -> tuple[dict[str, StageKind], dict[str, ValueKind]]:
    """By transition: those of stages that are not the default, and those of values."""
    stages: dict[str, StageKind] = {}
    values: dict[str, ValueKind] = {}
    for t in chain.heads:
        where, component = f"stages.{t.outcomes[0]}.kind", kind_of(config, t)
        kind = make(registry, "stages", component, where=where) if component else None
        if isinstance(t, Value) != hasattr(kind, "log_density"):
            known = [
                e.name for e in registry.entries("stages") if hasattr(e.factory, "log_density") == isinstance(t, Value)
            ]
            told = f"'{component.type if component else 'binary'}' is not the distribution of"
            what = "an amount, which a value is" if isinstance(t, Value) else "what happens or not, which a stage is"
            raise ConfigError(f"{where}: {told} {what}. Known: {', '.join(sorted(known))}.")
        if kind is None:
            continue
        if isinstance(t, Value):
            values[t.name] = kind
        else:
            stages[t.name] = kind
    return stages, values


def limits_of(config: Config, registry: Registry) -> dict[str, tuple[float, float]]:
    """`{value: the least and the largest amount that its distribution has}`."""
    chain = chain_of(config)
    _, kinds = _kinds(config, registry, chain)
    return {v.amount: kinds[v.name].limits for v in chain.values}


def _sharing(config: Config, registry: Registry, features: FeatureSpec, transitions: list[str]) -> Sharing:
    component = config.sharing
    given: list[object] = [features, transitions]
    if component.expert is not None:
        given.append(partial(_tower, registry, component.expert, "sharing.expert", features))
    sharing: Sharing = make(registry, "sharing", component, *given, where="sharing")
    return sharing


def _tower(registry: Registry, component: Component, where: str, features: FeatureSpec, seen: FeatureSpec) -> Tower:
    """A tower or an expert that sees the features or, where `seen` is another layout, what experts give."""
    try:
        tower: Tower = make(registry, "towers", component, seen, where=where)
    except (EspaceError, LookupError) as error:
        if seen is features:
            raise
        raise ConfigError(f"{where}: {_why_not_behind(component.type, where, error)}") from error
    if not isinstance(getattr(tower, "out_features", None), int):
        raise EspaceError(f"{where}: '{component.type}' does not say how wide its output is. Set self.out_features.")
    return tower


def _why_not_behind(tower: str, where: str, error: Exception) -> str:
    """Why a tower that was written for features cannot be built behind experts, and the way out."""
    reason = f"there is no {error}" if isinstance(error, LookupError) else str(error.__cause__ or error)
    mend = f"Set it to mlp, and sharing.expert to {tower} if it shall read the features."
    if where == "sharing.expert":
        mend = (
            "Choose another, such as mlp, or a sharing whose experts all read the features: cgc, or ple with levels: 1."
        )
    what = f"{tower} cannot be built behind experts, which give one vector, without fields and histories"
    return f"{what} ({reason.partition('. ')[0].rstrip('.')}). {mend}"


def build_objective(config: Config, registry: Registry) -> Objective:
    """The objective: callable, with `terms`.

    Raises ConfigError when it judges a ratio of two heads, and when it has no term for a value.
    """
    chain, joint = chain_of(config), joint_of(config)
    objective: Objective = make(registry, "objectives", config.objective, chain, where="objective")
    judged = {stage for term in objective.terms.values() for stage in term.stages}
    if left := [v.amount for v in chain.values if v.amount not in judged]:
        raise ConfigError(
            f"objective: {config.objective.type} has no term for the value '{left[0]}', so that its tower"
            " would learn nothing. Choose another objective, or let its author add espace.ValueTerms."
        )
    for name, term in objective.terms.items():
        start, stages = term.given or chain.root, [s for s in term.stages if s in chain.stages]
        ratios = [s for s in stages if start != chain.root and chain.between(joint, s, start)]
        if ratios:
            raise ConfigError(
                f"objective: the term '{name}' of {config.objective.type} is a likelihood of P({ratios[0]}"
                f" given {term.given}), which is no probability: with stages.{ratios[0]}.head: joint it is a ratio that"
                " may exceed 1. Set objective: entire_space, or head: conditional."
            )
    return objective


def term_weights(config: Config, objective: Objective) -> dict[str, float]:
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


def build_weighting(config: Config, registry: Registry, objective: Objective) -> nn.Module:
    """The module that makes one loss of the terms."""
    return _module(make(registry, "weightings", config.weighting, term_weights(config, objective), where="weighting"))


def build_sampler(config: Config, registry: Registry) -> Sampler | ScoredSampler | None:
    """The sampler of training batches; None where there is nothing to do.

    Raises ConfigError where it would leave probabilities that do not multiply.
    """
    if config.sampler.type == "none":
        return None
    sampler: Sampler = make(registry, "samplers", config.sampler, chain_of(config), where="sampler")
    objectives = getattr(sampler, "objectives", (config.objective.type,))
    if config.objective.type not in objectives:
        raise ConfigError(
            f"sampler: {config.sampler.type} samples the rows of one conditional only, but"
            f" {config.objective.type} judges marginals too, so that the product would no longer be the marginal. Set"
            f" objective: {' or '.join(objectives)}."
        )
    return sampler


def sampling_of(config: Config, registry: Registry) -> str | None:
    """What the sampler does to rows and predictions, in a line; None without one."""
    sampler = build_sampler(config, registry)
    if sampler is None:
        return None
    counts = "; each counts with the inverse of its rate" if getattr(sampler, "rates", dict)() else ""
    return f"sampler: {getattr(sampler, 'effect', f'{config.sampler.type} chooses the rows')}{counts}."


def spaces_of(config: Config) -> dict[str, Space]:
    """What is judged where, by name."""
    return spaces(chain_of(config), config.data.potential)
