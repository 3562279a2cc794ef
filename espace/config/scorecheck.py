"""Whether scores can be read, and whether every name in them is what its author took it for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping

from espace.chain.chain import Chain
from espace.chain.scores import parse, predictions
from espace.config.schema import Fields
from espace.config.yamlfile import Problem
from espace.errors import ConfigError, did_you_mean

_NAME = re.compile(r"[^\W\d]\w*")
_NEAR = 0.8  # a name as like as that to a prediction's is a slip; `price` and `purchase` are less so


def syntax(config: Fields) -> Iterator[Problem]:
    """What is wrong with scores whatever the chain."""
    for name, text in config.scores.items():
        if not _NAME.fullmatch(name):
            yield Problem(("scores", name), "this is no name. Write letters, digits and underscores.")
        try:
            if not parse(text).reads:
                yield Problem(("scores", name), "it is the same for every row. Name a prediction or a column in it.")
        except ConfigError as error:
            yield Problem(("scores", name), str(error))


def names(config: Fields, chain: Chain, hidden: Mapping[str, str], plain: Mapping[str, str]) -> Iterator[Problem]:
    """What is wrong with the names in scores that can be read.

    hidden: {column that a prediction has not seen: what it is}; plain: {other column that the YAML names: what it is}.
    """
    predicted = predictions(chain)
    for name, text in config.scores.items():
        try:
            score = parse(text, predicted)
        except ConfigError:
            continue  # `syntax` tells it
        for read in score.reads:
            if not read.column and read.name in plain:
                what = f"'{read.name}' is a prediction of the chain and {plain[read.name]}."
                why = f"{what} Write column('{read.name}') for the column, or give the stage another name."
            elif read.column and read.name in hidden:
                what = f"the column '{read.name}' is {hidden[read.name]}, which a prediction has not seen."
                why = f"{what} Write the name of a prediction.{did_you_mean(read.name, predicted)}"
            elif read.name in score.bare and read.name not in plain:
                why = _mistaken(read.name, chain.root, predicted, config.scores)
            else:
                why = ""
            if why:
                yield Problem(("scores", name), why)


def _mistaken(name: str, root: str, predicted: Collection[str], scores: Collection[str]) -> str:
    """Why a name that stands for a column is likely to mean something else; empty where it is not."""
    column = f" For a column of that name write column('{name}')."
    if name == root:
        return f"every row is one '{name}', so its probability is 1. Leave it out.{column}"
    if name in scores:
        return f"'{name}' is a score, and scores do not read each other. Write out what it stands for.{column}"
    if "_given_" in name:
        return f"the chain has no prediction '{name}'.{did_you_mean(name, predicted)}{column}"
    if near := difflib.get_close_matches(name, predicted, 1, _NEAR):
        return f"the chain has no prediction '{name}'. Did you mean '{near[0]}'?{column}"
    return ""
