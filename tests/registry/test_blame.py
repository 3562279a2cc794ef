"""What goes wrong inside a part is told with its name, its place, what is expected and what was found; exit code 2."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from espace.errors import PluginError
from espace.model.returned import check_numbers
from tests.shop import Shop

TOWER = """import espace
from torch import nn


class Odd(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.layer, self.out_features = nn.Linear(spec.width, 3), 3

    def forward(self, features):
        {forward}


@espace.hookimpl
def register_towers(register):
    register("odd", Odd)
"""
SHARING = """import espace
from torch import nn


class Odd(nn.Module):
    def __init__(self, spec, transitions):
        super().__init__()
        self.specs = dict.fromkeys(transitions, spec)

    def forward(self, features):
        {forward}


@espace.hookimpl
def register_sharing(register):
    register("odd", Odd)
"""
LINK = """import espace
from torch import nn


class Odd(nn.Module):
    def __init__(self, chain, widths):
        super().__init__()
        self.widths = dict(widths)

    def forward(self, vectors):
        {forward}


@espace.hookimpl
def register_links(register):
    register("odd", Odd)
"""
OBJECTIVE = """import espace


class Odd:
    def __init__(self, chain):
        self.terms = {{"click": espace.Term(("click",), None, "", "", "")}}

    def __call__(self, p, labels):
        value = -p.log_prob("click")
        {forward}


@espace.hookimpl
def register_objectives(register):
    register("odd", Odd)
"""
WEIGHTING = """import espace, torch
from torch import nn


class Odd(nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.told = dict(weights)

    def forward(self, terms):
        {forward}


@espace.hookimpl
def register_weightings(register):
    register("odd", Odd)
"""
METRIC = """import espace
from torchmetrics import Metric


class Odd(Metric):
    def update(self, scored):
        if len(scored.labels):
            {forward}

    def compute(self):
        return {{"odd": 1.0}}


@espace.hookimpl
def register_metrics(register):
    register("odd", Odd)
"""
COMPUTED = """import espace, torch, numpy
from torchmetrics import Metric


class Odd(Metric):
    rows = 0

    def update(self, scored):
        self.rows += len(scored.labels)

    def compute(self):
        {forward}


@espace.hookimpl
def register_metrics(register):
    register("odd", Odd)
"""
READER = """import espace
from espace.data.reading.readers import Files


class Odd(Files):
    def __init__(self, source, split):
        super().__init__(source, split)

    def read(self, piece, columns):
        {forward}


@espace.hookimpl
def register_readers(register):
    register("odd", Odd)
"""
KEYS = {"tower": TOWER, "sharing": SHARING, "link": LINK, "objective": OBJECTIVE, "weighting": WEIGHTING}
INSIDE = r"{kind} 'odd' of .*odd\.py:\d+, in {function}: {error}.* What is expected: .*--debug shows more"


def fit_with(shop: Shop, key: str, forward: str) -> str:
    """What is said of a run with a part that has this line in it."""
    template = {**KEYS, "metrics": METRIC, "computed": COMPUTED, "reader": READER}[key]
    (shop.folder / "odd.py").write_text(template.format(forward=forward))
    changed: dict[str, object] = {key: "odd"}
    if key in ("metrics", "computed"):
        changed = {"metrics": {"odd": "odd"}}
    if key == "reader":
        changed = {"data": {"type": "odd", "train": "train.parquet", "validation": "validation.parquet"}}
    path = shop.yaml(plugins=["./odd.py"], trainer={"accelerator": "cpu", "max_steps": 2}, **changed)
    said = shop.espace("fit", path, "--run-dir", "run")
    assert said.code == 2, said
    assert "Traceback" not in said.error
    return said.error


@pytest.mark.parametrize(
    ("key", "kind", "function", "forward"),
    [
        ("tower", "tower", "forward", "return self.layer(features.flat()[:, 1:])"),
        ("tower", "tower", "forward", "return self.lair(features.flat())"),
        ("sharing", "sharing", "forward", "return {}[1]"),
        ("link", "link", "forward", "raise ValueError('no way')"),
        ("objective", "objective", "__call__", "return 1 / 0"),
        ("weighting", "weighting", "forward", "return sum(terms)"),
        ("metrics", "metric", "update", "raise KeyError('x')"),
        ("reader", "reader", "read", "return super().read(piece, columns)[0][0].no"),
    ],
)
def test_an_error_inside_a_part_names_the_part_and_the_line(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, key: str, kind: str, function: str, forward: str
) -> None:
    monkeypatch.setenv("ESPACE_CACHE", str(shop.folder / "cache"))  # what is in there is not read again
    assert re.search(INSIDE.format(kind=kind, function=function, error=r"\w+Error: "), fit_with(shop, key, forward))


@pytest.mark.parametrize(
    ("key", "forward", "says"),
    [
        ("tower", "return self.layer(features.flat())[:, :2]", r"tower of .*shape \(\d+, 2\), but .* shape \(\d+, 3\)"),
        ("tower", "return 1", r"tower of impression_to_click: it gave a int, but a tensor of shape"),
        ("sharing", "return {'impression_to_click': features}", "sharing: it gave nothing for click_to_conversion"),
        ("sharing", "return None", "sharing: it gave a NoneType, but"),
        ("link", "return {n: v[:, :1] for n, v in vectors.items()}", r"link of .*shape \(\d+, 1\), but"),
        ("objective", "return value", r"objective: it gave a tensor of shape \(\d+,\), but {term: \(value, rows\)}"),
        ("objective", "return {'click': (value.mean(), value)}", r"objective: for the term 'click' it gave"),
        ("weighting", "return 1.0", "weighting: it gave a float, but one loss, a tensor of shape"),
        ("weighting", "return torch.stack([*terms.values()])", r"weighting: it gave a tensor of shape \(2,\)"),
        ("weighting", "return sum(t.detach() for t in terms.values())", "weighting: the loss has no gradient"),
    ],
)
def test_what_a_part_gives_is_held_to_what_it_promised(shop: Shop, key: str, forward: str, says: str) -> None:
    assert re.search(says, fit_with(shop, key, forward))


@pytest.mark.parametrize(
    ("forward", "gave"),
    [
        ("return None", "a NoneType,"),
        ("return 1.0", "a float,"),
        ("return {'odd': None}", "a NoneType for 'odd',"),
        ("return {'odd': 'high'}", "a str for 'odd',"),
        ("return {'odd': {'a': 1.0}}", "a dict for 'odd',"),
        ("return {1: 1.0}", "a float for 1,"),
        ("return {'odd': torch.zeros(3)}", r"a tensor of shape \(3,\) for 'odd',"),
        ("return {'odd': 1.0 if not self.rows else None}", "a NoneType for 'odd',"),
    ],
)
def test_a_metric_that_computes_no_number_is_told_with_its_place(shop: Shop, forward: str, gave: str) -> None:
    says = rf"metric 'odd': .*odd\.py:11, in compute: it gave {gave} but {{name: number}} is expected"
    assert re.search(says, fit_with(shop, "computed", forward))


@pytest.mark.parametrize("number", ["1", "True", "0.5", "numpy.float32(0.5)", "torch.tensor(1)", "torch.zeros(1)"])
def test_any_number_will_do(number: str) -> None:
    found = eval(number, {"numpy": np, "torch": torch})
    assert check_numbers("odd", object(), {"odd": found}) == {"odd": float(found)}


def test_with_debug_the_error_comes_as_it_was(shop: Shop) -> None:
    (shop.folder / "odd.py").write_text(LINK.format(forward="raise ValueError('no way')"))
    path = shop.yaml(plugins=["./odd.py"], link="odd", trainer={"accelerator": "cpu", "max_steps": 2})
    with pytest.raises(AssertionError, match="a traceback") as raised:
        shop.espace("fit", path, "--run-dir", "run", "--debug")
    told = raised.value.__cause__
    assert isinstance(told, PluginError)
    assert isinstance(told.__cause__, ValueError)
