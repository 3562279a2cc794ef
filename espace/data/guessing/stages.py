"""Which columns are the stages of a chain: 0/1 columns of which one happens only where the other did."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from espace.chain.chain import Chain
from espace.data.guessing.sample import Column
from espace.errors import ChainError

LEAST = 10  # rows in which a stage happened, and in which it did not though its parent did
_CHANCE = math.log(1e-6)  # that one column lies within another by luck
_HINTS = (
    *("click", "clk", "view", "visit", "cart", "buy", "bought", "purchas", "conver", "cvr", "order", "checkout", "pay"),
    *("paid", "install", "download", "signup", "read", "finish", "complet", "watch", "like", "favo", "wish", "follow"),
    *("share", "comment", "appl", "approv", "activat", "book", "open", "deliver", "redeem", "donat"),
    *("点击", "浏览", "加购", "下单", "购买", "支付", "转化", "收藏", "曝光"),
)
_NOT = ("true", "potential", "p")  # truths of a simulator, predictions


@dataclass(frozen=True)
class Stages:
    """The stages from the first to the last: `{name in the chain: column}`, and the lines that say so."""

    labels: Mapping[str, Column]
    root: str

    @property
    def line(self) -> str:
        """`impression -> click -> conversion`."""
        return " -> ".join([self.root, *self.labels])


def is_hinted(column: Column) -> bool:
    """Whether the name is one that stages have."""
    return any(word.startswith(hint) for word in column.words for hint in _HINTS)


def candidates(columns: Sequence[Column]) -> list[Column]:
    """What may be a stage: 0/1 columns, often enough either. Of copies of one, that with the better name."""
    found: list[Column] = []
    for column in sorted(columns, key=is_hinted, reverse=True):
        if not column.binary or (column.words[:1] and column.words[0] in _NOT):
            continue
        if column.words[:1] in (["is"], ["has"]) and not is_hinted(column):
            continue
        ups = int(column.happened.sum())
        if ups >= LEAST and int(column.known.sum()) - ups >= LEAST and not any(same(column, c) for c in found):
            found.append(column)
    return found


def same(a: Column, b: Column) -> bool:
    """Whether two 0/1 columns never differ."""
    both = a.known & b.known
    return bool(both.any() and np.all(a.happened[both] == b.happened[both]))


def within(child: Column, parent: Column) -> bool:
    """Whether the child never happens without the parent, which is no luck, and not always with it."""
    both = child.known & parent.known
    ups, of = child.happened & both, parent.happened & both
    if (ups & ~of).any() or ups.sum() < LEAST or (of & ~ups).sum() < LEAST:
        return False
    return bool(ups.sum() * math.log(of.sum() / both.sum()) < _CHANCE) if of.sum() < both.sum() else False


def longest(columns: Sequence[Column]) -> list[Column]:
    """The nested columns with most names that stages have, then the most of them, then the rarest end.

    Nothing where there is but one, and its name says nothing.
    """
    ordered = sorted(columns, key=lambda c: -float(np.mean(c.happened[c.known])))
    best: dict[str, list[Column]] = {}
    for column in ordered:
        before = [best[c.name] for c in ordered if c.name in best and within(column, c)]
        before = [path for path in before if all(within(column, c) for c in path)]
        best[column.name] = [*max(before, key=_worth, default=[]), column]
    path = max(best.values(), key=_worth, default=[])
    return path if len(path) > 1 or any(map(is_hinted, path)) else []


def _worth(path: Sequence[Column]) -> tuple[int, int, float]:
    last = path[-1]
    return sum(map(is_hinted, path)), len(path), -float(np.mean(last.happened[last.known]))


def named(path: Sequence[Column], taken: Sequence[str]) -> Stages:
    """The stages under names that a chain can have."""
    free = [r for r in ("impression", "row", "offer", "every_row") if r not in taken]
    root = free[0]
    labels: dict[str, Column] = {}
    for number, column in enumerate(path, 1):
        name = re.sub(r"\W+", "_", column.name).strip("_")
        good = re.fullmatch(r"[^\W\d]\w*", name) and name not in (*labels, root, "else") and len(name) <= 60
        labels[name if good else f"stage_{number}"] = column
    try:
        Chain.parse([Stages(labels, root).line])
    except ChainError:
        labels = {f"stage_{number}": column for number, column in enumerate(path, 1)}
    return Stages(labels, root)
