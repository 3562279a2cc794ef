"""YAML to plain values, and where each was written. Scalars follow YAML 1.2, so nothing changes its type in silence:

true, false           are the only booleans; on, off, yes, no are text (as keys they are refused: other readers differ)
12, -3, 1_000         are whole numbers; 00123, 12:30 and 2024-01-31 are text
0.5, 1e-3, .inf       are numbers; 123E456, which no float can hold, is text
null, ~, nothing      are null
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from espace.errors import ConfigError, did_you_mean

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_NODES = 50_000  # a feature with its defaults written out is some ten of them
_TOO_MANY = f"aliases and lists make more than {MAX_NODES:,} values; keep long lists in data files"

Key = tuple[str | int, ...]  # where a value stands in the tree: ("features", "user_id", "dim"), ("chain", 0)

_INT = re.compile(r"[-+]?(0|[1-9](_?[0-9]){0,40})")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CONSTANTS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}
_OLD_BOOLEANS = frozenset({"on", "off", "yes", "no", "y", "n"})
_SURROGATE = re.compile("[\ud800-\udfff]")
_ODD_BREAKS = re.compile("[\r\x85\u2028\u2029\ufeff]")  # PyYAML folds some of them when they are not escaped


@dataclass(frozen=True, order=True)
class Place:
    """Where something was written: in a file, in an override (which come after the file), or nowhere."""

    override: int = 0
    line: int = 0
    column: int = 0
    text: str = ""


class Problem(NamedTuple):
    """One thing that is wrong: which key to point at, what to say, and which key to name where it is another one."""

    key: Key
    text: str
    about: Key | None = None


@dataclass
class Source:
    """A tree of plain values, where its keys were written, and what was already wrong while reading."""

    tree: dict[str, Any]
    places: dict[Key, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, key: Key) -> Place:
        """The place of a key, or of the nearest thing around it that was written down."""
        return next((self.places[key[:n]] for n in range(len(key), -1, -1) if key[:n] in self.places), Place())

    def move(self, key: Key, place: Place) -> None:
        """From now on all of `key` was written at `place`."""
        self.places = {k: p for k, p in self.places.items() if k[: len(key)] != key} | {key: place}

    def refuse(self, problems: Iterable[Problem]) -> None:
        """Raise one ConfigError with every problem, in the order of the file; nothing where there is none."""
        found = (*self.problems, *problems)
        placed = sorted({(self.place(p.key), dotted(p.key if p.about is None else p.about), p.text) for p in found})
        if placed:
            raise ConfigError(": ".join(part for part in (at.text, key, text) if part) for at, key, text in placed)


def dotted(key: Key) -> str:
    """`features.user_id.dim`, `chain[0]`."""
    return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in key).removeprefix(".")


def show(value: object) -> str:
    """A value as it stands in YAML, cut short: 'abc', 1.5, true, null."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read(path: Path) -> Source:
    """Read a file that holds one mapping.

    Raises ConfigError, with file, line and column, for a file that cannot be read or is not such a mapping.
    """
    return parse(_text_of(path), str(path))


def parse(text: str, name: str) -> Source:
    """Read text that holds one mapping; `name` stands in front of line and column. Raises as `read`."""
    try:
        node = _Loader(text).get_single_node()
        if node is None:
            raise ConfigError(f"{name}:1:1: the file is empty. Write at least chain, data and features.")
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{_at(name, node.start_mark)}: the file has to be a mapping. Write it as key: value.")
        return _Builder(name).build(node)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_explain(error, name)) from None
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position) + 1, error.position - text.rfind("\n", 0, error.position)
        character = f"character {error.character:#06x}"
        raise ConfigError(f"{name}:{line}:{column}: the {character} cannot stand in YAML. Remove it.") from None


def parse_value(text: str) -> Any:
    """Read the value of an override: a list, a mapping or quoted text if it opens like one, else a scalar as it stands.

    Raises ConfigError for a value that opens like a list, a mapping or quoted text and is none.
    """
    if text[:1] in ("[", "{", '"', "'"):
        source = parse(f"value: {text}", "")
        source.refuse(())
        return source.tree["value"]
    return scalar(text)


def scalar(text: str) -> str | int | float | bool | None:
    """The value of text without quotes, by the rules above."""
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    if _INT.fullmatch(text):
        return int(text)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


