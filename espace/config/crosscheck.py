"""What types cannot say: names that have to be in the chain, columns that may not meet, keys that exclude others."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from espace.chain.chain import Chain
from espace.chain.spaces import of_potential, spaces
from espace.config import scorecheck
from espace.config.naming import name_problem, name_problems
from espace.config.schema import Fields
from espace.config.yamlfile import Key, Problem
from espace.errors import ChainError, did_you_mean


def problems(config: Fields, broken: Collection[Key]) -> list[Problem]:
    """Everything that contradicts itself; keys in `broken` have problems of their own and are not judged again."""
    found = [*_names(config), *_columns(config), *_shares(config), *_parts(config), *scorecheck.syntax(config)]
    found += [] if _within(broken, ("data", "split")) else _split(config)
    if not (config.features or _within(broken, ("features",))):
        found.append(Problem(("features",), "there is none. Name at least one, as in user_id: id."))
    if _within(broken, ("chain",)) or _within(broken, ("pieces",)):
        return found
    try:
        chain = Chain.parse(config.chain)
    except ChainError as error:
        return [*found, _chain_problem(str(error))]
    checks = (_stage_names, _labels, _stages, _towers, _potential, _metrics, _violations, _scores, _optimizer)
    return [*found, *(problem for check in checks for problem in check(config, chain))]


def _within(broken: Collection[Key], key: Key) -> bool:
    return any(k[: len(key)] == key for k in broken)


def label_columns(config: Fields, chain: Chain) -> dict[str, str]:
    """`{stage or value: its label column}`."""
    return {name: config.labels.get(name, name) for name in (*chain.labelled, *_amounts(chain))}


def _amounts(chain: Chain) -> list[str]:
    return [v.amount for v in chain.values]


def feature_columns(config: Fields) -> dict[str, str]:
    """`{feature: the column it reads}`."""
    return {name: part.options.get("column") or name for name, part in config.features.items()}


def judged_by(config: Fields) -> dict[str, str]:
    """`{column that predictions are judged by: what it is}`, labels left out."""
    truths = {
        m.reads["column"]: f"what metrics.{n} judges by" for n, m in config.metrics.items() if "column" in m.reads
    }
    return truths | {column: f"the potential outcome of '{name}'" for name, column in config.data.potential.items()}


def _chain_problem(text: str) -> Problem:
    """The text of a ChainError, at the line that it speaks of."""
    line = re.match(r"chain(?:, line (\d+))?: ", text)
    if line is None:
        return Problem(("chain",), text)
    key = ("chain", int(line[1]) - 1) if line[1] else ("chain",)
    return Problem(key, text[line.end() :])


def _names(config: Fields) -> Iterator[Problem]:
    """Names that are no names; those of stages and values are looked at with the chain."""
    yield from name_problems(("features",), config.features)
    yield from name_problems(("metrics",), config.metrics)
    yield from name_problems(("callbacks",), config.callbacks)
    yield from name_problems(("loggers",), config.loggers)
    yield from name_problems(("scores",), (name for name in config.scores if name.isidentifier()))
    called: list[tuple[Key, object]] = [
        (("metrics", n, "name"), m.options.get("name")) for n, m in config.metrics.items()
    ]
    for key, name in [*called, (("name",), config.name)]:
        if isinstance(name, str) and name and (why := name_problem(name)):
            yield Problem(key, why)


def _stage_names(config: Fields, chain: Chain) -> Iterator[Problem]:
    for name in (*chain.stages, *_amounts(chain)):
        if why := name_problem(name):
            yield Problem(("chain",), f"'{name[:20]}...': {why}")


def _labels(config: Fields, chain: Chain) -> Iterator[Problem]:
    for stage in config.labels:
        if stage == chain.root:
            yield Problem(("labels", stage), f"every row is one '{stage}', so it has no label. Remove the line.")
        elif stage in chain.otherwise:
            yield Problem(("labels", stage), f"the label of '{stage}' follows from its siblings'. Remove the line.")
        elif stage not in (*chain.stages, *_amounts(chain)):
            known = [*chain.labelled, *_amounts(chain)]
            yield Problem(("labels", stage), f"the chain has no such stage.{did_you_mean(stage, known)}")
    seen: dict[str, str] = {}
    for stage, column in label_columns(config, chain).items():
        if column in seen:
            key = ("labels", stage if stage in config.labels else seen[column])
            yield Problem(key, f"'{seen[column]}' and '{stage}' have one label column, '{column}'. Give each its own.")
        seen.setdefault(column, stage)
    yield from _leaks(config, {column: f"the label of '{stage}'" for column, stage in seen.items()})


def _columns(config: Fields) -> Iterator[Problem]:
    taken = judged_by(config)
    yield from _leaks(config, taken | ({config.data.weight: "the row weight"} if config.data.weight else {}))
    for number, name in enumerate(config.data.allow_leaks):
        if name not in config.features:
            yield Problem(("data", "allow_leaks", number), f"no feature '{name}'.{did_you_mean(name, config.features)}")


def _leaks(config: Fields, taken: dict[str, str]) -> Iterator[Problem]:
    for name, column in feature_columns(config).items():
        if column in taken:
            what = f"the column '{column}' is {taken[column]}, which a prediction has not seen. Remove the feature."
            yield Problem(("features", name), what)


def _stages(config: Fields, chain: Chain) -> Iterator[Problem]:
    for stage in config.stages:
        if stage in _amounts(chain):
            if config.stages[stage].head == "joint":
                what = f"'{stage}' is a value, and has no probability. Remove the line."
                yield Problem(("stages", stage, "head"), what)
            continue
        if stage not in chain.stages:
            known = [*chain.stages, *_amounts(chain)]
            yield Problem(("stages", stage), f"the chain has no such stage.{did_you_mean(stage, known)}")
            continue
        if config.stages[stage].kind.type != "binary":
            yield from _kind(chain, stage)
        if config.stages[stage].head == "joint" and (problem := chain.why_not_joint(stage)):
            yield Problem(("stages", stage, "head"), problem)


def _kind(chain: Chain, stage: str) -> Iterator[Problem]:
    """A kind is asked whether one thing happened: there is one for neither the root nor one of several outcomes."""
    key, arrivals = ("stages", stage, "kind"), chain.arrivals(stage)
    if not arrivals:
        yield Problem(key, f"every row is one '{stage}', so it has no distribution. Remove the line.")
    elif stage in chain.otherwise:
        named = arrivals[0].outcomes[0]
        yield Problem(key, f"'{stage}' happens where '{named}' does not, so it has no kind. Give it to '{named}'.")
    elif several := next((t for t in arrivals if len(t.outcomes) > 1), None):
        what = f"'{several}' is one choice of {len(several.outcomes)} outcomes, a softmax, so none of them has a kind."
        yield Problem(key, f"{what} Remove the line, or write a line of the chain for each.")


def _towers(config: Fields, chain: Chain) -> Iterator[Problem]:
    known = [*chain.stages[1:], *_amounts(chain), *(t.name for t in chain.heads)]
    for name in config.towers:
        if name not in known:
            hint = did_you_mean(name, known)
            yield Problem(("towers", name), f"this is neither a stage that has a tower nor a transition.{hint}")
    for transition in chain.heads:
        named = [child for child in transition.children if child in config.towers]
        if len(named) > 1 and transition.name not in config.towers:
            what = f"'{named[0]}' and '{named[1]}' are outcomes of one choice and have one tower. Keep one of them."
            yield Problem(("towers", named[1]), what)


def _potential(config: Fields, chain: Chain) -> Iterator[Problem]:
    for name in config.data.potential:
        if name not in chain.addresses:
            hint = did_you_mean(name, chain.addresses)
            yield Problem(("data", "potential", name), f"the chain has no such probability.{hint}")
    taken = {*chain.addresses, *chain.expectations}
    for name, column in _known_potential(config, chain).items():
        for space in (found := of_potential(chain, name, column)):
            if space in taken:
                what = f"with it '{space}' would stand for two things that are judged. Rename the stage of that name."
                yield Problem(("data", "potential", name), what)
        taken |= {*found}


def _known_potential(config: Fields, chain: Chain) -> dict[str, str]:
    return {name: column for name, column in config.data.potential.items() if name in chain.addresses}


def _metrics(config: Fields, chain: Chain) -> Iterator[Problem]:
    known, possible = (spaces(chain, p) for p in (_known_potential(config, chain), dict.fromkeys(chain.addresses, "")))
    for name, metric in config.metrics.items():
        for number, space in enumerate(metric.of or ()):
            if space not in known:
                hint = f"there is no such probability.{did_you_mean(space, known)}"
                mend = "it is judged by potential outcomes. Name their column under data.potential."
                yield Problem(("metrics", name, "of", number), mend if space in possible else hint)


def _scores(config: Fields, chain: Chain) -> Iterator[Problem]:
    labels = {column: f"the label of '{stage}'" for stage, column in label_columns(config, chain).items()}
    plain = {column: f"the column of the feature '{name}'" for name, column in feature_columns(config).items()}
    weight = {config.data.weight: "the column of row weights"} if config.data.weight else {}
    return scorecheck.names(config, chain, judged_by(config) | labels, plain | weight)


def _violations(config: Fields, chain: Chain) -> Iterator[Problem]:
    several = [s for s in chain.stages if len(chain.parents(s)) > 1]
    if config.data.violations == "promote" and several:
        parents = _listed(chain.parents(several[0]))
        what = f"'promote' says that the parent of a stage happened, but '{several[0]}' has several, {parents}."
        yield Problem(("data", "violations"), f"{what} Choose error, drop or zero.")


def _split(config: Fields) -> Iterator[Problem]:
    split, key = config.data.split, ("data", "split")
    if split is None:
        return
    bounds = [name for name in ("train_until", "validation_until", "test_until") if getattr(split, name) is not None]
    timed = [name for name in ("by", "format") if getattr(split, name) is not None] + bounds
    divides = split.share is not None or bool(bounds)
    if config.data.validation is not None and (divides or split.by is None):
        yield Problem(key, "split and validation both say which rows are held out. Remove one of them.")
    if config.data.test is not None and split.test_until is not None:
        yield Problem((*key, "test_until"), "it and data.test both say which rows are tested on. Remove one of them.")
    if split.share is not None and timed:
        yield Problem(key, f"share draws rows at random, {timed[0]} takes the later ones. Remove one of them.")
    elif not divides and split.by is not None and config.data.validation is not None:
        return  # it names the times that the audit compares
    elif split.share is None and not {"by", "train_until"} <= {*timed}:
        yield Problem(key, "it is not complete. Write share: 0.1, or by: a column and train_until: a value of it.")
    elif split.test_until is not None and split.validation_until is None:
        yield Problem(key, "test_until needs validation_until, from where on rows are tested on. Add it.")


def _parts(config: Fields) -> Iterator[Problem]:
    """`at` belongs to `part: age`, and to nothing else."""
    for name, feature in config.features.items():
        part, at = (feature.options.get(option) for option in ("part", "at"))
        if part == "age" and at is None:
            what = "an age is counted at a day or at that of a column. Write at: 2024-01-31, or at: the column."
            yield Problem(("features", name, "part"), what)
        elif part != "age" and at is not None:
            yield Problem(
                ("features", name, "at"), "only an age is counted at something. Write part: age, or remove it."
            )


def _shares(config: Fields) -> Iterator[Problem]:
    for name, part in config.features.items():
        other = part.options.get("share")
        if not isinstance(other, str):
            continue
        if other not in config.features or other == name:
            hint = did_you_mean(other, [n for n in config.features if n != name])
            yield Problem(("features", name, "share"), f"there is no other feature '{other}'.{hint}")
        elif isinstance(owner := config.features[other].options.get("share"), str):
            what = f"'{other}' itself shares the table of '{owner}'. Write share: {owner}."
            yield Problem(("features", name, "share"), what)


def _listed(names: Iterable[str]) -> str:
    return " and ".join(f"'{n}'" for n in names)


def _optimizer(config: Fields, chain: Chain) -> Iterator[Problem]:
    decay = config.optimizer.options.get("weight_decay")
    if config.optimizer.tables == "exact" and config.optimizer.type == "adam" and decay:
        what = (
            f"exact with weight_decay {decay:g}: dense Adam then moves every row in every"
            " step, and rows cannot catch up. Write lazy, where only rows looked up decay, or dense."
        )
        yield Problem(("optimizer", "tables"), what)
