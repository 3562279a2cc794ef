"""Features declared in bulk: a key of `features` with `*` or `?` is a pattern over the columns of the training data.

"*_id": id                              every such column that nothing else reads is a feature
"*": {numbers: number, text: id}        by the type of the column
"raw_*": null                           such columns are left out; so is a single one by its name

A column named on its own goes before a pattern, the first matching pattern before the next. A key with a `column` of
its own is a name, whatever it holds. What comes out are plain features, which is all that anything else ever sees.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

from espace.chain.chain import Chain
from espace.config.crosscheck import feature_columns, judged_by, label_columns
from espace.config.patterns import is_pattern
from espace.config.schema import Fields
from espace.config.yamlfile import Key, Problem
from espace.data.reading.readers import apart
from espace.data.reading.sorts import SORTS, sorts_of
from espace.errors import did_you_mean
from espace.registry.registry import Registry
from espace.registry.signature import accepts

if TYPE_CHECKING:
    from espace.contracts import Reader

_SHOWN = 6  # names that are told of one pattern
_TRUTHS = ("true_", "potential_")  # what the simulator knows of a row


class Rule(NamedTuple):
    """What columns become that match a pattern, and are of a sort unless that is None. No part: they are left out."""

    pattern: str
    sort: str | None
    part: Any

    @property
    def key(self) -> Key:
        """Where it stands."""
        return ("features", self.pattern, *([] if self.sort is None else [self.sort]))

    @property
    def name(self) -> str:
        """A name for the feature that stands for all of them until the columns are known."""
        return self.pattern if self.sort is None else f"{self.pattern} {self.sort}"


@dataclass
class Bulk:
    """The features of a YAML as they were written, some of them patterns."""

    written: Mapping[str, Any]
    rules: list[Rule] = field(init=False)
    named: dict[str, Any] = field(init=False)  # those that are no patterns

    def __post_init__(self) -> None:
        self.rules = [rule for name, part in self.written.items() for rule in _rules(name, part)]
        self.named = {name: part for name, part in self.written.items() if not is_pattern(name, part)}

    def for_now(self) -> dict[str, Any]:
        """Features that can be checked before the columns are known: one for each rule, none shares with another."""
        kept = {name: part for name, part in self.named.items() if part is not None}
        return {n: _alone(p) for n, p in {**kept, **{r.name: r.part for r in self.rules if r.part is not None}}.items()}

    def problems(self, found: Sequence[Problem]) -> list[Problem]:
        """What is wrong with the features as they are for now, told where it was written."""
        keys: dict[str | int, Key] = {rule.name: rule.key for rule in self.rules}

        def written(key: Key) -> Key:
            return (*keys[key[1]], *key[2:]) if key[:1] == ("features",) and key[1:] and key[1] in keys else key

        placed = [
            p._replace(key=written(p.key), about=None if p.about is None else written(p.about))
            for p in found
            if p.key[:2] != ("data", "allow_leaks")
        ]
        return placed + [
            Problem(r.key, f"there is no such sort of column.{did_you_mean(str(r.sort), SORTS)}")
            for r in self.rules
            if r.sort is not None and r.sort not in SORTS
        ]

    def expand(self, config: Fields, reader: Reader) -> Expanded:
        """The features that the columns of the training data make of it; config: checked with those for now."""
        sorts, taken = sorts_of(reader.schema), _taken(config, self.named, reader.schema.names)
        taken |= dict.fromkeys(apart(reader), "not in all files, or not in one type")
        known = [*dict.fromkeys([*reader.schema.names, *apart(reader)])]
        found = Expanded({}, {}, [*self._unknown(known)])
        free = [column for column in known if column not in taken]
        of = {column: self._rule_of(column, sorts.get(column, ())) for column in free}
        for name, part in self.written.items():
            if not is_pattern(name, part):
                found.features |= {} if part is None else {name: part}
                continue
            mine = {column: rule for column, rule in of.items() if rule and rule.pattern == name}
            for column, rule in mine.items():
                found.add(column, rule)
            left = {c: why for c, why in taken.items() if c in known and fnmatchcase(c, name) and c not in self.named}
            if mine:
                found.told.append(_told(name, mine, left))
            else:
                found.problems.append(Problem(("features", name), _nothing(name, known, left)))
        return found

    def _rule_of(self, column: str, sorts: Sequence[str]) -> Rule | None:
        rules = (r for r in self.rules if fnmatchcase(column, r.pattern) and (r.sort is None or r.sort in sorts))
        return next(rules, None)

    def _unknown(self, known: Sequence[str]) -> Iterator[Problem]:
        for name, part in self.named.items():
            if part is None and name not in known:
                yield Problem(("features", name), f"there is no column '{name}' to leave out.{_near(name, known)}")


@dataclass
class Expanded:
    """Features by name as a YAML would have them, where each was written, what is wrong, a line about each pattern."""

    features: dict[str, Any]
    places: dict[str, Key]
    problems: list[Problem]
    told: list[str] = field(default_factory=list)

    def add(self, column: str, rule: Rule) -> None:
        """Make a feature of a column."""
        if rule.part is None:
            return
        part = copy.deepcopy(rule.part)
        if isinstance(part, dict) and part.get("share") == column:
            del part["share"]  # the others share its table
        if is_pattern(column, part):
            part = {**({"type": part} if isinstance(part, str) else part), "column": column}
        self.features[column], self.places[column] = part, rule.key


def open_training(config: Fields, registry: Registry) -> Reader:
    """The training data, of which only the columns are looked at. Raises DataError."""
    factory = registry.get("readers", config.data.type).factory
    given: list[object] = [config.data.train, "train", *([[]] if accepts(factory, 3) else [])]
    reader: Reader = factory(*given, **config.data.options)
    return reader


def _rules(name: str, part: Any) -> Iterator[Rule]:
    if not is_pattern(name, part):
        return
    if isinstance(part, dict) and part and "type" not in part and any(_is_sort(key) for key in part):
        yield from (Rule(name, sort, inner) for sort, inner in part.items())
    else:
        yield Rule(name, None, part)


def _is_sort(key: str) -> bool:
    return did_you_mean(key, SORTS).startswith(" Did")


def _alone(part: Any) -> Any:
    return {name: value for name, value in part.items() if name != "share"} if isinstance(part, dict) else part


def _taken(config: Fields, named: Mapping[str, Any], known: Sequence[str]) -> dict[str, str]:
    """`{column that no pattern takes: why}`."""
    chain, data = Chain.parse(config.chain), config.data
    truths = [c for c in known if data.type == "simulator" and c.startswith(_TRUTHS)]
    found = dict.fromkeys(truths, "a truth that no log has")
    found |= {stage: f"called like the stage '{stage}'" for stage in chain.stages}
    for name, column in feature_columns(config).items():
        if name in named:
            options = config.features[name].options
            also = [options[option] for option in ("weights", "at") if isinstance(options.get(option), str)]
            found |= dict.fromkeys([name, column, *also], f"read by the feature '{name}'")
    found |= dict.fromkeys([name for name, part in named.items() if part is None], "left out by its name")
    found |= {m.reads["by"]: f"the group key of metrics.{n}" for n, m in config.metrics.items() if "by" in m.reads}
    by = None if data.split is None else data.split.by
    read = ((by, "data.split.by"), (data.known_by, "data.known_by"), (data.weight, "the row weight"))
    found |= {name: why for name, why in read if name is not None}
    found |= judged_by(config)
    return found | {column: f"the label of '{stage}'" for stage, column in label_columns(config, chain).items()}


def _told(pattern: str, columns: Mapping[str, Rule], left: Mapping[str, str]) -> str:
    """`features '*': number price, age; id city; not click (the label of 'click')`."""
    kinds: dict[str, list[str]] = {}
    for column, rule in columns.items():
        kind = rule.part if isinstance(rule.part, str) else "left out" if rule.part is None else rule.part["type"]
        kinds.setdefault(kind, []).append(column)
    found = [f"{kind} {_folded(names)}" for kind, names in kinds.items()]
    found += [f"not {_folded([f'{column} ({why})' for column, why in left.items()])}"] if left else []
    return f"features '{pattern}': {'; '.join(found)}"


def _folded(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _nothing(pattern: str, known: Sequence[str], left: Mapping[str, str]) -> str:
    matching = [column for column in known if fnmatchcase(column, pattern) and column not in left]
    if not matching and left:
        told = _folded([f"{column} ({why})" for column, why in left.items()])
        return f"all columns that match are read by something else: {told}. Remove the line, or name one to have it."
    if matching:
        return (
            f"no column is left for it: an earlier line takes {_folded(matching)}, or none is of its sorts. Remove it."
        )
    return f"no column of the training data matches.{_near(pattern, known)}"


def _near(name: str, known: Sequence[str]) -> str:
    """The nearest column, of which a pattern has but one end; else the first of them."""
    text = name.strip("*?")
    ends = {column: column[-len(text) :] if name[:1] in "*?" else column[: len(text)] for column in known}
    near = (column for column, end in ends.items() if text and did_you_mean(text, [column, end]).startswith(" Did"))
    column = next(near, None)
    return f" Columns: {_folded(known)}." if column is None else f" Did you mean '{column}'?"
