"""A comparison: variants of one experiment, under conditions, over seeds and shares of training rows, and its runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import espace.config as configuration
from espace.compare.checks import (
    Steps,
    helper_problems,
    product_problems,
    stand_in,
    steps_of,
    variant_problems,
)
from espace.compare.keys import Product, Variant, keys_of, override
from espace.compare.planned import Digests, Planned
from espace.config.yamlfile import Key, Problem, read
from espace.errors import ConfigError, EspaceError, did_you_mean
from espace.runs.build import chain_of
from espace.runs.experiment import Experiment

Cell = tuple[str, float, int]  # condition, share, seed


class Comparison:
    """A checked comparison.

    Attributes: keys (the file), name, base (the path of the experiment), against (the variant that others are compared
    with), conditions (overrides by name; one without a name where the file has none), steps (stage and parent by
    conditional).
    Raises ConfigError with every problem of the file, and of the experiments that it makes, at once; DataError for data
    that is not there.
    """

    steps: Steps

    def __init__(self, path: str | Path, overrides: Sequence[str] = ()) -> None:
        path = Path(path)
        self._source = read(path)
        self.keys = keys_of(self._source)
        self.name = self.keys.name or path.stem
        self.base = path.parent / self.keys.base
        self.against = self.keys.against or next(iter(self.keys.variants))
        self.conditions = self.keys.conditions or {"": []}
        self._overrides = (*self.keys.overrides, *overrides)
        self._helpers = {name: Variant(overrides=texts) for name, texts in self.keys.helpers.items()}
        self._source.refuse(self._problems())

    @property
    def products(self) -> dict[str, Product]:
        """The products of which something is reported."""
        return {name: p for name, p in self.keys.products.items() if name in self.keys.reported()}

    @property
    def spaces(self) -> list[str]:
        """The probabilities of a model of which an AUC is reported."""
        return [space for space in self.keys.reported(("auc",)) if space not in self.keys.products]

    @property
    def groups(self) -> list[tuple[str, float]]:
        """Every condition and share, within each of which runs are compared."""
        return list(itertools.product(self.conditions, self.keys.shares))

    def runs(self) -> list[Planned]:
        """Every run, helpers first, then in the order of the file; runs with the same digest are one. Opens the data.

        Raises ConfigError for columns that the test rows lack.
        """
        planner = _Planner(self)
        cells = list(itertools.product(self.conditions, self.keys.shares, self.keys.seeds))
        needed = {used for variant in self.keys.variants.values() for used in variant.uses.values()}
        needed |= {product.parent for product in self.products.values()}
        named = [(name, helper) for name, helper in self._helpers.items() if name in needed]
        helpers = [planner.helper(name, helper, cell) for name, helper in named for cell in cells]
        runs = [
            planner.variant(name, variant, setting, cell)
            for name, variant in self.keys.variants.items()
            for setting in variant.settings
            for cell in cells
        ]
        self._source.refuse(planner.problems)
        return [*helpers, *runs]

    def overrides_of(self, variant: Variant, condition: str, setting: Sequence[str] = ()) -> tuple[str, ...]:
        """How a variant departs from the base under a condition, without share, seed and what it uses."""
        return (*self._overrides, *self.conditions[condition], *variant.overrides, *setting)

    def _problems(self) -> Iterator[Problem]:
        """What is wrong with the experiments, and with what is asked of them; first the base, whose all others have."""
        base, problems = self._tried(("base",), self._overrides)
        if base is not None:
            self.steps = steps_of(chain_of(base.config))
            problems = list(product_problems(self.keys, base))
        yield from problems
        if problems:
            return
        told: set[Key] = set()
        for condition, overrides in self.conditions.items():
            _, problems = self._tried(("conditions", condition), (*self._overrides, *overrides))
            yield from problems
            if not problems:
                yield from self._under(condition, told)

    def _under(self, condition: str, told: set[Key]) -> Iterator[Problem]:
        """What is wrong with helpers and variants under a condition; `told` are those of which something was said."""
        helpers: dict[str, Experiment] = {}
        for name, helper in self._helpers.items():
            key = ("helpers", name)
            experiment, found = self._tried(key, self.overrides_of(helper, condition), condition)
            if experiment is not None:
                helpers[name] = experiment
                found = list(helper_problems(self.keys, name, experiment, self.steps))
            yield from _once(key, found, told)
        for name, variant in self.keys.variants.items():
            key = ("variants", name)
            used = [override(option, stand_in(helper)) for option, helper in variant.uses.items()]
            problems = []
            for setting in variant.settings:
                experiment, found = self._tried(
                    key, (*self.overrides_of(variant, condition, setting), *used), condition
                )
                if experiment is not None:
                    found = list(variant_problems(self.keys, name, experiment, helpers, self.steps))
                problems += found
            yield from _once(key, problems, told)

    def _tried(
        self, key: Key, overrides: Sequence[str], condition: str = ""
    ) -> tuple[Experiment | None, list[Problem]]:
        """An experiment, or what is wrong with it."""
        try:
            return Experiment.from_yaml(self.base, (*overrides, f"seed={self.keys.seeds[0]}")), []
        except EspaceError as error:
            texts = error.problems if isinstance(error, ConfigError) else [str(error)]
            where = f"under '{condition}': " if condition else ""
            return None, [Problem(key, f"{where}{text}") for text in texts]


def _once(key: Key, problems: Sequence[Problem], told: set[Key]) -> Iterator[Problem]:
    """The problems, unless something was said of `key` before: under another condition there are the same."""
    if key not in told:
        yield from problems
    if problems:
        told.add(key)


class _Planner:
    """Plans the runs of a comparison, those of helpers before those that use them; gathers problems of columns."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison, self.digests = comparison, Digests()
        self.helpers: dict[tuple[str, Cell], Planned] = {}
        self.problems: list[Problem] = []

    def helper(self, name: str, helper: Variant, cell: Cell) -> Planned:
        self.helpers[name, cell] = found = self._trained(name, helper, (), cell, helper=True)
        return found

    def variant(self, name: str, variant: Variant, setting: tuple[str, ...], cell: Cell) -> Planned:
        products = self.comparison.products.items()
        parents = tuple((product, self.helpers[p.parent, cell].judged) for product, p in products)
        if variant.columns is not None:
            return self._columns(name, variant, variant.columns, cell, parents)
        return self._trained(name, variant, setting, cell, parents)

    def _trained(
        self,
        name: str,
        variant: Variant,
        setting: tuple[str, ...],
        cell: Cell,
        parents: tuple[tuple[str, str], ...] = (),
        helper: bool = False,
    ) -> Planned:
        overrides = self._overrides(variant, setting, cell)
        uses = tuple((key, self.helpers[used, cell].digest) for key, used in variant.uses.items())
        texts = (*overrides, *(override(key, digest) for key, digest in uses))
        config, registry = configuration.load_with_plugins(self.comparison.base, texts)
        digest, data = self.digests.trained(config, registry), self.digests.data(config, registry).judged
        return Planned(name, setting, *cell, overrides, digest, data, helper, uses, parents)

    def _columns(
        self, name: str, variant: Variant, columns: dict[str, str], cell: Cell, parents: tuple[tuple[str, str], ...]
    ) -> Planned:
        overrides = self._overrides(variant, (), cell)
        config, registry = configuration.load_with_plugins(self.comparison.base, overrides)
        data = self.digests.data(config, registry)
        for step, column in columns.items():
            if column not in data.columns:
                what = f"the test rows have no column '{column}'.{did_you_mean(column, data.columns)}"
                self.problems.append(Problem(("variants", name, "columns", step), what))
        digest = self.digests.columns(config, columns)
        return Planned(name, (), *cell, overrides, digest, data.judged, False, (), parents, tuple(columns.items()))

    def _overrides(self, variant: Variant, setting: tuple[str, ...], cell: Cell) -> tuple[str, ...]:
        condition, share, seed = cell
        return (*self.comparison.overrides_of(variant, condition, setting), f"data.share={share}", f"seed={seed}")
