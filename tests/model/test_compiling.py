"""A compiled tower gives what the tower gives, for batches of any size, and one that cannot be compiled is used as it is."""

import copy

import pytest
import torch
from torch import nn

from espace.model.compiling import Compiled
from espace.registry.registry import load
from espace.testing.features import as_float, example_features, example_spec, rows_of
from tests.training.test_lightning import lines, train, weights

TOWERS = [entry.name for entry in load().entries("towers")]
BY_EVENTS = {"din", "dien", "bst"}  # they look at how long histories are, which torch cannot compile in one piece
SIZES = (40, 33, 17, 2)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def built(name):
    spec = example_spec()
    torch.manual_seed(0)
    tower = load().get("towers", name).factory(spec)
    for module in tower.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return tower, as_float(example_features(spec, rows=max(SIZES)))


@pytest.mark.parametrize("name", TOWERS)
def test_a_compiled_tower_gives_the_same_and_is_compiled_once(name):
    tower, features = built(name)
    plain, said = copy.deepcopy(tower), []
    compiled = Compiled(tower, said.append, "aot_eager")
    for size in SIZES:
        part = rows_of(features, torch.arange(size))
        one, other = compiled(part), plain(part)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        one.sum().backward()
        other.sum().backward()
    for a, b in zip(tower.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)
    if name in BY_EVENTS:
        assert len(said) <= 1
    else:
        assert (graphs(), said) == (1, [])


def test_a_batch_of_one_row_and_evaluation_use_the_tower_as_it_is():
    tower, features = built("mlp")
    compiled = Compiled(tower, pytest.fail, "aot_eager")
    compiled(rows_of(features, torch.arange(1)))
    tower.eval()
    compiled(features)
    assert graphs() == 0


class Stubborn(nn.Module):
    def forward(self, features):
        torch._dynamo.graph_break()
        return features.flat() * 2


class Wrong(nn.Module):
    def forward(self, features):
        return features.flat() @ torch.zeros(1, 1)


def test_a_graph_that_breaks_is_told_once_in_one_line():
    said, features = [], built("mlp")[1]
    compiled = Compiled(Stubborn(), said.append, "aot_eager")
    for _ in range(3):
        torch.testing.assert_close(compiled(features), features.flat() * 2)
    (line,) = said
    assert line
    assert "\n" not in line


def test_an_error_of_the_tower_itself_is_not_hidden():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Compiled(Wrong(), lambda line: None, "aot_eager")(built("mlp")[1])


def test_compile_true_trains_to_the_same_metrics(shop):
    plain, compiled = (train(shop, str(on), compile=on, trainer={"max_steps": 6}) for on in (False, True))
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[name], value, rtol=1e-3, atol=1e-4)
    assert [name for *_, name, _ in lines(plain)] == [name for *_, name, _ in lines(compiled)]
