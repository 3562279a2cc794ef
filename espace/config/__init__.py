"""The configuration: read from a YAML file, changed by overrides, checked as a whole, written out again.

All that is wrong is said at once, each with file, line and column. `yamlfile` says how scalars are read, `overrides`
how `a.b=value` is. `${a.b}` is another value, `${oc.env:NAME,default}` text from the environment (`${oc.decode:...}`
makes a number of it), and `???` has to be given by an override. An empty key at the top has its default.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import operator
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from espace.config import bulk, crosscheck
from espace.config.json_schema import json_schema
from espace.config.overrides import apply
from espace.config.parts import Binder
from espace.config.patterns import has_patterns
from espace.config.references import bounded
from espace.config.schema import DEFAULTS, Component, Fields
from espace.config.validate import check
from espace.config.yamlfile import MAX_DEPTH, MAX_NODES, Key, Problem, Source, dotted, dump, read, show
from espace.errors import ConfigError, did_you_mean
from espace.registry import registry as plugins
from espace.registry.registry import Registry

__all__ = [
    "Component",
    "Config",
    "check_monitor",
    "escaped",
    "json_schema",
    "listed_plugins",
    "load",
    "load_and_tell",
    "load_with_plugins",
    "monitor_mode",
    "override",
    "save",
]


class Config(Fields):
    """A checked configuration with every default written out."""

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], registry: Registry | None = None) -> Config:
        """Check plain values. Raises ConfigError with every problem; `Config.from_dict(config.to_dict()) == config`."""
        try:
            source = Source(json.loads(json.dumps(tree, ensure_ascii=False).encode()))
        except (TypeError, UnicodeEncodeError) as error:
            raise ConfigError(f"the configuration has to hold plain values only: {error}.") from error
        return _assemble(source, registry or _registry_of(source))

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values. A default metric or logger that was removed is null."""
        tree = self.model_dump(mode="json")
        for key in ("metrics", "loggers"):
            tree[key] |= {name: None for name in DEFAULTS[key] if name not in tree[key]}
        return tree


def load(path: str | Path, overrides: Sequence[str] = (), registry: Registry | None = None) -> Config:
    """Read a YAML file and change it by `a.b=value` overrides.

    Without a registry, that of the plugins that the file lists. Raises ConfigError with every problem; PluginError.
    """
    return _load(_read(Path(path), overrides), registry)[0]


def load_with_plugins(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Config, Registry]:
    """As `load`, with the registry of the plugins that the file lists."""
    return load_and_tell(path, overrides)[:2]


def load_and_tell(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Config, Registry, list[str]]:
    """As `load_with_plugins`, with a line for each pattern of features: what it became."""
    return _load(_read(Path(path), overrides))


def override(config: Config, overrides: Sequence[str], registry: Registry) -> Config:
    """A checked configuration changed by `a.b=value` overrides. Raises ConfigError with every problem."""
    source = Source(config.to_dict())
    apply(source, overrides)
    return _assemble(source, registry)


