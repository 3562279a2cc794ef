"""Scores: the arithmetic is Python's own in float64, and nothing but arithmetic is read."""

from __future__ import annotations

import contextlib
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import espace
from espace.chain.chain import Chain
from espace.chain.scores import MAX_DEPTH, MAX_LENGTH, Read, parse, predictions
from espace.config import load
from espace.errors import ConfigError, DataError, NonFiniteError
from tests.shop import CONFIG, put, rows

PREDICTED = ("click", "conversion", "conversion_given_click")
COLUMNS = ("bid", "price")
PYTHON = {
    "log": math.log,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "min": min,
    "max": max,
    "clip": lambda x, low, high: min(max(x, low), high),
    "where": lambda condition, yes, no: yes if condition else no,
}
ROWS = 40


def formula(draw: random.Random, depth: int, *, where: bool = True) -> str:
    """A formula that Python reads as well; parentheses stand at random, so precedence is part of the law."""
    if depth == 0 or draw.random() < 0.1:
        return draw.choice([*PREDICTED, *COLUMNS, "0.5", "2.0", "1e-3", "-1.5"])
    a, b, c = (formula(draw, depth - 1, where=where) for _ in range(3))
    choices = [f"{a} {o} {b}" for o in "+-*/"] + [f"({a}) {o} ({b})" for o in "+-*/"]
    choices += [
        f"({a}) ** {draw.choice(['2.0', '-1.0', '3'])}",
        f"max({a}, 0.1) ** 0.3",
        f"-({a})",
        f"-{a}",
        f"({a})",
        f"(({a}) < ({b}))",
    ]
    choices += [
        f"(({a}) >= ({b}))",
        f"(({a}) == ({b}))",
        f"min({a}, {b}, {c})",
        f"max({a}, {b})",
        f"clip({a}, 0.1, 3.0)",
    ]
    choices += [f"log({a})", f"exp({a})", f"sqrt({a})"] + ([f"where(({a}) > ({b}), {b}, {c})"] if where else [])
    return draw.choice(choices)


def values(seed: int, count: int = ROWS) -> dict[Read, Any]:
    numbers = np.random.default_rng(seed)
    found = {Read(name, False): numbers.random(count) for name in PREDICTED}
    return found | {Read(name, True): numbers.gamma(2.0, 1.0, count) for name in COLUMNS}


def by_python(text: str, row: dict[str, float]) -> float | None:
    """What Python makes of one row; None where a step is complex, undefined or too large."""
    try:
        found = eval(text, {"__builtins__": {}, **PYTHON}, row)
    except (ValueError, ArithmeticError, TypeError):
        return None
    return float(found) if isinstance(found, float | bool) and math.isfinite(found) else None


def computed(text: str, given: dict[Read, Any], name: str = "score") -> Any:
    return parse(text, PREDICTED).values(given, len(next(iter(given.values()))), name, "the table")


# Arithmetic


def test_every_formula_has_the_values_that_python_gives() -> None:
    compared = 0
    for seed in range(400):
        text, given = formula(random.Random(seed), 4), values(seed)
        rows_of = [{read.name: float(column[row]) for read, column in given.items()} for row in range(ROWS)]
        expected = [by_python(text, row) for row in rows_of]
        good = [row for row, value in enumerate(expected) if value is not None]
        if good and len(text) <= MAX_LENGTH:
            some = {read: column[good] for read, column in given.items()}
            wanted = [expected[row] for row in good]
            np.testing.assert_allclose(computed(text, some), wanted, rtol=1e-9, atol=1e-300, err_msg=text)
            compared += len(good)
    assert compared > 5000, "most of the random formulas can be compared"


def test_numbers_are_floats_so_that_towers_of_powers_end_at_once() -> None:
    with pytest.raises(NonFiniteError, match="the table, row 0: score_x is no finite number"):
        computed("bid * 9**9**9**9", values(0), "score_x")
    assert (computed("min(9**9**9**9, bid)", values(0)) == values(0)[Read("bid", True)]).all()
    assert (computed("bid + 2**80", values(0)) == values(0)[Read("bid", True)] + 2.0**80).all()
    assert (computed("bid * 7 / 2", values(0)) == values(0)[Read("bid", True)] * 7.0 / 2.0).all()


@pytest.mark.parametrize("word", ["pass", "return", "if", "lambda", "None", "ﬁnal", "log"])
def test_a_stage_may_have_a_name_that_python_keeps_for_itself(word: str) -> None:
    score = parse(f"log({word}) * 2", [word])
    assert score.reads == (Read(word, False),)
    np.testing.assert_allclose(score.values({score.reads[0]: np.array([3.0])}, 1, "", ""), 2 * math.log(3))


