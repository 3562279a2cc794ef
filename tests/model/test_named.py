"""Modules under names that users chose: whatever the name, it is kept, and the weights are saved and loaded under it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import espace

ODD = sorted({*dir(nn.ModuleDict()), "a.b", "a%2Eb", "", ":", " ", "点击", "../../x", "training", "0"})


def test_every_attribute_of_a_module_and_any_other_text_is_a_name() -> None:
    given = {name: nn.Linear(1, 1) for name in ODD}
    named = espace.NamedModules(given)
    assert list(named) == list(named.keys()) == ODD
    assert dict(named.items()) == given
    assert all(named[name] is module and name in named for name, module in given.items())
    assert len(named) == len(ODD) == len(list(named.parameters())) / 2
    assert "other" not in named


def test_what_one_saves_another_loads() -> None:
    one, other = (espace.NamedModules({name: nn.Linear(1, 1) for name in ODD}) for _ in range(2))
    other.load_state_dict(one.state_dict())
    assert all(torch.equal(one[name].weight, other[name].weight) for name in ODD)


def test_a_module_that_was_taken_out_is_gone() -> None:
    named = espace.NamedModules({"train": nn.Identity(), "pop": nn.Identity()})
    del named["train"]
    assert isinstance(named.pop("pop"), nn.Identity)
    assert len(named) == 0
    with pytest.raises(KeyError, match="train"):
        named["train"]
