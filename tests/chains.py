"""Random chains, and every probability of one by listing all that can happen: plain NumPy, nothing of espace's algebra."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import pytest

from espace.chain.grammar import Transition

MOST_STAGES = 8
CHAINS = 200


@dataclass(frozen=True)
class World:
    """One way in which everything can turn out: the stages reached, and the class chosen at each transition decided."""

    reached: frozenset[str]
    choices: dict[Transition, int]


def root_of(transitions: Sequence[Transition]) -> str:
    children = {c for t in transitions for c in t.children}
    return next(t.parent for t in transitions if t.parent not in children)


def worlds(transitions: Sequence[Transition]) -> list[World]:
    """Every world: at each stage reached, each of its transitions chooses one class, independently of the others."""

    def unfold(waiting: list[Transition], reached: frozenset[str], choices: dict[Transition, int]) -> Iterator[World]:
        if not waiting:
            yield World(reached, choices)
            return
        first, *rest = waiting
        for index, stage in enumerate(first.classes):
            fresh = [t for t in transitions if t.parent == stage] if stage not in reached else []
            now = reached | {stage} if stage else reached
            yield from unfold(rest + fresh, now, choices | {first: index})

    root = root_of(transitions)
    return list(unfold([t for t in transitions if t.parent == root], frozenset([root]), {}))


def overlaps(transitions: Sequence[Transition]) -> bool:
    """Whether in some world two parents of one stage are reached."""
    parents: dict[str, set[str]] = {}
    for t in transitions:
        for child in t.children:
            parents.setdefault(child, set()).add(t.parent)
    return any(len(found & w.reached) > 1 for w in worlds(transitions) for found in parents.values())


class Enumeration:
    """Probabilities and their gradients, summed over the worlds.

    logits: `{transition name: (batch, K)}` float64. All sums are of positive numbers, so both tails are exact.
    """

    def __init__(self, transitions: Sequence[Transition], logits: dict[str, np.ndarray]) -> None:
        self.transitions = transitions
        self.worlds = worlds(transitions)
        self.shares = {t: _softmax(logits[t.name]) for t in transitions}  # (batch, K + 1)
        self.weights = np.stack([self._weight(w) for w in self.worlds])  # (worlds, batch)

    def _weight(self, world: World) -> np.ndarray:
        batch = len(next(iter(self.shares.values())))
        return np.prod([np.ones(batch)] + [self.shares[t][:, k] for t, k in world.choices.items()], axis=0)

    def _in(self, stage: str | None) -> np.ndarray:
        return np.array([stage is None or stage in w.reached for w in self.worlds])

    def prob(self, stage: str, given: str | None = None) -> np.ndarray:
        return np.exp(self.log_prob(stage, given))

    def log_prob(self, stage: str, given: str | None = None) -> np.ndarray:
        return self._log_ratio(self._in(stage) & self._in(given), self._in(given))

    def log_not_prob(self, stage: str, given: str | None = None) -> np.ndarray:
        return self._log_ratio(~self._in(stage) & self._in(given), self._in(given))

    def _log_ratio(self, part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.log(self.weights[part].sum(0)) - np.log(self.weights[whole].sum(0))

    def log_prob_gradient(self, stage: str, given: str | None = None) -> dict[str, np.ndarray]:
        return self._gradient_of_ratio(self._in(stage) & self._in(given), self._in(given))

    def log_not_prob_gradient(self, stage: str, given: str | None = None) -> dict[str, np.ndarray]:
        return self._gradient_of_ratio(~self._in(stage) & self._in(given), self._in(given))

    def _gradient_of_ratio(self, part: np.ndarray, whole: np.ndarray) -> dict[str, np.ndarray]:
        return {t.name: self._gradient(part, t) - self._gradient(whole, t) for t in self.transitions}

    def _gradient(self, event: np.ndarray, t: Transition) -> np.ndarray:
        """d log P(event) / dz: (batch, K). A world's weight w has d w / dz_k = w (1[k was chosen] - share_k)."""
        total = np.zeros((self.weights.shape[1], len(t.outcomes)))
        for index in np.flatnonzero(event):
            if t in self.worlds[index].choices:
                total += self.weights[index][:, None] * self._push(t, self.worlds[index].choices[t])
        return total / self.weights[event].sum(0)[:, None]

    def _push(self, t: Transition, chosen: int) -> np.ndarray:
        """1[k was chosen] - share_k for every named outcome k, without cancellation: (batch, K)."""
        push = -self.shares[t].copy()
        push[:, chosen] = np.delete(self.shares[t], chosen, axis=1).sum(1)
        return push[:, :-1]


