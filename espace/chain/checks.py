"""What makes a chain of lines: stages in order, one root, one name for each thing, parents that exclude each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from espace.chain.grammar import Transition, Value
from espace.errors import ChainError, did_you_mean

if TYPE_CHECKING:
    from espace.chain.chain import Chain


MAX_NAMES, MAX_LINES = 256, 1_000  # stages and values, transitions: the checks below look at pairs of them


def check_size(transitions: Sequence[Transition]) -> None:
    """Raise ChainError for a chain that is too large to be checked, let alone trained, in good time."""
    names = {name for t in transitions for name in (t.parent, *t.children)}
    for found, most, what in ((names, MAX_NAMES, "stages and values"), (transitions, MAX_LINES, "transitions")):
        if len(found) > most:
            raise ChainError(
                f"chain: it has {len(found):,} {what}, more than {most:,}, and each transition is a tower. Leave some"
                " out, or make models of parts of it."
            )


def in_topological_order(transitions: Iterable[Transition]) -> tuple[tuple[str, ...], tuple[Transition, ...]]:
    """Stages and transitions, parents before children, else as they were written. Raises ChainError for a cycle."""
    waiting = list(transitions)
    names = list(dict.fromkeys(n for t in waiting for n in (t.parent, *t.children)))
    children = {c for t in waiting for c in t.children}
    stages = [n for n in names if n not in children]
    placed: list[Transition] = []
    for stage in stages:  # it grows: a stage joins when all that leads to it is placed
        placed += [t for t in waiting if t.parent == stage]
        waiting = [t for t in waiting if t.parent != stage]
        pending = {c for t in waiting for c in t.children}
        ready = dict.fromkeys(c for t in placed for c in t.children if c not in pending)
        stages += [c for c in ready if c not in stages]
    if waiting:
        raise ChainError(_describe_cycle(waiting))
    return tuple(stages), tuple(placed)


def _describe_cycle(waiting: Sequence[Transition]) -> str:
    before = {c: t.parent for t in waiting for c in t.children}
    path = [waiting[0].parent]
    while before.get(path[-1], path[0]) not in path:
        path.append(before[path[-1]])
    start = before.get(path[-1], path[0])
    cycle = [start, *reversed(path[path.index(start) :])]
    return (
        f"chain: {' -> '.join(cycle)} is a cycle, and a stage cannot come before itself. Remove one of its arrows; a"
        " repeated action needs a stage of its own, such as second_click."
    )


def check_values(stages: Sequence[str], values: Sequence[Value]) -> None:
    """Raise ChainError for a value that is a stage too, is given twice, or is measured at no stage of the chain."""
    names = [v.amount for v in values]
    for v in values:
        if v.amount in stages or v.parent in names:
            both = v.amount if v.amount in stages else v.parent
            raise ChainError(
                f"chain: '{both}' is a value, so nothing follows it and no -> leads to it. Call the stage otherwise,"
                " or let the line end at the value."
            )
        if v.parent not in stages:
            raise ChainError(
                f"chain: '{v}' measures '{v.amount}' at a stage that the chain does not have."
                f"{did_you_mean(v.parent, stages)}"
            )
        if names.count(v.amount) > 1:
            raise ChainError(f"chain: there are two values '{v.amount}'. Give each a name of its own.")


def check(chain: Chain) -> None:
    """Raise ChainError for two roots, a name used twice or reserved, and parents that do not exclude each other."""
    _check_single_root(chain)
    _check_names(chain)
    _check_transitions_have_one_name_each(chain)
    _check_parents_exclude_each_other(chain)


def _check_single_root(chain: Chain) -> None:
    roots = [s for s in chain.stages if not chain.arrivals(s)]
    if len(roots) > 1:
        reached = [s for s in chain.stages if s not in roots]
        raise ChainError(
            f"chain: it has {len(roots)} roots, {' and '.join(repr(r) for r in roots)}, but every row of the data is"
            f" one and the same first stage. Add a line that leads to '{roots[1]}', or mend its name."
            f"{did_you_mean(roots[1], reached)}"
        )


def _check_names(chain: Chain) -> None:
    for stage in (*chain.stages, *(v.amount for v in chain.values)):
        if "_given_" in f"{stage}_":
            raise ChainError(f"chain: '{stage}' contains '_given', which names conditionals. Choose another name.")
    for stage in chain.stages:
        if stage in chain.otherwise and any(stage != t.otherwise for t in chain.arrivals(stage)):
            raise ChainError(
                f"chain: '{stage}' is an else stage in one transition and an outcome in another, so its label neither"
                " follows nor is read. Use two names."
            )
        parents = [t.parent for t in chain.transitions for child in t.children if child == stage]
        if len(set(parents)) < len(parents):
            parent = max(parents, key=parents.count)
            raise ChainError(
                f"chain: '{stage}' is reached twice from '{parent}'. Write {parent} -> {stage} once; a later line can"
                f" start at '{stage}'."
            )


def _check_transitions_have_one_name_each(chain: Chain) -> None:
    for one, other in itertools.combinations(chain.heads, 2):
        if one.name == other.name:
            raise ChainError(
                f"chain: '{one}' and '{other}' are both called {one.name}, so they would share one tower."
                " Rename a stage."
            )


def _check_parents_exclude_each_other(chain: Chain) -> None:
    for stage in chain.stages:
        for one, other in itertools.combinations(chain.parents(stage), 2):
            if not _exclude(chain, one, other):
                raise ChainError(_describe_overlap(chain, stage, one, other))


def _describe_overlap(chain: Chain, stage: str, one: str, other: str) -> str:
    if chain.leads(one, other) or chain.leads(other, one):
        early, late = (one, other) if chain.leads(one, other) else (other, one)
        return (
            f"chain: '{stage}' is reached from '{early}' and from '{late}', but whoever reaches '{late}' has passed"
            f" '{early}', so P({stage}) would be counted twice. Give the rest of '{early}' a name, as in {early} -> ..."
            f" else rest, and write rest -> {stage} instead of {early} -> {stage}."
        )
    common = next(s for s in reversed(chain.stages) if s in chain.ancestors(one) & chain.ancestors(other))
    after = [c for t in chain.departures(common) for c in t.children]
    first, second = (next(c for c in after if chain.leads(c, end)) for end in (one, other))
    return (
        f"chain: '{stage}' is reached from '{one}' and from '{other}', but a user can do both, so P({stage}) would be"
        f" counted twice. Make them outcomes of one transition: {common} -> {first} | {second}."
    )


def _exclude(chain: Chain, one: str, other: str) -> bool:
    """Whether no row can reach both stages: every pair of paths to them parts at some transition."""
    order = {t: i for i, t in enumerate(chain.transitions)}
    memo: dict[tuple[Transition, str, Transition, str], bool] = {}

    def part(t: Transition, a: str, u: Transition, b: str) -> bool:
        """Whether arriving at `a` through `t` and at `b` through `u` is impossible together."""
        if t == u:
            return a != b
        if order[t] < order[u]:
            t, a, u, b = u, b, t, a
        key = (t, a, u, b)
        if key not in memo:
            before = chain.arrivals(t.parent)
            memo[key] = bool(before) and all(part(s, t.parent, u, b) for s in before)
        return memo[key]

    if chain.root in (one, other):
        return False
    return all(part(t, one, u, other) for t in chain.arrivals(one) for u in chain.arrivals(other))