def save(config: Config, path: str | Path) -> None:
    """Write a YAML file that `load` reads as the same configuration, every default written out; all of it or
    nothing."""
    text = f"# Every default is written out. To repeat: espace fit {path}\n{dump(escaped(config.to_dict()))}"
    partial = Path(f"{path}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def listed_plugins(path: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """The plugins that a YAML file and the overrides list, none of them loaded. Raises ConfigError."""
    listed = _read(Path(path), overrides).tree.get("plugins")
    return [plugin for plugin in listed if isinstance(plugin, str)] if isinstance(listed, list) else []


def check_monitor(config: Config, names: Sequence[str]) -> None:
    """Raise ConfigError unless `config.monitor` is one of the names that will be measured."""
    if config.monitor not in names:
        raise ConfigError(f"monitor: '{config.monitor}' is not measured.{did_you_mean(config.monitor, names)}")


def monitor_mode(config: Config) -> Literal["min", "max"]:
    """Whether `monitor` is better when it is lower or higher: `mode`, else max for AUC, GAUC, Gini and rank
    correlation, and min for the rest."""
    return config.mode or ("max" if config.monitor.endswith(("/auc", "/gauc", "/gini", "rank_correlation")) else "min")


def _read(path: Path, overrides: Sequence[str]) -> Source:
    """The tree as the file and the overrides say, references resolved, files of plugins by their full paths."""
    source = read(path)
    apply(source, overrides)
    _resolve(source)
    listed = source.tree.get("plugins")
    if isinstance(listed, list):
        base = path.parent.resolve()
        source.tree["plugins"] = [str(base / p) if isinstance(p, str) and plugins.is_file(p) else p for p in listed]
    return source


def _registry_of(source: Source) -> Registry:
    listed = source.tree.get("plugins")
    return plugins.load([p for p in listed if isinstance(p, str)] if isinstance(listed, list) else [])


def _load(source: Source, registry: Registry | None = None) -> tuple[Config, Registry, list[str]]:
    registry = registry or _registry_of(source)
    told = _expand(source, registry) if has_patterns(source.tree.get("features")) else []
    return _assemble(source, registry), registry, told


def _expand(source: Source, registry: Registry) -> list[str]:
    """Put features in the place of patterns; a line about each. Raises as `load`, and DataError for the data."""
    patterns = bulk.Bulk(source.tree["features"])
    now = Source({**source.tree, "features": patterns.for_now()}, source.places, source.problems)
    config, problems = _judged(now, registry)
    source.refuse(patterns.problems(problems))
    assert config is not None, "there was no problem"
    found = patterns.expand(config, bulk.open_training(config, registry))
    source.refuse(found.problems)
    source.tree["features"] = found.features
    source.places |= {("features", name): source.place(key) for name, key in found.places.items()}
    return found.told


def _assemble(source: Source, registry: Registry) -> Config:
    """The configuration, or a refusal with all that is wrong."""
    config, problems = _judged(source, registry)
    source.refuse(problems)
    assert config is not None, "there was no problem"
    return config


def _judged(source: Source, registry: Registry) -> tuple[Config | None, list[Problem]]:
    """Bind parts, check types, check what types cannot say: the configuration if its types hold, and all problems."""
    binder = Binder(registry)
    tree = binder.bind(source.tree)
    source.places |= {key: source.place(piece) for key, piece in binder.origins.items()}
    config, mistyped = check(Config, tree, ())
    found = mistyped + binder.problems
    known = [p.key for p in source.problems if p.key]
    whole = config or _pruned(tree, mistyped)
    found += crosscheck.problems(whole, [*known, *(p.key for p in found)])
    return config, [p for p in found if not any(p.key[: len(key)] == key for key in known)]


def _pruned(tree: dict[str, Any], problems: list[Problem]) -> Fields:
    """What is left without the values that have problems, so that the rest is checked in the same go."""
    for key in (p.key for p in problems):
        named = tuple(itertools.takewhile(lambda step: isinstance(step, str), key))
        holder: Any = tree
        for step in named[:-1]:
            holder = holder[step] if isinstance(holder, dict) and step in holder else {}
        if isinstance(holder, dict):
            holder.pop(named[-1], None)
    data = tree.get("data")
    least = {"chain": [], "data": {"train": "", **(data if isinstance(data, dict) else {})}, "features": {}}
    config, _ = check(Fields, {**tree, **{k: v for k, v in least.items() if k == "data" or k not in tree}}, ())
    assert config is not None, "only the chain, the features and the training data have no default"
    return config


def _references(value: object, key: Key) -> Iterator[tuple[Key, str]]:
    """Every text that refers to something else."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in items:
        yield from _references(item, (*key, step))
    if isinstance(value, str) and ("${" in value or value == "???"):
        yield key, value


def _resolve(source: Source) -> None:
    """Put values in the place of references; what cannot be resolved is noted and taken out."""
    if not any(_references(source.tree, ())):
        return
    from omegaconf import OmegaConf  # here, since it is slow to import and most files refer to nothing
    from omegaconf.errors import OmegaConfBaseException

    for key, text in list(_references(source.tree, ())):
        try:
            bounded(source.tree, text)
            OmegaConf.create([text])
        except (OmegaConfBaseException, ValueError) as error:
            _take_out(source, key, text, error)
    tree, nodes = OmegaConf.create(source.tree), itertools.count()
    for key, text in list(_references(source.tree, ())):
        try:
            _holder(source.tree, key)[key[-1]] = _plain(_holder(tree, key)[key[-1]], nodes)
        except OmegaConfBaseException as error:
            _take_out(source, key, text, error)


def _plain(value: Any, nodes: Iterator[int], depth: int = 0) -> Any:
    """What a reference leads to, itself resolved, as plain values. Each look-up may raise OmegaConfBaseException."""
    from omegaconf import DictConfig, ListConfig
    from omegaconf.errors import InterpolationResolutionError

    if next(nodes) > MAX_NODES or depth > MAX_DEPTH:
        raise InterpolationResolutionError("it leads to itself, or to too many values")
    if isinstance(value, DictConfig):
        return {str(name): _plain(value[name], nodes, depth + 1) for name in value}
    if isinstance(value, ListConfig):
        return [_plain(value[i], nodes, depth + 1) for i in range(len(value))]
    return value


def _holder(tree: Any, key: Key) -> Any:
    return functools.reduce(operator.getitem, key[:-1], tree)


def _take_out(source: Source, key: Key, text: str, error: Exception) -> None:
    holder = _holder(source.tree, key)
    if isinstance(holder, dict):
        del holder[key[-1]]
    else:
        holder[key[-1]] = ""
    source.problems.append(Problem(key, _why(text, key, str(error).partition("\n")[0])))


def _why(text: str, key: Key, reason: str) -> str:
    if text == "???":
        return f"it has to be given. Write it in the file, or add the override {dotted(key)}=VALUE."
    if reason.startswith("It is too much"):
        return f"{show(text)}: {reason[:1].lower()}{reason[1:]}. Write the value itself."
    variable = re.search(r"Environment variable '(.*)' not found", reason)
    if variable:
        mend = f"Set it, or write ${{oc.env:{variable[1]},default}}."
        return f"the environment has no {variable[1]}. {mend}"
    return f"{show(text)} leads nowhere: {reason[:1].lower()}{reason[1:]}. Mend it, or write \\${{ for the characters."


def escaped(value: Any) -> Any:
    """The same values, in which no text is taken for a reference when it is read again."""
    if isinstance(value, dict):
        return {name: escaped(item) for name, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