def _softmax(z: np.ndarray) -> np.ndarray:
    z = np.concatenate([z, np.zeros((len(z), 1))], axis=1)
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def random_logits(
    transitions: Sequence[Transition], seed: int, batch: int = 3, values: Sequence[float] | None = None
) -> dict[str, np.ndarray]:
    """Normal logits of spread 2, or drawn from `values`."""
    rng = np.random.default_rng(seed)
    return {
        t.name: rng.normal(0, 2, (batch, len(t.outcomes)))
        if values is None
        else rng.choice(np.asarray(values, float), (batch, len(t.outcomes)))
        for t in transitions
    }


def grow(random: Random) -> list[Transition]:
    """A random valid chain of up to 8 stages: choices with and without else, independent departures, and merges over
    stages that exclude each other, merges of merges included. In random order."""
    names = iter("abcdefgh")
    stages, transitions = [next(names)], []
    size = max(random.randint(2, MOST_STAGES) for _ in range(3))
    while len(stages) < size:
        fresh = list(itertools.islice(names, min(random.choice([1, 1, 2, 2, 3]), size - len(stages))))
        merging = _exclusive_stages(random, stages, transitions) if random.random() < 0.8 else []
        transitions += _merge(random, merging, fresh) if merging else [_branch(random, random.choice(stages), fresh)]
        stages += fresh
    random.shuffle(transitions)
    return transitions


def _exclusive_stages(random: Random, stages: Sequence[str], transitions: Sequence[Transition]) -> list[str]:
    """Two or more stages of which no world reaches two, or none."""
    if not transitions:
        return []
    found: list[str] = []
    reached = [w.reached for w in worlds(transitions)]
    for stage in random.sample(stages, len(stages)):
        if len(found) < 3 and not any(stage in r and r & set(found) for r in reached):
            found.append(stage)
    return found if len(found) > 1 else []


def _branch(random: Random, parent: str, fresh: Sequence[str]) -> Transition:
    if len(fresh) > 1 and random.random() < 0.5:
        return Transition(parent, tuple(fresh[:-1]), fresh[-1])
    return Transition(parent, tuple(fresh))


def _merge(random: Random, parents: Sequence[str], fresh: Sequence[str]) -> list[Transition]:
    """Every parent reaches some of `fresh`, and all of `fresh` are reached; perhaps with one else stage in common."""
    *named, rest = fresh if len(fresh) > 1 and random.random() < 0.5 else [*fresh, None]
    first, *others = parents
    drawn = [tuple(s for s in named if random.random() < 0.7) or tuple(named) for _ in others]
    return [Transition(first, tuple(named), rest)] + [
        Transition(p, outcomes, rest) for p, outcomes in zip(others, drawn, strict=True)
    ]


def lines_of(transitions: Sequence[Transition], random: Random) -> list[str]:
    """The grammar of `transitions`; some lines go on where another ends."""
    lines = [str(t) for t in transitions]
    for line in list(lines):
        head = next((other for other in lines if other != line and other.endswith(f"-> {line[0]}")), None)
        if head and line in lines and random.random() < 0.5 and "|" not in head and "else" not in head:
            lines.remove(line)
            lines[lines.index(head)] = f"{head}{line[1:]}"
    return lines


def random_graph(random: Random) -> list[Transition]:
    """Transitions between up to 7 stages, without cycles and with one root, whose merges may or may not be valid."""
    stages = "abcdefg"[: random.randint(3, 7)]
    rests = {s for s in stages[2:] if random.random() < 0.2}
    children: dict[str, list[str]] = {}
    for i, stage in enumerate(stages[1:], 1):
        for parent in random.sample(stages[:i], min(i, random.choice([1, 1, 1, 1, 2, 2, 3]))):
            children.setdefault(parent, []).append(stage)
    return [t for parent, found in children.items() for t in _choices(random, parent, found, rests)]


def _choices(random: Random, parent: str, children: Sequence[str], rests: set[str]) -> list[Transition]:
    """Transitions that lead from `parent` to its children, some in one choice; stages of `rests` come after an else."""
    groups: list[list[str]] = []
    for child in (c for c in children if c not in rests):
        if groups and random.random() < 0.85:
            random.choice(groups).append(child)
        else:
            groups.append([child])
    waiting = [c for c in children if c in rests]
    groups += [[f"only_{parent}_{c}"] for c in waiting[len(groups) :]]
    return [Transition(parent, tuple(group), rest) for group, rest in itertools.zip_longest(groups, waiting)]


def chain_of(seed: int) -> list[Transition]:
    return grow(Random(seed))


def graph_of(seed: int) -> list[Transition]:
    return random_graph(Random(seed))


every_chain = pytest.mark.parametrize("seed", range(CHAINS))
