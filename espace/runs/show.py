"""Text for people: what an experiment is, and what a YAML can name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from espace.config.schema import EXPERT
from espace.config.validate import describe as describe_type
from espace.config.yamlfile import show
from espace.data.encoding.columns import FEATURE_TYPES
from espace.errors import ConfigError, did_you_mean
from espace.model.embedding import Embedding, feature_spec
from espace.registry.registry import KINDS, Entry
from espace.registry.registry import load as load_plugins
from espace.runs.build import (
    build_objective,
    chain_of,
    features_of,
    joint_of,
    kind_of,
    labels_of,
    sampling_of,
    scores_of,
    tower_of,
)
from espace.runs.experiment import Experiment
from espace.runs.inputs import build_model_probe, layout_without_data


def describe(experiment: Experiment) -> str:
    """Chain as text and drawing, equations with rows and labels, loss terms, modules with their widths and sizes."""
    config, chain = experiment.config, chain_of(experiment.config)
    sampling = sampling_of(config, experiment.registry)
    parts = [
        ("Chain", chain.lines()),
        ("Drawing", chain.tree().splitlines()),
        ("Labels", [f"{stage}: column {column}" for stage, column in labels_of(config).items()]),
        ("Probabilities", _probabilities(experiment)),
        ("Loss terms", _terms(experiment)),
        *([("Sampler", [sampling.removeprefix("sampler: ")])] if sampling else []),
        *([("Scores", _scores(experiment))] if config.scores else []),
        ("Features", _features(experiment)),
        ("Modules", _modules(experiment)),
        ("Drawing (mermaid)", chain.mermaid().splitlines()),
    ]
    return "\n\n".join("\n".join([title, *(f"    {line}" for line in lines)]) for title, lines in parts)


def _probabilities(experiment: Experiment) -> list[str]:
    """Each formula, and below it the rows that it speaks of and the label columns that tell them and the outcome."""
    chain, columns = chain_of(experiment.config), labels_of(experiment.config)
    joint = joint_of(experiment.config)
    formulas, lines = chain.formulas(_kinds(experiment), joint), []
    for name, (stage, given) in chain.addresses.items():
        needed = {*chain.sources(stage), *chain.sources(given or chain.root)}
        labels = [column for s, column in columns.items() if s in needed]
        rows = f"rows with {given} = 1" if given else "all rows"
        rows += ", a ratio of two heads that may exceed 1" if given and stage in joint else ""
        lines += [formulas[name], f"    {rows}; label{'s' if len(labels) > 1 else ''} {', '.join(labels)}"]
    for name, (amount, given) in chain.expectations.items():
        labels = [column for s, column in columns.items() if s in (amount, *chain.sources(chain.value(amount).parent))]
        rows = f"rows with {given} = 1" if given else "all rows"
        lines += [formulas[name], f"    {rows}; labels {', '.join(labels)}"]
    return lines


def _kinds(experiment: Experiment) -> dict[str, str]:
    found = {t.name: kind_of(experiment.config, t) for t in chain_of(experiment.config).heads}
    return {name: kind.type for name, kind in found.items() if kind is not None}


def _terms(experiment: Experiment) -> list[str]:
    objective = build_objective(experiment.config, experiment.registry)
    return [
        f"{name}: mean of {term.loss}; on {term.rows}; divided by {term.divisor}"
        for name, term in objective.terms.items()
    ]


def _scores(experiment: Experiment) -> list[str]:
    """Each formula, and below it what it reads."""
    lines = []
    for name, score in scores_of(experiment.config).items():
        read = [f"column {r.name}" if r.column else f"prediction {r.name}" for r in score.reads]
        lines += [f"score_{name} = {' '.join(score.text.split())}", f"    {', '.join(read)}"]
    return lines


def _features(experiment: Experiment) -> list[str]:
    spec = feature_spec(features_of(experiment.config), experiment.config.embedding.dim)
    lines = [f"{f.name}: {f.kind}, {f.width} columns of the flat vector" for f in spec.fields]
    return [*lines, f"flat vector: {spec.width} columns"]


def _modules(experiment: Experiment) -> list[str]:
    config, chain = experiment.config, chain_of(experiment.config)
    model = build_model_probe(config, experiment.registry)
    layout = layout_without_data(config)
    copies = "shared by all transitions" if config.embedding.shared else "one set per transition"
    embedding = next(iter(model.embeddings.values()))
    assert isinstance(embedding, Embedding), "the model was built here"
    extra = embedding.spec.extra_width
    more = f" and {extra} numbers that towers asked for" if extra else ""
    lines = [f"embedding of width {width}{more}: rows known once the data is read, {copies}" for width in layout.rows]
    experts = f" of experts {config.sharing.expert.type}" if config.sharing.expert else ""
    lines.append(f"sharing {config.sharing.type}{experts}: {_count(model.sharing):,} parameters")
    for transition in chain.heads:
        name = transition.name
        tower, head = model.towers[name], model.heads[name]
        assert isinstance(head, nn.Linear), "a head is one linear layer"
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
    if entry.has_expert:
        lines.append(f"      expert: a tower; default {show(EXPERT)}")
    if "of" in entry.beside:
        lines.append("      of: a list of what it judges; default all")
    return "\n".join(lines)