def dump(tree: dict[str, Any]) -> str:
    """Plain values as YAML that this module and readers of YAML 1.1 read alike."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=False)


def inline(value: Any) -> str:
    """A plain value as YAML on one line, which both read alike as well."""
    text = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf, default_flow_style=True
    )
    return str(text).removesuffix("\n").removesuffix("\n...")


def _text_of(path: Path) -> str:
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: there is no such file.{did_you_mean(path.name, beside)}")
    data = path.read_bytes()
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"{path}: it has {len(data):,} bytes, more than {MAX_BYTES:,}. Keep long lists in data files."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = data.count(b"\n", 0, error.start) + 1, error.start - data.rfind(b"\n", 0, error.start)
        raise ConfigError(f"{path}:{line}:{column}: this is not UTF-8. Save the file as UTF-8.") from None


def _at(name: str, mark: yaml.Mark | None) -> str:
    return f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else f"{name}:1:1"


def _explain(error: yaml.MarkedYAMLError, name: str) -> str:
    what = error.problem or ""
    mends = {
        "'\\t'": "a tab stands where YAML wants spaces. Indent with spaces.",
        "another document": "a second document begins here. Keep one experiment to a file.",
        "mapping values": "a colon cannot stand here. Mend the indentation, or put the text in quotes.",
        "expected ':'": "a colon and a value are missing. Write key: value.",
    }
    known = (mend for part, mend in mends.items() if part in what)
    return f"{_at(name, error.problem_mark or error.context_mark)}: {next(known, f'this is not YAML: {what}.')}"


def _is_plain(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None


class _Loader(yaml.SafeLoader):
    """Composes nodes only; refuses tags and deep nesting before they are built."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """One node and all below it."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            raise yaml.MarkedYAMLError(problem=f"the tag {tag} is not taken; remove it", problem_mark=event.start_mark)
        self.depth += 1
        self.nodes += 1
        if self.nodes > 2 * MAX_NODES:  # a key is a node too
            raise yaml.MarkedYAMLError(problem=_TOO_MANY, problem_mark=event.start_mark)
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"it is nested deeper than {MAX_DEPTH}", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Builder:
    """Nodes to plain values. Aliases are written out, so their number is limited."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = Source({}, {(): Place(0, 1, 1, f"{name}:1:1")})
        self.nodes = 0

    def build(self, node: yaml.MappingNode) -> Source:
        self.source.tree = self._mapping(node, ())
        return self.source

    def _value(self, node: yaml.Node, key: Key) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(key) > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=_TOO_MANY, problem_mark=node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(item, (*key, number)) for number, item in enumerate(node.value)]
        return scalar(node.value) if _is_plain(node) else self._text(node, key)

    def _text(self, node: yaml.Node, key: Key) -> str:
        if _SURROGATE.search(node.value):
            self._refuse(key, "it holds half a surrogate pair, which is not text. Write the character itself.")
        return _SURROGATE.sub("", node.value)

    def _item(self, node: yaml.Node, key: Key) -> Any:
        self._mark(key, node)
        return self._value(node, key)

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for name, value in node.value:
            if name.value == "<<" and _is_plain(name):
                merged |= self._merge(value, key)
            elif not isinstance(name, yaml.ScalarNode):
                self._refuse(key, "a list or a mapping cannot be a key. Write text.")
            else:
                text = self._text(name, key)
                self._check_key(name, (*key, text), own)
                own[text] = self._item_of(name, value, (*key, text))
        return merged | own

    def _item_of(self, name: yaml.Node, value: yaml.Node, key: Key) -> Any:
        self._mark(key, name)
        return self._value(value, key)

    def _merge(self, node: yaml.Node, key: Key) -> dict[str, Any]:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for part in reversed(parts):
            found = self._value(part, key)
            if not isinstance(found, dict):
                raise yaml.MarkedYAMLError(problem="<< takes a mapping or a list of them", problem_mark=part.start_mark)
            merged |= found
        return merged

    def _check_key(self, name: yaml.ScalarNode, key: Key, own: dict[str, Any]) -> None:
        text = str(key[-1])
        if text in own:
            first = self.source.places[key].line
            self._refuse(key, f"this key stands here twice, first in line {first}. Remove one.")
        if _is_plain(name) and (not isinstance(scalar(text), str) or text.lower() in _OLD_BOOLEANS - {"y", "n"}):
            self._refuse(key, f"YAML does not take the key {text} for text. Put it in quotes: '{text}'.")

    def _mark(self, key: Key, node: yaml.Node) -> None:
        mark = node.start_mark
        self.source.places[key] = Place(0, mark.line + 1, mark.column + 1, _at(self.name, mark))

    def _refuse(self, key: Key, text: str) -> None:
        self.source.problems.append(Problem(key, text))


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML takes for something else; short lists stay on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write everything out."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    plain = isinstance(scalar(text), str) and text.lower() not in _OLD_BOOLEANS
    style = '"' if _ODD_BREAKS.search(text) else None if plain else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    short = all(not isinstance(v, dict | list) and " " not in str(v) for v in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=short)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)
