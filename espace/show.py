"""Text for people: what an experiment is, and what a YAML can name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from espace.build import (
    build_objective,
    chain_of,
    features_of,
    kind_of,
    labels_of,
    layout_without_data,
    tower_of,
)
from espace.config.validate import describe as describe_type
from espace.config.yamlfile import show
from espace.data.columns import FEATURE_TYPES
from espace.embedding import feature_spec
from espace.errors import ConfigError, did_you_mean
from espace.experiment import Experiment, build_model_probe
from espace.plugins import KINDS, Entry
from espace.plugins import load as load_plugins


def describe(experiment: Experiment) -> str:
    """Chain, equations, loss terms, modules with widths and parameter counts, and a mermaid drawing."""
    config, chain = experiment.config, chain_of(experiment.config)
    parts = [
        ("Chain", chain.lines()),
        ("Labels", [f"{stage}: column {column}" for stage, column in labels_of(config).items()]),
        ("Probabilities", list(chain.formulas(_kinds(experiment)).values())),
        ("Loss terms", _terms(experiment)),
        ("Features", _features(experiment)),
        ("Modules", _modules(experiment)),
        ("Drawing (mermaid)", chain.mermaid().splitlines()),
    ]
    return "\n\n".join("\n".join([title, *(f"    {line}" for line in lines)]) for title, lines in parts)


def _kinds(experiment: Experiment) -> dict[str, str]:
    found = {t.name: kind_of(experiment.config, t) for t in chain_of(experiment.config).transitions}
    return {name: kind.type for name, kind in found.items() if kind is not None}


def _terms(experiment: Experiment) -> list[str]:
    objective = build_objective(experiment.config, experiment.registry)
    return [
        f"{name}: mean of {term.loss}; on {term.rows}; divided by {term.divisor}"
        for name, term in objective.terms.items()
    ]


def _features(experiment: Experiment) -> list[str]:
    spec = feature_spec(features_of(experiment.config), experiment.config.embedding.dim)
    lines = [f"{f.name}: {f.kind}, {f.width} columns of the flat vector" for f in spec.fields]
    return [*lines, f"flat vector: {spec.width} columns"]


def _modules(experiment: Experiment) -> list[str]:
    config, chain = experiment.config, chain_of(experiment.config)
    model = build_model_probe(config, experiment.registry)
    layout = layout_without_data(config)
    copies = "shared by all transitions" if config.embedding.shared else "one set per transition"
    embedding: Any = next(iter(model.embeddings.values()))
    extra = embedding.spec.extra_width
    more = f" and {extra} numbers that towers asked for" if extra else ""
    lines = [f"embedding of width {width}{more}: rows known once the data is read, {copies}" for width in layout.rows]
    lines.append(f"sharing {config.sharing.type}: {_count(model.sharing):,} parameters")
    for transition in chain.transitions:
        name = transition.name
        tower: Any = model.towers[name]
        head: Any = model.heads[name]
        lines.append(
            f"{name}: tower {tower_of(config, chain, name).type} ({_count(tower):,} parameters) -> {tower.out_features}"
            f" -> head ({_count(head):,} parameters) -> {head.out_features} logit{'s' if head.out_features > 1 else ''}"
        )
    return [*lines, f"link {config.link.type}: {_count(model.link):,} parameters"]


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def catalogue(kind: str | None, plugins: Sequence[str]) -> str:
    """Every registered name of one kind, or of all. Raises ConfigError for an unknown kind."""
    kinds = [*KINDS, "features"]
    if kind is not None and kind not in kinds:
        raise ConfigError(f"list: there is no kind '{kind}'.{did_you_mean(kind, kinds)}")
    registry = load_plugins(plugins, Path.cwd())
    blocks = []
    for name in [kind] if kind else kinds:
        entries = _feature_entries() if name == "features" else registry.entries(name)
        blocks.append("\n".join([f"{name}:", *(_entry(e) for e in entries)] if entries else [f"{name}: none"]))
    return "\n\n".join([*blocks, *(f"Note: {failure}" for failure in registry.failures)])


def _feature_entries() -> list[Entry]:
    return [Entry("features", name, factory, "espace") for name, factory in FEATURE_TYPES.items()]


def _entry(entry: Entry) -> str:
    lines = [f"  {entry.name}  ({entry.package})  {entry.summary}"]
    for option in entry.options:
        default = "required" if option.required else f"default {show(option.default)}"
        lines.append(f"      {option.name}: {describe_type(option.annotation)}; {default}")
    return "\n".join(lines)
