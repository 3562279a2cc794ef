"""The YAML of a comparison: variants of one experiment, seeds, shares of the training rows, and what to report."""
# ruff: noqa: RUF012, pydantic gives every instance a default of its own

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Gt, Le, MinLen

import espace.config as configuration
from espace.build import metric_names
from espace.config import Config
from espace.config.validate import Section, check
from espace.config.yamlfile import Key, Problem, Source, read, show
from espace.errors import ConfigError, EspaceError, did_you_mean
from espace.experiment import Experiment, open_parts
from espace.plugins import Registry, is_file

_VERSION = 1
_OURS = ("seed", "data.share")  # what the comparison itself sets


class Variant(Section):
    """Overrides of the base, and options of which the best value on validation is taken."""

    overrides: list[str] = []
    choose: dict[str, Annotated[list[Any], MinLen(1)]] = {}

    @property
    def settings(self) -> list[tuple[str, ...]]:
        """Overrides for every combination of the values to choose from; one without any where there is nothing to choose."""
        return [tuple(map(_override, self.choose, v)) for v in itertools.product(*self.choose.values())]


def _override(key: str, value: object) -> str:
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


class ChooseBy(Section):
    """The validation metric that chooses among the settings of a variant."""

    metric: str
    mode: Literal["min", "max"]


class Keys(Section):
    """All keys of the file."""

    name: str | None = None
    base: str
    overrides: list[str] = []
    seeds: Annotated[list[int], MinLen(1)] = [0]
    shares: Annotated[list[Annotated[float, Gt(0), Le(1)]], MinLen(1)] = [1.0]
    report: Annotated[list[str], MinLen(1)]
    variants: dict[str, Variant]
    choose_by: ChooseBy | None = None
    against: str | None = None


@dataclass(frozen=True)
class Planned:
    """One run: its place in the comparison, how it departs from the base, and a digest of all that decides its result.

    setting: the values among which was to be chosen; data: fingerprint of the test rows.
    """

    variant: str
    setting: tuple[str, ...]
    share: float
    seed: int
    overrides: tuple[str, ...]
    digest: str
    data: str

    def __str__(self) -> str:
        share = "" if self.share == 1 else f", {self.share:g} of the rows"
        return f"{self.variant}{share}, seed {self.seed}{''.join(f', {s}' for s in self.setting)}"


class Comparison:
    """A checked comparison.

    Attributes: keys (the file), name, base (the path of the experiment), against (the variant that others are compared with).
    Raises ConfigError with every problem of the file, and of the experiments that it makes, at once; DataError for data that is
    not there.
    """

    def __init__(self, path: str | Path, overrides: Sequence[str] = ()) -> None:
        path = Path(path)
        source = read(path)
        self.keys = _checked(source)
        self.name = self.keys.name or path.stem
        self.base = path.parent / self.keys.base
        self.against = self.keys.against or next(iter(self.keys.variants))
        self._overrides = (*self.keys.overrides, *overrides)
        source.refuse(self._problems())

    @property
    def spaces(self) -> list[str]:
        """The probabilities of which an AUC is reported."""
        return [space for space, _, metric in (n.rpartition("/") for n in self.keys.report) if metric == "auc"]

    def runs(self) -> list[Planned]:
        """Every run, in the order of the file; runs with the same digest are one. Opens the data."""
        seen = _Fingerprints()
        return [
            self._planned(name, setting, share, seed, seen)
            for name, variant in self.keys.variants.items()
            for setting in variant.settings
            for share in self.keys.shares
            for seed in self.keys.seeds
        ]

    def _planned(self, name: str, setting: tuple[str, ...], share: float, seed: int, seen: _Fingerprints) -> Planned:
        overrides = (*self._of(name, setting), f"data.share={share}", f"seed={seed}")
        config, registry = configuration.load_with_plugins(self.base, overrides)
        trained, judged = seen.of(config, registry)
        tree = config.to_dict()
        for key in ("test", "workers", "keep_encoded"):
            tree["data"].pop(key)
        code = [_content(p) for p in config.plugins if is_file(p)]
        facts = [_VERSION, importlib.metadata.version("espace"), tree, trained, code]
        return Planned(name, setting, share, seed, overrides, _digest(facts), judged)

    def _of(self, name: str, setting: Sequence[str]) -> tuple[str, ...]:
        return (*self._overrides, *self.keys.variants[name].overrides, *setting)

    def _problems(self) -> Iterator[Problem]:
        """What is wrong with the experiments, and with what is asked of them; the base first, since all others have its."""
        try:
            Experiment.from_yaml(self.base, self._overrides)
        except EspaceError as error:
            yield from (Problem(("base",), text) for text in _texts(error))
            return
        for name, variant in self.keys.variants.items():
            for setting in variant.settings:
                try:
                    experiment = Experiment.from_yaml(self.base, self._of(name, setting))
                except EspaceError as error:
                    yield from (Problem(("variants", name), text) for text in _texts(error))
                else:
                    yield from self._wanted(name, variant, experiment)

    def _wanted(self, name: str, variant: Variant, experiment: Experiment) -> Iterator[Problem]:
        data = experiment.config.data
        if data.test is None:
            yield Problem(("variants", name), "it has no data.test, and a comparison judges on test rows. Name them.")
        if variant.choose and data.validation is None and data.split is None:
            what = "it has no validation rows to choose by. Name data.validation, or data.split."
            yield Problem(("variants", name), what)
        known = [n.removeprefix("val/") for n in metric_names(experiment.config, experiment.registry)]
        wanted: dict[Key, str] = {("report", i): metric for i, metric in enumerate(self.keys.report)}
        if self.keys.choose_by and variant.choose:
            wanted["choose_by", "metric"] = self.keys.choose_by.metric
        for key, metric in wanted.items():
            if metric not in known:
                yield Problem(key, f"'{metric}' is not measured in '{name}'.{did_you_mean(metric, known)}")


