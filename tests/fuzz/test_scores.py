"""The door of scores: a formula has the values that Python gives, or is refused, and nothing of it is run."""

from __future__ import annotations

import contextlib
import random

import numpy as np
from hypothesis import strategies as st

from espace.chain.scores import FUNCTIONS, MAX_LENGTH, Score, parse
from espace.errors import NonFiniteError
from tests.chain.test_scores import _PIECES, COLUMNS, PREDICTED, by_python, formula, values
from tests.fuzz.doors import ACCEPTED, REFUSED, try_door, verdict

FEW = 600
ROWS = 6
NUMBERS = st.one_of(
    st.integers().map(str), st.floats().map(repr), st.sampled_from(["1e308", "9**9**9", "0x10", "1_0", "1j"])
)
NAMES = st.sampled_from([*PREDICTED, *COLUMNS, *FUNCTIONS, "column('a b')", "_0", "if", "__import__", "é", "ﬁ"])
SIGNS = st.sampled_from(["+", "-", "*", "/", "**", "<", "<=", ">", ">=", "==", "!=", "//", "%", "and", "in", ":="])


def _joined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    calls = st.tuples(NAMES, st.lists(inner, max_size=4)).map(lambda c: f"{c[0]}({', '.join(c[1])})")
    return st.one_of(
        st.tuples(inner, SIGNS, inner).map(" ".join), inner.map("({})".format), inner.map("-{}".format), calls
    )


GROWN = st.tuples(st.integers(0, 2**40), st.integers(1, 4)).map(lambda d: formula(random.Random(d[0]), d[1]))
TREES = st.recursive(st.one_of(NUMBERS, NAMES), _joined, max_leaves=12)
TYPED = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(_PIECES), max_size=20).map("".join))
BY_PYTHON = st.tuples(GROWN, st.just(True))  # text that Python may read as well, since it is arithmetic of floats only
OTHERS = st.tuples(st.one_of(TREES, TYPED), st.just(False))
EXAMPLES = st.one_of(BY_PYTHON, BY_PYTHON, OTHERS)


def judge(example: tuple[str, bool]) -> str:
    """Refused with a reason, or computed: float64, missing or finite, and what Python makes of the same text."""
    text, arithmetic = example
    read: list[Score] = []
    if verdict(lambda: read.append(parse(text, PREDICTED))) == REFUSED:
        assert not arithmetic or len(text) > MAX_LENGTH
        return REFUSED
    (score,) = read
    known = values(len(text), ROWS)
    given = {read: known.get(read, np.linspace(-2.0, 5.0, ROWS)) for read in score.reads}
    found = None
    with contextlib.suppress(NonFiniteError):
        found = score.values(given, ROWS, "x", "the table")
        assert found.dtype == np.float64
        assert np.isfinite(found).all()
    if arithmetic:
        _compare(text, [{read.name: float(v[row]) for read, v in given.items()} for row in range(ROWS)], found)
    return ACCEPTED


def _compare(text: str, rows: list[dict[str, float]], found: np.ndarray | None) -> None:
    """Where Python gives a number for every row, that is the value."""
    wanted = [by_python(text, row) for row in rows]
    if all(value is not None for value in wanted):
        assert found is not None, f"Python gives {wanted}"
        np.testing.assert_allclose(found, np.array(wanted, np.float64), rtol=1e-9, atol=1e-300)


def test_whatever_is_written_as_a_score_has_the_value_of_python_or_is_refused() -> None:
    try_door("scores", EXAMPLES, judge, FEW)
