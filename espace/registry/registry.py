"""Which parts there are, by kind and name: espace's own, those of installed packages, those that the YAML lists.

Installed packages offer theirs through the entry-point group `espace`; ESPACE_PLUGINS=0 in the environment leaves them
out. A broken one becomes a line in `Registry.failures` and the rest go on working; one that the YAML lists has to work.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from espace.errors import PluginError, did_you_mean
from espace.registry import hookspecs
from espace.registry.signature import Option, accepts, options_of, place_of

KINDS = (
    "towers",
    "sharing",
    "links",
    "objectives",
    "samplers",
    "weightings",
    "stages",
    "pieces",
    "metrics",
    "readers",
    "callbacks",
    "loggers",
    "optimizers",
    "schedules",
)
BUILTIN = (
    "espace.parts.towers.mlp",
    "espace.parts.sharing.separate",
    "espace.parts.sharing.shared_bottom",
    "espace.parts.sharing.mmoe",
    "espace.parts.sharing.cgc",
    "espace.parts.sharing.ple",
    "espace.parts.links.none",
    "espace.parts.links.aitm",
    "espace.parts.links.relation",
    "espace.parts.objectives.entire_space",
    "espace.parts.objectives.parent_space",
    "espace.parts.objectives.ordered",
    "espace.parts.samplers.none",
    "espace.parts.samplers.negative_downsample",
    "espace.parts.samplers.oversample",
    "espace.parts.samplers.unclicked_negatives",
    "espace.parts.samplers.rejection",
    "espace.parts.weightings.fixed",
    "espace.parts.stages.binary",
    "espace.parts.stages.lognormal",
    "espace.parts.stages.ziln",
    "espace.parts.stages.gamma",
    "espace.parts.stages.normal",
    "espace.parts.metrics.auc",
    "espace.parts.metrics.log_loss",
    "espace.parts.metrics.calibration",
    "espace.parts.metrics.count",
    "espace.parts.metrics.gauc",
    "espace.parts.metrics.truth",
    "espace.parts.metrics.value",
    "espace.training.adam",
    "espace.parts.optimizers.adamw",
    "espace.parts.optimizers.adagrad",
    "espace.parts.optimizers.rmsprop",
    "espace.parts.optimizers.sgd",
    "espace.parts.schedules.constant",
    "espace.parts.schedules.linear",
    "espace.parts.schedules.cosine",
    "espace.parts.schedules.plateau",
    "espace.parts.schedules.one_cycle",
    "espace.parts.loggers.tensorboard",
    "espace.parts.loggers.csv",
    "espace.data.reading.readers",
    "espace.data.simulator.simulator",
)
_HOOKS = tuple(f"register_{kind}" for kind in KINDS)


@dataclass(frozen=True, eq=False)
class Entry:
    """One part: what the YAML calls `name`, the factory that builds it, and the package that brought it."""

    kind: str
    name: str
    factory: Callable[..., Any]
    package: str

    @cached_property
    def options(self) -> list[Option]:
        """What the YAML may say about it. Raises PluginError for an option without a type."""
        return options_of(self.factory, f"{one(self.kind)} '{self.name}'")

    @cached_property
    def has_expert(self) -> bool:
        """Whether the YAML may say, beside the options, which tower `expert` is: a third argument asks for experts."""
        return self.kind == "sharing" and accepts(self.factory, 3)

    @property
    def beside(self) -> tuple[str, ...]:
        """What the YAML may say besides the type and the options: experts of a sharing, what a metric is `of`."""
        return ("expert",) if self.has_expert else ("of",) if self.kind == "metrics" else ()

    @cached_property
    def summary(self) -> str:
        """The first line of the factory's documentation, or of its module's."""
        module = sys.modules.get(getattr(self.factory, "__module__", ""))
        text = getattr(self.factory, "__doc__", None) or getattr(module, "__doc__", None) or ""
        return text.strip().partition("\n")[0]


@dataclass
class Registry:
    """Every part by kind and name. `failures` has one line for each installed plugin that could not be used."""

    failures: list[str] = field(default_factory=list)
    _entries: dict[str, dict[str, Entry]] = field(default_factory=lambda: {kind: {} for kind in KINDS})

    def get(self, kind: str, name: str) -> Entry:
        """The part of that name. Raises PluginError, with the nearest name and the plugins that failed to load."""
        entries = self._entries[kind]
        if name not in entries:
            failed = f" Not loaded: {'; '.join(self.failures)}" if self.failures else ""
            raise PluginError(f"there is no {one(kind)} '{name}'.{did_you_mean(name, entries)}{failed}")
        return entries[name]

    def entries(self, kind: str) -> list[Entry]:
        """All parts of a kind, in the order in which they came."""
        return list(self._entries[kind].values())

    def all(self) -> list[Entry]:
        """All parts of all kinds."""
        return [entry for entries in self._entries.values() for entry in entries.values()]

    def add(self, entry: Entry) -> None:
        """Take a part in. Raises PluginError, naming both packages, when another one has its name."""
        known = self._entries[entry.kind].setdefault(entry.name, entry)
        if known.factory is not entry.factory:
            raise PluginError(
                f"{one(entry.kind)} '{entry.name}' comes from {known.package} and from {entry.package}."
                " Rename one of them, or remove one of the two plugins."
            )


def load(plugins: Sequence[str] = (), base: Path | None = None) -> Registry:
    """All parts: built-in, installed, and those of `plugins`, files (relative to `base`) or modules.

    The same arguments give the same registry: it is built once in a process. Raises PluginError for a plugin in
    `plugins` that does not work, with the file and line at fault, and for two parts of one kind and name.
    """
    installed = os.environ.get("ESPACE_PLUGINS") != "0"
    return _load(tuple(plugins), (base or Path()).resolve(), BUILTIN, installed)


@lru_cache
def _load(plugins: tuple[str, ...], base: Path, builtin: tuple[str, ...], installed: bool) -> Registry:
    registry = Registry()
    for name in builtin:
        _add(registry, collect(partial(importlib.import_module, name), name, "espace"))
    for point in sorted(entry_points(group="espace"), key=_title) if installed else ():
        _add_installed(registry, point)
    for text in plugins:
        _add(registry, _asked_for(text, base))
    return registry


def one(kind: str) -> str:
    """`tower` for `towers`."""
    return "stage kind" if kind == "stages" else kind.removesuffix("s")


def is_file(plugin: str) -> bool:
    """Whether an item of the YAML's `plugins` is a file rather than a module."""
    return plugin.endswith(".py") or "/" in plugin