def _checked(source: Source) -> Keys:
    """The keys, or all that is wrong with them. A variant may be just its list of overrides."""
    variants = source.tree.get("variants")
    if isinstance(variants, dict):
        short = {n: {} if v is None else {"overrides": v} if isinstance(v, list) else v for n, v in variants.items()}
        source.tree["variants"] = short
    keys, problems = check(Keys, source.tree, ())
    source.refuse([*problems, *(_contradictions(keys) if keys else ())])
    assert keys is not None, "there was no problem"
    return keys


def _contradictions(keys: Keys) -> Iterator[Problem]:
    """What types cannot say."""
    if not keys.variants:
        yield Problem(("variants",), "there is none. Write each under a name of its own, as in esmm: [].")
    for name in ("seeds", "shares", "report"):
        values = getattr(keys, name)
        for i, value in enumerate(values):
            if value in values[:i]:
                yield Problem((name, i), f"{show(value)} stands there twice. Remove one.")
    if keys.against is not None and keys.against not in keys.variants:
        yield Problem(("against",), f"there is no variant '{keys.against}'.{did_you_mean(keys.against, keys.variants)}")
    for name, variant in keys.variants.items():
        if variant.choose and keys.choose_by is None:
            what = "which value is the best? Write choose_by: {metric: ..., mode: max}."
            yield Problem(("variants", name, "choose"), what)
        for key in (*variant.choose, *(text.partition("=")[0].strip() for text in variant.overrides)):
            if key in _OURS:
                mend = f"the comparison sets {key}. Write {'seeds' if key == 'seed' else 'shares'} at the top instead."
                yield Problem(("variants", name), mend)


def _texts(error: EspaceError) -> list[str]:
    return error.problems if isinstance(error, ConfigError) else [str(error)]


@dataclass
class _Fingerprints:
    """What the data of configurations holds: the training and validation rows, and the test rows. Each file is opened once."""

    known: dict[str, tuple[str, str]] = field(default_factory=dict)

    def of(self, config: Config, registry: Registry) -> tuple[str, str]:
        key = json.dumps([config.data.model_dump(mode="json", exclude={"share"}), config.plugins])
        if key not in self.known:
            parts = open_parts(config, registry)
            prints = {name: part.reader.fingerprint for name, part in parts.items()}
            self.known[key] = (_digest([v for n, v in prints.items() if n != "test"]), prints.get("test", ""))
        return self.known[key]


def _digest(facts: object) -> str:
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _content(path: str) -> str:
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()
