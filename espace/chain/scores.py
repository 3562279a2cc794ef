"""Scores: named formulas over what the model predicts and columns of the input, such as `ecpm: conversion * bid`.

A formula is made of numbers, names, + - * / **, comparisons (1 where they hold, else 0), parentheses and FUNCTIONS. A
name is a prediction where the chain has it, else a column; `column('ad.bid')` is a column whatever it is called. Python
only parses the text: what is not listed here is refused, and all arithmetic is float64.
"""

from __future__ import annotations

import ast
import functools
import math
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from espace.chain.chain import Chain
from espace.errors import ConfigError, NonFiniteError, did_you_mean

MAX_LENGTH = 1_000
MAX_DEPTH = 200

Numbers = NDArray[np.float64]  # (rows,), or () for a constant; NaN where something is missing or undefined


class Read(NamedTuple):
    """One thing that a formula reads: a prediction of the chain, or a column of the input."""

    name: str
    column: bool


Formula = Callable[[Mapping[Read, Numbers]], Numbers]


@dataclass(frozen=True)
class Score:
    """A formula that was read: what it reads, in the order in which it does, and how to compute it.

    `bare` are the columns that stand in it as names, not as `column('name')`.
    """

    text: str
    reads: tuple[Read, ...]
    bare: frozenset[str]
    formula: Formula = field(repr=False, compare=False)

    @property
    def columns(self) -> list[str]:
        """The columns of the input that it reads."""
        return [read.name for read in self.reads if read.column]

    def values(self, given: Mapping[Read, Numbers], rows: int, name: str, where: str, first: int = 0) -> Numbers:
        """(rows,) float64, NaN where a column that decides the value is missing.

        given: (rows,) of everything in `reads`, NaN where missing. For errors: name, what the score is called, where,
        the table, first, the number of its first row.
        Raises NonFiniteError where the value is undefined or infinite though nothing is missing.
        """
        with np.errstate(all="ignore"):
            values = np.array(np.broadcast_to(self.formula(given), (rows,)))
        values[~np.isfinite(values)] = np.nan
        wrong = np.isnan(values)
        for read in self.reads:
            wrong &= ~np.isnan(given[read])
        if wrong.any():
            row = int(wrong.argmax())
            at = ", ".join(f"{read.name} = {given[read][row]:g}" for read in self.reads)
            raise NonFiniteError(
                f"{where}, row {first + row}: {name} is no finite number ({at}). Bound it by clip,"
                " or choose by where, as in where(bid > 0, log(bid), 0)."
            )
        return values


def predictions(chain: Chain) -> dict[str, str]:
    """What the model tells of a row: `{its name in formulas: its column in the output}`."""
    return {name: f"p_{name}" for name in chain.addresses} | {name: f"e_{name}" for name in chain.expectations}


