"""The parts of a configuration, each bound to the signature of the factory that its type names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from espace.chain.chain import Chain
from espace.chain.pieces import ChainPiece
from espace.config.schema import (
    DATA_KEYS,
    DEFAULTS,
    EMPTY,
    EXPERT,
    NAMED_PARTS,
    OPTIMIZER_KEYS,
    PARTS,
    PRESETS,
    VALUE,
    Fields,
)
from espace.config.validate import bind
from espace.config.yamlfile import Key, Problem, show
from espace.errors import ChainError, EspaceError, PluginError, did_you_mean
from espace.registry.registry import Entry, Registry, one
from espace.registry.signature import accepts


@cache
def feature_entries() -> dict[str, Entry]:
    """The kinds of features, as entries."""
    from espace.data.encoding.columns import FEATURE_TYPES

    return {name: Entry("features", name, factory, "espace") for name, factory in FEATURE_TYPES.items()}


def entries_of(kind: str, registry: Registry) -> dict[str, Entry]:
    """Every entry of a kind by name; features are a kind here."""
    return feature_entries() if kind == "features" else {e.name: e for e in registry.entries(kind)}


def _is_chain(lines: object) -> bool:
    """Whether it is a chain by itself, to which a piece can be added."""
    try:
        Chain.parse(lines if isinstance(lines, list) else [])
    except ChainError:
        return False
    return True


def _plain(piece: object) -> ChainPiece:
    """A piece of plain values. Raises TypeError for what is none."""
    if not isinstance(piece, ChainPiece):
        raise TypeError(f"it gives {show(piece)}. Its author has to return an espace.ChainPiece.")
    labels, stages = dict(piece.labels), {name: dict(said) for name, said in piece.stages.items()}
    return ChainPiece(*json.loads(json.dumps([list(piece.lines), labels, stages])))


def _values(chain: object) -> list[str]:
    """The values of a chain as it was written; none of one that is wrong."""
    try:
        return [v.amount for v in Chain.parse(chain).values] if isinstance(chain, list) else []
    except ChainError:
        return []


def _of_value(stage: object) -> object:
    """What is written under a value, its kind with it."""
    return {"kind": VALUE, **({} if stage is None else stage)} if stage is None or isinstance(stage, dict) else stage


def _preset(tree: Mapping[str, Any], preset: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The tree, and what a preset says where the tree says nothing.

    Another tower keeps its own options, and a length of training in steps or time has no epochs.
    """
    found = dict(tree)
    for key, section in preset.items():
        written = tree.get(key, {})
        if key == "tower" and key in tree:
            continue
        if key == "trainer" and isinstance(written, dict) and not written.keys().isdisjoint(("max_steps", "max_time")):
            continue
        if isinstance(written, dict):
            found[key] = {**section, **{name: value for name, value in written.items() if value is not None}}
    return found


