"""The door of the chain: what is written in the grammar is read as it is written, and its probabilities keep its laws."""

from __future__ import annotations

import random
import re

import numpy as np
import torch
from hypothesis import strategies as st

from espace import Chain
from espace.chain.probability import Probabilities
from tests.chains import Enumeration, grow, lines_of, overlaps, random_graph, worlds
from tests.fuzz.doors import ACCEPTED, REFUSED, try_door, verdict

FEW = 400
ROWS = 4
WORLDS = 40  # up to so many are listed one by one
NAMES = (
    "impression",
    "click",
    "pass",
    "else_",
    "Kauf",
    "購入",
    "x1",
    "_",
    "or",
    "to",
    "given",
    "E",
    "p",
    "Straße",
    "a_b",
)
JUNK = (
    "->",
    "=>",
    "|",
    "else",
    "a",
    "b",
    "click",
    " ",
    "\t",
    "\n",
    "-",
    ">",
    "=",
    "",
    "1",
    "é",
    "_given_",
    "\0",
    "->->",
)
ODD = st.one_of(st.none(), st.integers(), st.floats(), st.binary(max_size=3), st.lists(st.text(max_size=3), max_size=2))


@st.composite
def grown(draw: st.DrawFn) -> list[str]:
    """A valid chain with odd names, values and spaces: choices, else, independent departures, merges of merges."""
    chance = random.Random(draw(st.integers(0, 2**40)))
    transitions = grow(chance)
    stages = sorted({s for t in transitions for s in (t.parent, *t.children)})
    measured = draw(st.lists(st.sampled_from(stages), max_size=3))
    lines = [*lines_of(transitions, chance), *(f"{stage} => amount{n}" for n, stage in enumerate(measured))]
    names = draw(st.lists(st.sampled_from(NAMES), min_size=8, max_size=8, unique=True))
    new = dict(zip("abcdefgh", names, strict=True))
    lines = [re.sub(r"\b[a-h]\b", lambda found: new[found[0]], line) for line in lines]
    chance.shuffle(lines)
    return [_spaced(line, chance) for line in lines]


@st.composite
def broken(draw: st.DrawFn) -> list[object]:
    """A valid chain with some pieces of lines replaced, repeated, or gone."""
    lines: list[object] = list(draw(grown()))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        words = str(lines[at]).split()
        place = draw(st.integers(0, max(len(words) - 1, 0)))
        piece = draw(st.sampled_from([*JUNK, *NAMES, *words]))
        changed = " ".join([*words[:place], piece, *words[place + draw(st.integers(0, 1)) :]])
        lines[at] = draw(st.one_of(st.just(changed), st.just(changed), ODD))
    return lines


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[str], str]:
    """Stages and arrows without a cycle, whose merges may count a row twice: these are to be refused."""
    transitions = random_graph(random.Random(draw(st.integers(0, 2**40))))
    return [str(t) for t in transitions], REFUSED if overlaps(transitions) else ACCEPTED


TYPED = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from([*JUNK, *NAMES]), max_size=14).map(" ".join),
    st.lists(st.lists(st.sampled_from([*JUNK, "a", "b", "c"]), max_size=8).map("".join), max_size=5),
)
OF_GRAMMAR = st.tuples(grown(), st.just(ACCEPTED))
UNKNOWN = st.tuples(st.one_of(broken(), TYPED), st.none())
EXAMPLES = st.one_of(*[OF_GRAMMAR] * 6, graphs(), graphs(), UNKNOWN, UNKNOWN)  # lines, and what has to come of them


def _spaced(line: str, chance: random.Random) -> str:
    for sign in ("->", "|", "=>"):
        line = line.replace(f" {sign} ", f"{' ' * chance.randint(0, 2)}{sign}{chance.choice(['', ' ', chr(9)])}")
    return line


def judge(example: tuple[object, str | None]) -> str:
    """Refused, or read as it is written, with probabilities that keep the laws of the chain."""
    lines, wanted = example
    found: list[Chain] = []
    told = verdict(lambda: found.append(Chain.parse(lines)))  # type: ignore[arg-type]
    assert told == (wanted or told)
    if told == ACCEPTED:
        check_text(found[0])
        check_laws(found[0])
    return told


def check_text(chain: Chain) -> None:
    """What a chain writes is the chain again, and each of its drawings can be drawn."""
    assert Chain.parse(chain.lines()) == chain
    assert Chain.parse("\n".join(chain.lines())) == chain
    assert set(chain.formulas()) == {*chain.addresses, *chain.expectations}
    drawn = chain.tree() + chain.mermaid()
    assert all(name in drawn for name in (*chain.stages, *(v.amount for v in chain.values)))


def check_laws(chain: Chain) -> None:
    """Any logits give probabilities between 0 and 1, no child above its parents, no choice above 1."""
    numbers = np.random.default_rng(len(repr(chain)))
    scale = numbers.choice([1.0, 5.0, 40.0])
    logits = {t.name: scale * numbers.normal(size=(ROWS, len(t.outcomes))) for t in chain.transitions}
    p = Probabilities(Chain(chain.stages, chain.transitions), {n: torch.from_numpy(z) for n, z in logits.items()})
    near = {"atol": 1e-9, "rtol": 1e-9}
    for stage, given in chain.addresses.values():
        log_p, log_q = p.log_prob(stage, given).numpy(), p.log_not_prob(stage, given).numpy()
        assert np.isfinite(log_p).all()
        assert np.isfinite(log_q).all()
        assert (log_p <= 1e-9).all()
        np.testing.assert_allclose(np.exp(log_p) + np.exp(log_q), 1, **near)
    for t in chain.transitions:
        shares = sum(p.prob(c, t.parent).numpy() for c in t.children if len(chain.parents(c)) == 1)
        assert (np.asarray(shares) <= 1 + 1e-9).all()
        for child in (c for c in t.children if chain.parents(c) == (t.parent,)):
            assert (p.prob(child).numpy() <= p.prob(t.parent).numpy() + 1e-12).all()
    for stage in chain.stages[1:]:
        total = sum(p.prob(parent) * p.prob(stage, parent) for parent in chain.parents(stage))
        np.testing.assert_allclose(p.prob(stage).numpy(), total, **near)
    if scale < 10 and len(chain.stages) <= 9 and len(worlds(chain.transitions)) <= WORLDS:
        check_by_listing(chain, p, logits)


def check_by_listing(chain: Chain, p: Probabilities, logits: dict[str, np.ndarray]) -> None:
    """The probabilities are the sums over all that can happen."""
    listed = Enumeration(chain.transitions, logits)
    for stage, given in chain.addresses.values():
        np.testing.assert_allclose(p.log_prob(stage, given), listed.log_prob(stage, given), rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(
            p.log_not_prob(stage, given), listed.log_not_prob(stage, given), rtol=1e-7, atol=1e-9
        )


def test_whatever_is_written_as_a_chain_is_read_and_keeps_its_laws_or_is_refused() -> None:
    try_door("chain", EXAMPLES, judge, FEW)