def parse(text: str, predicted: Collection[str] = ()) -> Score:
    """Read a formula; names in `predicted` are predictions, all others columns. Raises ConfigError, without a place."""
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"it has {len(text):,} characters, more than {MAX_LENGTH:,}. Make it shorter.")
    text, names = re.sub(r"\s*\n\s*", " ", text.strip()), []

    def hide(word: re.Match[str]) -> str:
        if word["name"] is None:
            return word[0]
        names.append(word["name"])
        return f"_{len(names) - 1}"

    hidden = _WORD.sub(hide, text)  # a stage may be called `pass`
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(hidden, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ConfigError(f"{_cut(text)} cannot be read. {_ALLOWED}") from None
    reader = _Reader(hidden, names, predicted)
    formula = reader.formula(tree, 0)
    return Score(text, tuple(reader.reads), frozenset(reader.bare), formula)


class _Reader:
    """From the nodes of a parsed text to a function; gathers what it reads."""

    def __init__(self, hidden: str, names: list[str], predicted: Collection[str]) -> None:
        self.hidden, self.names, self.predicted = hidden, names, predicted
        self.reads: dict[Read, None] = {}
        self.bare: set[str] = set()

    def formula(self, node: ast.expr, depth: int) -> Formula:
        """One node and all below it."""
        if depth > MAX_DEPTH:
            raise ConfigError(f"it is nested deeper than {MAX_DEPTH}. Make it shorter.")
        inner = functools.partial(self.formula, depth=depth + 1)
        match node:
            case ast.Constant(value=int() | float() as value):
                return self._number(value, node)
            case ast.Name(id=name):
                return self._bare(self._name(name))
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
                return _applied(np.negative if isinstance(sign, ast.USub) else np.positive, [inner(operand)])
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _applied(_OPERATORS[type(op)], [inner(left), inner(right)])
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATORS:
                return _applied(_OPERATORS[type(op)], [inner(left), inner(right)])
            case ast.Call(func=ast.Name(id=name), args=[ast.Constant(value=str() as column)], keywords=[]) if (
                self._name(name) == "column"
            ):
                return self._read(Read(column, True))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return _applied(self._function(self._name(name), len(args)), [inner(arg) for arg in args])
        raise ConfigError(f"{self._source(node)} cannot stand in a score. {self._mend(node)}")

    def _number(self, value: float, node: ast.expr) -> Formula:
        try:
            number = np.asarray(float(value))
        except OverflowError:
            number = np.asarray(math.inf)
        if not np.isfinite(number):
            raise ConfigError(f"{self._source(node)} is larger than any number here. Write a smaller one.")
        return lambda given: number

    def _bare(self, name: str) -> Formula:
        column = name not in self.predicted
        self.bare |= {name} if column else set()
        return self._read(Read(name, column))

    def _read(self, read: Read) -> Formula:
        self.reads[read] = None
        return lambda given: given[read]

    def _function(self, name: str, count: int) -> Callable[..., Numbers]:
        if name == "column":
            raise ConfigError("column takes one name in quotes, as in column('ad.bid').")
        if name not in FUNCTIONS:
            raise ConfigError(f"there is no function '{name}'.{did_you_mean(name, [*FUNCTIONS, 'column'])}")
        function, least, most = FUNCTIONS[name]
        if not least <= count <= most:
            wanted = f"{least}" if least == most else f"{least} or more"
            raise ConfigError(
                f"{name} takes {wanted} argument{'' if least == most == 1 else 's'}, and is given {count}."
            )
        return function

    def _name(self, hidden: str) -> str:
        if not _HIDDEN.fullmatch(hidden):  # letters that Python takes for part of a name, and a chain does not
            raise ConfigError(f"{_cut(self._shown(hidden))} is no name. Write column('a name') for such a column.")
        return self.names[int(hidden[1:])]

    def _source(self, node: ast.expr) -> str:
        """The piece of the text that a node is."""
        return _cut(self._shown(ast.get_source_segment(self.hidden, node) or ""))

    def _shown(self, hidden: str) -> str:
        return _WORD.sub(lambda word: word[0] if word["name"] is None else self.names[int(word[0][1:])], hidden)

    def _mend(self, node: ast.expr) -> str:
        match node:
            case ast.Attribute():
                return f"Write column({self._source(node)}) for a column of that name."
            case ast.BinOp(op=ast.BitXor()):
                return "Write ** for a power."
            case ast.Compare():
                return "Compare two numbers at a time, by < <= > >= == !=."
        return _ALLOWED


def _applied(function: Callable[..., Numbers], arguments: list[Formula]) -> Formula:
    return lambda given: function(*(argument(given) for argument in arguments))


def _known(function: Callable[[Numbers, Numbers], ArrayLike]) -> Callable[[Numbers, Numbers], Numbers]:
    """The function where both numbers are there, else NaN."""
    return lambda a, b: np.where(np.isnan(a) | np.isnan(b), np.nan, function(a, b))


def _where(condition: Numbers, yes: Numbers, no: Numbers) -> Numbers:
    return np.where(np.isnan(condition), np.nan, np.where(condition != 0, yes, no))


def _cut(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


_OPERATORS: Mapping[type[ast.AST], Callable[[Numbers, Numbers], Numbers]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: _known(np.power),
    ast.Lt: _known(np.less),
    ast.LtE: _known(np.less_equal),
    ast.Gt: _known(np.greater),
    ast.GtE: _known(np.greater_equal),
    ast.Eq: _known(np.equal),
    ast.NotEq: _known(np.not_equal),
}
FUNCTIONS: Mapping[str, tuple[Callable[..., Numbers], int, float]] = {  # name: function, least and most arguments
    "log": (np.log, 1, 1),
    "exp": (np.exp, 1, 1),
    "sqrt": (np.sqrt, 1, 1),
    "min": (lambda *numbers: functools.reduce(np.minimum, numbers), 2, math.inf),
    "max": (lambda *numbers: functools.reduce(np.maximum, numbers), 2, math.inf),
    "clip": (lambda number, low, high: np.minimum(np.maximum(number, low), high), 3, 3),
    "where": (_where, 3, 3),
}
_ALLOWED = (
    "Write numbers, names, + - * / **, comparisons, parentheses, column('a name'), and the functions"
    f" {', '.join(FUNCTIONS)}."
)
_HIDDEN = re.compile(r"_(?:0|[1-9][0-9]*)")
_WORD = re.compile(r"""'[^'\\\n]*'|"[^"\\\n]*"|(?<![\w.])(?P<name>[^\W\d]\w*)""")