def test_a_column_in_quotes_may_be_called_anything_and_a_line_may_break() -> None:
    score = parse("column('ad.bid; x')\n   + column(\"click\")", PREDICTED)
    assert score.columns == ["ad.bid; x", "click"]
    assert score.bare == frozenset()


# What is missing, and what is undefined


def test_a_score_is_missing_where_a_column_is_that_it_needs() -> None:
    for seed in range(200):
        text, given = formula(random.Random(seed), 3, where=False), values(seed)
        missing = np.random.default_rng(seed).random(ROWS) < 0.5
        given[Read("bid", True)][missing] = np.nan
        try:
            found = computed(text, given)
        except NonFiniteError:
            continue
        reads_bid = Read("bid", True) in parse(text, PREDICTED).reads
        assert (np.isnan(found) == (missing & reads_bid)).all(), text


def test_what_is_missing_on_the_side_that_is_not_taken_does_not_count() -> None:
    given = {Read("bid", True): np.array([np.nan, 2.0, np.nan]), Read("price", True): np.array([0.0, 1.0, 1.0])}
    np.testing.assert_array_equal(computed("where(price > 0, bid, 7)", given), [7.0, 2.0, np.nan])
    np.testing.assert_array_equal(computed("where(bid > 0, price, 7)", given), [np.nan, 1.0, np.nan])
    np.testing.assert_array_equal(computed("bid ** 0 + 1 ** bid", given), [np.nan, 2.0, np.nan])


@pytest.mark.parametrize(
    "text", ["log(bid - bid)", "1 / (bid - bid)", "(0 - bid) ** 0.5", "exp(bid * 1e6)", "sqrt(-bid)"]
)
def test_what_is_undefined_though_nothing_is_missing_names_row_and_values(text: str) -> None:
    given = {Read("bid", True): np.array([np.nan, 2.5])}
    with pytest.raises(NonFiniteError, match=r"row 11: score_x is no finite number \(bid = 2\.5\)\. Bound it by clip"):
        parse(text).values(given, 2, "score_x", "a.parquet", 10)
    chosen = parse(f"where(bid > 9, {text}, bid)").values(given, 2, "score_x", "a.parquet")
    np.testing.assert_array_equal(chosen, [np.nan, 2.5])


# What is refused

REFUSED = [
    ("bid.real", r"'bid\.real' cannot stand in a score\. Write column\('bid\.real'\)"),
    ("().__class__", "cannot stand in a score"),
    ("__import__('os').system('touch evil')", "cannot stand in a score"),
    ("open('evil', 'w')", "there is no function 'open'"),
    ("eval('1')", "there is no function 'eval'"),
    ("bid[0]", "cannot stand in a score"),
    ("lambda: bid", "cannot be read"),
    ("[bid for bid in price]", "cannot be read"),
    ("(bid := 3)", "cannot stand in a score"),
    ("bid if price else 1", "cannot be read"),
    ("bid and price", "cannot be read"),
    ("f'{bid}'", "cannot be read"),
    ("'bid' * 3", "cannot stand in a score"),
    ("bid, price", "cannot stand in a score"),
    ("bid; price", "cannot be read"),
    ("{}", "cannot stand in a score"),
    ("...", "cannot stand in a score"),
    ("bid // 2", "cannot stand in a score"),
    ("bid @ price", "cannot stand in a score"),
    ("bid ^ 2", r"Write \*\* for a power"),
    ("~bid", "cannot stand in a score"),
    ("0 < bid < 1", "Compare two numbers at a time"),
    ("1j * bid", "cannot stand in a score"),
    ("1e999 * bid", "larger than any number here"),
    (f"1{'0' * 400} * bid", "larger than any number here"),
    ("lgo(bid)", "there is no function 'lgo'. Did you mean 'log'"),
    ("log(bid, 2)", "log takes 1 argument, and is given 2"),
    ("min(bid)", "min takes 2 or more arguments, and is given 1"),
    ("clip(bid)", "clip takes 3 arguments"),
    ("min(*bid)", "given 1"),
    ("max(bid, *price)", "cannot stand in a score"),
    ("max(bid, price, key=log)", "cannot stand in a score"),
    ("log(log)(bid)", "cannot stand in a score"),
    ("column(bid)", "column takes one name in quotes"),
    ("a·b + 1", "is no name"),
    ("", "cannot be read"),
    ("1 2", "cannot be read"),
    ("(" * 300 + "bid" + ")" * 300, "cannot be read"),
    ("-" * 900 + "bid", f"nested deeper than {MAX_DEPTH}|cannot be read"),  # a matter of the Python
    ("bid+" * (MAX_DEPTH + 1) + "bid", f"nested deeper than {MAX_DEPTH}"),
    ("bid" + " " * MAX_LENGTH, "more than 1,000"),
    ("bid\0", "cannot be read"),
]