def _add(registry: Registry, entries: list[Entry]) -> None:
    for entry in entries:
        registry.add(entry)


def _title(point: EntryPoint) -> str:
    """`espace-deepfm 1.2.0, deepfm`: sorts, and says whom to ask."""
    package = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown package"
    return f"{package}, {point.name}"


def _add_installed(registry: Registry, point: EntryPoint) -> None:
    package = point.dist.name if point.dist else "unknown"
    try:
        entries = collect(
            point.load, f"{package}:{point.name}", f"{package} {point.dist.version if point.dist else ''}"
        )
    except PluginError as error:
        registry.failures.append(f"{_title(point)}: {error}")
    else:
        _add(registry, entries)


def _asked_for(text: str, base: Path) -> list[Entry]:
    obtain = partial(_import_file, base / text) if is_file(text) else partial(importlib.import_module, text)
    try:
        return collect(obtain, text, text)
    except PluginError as error:
        raise PluginError(f"plugins: {text}: {error}") from error.__cause__


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        beside = [f"./{p.name}" for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise PluginError(f"there is no file {path}.{did_you_mean(f'./{path.name}', beside)}")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"espace_plugin_{path.stem.replace('.', '_')}_{digest}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def collect(obtain: Callable[[], object], name: str, package: str) -> list[Entry]:
    """The parts of one plugin. Raises PluginError for whatever goes wrong in it, in one line, with file and line.

    Each plugin has a manager of its own, so that the fault of one is never the fault of another.
    """
    entries: list[Entry] = []
    manager = pluggy.PluginManager("espace")
    manager.add_hookspecs(hookspecs)
    try:
        plugin = obtain()
        manager.register(plugin, name)
        _check_hooks(manager, plugin)
        for kind in KINDS:
            getattr(manager.hook, f"register_{kind}")(register=partial(_register, entries, package, kind))
    except PluginError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(_blame(error)) from error
    if not entries:
        raise PluginError(f"it contributes nothing. Give it a function such as {_HOOKS[0]} with @espace.hookimpl.")
    return entries


def _register(entries: list[Entry], package: str, kind: str, name: str, factory: Callable[..., object]) -> None:
    if not isinstance(name, str) or not callable(factory):
        raise PluginError(
            f"register_{kind} was given {name!r} and {factory!r}. Give it a name and what builds the part."
        )
    entry = Entry(kind, name, factory, package)
    taken = {option.name for option in entry.options} & {"type", *entry.beside}
    if taken:
        what = f"an option cannot be called '{min(taken)}'. Rename it."
        raise PluginError(f"{place_of(factory)}{one(kind)} '{name}': {what}")
    entries.append(entry)


def _check_hooks(manager: pluggy.PluginManager, plugin: object) -> None:
    """Refuse a hook that nobody calls: misspelt, or without its decorator."""
    for caller in manager.get_hookcallers(plugin) or []:
        if not caller.has_spec():
            where = place_of(caller.get_hookimpls()[0].function)
            raise PluginError(f"{where}there is no hook '{caller.name}'.{did_you_mean(caller.name, _HOOKS)}")
    for hook in _HOOKS:
        function = getattr(plugin, hook, None)
        if inspect.isroutine(function) and manager.parse_hookimpl_opts(plugin, hook) is None:
            raise PluginError(f"{place_of(function)}'{hook}' is not marked as a hook. Put @espace.hookimpl above it.")


def _blame(error: BaseException) -> str:
    """`file.py:12: TypeError: what it says`, in one line; the place is the last line of the plugin's own code."""
    what = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_machinery(f.filename)]
    if not frames:
        missing = isinstance(error, ModuleNotFoundError)
        return f"{what}. Install it, or write ./name.py for a file beside the YAML." if missing else what
    first = Path(frames[0].filename)
    home = first.parent if (first.parent / "__init__.py").is_file() else first
    own = [f for f in frames if Path(f.filename).is_relative_to(home)]
    return f"{own[-1].filename}:{own[-1].lineno}: {what}"


def _is_machinery(filename: str) -> bool:
    folders = tuple(str(Path(module.__file__ or "").parent) for module in (importlib, pluggy))
    return filename.startswith(("<frozen", *folders)) or filename == __file__
