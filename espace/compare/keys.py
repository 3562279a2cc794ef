"""The keys of the YAML of a comparison, and what is wrong with them whatever the experiment."""
# ruff: noqa: RUF012, pydantic gives every instance a default of its own

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Gt, Le, MinLen

from espace.config.naming import name_problem, name_problems
from espace.config.schema import Seed
from espace.config.validate import Section, check
from espace.config.yamlfile import Key, Problem, Source, show
from espace.errors import did_you_mean

PRODUCT_METRICS = ("auc", "log_loss", "predicted_over_observed")
_OURS = {"seed": "seeds", "data.share": "shares"}  # what the comparison itself sets: where it is said
_SHORT = ("conditions", "helpers", "variants")  # where a name may stand without anything


class Variant(Section):
    """Overrides of the base, options of which the best value on validation is taken, and options that are runs of
    helpers; or columns of the test rows in the place of a model."""

    overrides: list[str] = []
    choose: dict[str, Annotated[list[Any], MinLen(1)]] = {}
    uses: dict[str, str] = {}
    columns: dict[str, str] | None = None

    @property
    def settings(self) -> list[tuple[str, ...]]:
        """Overrides for every combination of the values to choose from; one without any where nothing is to choose."""
        return [tuple(map(override, self.choose, v)) for v in itertools.product(*self.choose.values())]


def override(key: str, value: object) -> str:
    """`key=value`, whatever plain value it is."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


class Product(Section):
    """P(parent) of a helper times a conditional of each variant."""

    parent: str
    conditional: str


class ChooseBy(Section):
    """The validation metric that chooses among the settings of a variant."""

    metric: str
    mode: Literal["min", "max"]


class Keys(Section):
    """All keys of the file."""

    name: str | None = None
    base: str
    overrides: list[str] = []
    conditions: dict[str, list[str]] = {}
    seeds: Annotated[list[Seed], MinLen(1)] = [0]
    shares: Annotated[list[Annotated[float, Gt(0), Le(1)]], MinLen(1)] = [1.0]
    report: Annotated[list[str], MinLen(1)]
    helpers: dict[str, list[str]] = {}
    variants: dict[str, Variant]
    products: dict[str, Product] = {}
    choose_by: ChooseBy | None = None
    against: str | None = None

    def reported(self, metrics: Sequence[str] = PRODUCT_METRICS) -> list[str]:
        """The names of probabilities, products among them, of which one of `metrics` is reported."""
        named = (name.rpartition("/") for name in self.report)
        return list(dict.fromkeys(space for space, _, metric in named if metric in metrics))


def keys_of(source: Source) -> Keys:
    """The keys. Raises ConfigError with all that is wrong with them."""
    for section in _SHORT:
        names = source.tree.get(section)
        if isinstance(names, dict):
            empty: object = {} if section == "variants" else []
            source.tree[section] = {n: empty if v is None else v for n, v in names.items()}
    variants = source.tree.get("variants")
    if isinstance(variants, dict):
        source.tree["variants"] = {n: {"overrides": v} if isinstance(v, list) else v for n, v in variants.items()}
    keys, problems = check(Keys, source.tree, ())
    source.refuse([*problems, *(_contradictions(keys) if keys else ())])
    assert keys is not None, "there was no problem"
    return keys


def _contradictions(keys: Keys) -> Iterator[Problem]:
    """What types cannot say."""
    if not keys.variants:
        yield Problem(("variants",), "there is none. Write each under a name of its own, as in esmm: [].")
    for section in ("variants", "conditions", "helpers", "products"):
        yield from name_problems((section,), getattr(keys, section) or ())
    if keys.name and (why := name_problem(keys.name)):
        yield Problem(("name",), why)
    for name in ("seeds", "shares", "report"):
        values = getattr(keys, name)
        for i, value in enumerate(values):
            if value in values[:i]:
                yield Problem((name, i), f"{show(value)} stands there twice. Remove one.")
    if keys.against is not None and keys.against not in keys.variants:
        yield Problem(("against",), f"there is no variant '{keys.against}'.{did_you_mean(keys.against, keys.variants)}")
    for section, named in (("conditions", keys.conditions), ("helpers", keys.helpers)):
        for name, overrides in named.items():
            yield from _ours((section, name), overrides)
    for name, variant in keys.variants.items():
        yield from _of_variant(keys, name, variant)
    yield from _of_helpers(keys)


def _of_variant(keys: Keys, name: str, variant: Variant) -> Iterator[Problem]:
    if variant.choose and keys.choose_by is None:
        what = "which value is the best? Write choose_by: {metric: ..., mode: max}."
        yield Problem(("variants", name, "choose"), what)
    yield from _ours(("variants", name), [*variant.overrides, *variant.choose, *variant.uses])
    for key, helper in variant.uses.items():
        if helper not in keys.helpers:
            yield Problem(("variants", name, "uses", key), _no_helper(helper, keys))
    if variant.columns is not None:
        for key in ("overrides", "choose", "uses"):
            if getattr(variant, key):
                what = "nothing is trained where columns are judged. Remove it, or make another variant of it."
                yield Problem(("variants", name, key), what)


def _of_helpers(keys: Keys) -> Iterator[Problem]:
    """Helpers that are not there, and those that nobody asks for."""
    for name, product in keys.products.items():
        if product.parent not in keys.helpers:
            yield Problem(("products", name, "parent"), _no_helper(product.parent, keys))
    used = {helper for variant in keys.variants.values() for helper in variant.uses.values()}
    used |= {product.parent for product in keys.products.values()}
    for name in keys.helpers:
        if name not in used:
            what = "nothing uses it. Name it under uses of a variant or as the parent of a product, or remove it."
            yield Problem(("helpers", name), what)


def _no_helper(name: str, keys: Keys) -> str:
    if keys.helpers:
        return f"there is no helper '{name}'.{did_you_mean(name, keys.helpers)}"
    return f"there is no helper '{name}'. Write helpers: {{{name}: [overrides of its run]}}."


def _ours(key: Key, texts: Sequence[str]) -> Iterator[Problem]:
    for text in texts:
        name = text.partition("=")[0].strip()
        if name in _OURS:
            yield Problem(key, f"the comparison sets {name}. Write {_OURS[name]} at the top instead.")
