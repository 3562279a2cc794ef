"""What is wrong with a comparison that only its experiments know: what is measured, which columns and helpers fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from espace.chain.chain import Chain
from espace.compare.keys import PRODUCT_METRICS, Keys, Variant
from espace.config.yamlfile import Key, Problem
from espace.errors import did_you_mean
from espace.runs.build import build_sampler, chain_of, features_of, spaces_of
from espace.runs.experiment import Experiment
from espace.runs.metrics import metric_names

Helpers = Mapping[str, Experiment]  # those in which nothing is wrong
Steps = Mapping[str, tuple[str, str]]  # `steps_of` the base


def product_problems(keys: Keys, base: Experiment) -> Iterator[Problem]:
    """Products that the base cannot be asked for."""
    spaces, known = spaces_of(base.config), steps_of(chain_of(base.config))
    for name, product in keys.products.items():
        if name in spaces:
            what = f"'{name}' is a probability of the chain already. Give the product another name."
            yield Problem(("products", name), what)
        if product.conditional not in known:
            what = f"'{product.conditional}' is not the probability of a stage given its only parent."
            yield Problem(("products", name, "conditional"), f"{what}{did_you_mean(product.conditional, known)}")


def steps_of(chain: Chain) -> dict[str, tuple[str, str]]:
    """`{name: (stage, parent)}` of every conditional of a stage with one parent."""
    steps = {name: (stage, given) for name, (stage, given) in chain.addresses.items() if given}
    return {name: step for name, step in steps.items() if len(chain.parents(step[0])) == 1}


def helper_problems(keys: Keys, name: str, helper: Experiment, steps: Steps) -> Iterator[Problem]:
    """What is wrong with a helper."""
    stages = chain_of(helper.config).stages
    for product in (p for p in keys.products.values() if p.parent == name):
        if helper.config.data.test is None:
            what = "it has no data.test, and a product is judged on test rows. Name them."
            yield Problem(("helpers", name), what)
        if (parent := steps[product.conditional][1]) not in stages:
            what = f"its chain has no stage '{parent}', of which a product wants the probability."
            yield Problem(("helpers", name), f"{what}{did_you_mean(parent, stages)}")


def variant_problems(
    keys: Keys, name: str, experiment: Experiment, helpers: Helpers, steps: Steps
) -> Iterator[Problem]:
    """What is wrong with a variant, one setting of it, or with what is asked of it."""
    variant, data = keys.variants[name], experiment.config.data
    if data.test is None:
        yield Problem(("variants", name), "it has no data.test, and a comparison judges on test rows. Name them.")
    if variant.choose and data.validation is None and data.split is None:
        what = "it has no validation rows to choose by. Name data.validation, or data.split."
        yield Problem(("variants", name), what)
    if variant.columns is not None:
        yield from _column_problems(("variants", name, "columns"), variant.columns, chain_of(experiment.config))
    yield from _not_measured(keys, name, variant, experiment)
    yield from _wrong_scorers(name, variant, experiment, helpers)
    own = steps_of(chain_of(experiment.config))
    for conditional in {product.conditional for product in keys.products.values()}:
        if own.get(conditional) != steps[conditional]:
            what = f"its chain has another '{conditional}' than the base, or none, and a product is made of it."
            yield Problem(("variants", name), f"{what} Leave the chain as it is, or compare without the product.")


def _not_measured(keys: Keys, name: str, variant: Variant, experiment: Experiment) -> Iterator[Problem]:
    known = [n.removeprefix("val/") for n in metric_names(experiment.config, experiment.registry)]
    products = [f"{product}/{metric}" for product in keys.products for metric in PRODUCT_METRICS]
    wanted: dict[Key, tuple[str, list[str]]] = {
        ("report", i): (metric, known + products) for i, metric in enumerate(keys.report)
    }
    if keys.choose_by and variant.choose:
        wanted["choose_by", "metric"] = keys.choose_by.metric, known
    for key, (metric, there) in wanted.items():
        if metric not in there:
            yield Problem(key, f"'{metric}' is not measured in '{name}'.{did_you_mean(metric, there)}")


def _column_problems(key: Key, columns: Mapping[str, str], chain: Chain) -> Iterator[Problem]:
    """The columns have to give the probability of every outcome of every transition."""
    if chain.values:
        what = f"the chain has the value '{chain.values[0].amount}', and no column says how it is distributed."
        yield Problem(key, f"{what} Leave this variant out.")
    steps = [(o, t.parent) for t in chain.transitions for o in t.outcomes]
    wanted = [o if parent == chain.root else f"{o}_given_{parent}" for o, parent in steps]
    for name in columns:
        if name not in wanted:
            what = "columns give the probability of one step of the chain, of what is named before else"
            yield Problem((*key, name), f"{what}.{did_you_mean(name, wanted)}")
    if missing := [name for name in wanted if name not in columns]:
        yield Problem(
            key, f"there is no column for {' and '.join(missing)}. Write {missing[0]}: and the column's name."
        )


def _wrong_scorers(name: str, variant: Variant, experiment: Experiment, helpers: Helpers) -> Iterator[Problem]:
    """Helpers that cannot score the rows of a sampler."""
    sampler = build_sampler(experiment.config, experiment.registry) if variant.uses else None
    scored_by: tuple[str, str] | None = getattr(sampler, "scored_by", None)
    for key, helper in variant.uses.items():
        if scored_by is None or scored_by[0] != stand_in(helper) or helper not in helpers:
            continue
        place, config = ("variants", name, "uses", key), helpers[helper].config
        if scored_by[1] not in chain_of(config).stages:
            yield Problem(
                place, f"the chain of the helper '{helper}' has no stage '{scored_by[1]}'. Give it that chain."
            )
        ours, theirs = ((features_of(c), c.embedding.dim) for c in (experiment.config, config))
        if ours != theirs:
            what = f"the helper '{helper}' reads other features than '{name}', so it cannot score its batches."
            yield Problem(place, f"{what} Give both the same features and embedding.dim.")


def stand_in(helper: str) -> str:
    """What stands for the run folder of a helper until there is one."""
    return f"the run of the helper {helper}"
