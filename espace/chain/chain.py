"""The behaviour chain: which stage can follow which, how its probabilities follow from each other, how it is drawn."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from espace.chain import checks
from espace.chain.grammar import Transition, Value, read_lines
from espace.errors import ChainError, did_you_mean

_CORNER = {False: "├─ ", True: "└─ "}
_MARGIN = {False: "│  ", True: "   "}
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Chain:
    """A checked chain. Build it with `Chain.parse`.

    `stages` are names in topological order, the root first; `transitions` are in the topological order of their
    parents, and so are `values`, whose names are not among the stages.
    """

    stages: tuple[str, ...]
    transitions: tuple[Transition, ...]
    values: tuple[Value, ...] = ()

    @classmethod
    def parse(cls, lines: str | Sequence[str]) -> Chain:
        """Read the lines of the grammar above.

        Raises ChainError for a line that cannot be read, a cycle, two roots, a stage reached twice from one parent, a
        value that is a stage too or follows none, and for a stage whose parents do not exclude each other.
        """
        found = read_lines(lines)
        transitions = [t for t in found if not isinstance(t, Value)]
        if not transitions:
            raise ChainError("chain: no transition was given. Write a line such as impression -> click -> conversion.")
        checks.check_size(found)
        stages, placed = checks.in_topological_order(transitions)
        values = [t for t in found if isinstance(t, Value)]
        checks.check_values(stages, values)
        chain = cls(stages, placed, tuple(sorted(values, key=lambda v: stages.index(v.parent))))
        checks.check(chain)
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

        `revenue` is over the entire space, 0 where nothing was bought; `revenue_given_conversion` over the parent's
        rows.
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

        Such a P(stage) may be above P(parent), so it shares its parent with no other outcome, and joins no other way
        into a later stage. Raises ChainError for an unknown name.
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
            ways = f"'{stage}' is reached in {len(arrivals)} ways, with a head for each."
            return f"{ways} Remove the line, or all ways but one."
        if len(arrivals[0].classes) > 2 or arrivals[0].otherwise:
            parent = arrivals[0].parent
            what = f"'{arrivals[0]}' shares '{parent}' out, and P({stage}) by itself could leave less than nothing."
            return f"{what} Remove the line, or let '{parent} -> {stage}' be a line of its own."
        for later in (s for s in self.stages if self.leads(stage, s)):
            if aside := next((p for p in self.parents(later) if later != stage and not self.leads(stage, p)), None):
                what = f"'{later}' is also reached from '{aside}', and the sum of P({stage}) and P({aside})"
                return f"{what} could exceed 1. Remove the line."
        return None

    def between(self, stages: Iterable[str], stage: str, given: str) -> frozenset[str]:
        """Those of `stages` that lie behind `given` on a way to `stage`, or are `stage`."""
        return frozenset(s for s in stages if s != given and self.leads(given, s) and self.leads(s, stage))

    def formulas(self, kinds: Mapping[str, str] | None = None, joint: Collection[str] = ()) -> dict[str, str]:
        """`{address: equation}` in plain text: `P(conversion) = P(click) P(conversion given click)`.

        kinds: `{transition or value: name of its function}` of those that are not the sigmoid of their logit; joint:
        the stages whose head gives P(stage) instead of P(stage given parent).
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
        """The labelled stages whose labels say whether `stage` happened: itself, or for an else stage its parents' and
        those of the other outcomes, in the order of the stages. Raises ChainError for an unknown name."""
        self.check(stage)
        if stage not in self.otherwise:
            return () if stage == self.root else (stage,)
        needed = {s for t in self._arrivals[stage] for s in (*self.sources(t.parent), *t.outcomes)}
        return tuple(s for s in self.stages if s in needed)

    def tree(self) -> str:
        """The chain as indented text: what follows a stage stands below it, where it is first led to."""
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