@pytest.mark.parametrize(("text", "why"), REFUSED)
def test_whatever_is_not_arithmetic_is_refused(text: str, why: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=why):
        parse(text)
    assert not list(tmp_path.iterdir())


_PIECES = [
    "click",
    "bid",
    "1",
    "2.5",
    "+",
    "-",
    "*",
    "/",
    "**",
    "(",
    ")",
    ",",
    "log",
    "where",
    "column",
    "'a'",
    " ",
    "\n",
    ".",
]
_PIECES += [
    "if",
    "else",
    "lambda",
    ":",
    "[",
    "]",
    "=",
    "<",
    "_0",
    "__class__",
    "{",
    "}",
    "%",
    "not",
    "\\",
    "#",
    '"',
    "e5",
    "é",
    "℘",
]


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(max_size=30), st.lists(st.sampled_from(_PIECES), max_size=12).map("".join)))
def test_whatever_is_typed_is_computed_or_refused_and_never_crashes(text: str) -> None:
    try:
        score = parse(text, PREDICTED)
    except ConfigError:
        return
    given = {read: np.array([0.5]) for read in score.reads}
    with contextlib.suppress(NonFiniteError):
        assert score.values(given, 1, "x", "the table").dtype == np.float64


# In the YAML

SHOP = """\
chain:
  - impression -> click -> conversion
labels: {click: clk}
data: {train: a.parquet, weight: weight}
features:
  user_id: id
  clicks: number
  age: {type: number, column: conversion_given_click}
scores:
"""


def found(tmp_path: Path, *lines: str) -> list[str]:
    path = tmp_path / "x.yaml"
    path.write_text(SHOP + "".join(f"  {line}\n" for line in lines))
    try:
        load(path)
    except ConfigError as error:
        return [problem.removeprefix(f"{tmp_path}/") for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a: conversoin * bid", "the chain has no prediction 'conversoin'. Did you mean 'conversion'? For a column"),
        ("a: click_given_conversion", "has no prediction 'click_given_conversion'."),
        ("a: clk * bid", "the column 'clk' is the label of 'click', which a prediction has not seen."),
        ("a: column('conversion')", "the column 'conversion' is the label of 'conversion'"),
        (
            "a: conversion_given_click",
            "is a prediction of the chain and the column of the feature 'age'. Write column(",
        ),
        ("a: impression * bid", "every row is one 'impression', so its probability is 1. Leave it out."),
        ("a: a * bid", "'a' is a score, and scores do not read each other."),
        ("a: 1 + 2", "it is the same for every row."),
        ("a.b: click", "this is no name. Write letters, digits and underscores."),
        ("a: click +", "'click +' cannot be read."),
        ("a: 3", "3 is not text. Put it in quotes: '3'."),
    ],
)
def test_a_score_that_cannot_be_meant_is_refused_at_its_line(line: str, why: str, tmp_path: Path) -> None:
    (problem,) = found(tmp_path, "fine: click * bid", line)
    assert problem.startswith(f"x.yaml:11:3: scores.{line.partition(':')[0]}: "), problem
    assert why in problem


