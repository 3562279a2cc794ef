"""One run of a comparison, and the digests of all that decides its results."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from espace.compare.keys import override
from espace.config import Config
from espace.registry.registry import Registry, is_file
from espace.runs.opening import open_parts

_VERSIONS = (1, importlib.metadata.version("espace"))
_NOT_OF_TRAINING = ("test", "workers", "keep_encoded")  # of data
_OF_JUDGING = ("chain", "labels", "stages", "objective", "weighting", "metrics")


@dataclass(frozen=True)
class Planned:
    """One run: its place in the comparison, how it departs from the base, and a digest of all that decides its result.

    name: of the variant, or the helper; setting: the values among which was to be chosen; data: digest of the test
    rows; uses: `(key, digest of the run whose folder it is)`; parents: `(product, what that of its helper is judged
    by)`; columns: `(probability, column of the test rows)`, none of a run that is trained.
    """

    name: str
    setting: tuple[str, ...]
    condition: str
    share: float
    seed: int
    overrides: tuple[str, ...]
    digest: str
    data: str
    helper: bool = False
    uses: tuple[tuple[str, str], ...] = ()
    parents: tuple[tuple[str, str], ...] = ()
    columns: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        share = "" if self.share == 1 else f", {self.share:g} of the rows"
        condition = f", {self.condition}" if self.condition else ""
        setting = "".join(f", {s}" for s in self.setting)
        return f"{'helper ' if self.helper else ''}{self.name}{condition}{share}, seed {self.seed}{setting}"

    @property
    def group(self) -> tuple[str, float]:
        """Condition and share, within which runs are compared."""
        return self.condition, self.share

    @property
    def judged(self) -> str:
        """Where its judgement lies, without the ending, from the folder of all runs."""
        return f"{self.digest}/test-{self.data}"

    def behind(self, space: str) -> tuple[str, ...]:
        """What the values of one probability hang on: two runs with the same have the same values."""
        return (self.judged, *(judged for product, judged in self.parents if product == space))

    def overrides_in(self, runs: Path) -> tuple[str, ...]:
        """All overrides, when the folder of all runs is `runs`."""
        return (*self.overrides, *(override(key, str(runs / digest)) for key, digest in self.uses))


class _Data(NamedTuple):
    """Digests of the training and validation rows, and of the test rows, and the columns of those."""

    trained: str
    judged: str
    columns: list[str]


@dataclass
class Digests:
    """Of runs, and of the data that they are trained and judged on. Each file is opened once."""

    _known: dict[str, _Data] = field(default_factory=dict)

    def data(self, config: Config, registry: Registry) -> _Data:
        """What the data holds. Raises DataError for what is not there."""
        key = json.dumps([config.data.model_dump(mode="json", exclude={"share"}), config.plugins])
        if key not in self._known:
            readers = {name: part.reader for name, part in open_parts(config, registry).items()}
            trained = [reader.fingerprint for name, reader in readers.items() if name != "test"]
            test = readers.get("test")
            judged, columns = (test.fingerprint, test.schema.names) if test else ("", [])
            self._known[key] = _Data(_digest(trained), _digest(judged), columns)
        return self._known[key]

    def trained(self, config: Config, registry: Registry) -> str:
        """Of a run, whatever it is judged on."""
        tree = config.to_dict()
        for key in _NOT_OF_TRAINING:
            tree["data"].pop(key)
        return _digest([*_VERSIONS, tree, self.data(config, registry).trained, _code(config)])

    def columns(self, config: Config, columns: Mapping[str, str]) -> str:
        """Of columns that are judged, whatever they are judged on."""
        tree = config.to_dict()
        data = [config.data.violations, config.data.weight, config.data.potential]
        return _digest([*_VERSIONS, {k: tree[k] for k in _OF_JUDGING}, data, columns, _code(config)])


def _code(config: Config) -> list[str]:
    """The content of plugin files."""
    return [hashlib.blake2b(Path(p).read_bytes(), digest_size=8).hexdigest() for p in config.plugins if is_file(p)]


def _digest(facts: object) -> str:
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