class Binder:
    """Turns a tree as it was written into one in the shape of `schema.Fields`; gathers problems on the way.

    `origins` are the keys that pieces of chain brought, and which piece did: `{("stages", "refund"): ("pieces", 0)}`.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.problems: list[Problem] = []
        self.origins: dict[Key, Key] = {}

    def bind(self, written: Mapping[str, Any]) -> dict[str, Any]:
        """The tree with every part as `{type, options}`, defaults written out. Problematic options are left out."""
        tree = {key: value for key, value in written.items() if value is not None}
        if tree.get("preset") in PRESETS:
            tree = _preset(tree, PRESETS[tree["preset"]])
        if isinstance(tree.get("chain"), str):
            tree["chain"] = [line.strip() for line in tree["chain"].splitlines() if line.strip()]
        if "pieces" in tree:
            self._add_pieces(tree)
        for key, kind in PARTS.items():
            tree[key] = self._part(tree.get(key, DEFAULTS[key]), kind, (key,))
        for key, kind in NAMED_PARTS.items():
            if key in tree or key in DEFAULTS:
                tree[key] = self._named(tree.get(key, {}), kind, key)
        values = _values(tree.get("chain"))
        if isinstance(tree.get("stages", {}), dict):
            stages = {
                **tree.get("stages", {}),
                **{name: _of_value(tree.get("stages", {}).get(name)) for name in values},
            }
            tree["stages"] = {name: self._stage(stage, name) for name, stage in stages.items()}
        if isinstance(tree.get("data"), dict):
            tree["data"] = self._data(tree["data"])
        if isinstance(tree.setdefault("optimizer", {}), dict):
            tree["optimizer"] = self._optimizer(tree["optimizer"])
        return tree

    def _named(self, written: object, kind: str, key: str) -> dict[str, Any]:
        if not isinstance(written, dict):
            self._refuse((key,), f"{show(written)} is not a mapping. Write each under a name of its own.")
            written = {}
        defaults = DEFAULTS.get(key, {})
        parts = {**defaults, **written}
        for name in [n for n, part in parts.items() if part is None and (n in defaults or key in DEFAULTS)]:
            if name not in defaults:
                self._refuse((key, name), f"there is none of this name to remove.{did_you_mean(name, defaults)}")
            del parts[name]
        return {name: self._part(part, kind, (key, name)) for name, part in parts.items()}

    def _stage(self, written: object, name: str) -> object:
        if not isinstance(written, dict) or "kind" not in written:
            return written
        return {**written, "kind": self._part(written["kind"], "stages", ("stages", name, "kind"))}

    def _part(self, written: object, kind: str, key: Key) -> dict[str, Any]:
        node = {"type": written} if isinstance(written, str) else written
        if not isinstance(node, dict) or not isinstance(node.get("type"), str):
            self._refuse_shape(node, kind, key)
            return {"type": ""}
        options = {name: value for name, value in node.items() if name != "type"}
        entry = self._entry(kind, node["type"], (*key, "type") if isinstance(written, dict) else key)
        part = {"type": node["type"]}
        if entry is not None and entry.has_expert:
            part["expert"] = self._part(options.pop("expert", EXPERT), "towers", (*key, "expert"))
        if kind == "metrics" and (of := options.pop("of", None)) is not None:
            part["of"] = of
        if entry is not None:
            options, problems = bind(entry, options, key)
            self.problems += problems
        return {**part, "options": options}

    def _refuse_shape(self, node: object, kind: str, key: Key) -> None:
        known = ", ".join(sorted(entries_of(kind, self.registry)))
        if isinstance(node, dict):
            near = [name for name in node if name != "type" and did_you_mean(name, ["type"]).startswith(" Did")]
            self.problems += [Problem((*key, name), "there is no such key. Did you mean 'type'?") for name in near]
            self._refuse((*key, "type"), f"this is missing. It has to be the name of a {one(kind)}: {known}.")
        else:
            what = f"{show(node)} is neither the name of a {one(kind)} nor a mapping with its type."
            self._refuse(key, f"{what} Known: {known}.")

    def _add_pieces(self, tree: dict[str, Any]) -> None:
        """Write out in the tree what its pieces bring. What the tree says itself stays."""
        written, tree["pieces"] = tree["pieces"], []
        if not isinstance(written, list):
            self._refuse(("pieces",), f"{show(written)} is not a list. Write them in brackets, as in [refund].")
            return
        for number, item in enumerate(written):
            key, before = ("pieces", number), len(self.problems)
            part = self._part(item, "pieces", key)
            if len(self.problems) == before and _is_chain(tree.get("chain")):
                self._add_piece(tree, self.registry.get("pieces", part["type"]), part["options"], key)

    def _add_piece(self, tree: dict[str, Any], entry: Entry, options: dict[str, Any], key: Key) -> None:
        try:
            piece = _plain(entry.factory(**options))
            tree["chain"] = piece.added_to(tree["chain"])
        except ChainError as error:
            more = f" Options of {entry.name}: {', '.join(options)}." if options else ""
            what = re.sub(r"^chain, line (\d+): ", r"line \1 of the piece: ", str(error)).removeprefix("chain: ")
            self._refuse(key, f"{entry.name}: {what}{more}")
            return
        except (ValueError, TypeError, EspaceError) as error:
            self._refuse(key, f"{entry.name} cannot be built: {error}")
            return
        for section, brought in (("labels", piece.labels), ("stages", piece.stages)):
            own = tree.get(section, {})
            if isinstance(own, dict):
                self.origins |= {(section, name): key for name in brought if name not in own}
                tree[section] = {**brought, **own}
        for name in piece.stages if isinstance(tree["stages"], dict) else ():
            said = tree["stages"][name]
            tree["stages"][name] = {**piece.stages[name], **said} if isinstance(said, dict) else said

    def _data(self, written: dict[str, Any]) -> dict[str, Any]:
        closed = {k: v for k, v in written.items() if k in DATA_KEYS and (v is not None or k not in EMPTY)}
        rest = {key: value for key, value in written.items() if key not in DATA_KEYS}
        kind = closed.get("type", "files")
        entry = self._entry("readers", kind, ("data", "type")) if isinstance(kind, str) else None
        if entry is None:
            return closed
        clash = {o.name for o in entry.options} & set(DATA_KEYS)
        if clash:
            raise PluginError(
                f"reader '{kind}' has an option '{min(clash)}', a key of data. Its author has to rename it."
            )
        options, problems = bind(entry, rest, ("data",), also=DATA_KEYS, whole=Fields)
        self.problems += problems
        return {**closed, "options": options}

    def _optimizer(self, written: dict[str, Any]) -> dict[str, Any]:
        key: Key = ("optimizer",)
        closed = {k: v for k, v in written.items() if k in OPTIMIZER_KEYS and (v is not None or k.startswith("tables"))}
        rest = {name: value for name, value in written.items() if name not in OPTIMIZER_KEYS}
        closed["schedule"] = self._part(closed.get("schedule", "constant"), "schedules", (*key, "schedule"))
        kind = closed.get("type", "adam")
        entry = self._entry("optimizers", kind, (*key, "type")) if isinstance(kind, str) else None
        if entry is None:
            return closed
        if clash := {o.name for o in entry.options} & {*OPTIMIZER_KEYS}:
            what = f"optimizer '{kind}' has an option '{min(clash)}', a key of optimizer. Its author has to rename it."
            raise PluginError(what)
        if closed.get("tables") in ("exact", "lazy") and not accepts(entry.factory, 2):
            what = f"with {kind} every row may move in every step. Write dense, or leave it out."
            self._refuse((*key, "tables"), what)
        options, problems = bind(entry, rest, key, also=OPTIMIZER_KEYS, whole=Fields)
        self.problems += problems
        return {**closed, "options": options}

    def _entry(self, kind: str, name: str, key: Key) -> Entry | None:
        try:
            if kind != "features":
                return self.registry.get(kind, name)
        except PluginError as error:
            self._refuse(key, str(error))
            return None
        entries = feature_entries()
        if name not in entries:
            self._refuse(key, f"there is no kind of feature '{name}'.{did_you_mean(name, entries)}")
        return entries.get(name)

    def _refuse(self, key: Key, text: str) -> None:
        self.problems.append(Problem(key, text))