def test_all_problems_are_told_at_once_also_where_the_chain_has_one(tmp_path: Path) -> None:
    assert [p.split(":")[1] for p in found(tmp_path, "a: clk", "b: bid.x", "c: bid[0]")] == ["10", "11", "12"]
    path = tmp_path / "x.yaml"
    path.write_text(SHOP.replace("->", ">") + "  a: bid[0]\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert len(caught.value.problems) == 2


def test_names_of_the_chain_and_of_columns_that_are_meant_are_taken(tmp_path: Path) -> None:
    lines = ("a: conversion * bid * price", "b: clicks + user_id", "c: column('conversoin') + column('impression')")
    assert found(tmp_path, *lines, "d: weight * click", "e: column('conversion_given_click') * click") == []


def test_every_prediction_of_a_chain_has_a_name_in_formulas_and_its_column() -> None:
    chain = Chain.parse(["impression -> click -> conversion", "conversion => revenue"])
    assert predictions(chain) == {
        **{name: f"p_{name}" for name in ("click", "conversion", "conversion_given_click")},
        **{name: f"e_{name}" for name in ("revenue", "revenue_given_conversion")},
    }


# In predictions

SCORES = {"ecpm": "conversion * bid", "blend": "click ** 0.5 * conversion_given_click"}
BIDS = [None, *np.linspace(0.1, 5, 599)]


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """The trained run, asked for scores by overrides: what `espace predict RUN scores.a=...` writes."""
    folder = tmp_path_factory.mktemp("scores")
    pq.write_table(put(rows(600, 7), bid=BIDS), folder / "in.parquet", row_group_size=250)

    def predict(*overrides: str) -> Any:
        out = folder / "out.parquet"
        said = trained.shop.espace("predict", trained.run, *overrides, "--data", folder / "in.parquet", "--out", out)
        return said, pq.read_table(out) if said.code == 0 else None

    return predict


def test_scores_are_columns_beside_the_probabilities(run) -> None:
    said, found = run("scores.ecpm=conversion * bid", "scores.blend=click ** 0.5 * conversion_given_click")
    assert said.code == 0, said
    assert "600 rows with 3 probabilities, 2 scores" in said.out
    assert found.column_names[-2:] == ["score_ecpm", "score_blend"]
    p = {name: found[f"p_{name}"].to_numpy() for name in PREDICTED}
    assert found["score_ecpm"].null_count == 1
    np.testing.assert_array_equal(found["score_ecpm"].to_numpy()[1:], p["conversion"][1:] * np.array(BIDS[1:]))
    np.testing.assert_allclose(found["score_blend"], np.sqrt(p["click"]) * p["conversion_given_click"], rtol=1e-15)


def test_a_column_that_is_not_there_or_no_number_is_refused(run) -> None:
    said, _ = run("scores.ecpm=conversion * bidd")
    assert said.code == 2
    assert "there is no column 'bidd', which scores.ecpm reads. Did you mean 'bid'?" in said.error
    said, _ = run("scores.ecpm=click * item_id")
    assert "'item_id' is of type string and is no number; row 0 has 'i" in said.error


def test_an_undefined_score_stops_the_prediction_with_its_row(run) -> None:
    said, _ = run("scores.bad=where(bid > 4.9, log(bid - bid), bid)")
    assert said.code == 3
    row = next(n for n, bid in enumerate(BIDS) if bid and bid > 4.9) - 500
    assert f"row group 2, row {row}: score_bad is no finite number (bid = " in said.error


def test_a_run_keeps_its_scores_and_training_does_without_their_columns(shop, monkeypatch) -> None:
    small = {"features": {"user_id": "id"}, "trainer": {"accelerator": "cpu", "max_steps": 1}, "metrics": None}
    said = shop.espace("fit", shop.yaml(scores=SCORES, **small), "--run-dir", "run")
    assert said.code == 0, said
    assert "scores.ecpm: the training data has no column 'bid', which a prediction needs." in " ".join(
        f"{said.out} {said.error}".split()
    )
    loaded = espace.load("run/checkpoints/best.ckpt")
    assert set(loaded.encoder.columns()) == {"user_id", "click", "conversion", "weight"}
    table = loaded.predict({"user_id": [1, 2, 3], "bid": [1.0, None, 3.0]})
    assert table.column_names == [*(f"p_{n}" for n in PREDICTED), "score_ecpm", "score_blend"]
    assert table["score_ecpm"].null_count == 1
    assert table["score_ecpm"].type == pa.float64()
    assert loaded.predict({"user_id": [], "bid": []}).num_rows == 0
    with pytest.raises(DataError, match=r"there is no column 'bid', which scores\.ecpm reads"):
        loaded.predict({"user_id": [1]})
    said = shop.espace("evaluate", "run")
    assert said.code == 0, said
    assert shop.espace("fit", "--resume", "run", "scores.ecpm=click", "trainer.max_steps=2").code == 0


def test_the_mean_of_a_value_is_read_by_its_name(shop) -> None:
    for seed, name in enumerate(("train", "validation")):
        table = rows(600, seed)
        paid = [1.0 + n % 7 if bought else None for n, bought in enumerate(table["conversion"].to_pylist())]
        shop.write(put(table, paid=paid), f"{name}.parquet")
    yaml = shop.yaml(
        chain=["impression -> click -> conversion", "conversion => amount"],
        labels={"amount": "paid"},
        data={"train": "train.parquet", "validation": "validation.parquet"},
        features={"user_id": "id"},
        metrics=None,
        scores={"value": "amount * 2 + amount_given_conversion * conversion"},
        trainer={"accelerator": "cpu", "max_steps": 1},
    )
    said = shop.espace("fit", yaml, "--run-dir", "run")
    assert said.code == 0, said
    found = espace.load("run").predict(rows(50, 3))
    np.testing.assert_allclose(found["score_value"], 3 * found["e_amount"].to_numpy(), rtol=1e-5)
    said = shop.espace("show", yaml, "scores.value=paid")
    assert "the column 'paid' is the label of 'amount', which a prediction has not seen." in said.error


def test_show_lists_scores_with_what_they_read(shop) -> None:
    out = shop.espace("show", shop.yaml(scores=SCORES)).out
    assert "    score_ecpm = conversion * bid\n        prediction conversion, column bid\n" in out
    said = shop.espace("show", shop.yaml(scores=SCORES), *(f"scores.{name}=null" for name in SCORES))
    assert said.code == 0, said
    assert "Scores" not in said.out
    assert "scores" not in CONFIG
