"""The behaviour chain: which stage can follow which. Grammar, checks, formulas and drawing; no tensors.

impression -> click -> conversion          a line may have any number of arrows
click -> cart | wish else browse           one transition: exactly one of the three happens after a click
cart -> buy                                a stage may be reached from several stages that exclude each other
buy => revenue                             a value: an amount that is measured where its parent happened; it ends a line
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from espace.errors import ChainError, did_you_mean

_NAME = re.compile(r"[^\W\d]\w*")
_CORNER = {False: "├─ ", True: "└─ "}
_MARGIN = {False: "│  ", True: "   "}
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Transition:
    """One choice made at `parent`: one of `outcomes`, or `otherwise` (a stage, or None for "nothing happens")."""

    parent: str
    outcomes: tuple[str, ...]
    otherwise: str | None = None

    @property
    def name(self) -> str:
        """`click_to_cart_or_wish`; the else stage is not part of the name."""
        return f"{self.parent}_to_{'_or_'.join(self.outcomes)}"

    @property
    def classes(self) -> tuple[str | None, ...]:
        """The outcomes, then the last class: the else stage, or None for "nothing"."""
        return (*self.outcomes, self.otherwise)

    @property
    def children(self) -> tuple[str, ...]:
        """The stages that this transition can lead to."""
        return tuple(c for c in self.classes if c is not None)

    def __str__(self) -> str:
        text = f"{self.parent} -> {' | '.join(self.outcomes)}"
        return f"{text} else {self.otherwise}" if self.otherwise else text


class Value(Transition):
    """An amount measured where `parent` happened, such as the revenue of a conversion. Nothing follows it."""

    @property
    def amount(self) -> str:
        """What is measured: `revenue`."""
        return self.outcomes[0]

    def __str__(self) -> str:
        return f"{self.parent} => {self.amount}"


@dataclass(frozen=True)
class Chain:
    """A checked chain. Build it with `Chain.parse`.

    `stages` are names in topological order, the root first; `transitions` are in the topological order of their parents, and
    so are `values`, whose names are not among the stages.
    """

    stages: tuple[str, ...]
    transitions: tuple[Transition, ...]
    values: tuple[Value, ...] = ()

    @classmethod
    def parse(cls, lines: str | Sequence[str]) -> Chain:
        """Read the lines of the grammar above.

        Raises ChainError for a line that cannot be read, a cycle, two roots, a stage reached twice from one parent, a value
        that is a stage too or follows none, and for a stage whose parents do not exclude each other.
        """
        found = read_lines(lines)
        transitions = [t for t in found if not isinstance(t, Value)]
        if not transitions:
            raise ChainError("chain: no transition was given. Write a line such as impression -> click -> conversion.")
        stages, placed = _in_topological_order(transitions)
        values = [t for t in found if isinstance(t, Value)]
        _check_values(stages, values)
        chain = cls(stages, placed, tuple(sorted(values, key=lambda v: stages.index(v.parent))))
        _check_single_root(chain)
        _check_names(chain)
        _check_transitions_have_one_name_each(chain)
        _check_parents_exclude_each_other(chain)
        return chain

    @property
    def root(self) -> str:
        """The first stage: every row of the data is one, and its probability is 1."""
        return self.stages[0]

    @property
    def heads(self) -> tuple[Transition, ...]:
        """All that have a tower: the transitions, then the values."""
        return (*self.transitions, *self.values)

    def value(self, amount: str) -> Value:
        """The value of that name. Raises ChainError, with the nearest name, where there is none."""
        found = {v.amount: v for v in self.values}
        if amount not in found:
            raise ChainError(f"chain: there is no value '{amount}'.{did_you_mean(amount, found)}")
        return found[amount]

    @cached_property
    def otherwise(self) -> frozenset[str]:
        """The else stages: they have no label column, their label follows from the others."""
        return frozenset(t.otherwise for t in self.transitions if t.otherwise)

    @property
    def labelled(self) -> tuple[str, ...]:
        """The stages that have a label column: all but the root and the else stages."""
        return tuple(s for s in self.stages[1:] if s not in self.otherwise)

    @cached_property
    def _arrivals(self) -> Mapping[str, tuple[Transition, ...]]:
        return {s: tuple(t for t in self.transitions if s in t.children) for s in self.stages}

    def arrivals(self, stage: str) -> tuple[Transition, ...]:
        """The transitions that can lead to `stage`; none for the root. Raises ChainError for an unknown name."""
        self.check(stage)
        return self._arrivals[stage]

    def parents(self, stage: str) -> tuple[str, ...]:
        """The stages directly before `stage`; several exclude each other."""
        return tuple(t.parent for t in self.arrivals(stage))

    def departures(self, stage: str) -> tuple[Transition, ...]:
        """The independent choices made at `stage`."""
        self.check(stage)
        return tuple(t for t in self.transitions if t.parent == stage)

    @cached_property
    def _ancestors(self) -> Mapping[str, frozenset[str]]:
        found: dict[str, frozenset[str]] = {}
        for stage in self.stages:
            parents = [t.parent for t in self._arrivals[stage]]
            found[stage] = frozenset(parents).union(*(found[p] for p in parents))
        return found | {v.amount: found[v.parent] | {v.parent} for v in self.values}

    def ancestors(self, stage: str) -> frozenset[str]:
        """Every stage that lies before `stage` on some path from the root."""
        self.check(stage)
        return self._ancestors[stage]

    def leads(self, start: str, target: str) -> bool:
        """Whether `target` is `start` or can follow it."""
        return start == target or start in self._ancestors[target]

    @cached_property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """(parent, stage) pairs in the order of the stages, those that leave the root left out."""
        return tuple((p, s) for s in self.stages for p in self.parents(s) if p != self.root)

    @cached_property
    def addresses(self) -> Mapping[str, tuple[str, str | None]]:
        """Every probability of the chain by its one name: `{name: (stage, given)}`, in the order of the stages.

        `click` and `conversion` are marginals over the entire space, `conversion_given_click` is a conditional.
        """
        names: dict[str, tuple[str, str | None]] = {}
        for stage in self.stages[1:]:
            names[stage] = (stage, None)
            names |= {f"{stage}_given_{p}": (stage, p) for p in self.parents(stage) if p != self.root}
        return names

    @cached_property
    def expectations(self) -> Mapping[str, tuple[str, str | None]]:
        """Every expectation of a value by its one name: `{name: (value, given)}`.

        `revenue` is over the entire space, 0 where nothing was bought; `revenue_given_conversion` over the parent's rows.
        """
        names: dict[str, tuple[str, str | None]] = {}
        for v in self.values:
            names[v.amount] = (v.amount, None)
            names |= {f"{v.amount}_given_{v.parent}": (v.amount, v.parent)} if v.parent != self.root else {}
        return names

    def check(self, stage: str) -> None:
        """Raise ChainError, with the nearest name, unless `stage` is in the chain."""
        if any(stage == v.amount for v in self.values):
            raise ChainError(f"chain: '{stage}' is a value, which has an expectation and no probability. Ask for that.")
        if stage not in self.stages:
            raise ChainError(f"chain: there is no stage '{stage}'.{did_you_mean(stage, self.stages)}")

    def why_not_joint(self, stage: str) -> str | None:
        """Why no head can give P(stage) over all impressions directly, and the way out; None where one can.

        Such a P(stage) may be above P(parent), so it shares its parent with no other outcome, and joins no other way into a
        later stage. Raises ChainError for an unknown name.
        """
        self.check(stage)
        return self._not_joint[stage]

    @cached_property
    def _not_joint(self) -> Mapping[str, str | None]:
        return {stage: self._why_not_joint(stage) for stage in self.stages}

    def _why_not_joint(self, stage: str) -> str | None:
        arrivals = self._arrivals[stage]
        if not arrivals:
            return f"every row is one '{stage}', so it has no head. Remove the line."
        if stage in self.otherwise:
            return (
                f"'{stage}' is what '{arrivals[0].outcomes[0]}' leaves, so it has no head of its own. Remove the line."
            )
        if len(arrivals) > 1:
            return f"'{stage}' is reached in {len(arrivals)} ways, with a head for each. Remove the line, or all ways but one."
        if len(arrivals[0].classes) > 2 or arrivals[0].otherwise:
            what = f"'{arrivals[0]}' shares '{arrivals[0].parent}' out, and P({stage}) by itself could leave less than nothing."
            return f"{what} Remove the line, or let '{arrivals[0].parent} -> {stage}' be a line of its own."
        for later in (s for s in self.stages if self.leads(stage, s)):
            if aside := next((p for p in self.parents(later) if later != stage and not self.leads(stage, p)), None):
                what = f"'{later}' is also reached from '{aside}', and the sum of P({stage}) and P({aside}) could exceed 1."
                return f"{what} Remove the line."
        return None

    def between(self, stages: Iterable[str], stage: str, given: str) -> frozenset[str]:
        """Those of `stages` that lie behind `given` on a way to `stage`, or are `stage`."""
        return frozenset(s for s in stages if s != given and self.leads(given, s) and self.leads(s, stage))

    def formulas(self, kinds: Mapping[str, str] | None = None, joint: Collection[str] = ()) -> dict[str, str]:
        """`{address: equation}` in plain text: `P(conversion) = P(click) P(conversion given click)`.

        kinds: `{transition or value: name of its function}` of those that are not the sigmoid of their logit; joint: the stages
        whose head gives P(stage) instead of P(stage given parent).
        """
        kinds = kinds or {}
        found = {name: self._formula(*where, kinds, joint) for name, where in self.addresses.items()}
        return found | {name: self._expectation(*where, kinds) for name, where in self.expectations.items()}

    def _expectation(self, amount: str, given: str | None, kinds: Mapping[str, str]) -> str:
        value = self.value(amount)
        if given is None and value.parent != self.root:
            return f"E[{amount}] = P({value.parent}) E[{amount} given {value.parent}]"
        left = f"E[{amount} given {given}]" if given else f"E[{amount}]"
        return f"{left} = mean of {kinds.get(value.name, 'a distribution')}(z[{value.name}])"

    def _formula(self, stage: str, given: str | None, kinds: Mapping[str, str], joint: Collection[str]) -> str:
        arrivals = self.arrivals(stage)
        if stage in joint and given is not None:
            return f"P({stage} given {given}) = P({stage}) / P({given})"
        if stage in joint:
            return f"P({stage}) = {_share_of(arrivals[0], stage, kinds.get(arrivals[0].name))}"
        if given is None and arrivals[0].parent != self.root:
            products = (f"P({t.parent}) P({stage} given {t.parent})" for t in arrivals)
            return f"P({stage}) = {' + '.join(products)}"
        parent = given or self.root
        transition = next(t for t in arrivals if t.parent == parent)
        left = f"P({stage} given {parent})" if given else f"P({stage})"
        return f"{left} = {_share_of(transition, stage, kinds.get(transition.name))}"

    def sources(self, stage: str) -> tuple[str, ...]:
        """The labelled stages whose labels say whether `stage` happened: itself, or for an else stage its parents' and those of
        the other outcomes, in the order of the stages. Raises ChainError for an unknown name."""
        self.check(stage)
        if stage not in self.otherwise:
            return () if stage == self.root else (stage,)
        needed = {s for t in self._arrivals[stage] for s in (*self.sources(t.parent), *t.outcomes)}
        return tuple(s for s in self.stages if s in needed)

    def tree(self) -> str:
        """The chain as indented text: what follows a stage stands below it, at the first of the places that lead to it."""
        return "\n".join([self.root, *self._branches(self.root, "", {self.root})])

    def _branches(self, stage: str, margin: str, drawn: set[str]) -> Iterator[str]:
        """The lines below a stage; `drawn` gathers the stages whose own lines are there already."""
        more = any(v.parent == stage for v in self.values)
        for transition, end in _with_last(self.departures(stage)):
            place = end and not more
            if len(transition.classes) == 2 and transition.otherwise is None:
                yield from self._leaf(transition.outcomes[0], "", margin, place, drawn)
                continue
            yield f"{margin}{_CORNER[place]}{'one of' if transition.otherwise else 'at most one of'}"
            for child, end in _with_last(transition.children):
                note = ", else" if child == transition.otherwise else ""
                yield from self._leaf(child, note, margin + _MARGIN[place], end, drawn)
        for value, place in _with_last([v for v in self.values if v.parent == stage]):
            yield f"{margin}{_CORNER[place]}{value.amount}, a value"

    def _leaf(self, stage: str, note: str, margin: str, last: bool, drawn: set[str]) -> Iterator[str]:
        again = stage in drawn
        yield f"{margin}{_CORNER[last]}{stage}{note}{' (as above)' if again and self.departures(stage) else ''}"
        if not again:
            drawn.add(stage)
            yield from self._branches(stage, margin + _MARGIN[last], drawn)

    def mermaid(self) -> str:
        """The chain as a mermaid flow chart; dashed arrows lead to else stages."""
        lines = ["flowchart LR"]
        for t in self.transitions:
            choice = f'|"{" or ".join(t.outcomes)}"|' if len(t.outcomes) > 1 else ""
            lines += [f"    {t.parent} -->{choice} {o}" for o in t.outcomes]
            lines += [f"    {t.parent} -.->|else| {t.otherwise}"] if t.otherwise else []
        lines += [f"    {v.parent} ==> {v.amount}" for v in self.values]
        return "\n".join(lines)

    def lines(self) -> list[str]:
        """The chain in its own grammar, one transition a line; `Chain.parse(chain.lines()) == chain`."""
        return [str(t) for t in self.heads]


def read_lines(lines: str | Sequence[str]) -> list[Transition]:
    """Transitions and values as they are written, not checked together. Raises ChainError for a line that cannot be read."""
    texts = [t for t in lines.splitlines() if t.strip()] if isinstance(lines, str) else list(lines)
    return [t for number, text in enumerate(texts, 1) for t in _parse_line(text, f"chain, line {number}")]


def _share_of(transition: Transition, stage: str, kind: str | None) -> str:
    """One class of a transition as a formula in its logits z."""
    if kind is not None:
        return f"{'1 - ' if stage == transition.otherwise else ''}{kind}(z[{transition.name}])"
    if len(transition.outcomes) == 1:
        sign = "-" if stage == transition.otherwise else ""
        return f"sigmoid({sign}z[{transition.name}])"
    return f"softmax(z[{transition.name}], 0)[{stage}]"


def _with_last(items: Sequence[_Item]) -> Iterator[tuple[_Item, bool]]:
    """Every item, and whether it is the last."""
    return ((item, number == len(items) - 1) for number, item in enumerate(items))


def _parse_line(text: object, where: str) -> list[Transition]:
    if not isinstance(text, str):
        raise ChainError(f"{where}: {text!r} is not text. Write it as impression -> click, in quotes if need be.")
    stages, *amounts = text.split("=>")
    if len(amounts) > 1 or any("->" in a for a in amounts):
        raise ChainError(f"{where}: '{text.strip()}' goes on after a value, which nothing follows. End the line there.")
    segments = [_parse_outcomes(part, where, text) for part in stages.split("->")]
    if len(segments) + len(amounts) < 2:
        raise ChainError(f"{where}: '{text.strip()}' has no arrow. Write parent -> child, as in impression -> click.")
    for outcomes, otherwise in segments if amounts else segments[:-1]:
        if len(outcomes) > 1 or otherwise:
            names = [*outcomes, *([otherwise] if otherwise else [])]
            raise ChainError(
                f"{where}: '{text.strip()}' goes on after a choice of {' and '.join(names)}, so it is not clear which of"
                f" them goes on. End the line there and start a new one for each, as in {names[0]} -> ..."
            )
    steps = [
        Transition(before[0][0], outcomes, otherwise) for before, (outcomes, otherwise) in itertools.pairwise(segments)
    ]
    return [*steps, *(_parse_value(segments[-1][0][0], amount, where, text) for amount in amounts)]


def _parse_value(parent: str, amount: str, where: str, line: str) -> Value:
    names, otherwise = _parse_outcomes(amount, where, line)
    if len(names) > 1 or otherwise:
        raise ChainError(f"{where}: '{line.strip()}' has more than one value. Write a line for each.")
    return Value(parent, names)


def _parse_outcomes(part: str, where: str, line: str) -> tuple[tuple[str, ...], str | None]:
    named, *rest = re.split(r"\belse\b", part)
    names = [n.strip() for n in named.split("|")]
    otherwise = rest[0].strip() if rest else None
    for name in [*names, *([] if otherwise is None else [otherwise])]:
        if not _NAME.fullmatch(name):
            raise ChainError(
                f"{where}: '{name}' in '{line.strip()}' is not a name of a stage. Names are letters, digits and"
                " underscores, and the line reads parent -> a | b else c."
            )
    if len(rest) > 1:
        raise ChainError(f"{where}: '{line.strip()}' has two 'else'. One stage takes all that is left.")
    return tuple(names), otherwise


def _in_topological_order(transitions: Iterable[Transition]) -> tuple[tuple[str, ...], tuple[Transition, ...]]:
    """Stages and transitions, parents before children, otherwise as they were written."""
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


def _check_values(stages: Sequence[str], values: Sequence[Value]) -> None:
    names = [v.amount for v in values]
    for v in values:
        if v.amount in stages or v.parent in names:
            both = v.amount if v.amount in stages else v.parent
            raise ChainError(
                f"chain: '{both}' is a value, so nothing follows it and no -> leads to it. Call the stage otherwise, or let"
                " the line end at the value."
            )
        if v.parent not in stages:
            raise ChainError(
                f"chain: '{v}' measures '{v.amount}' at a stage that the chain does not have."
                f"{did_you_mean(v.parent, stages)}"
            )
        if names.count(v.amount) > 1:
            raise ChainError(f"chain: there are two values '{v.amount}'. Give each a name of its own.")


def _check_single_root(chain: Chain) -> None:
    roots = [s for s in chain.stages if not chain.arrivals(s)]
    if len(roots) > 1:
        reached = [s for s in chain.stages if s not in roots]
        raise ChainError(
            f"chain: it has {len(roots)} roots, {' and '.join(repr(r) for r in roots)}, but every row of the data is one"
            f" and the same first stage. Add a line that leads to '{roots[1]}', or mend its name."
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
                f"chain: '{stage}' is reached twice from '{parent}'. Write {parent} -> {stage} once; a later line can start"
                f" at '{stage}'."
            )


def _check_transitions_have_one_name_each(chain: Chain) -> None:
    for one, other in itertools.combinations(chain.heads, 2):
        if one.name == other.name:
            raise ChainError(
                f"chain: '{one}' and '{other}' are both called {one.name}, so they would share one tower. Rename a stage."
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
