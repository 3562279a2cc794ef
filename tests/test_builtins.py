"""The built-in parts keep the laws that plugins inherit."""

import pytest
import torch

from espace.features import Features, FeatureSpec, Field
from espace.links.none import NoLink
from espace.objectives.entire_space import EntireSpace
from espace.objectives.parent_space import ParentSpace
from espace.sharing.separate import Separate
from espace.testing import LinkTests, ObjectiveTests, SharingTests, TowerTests
from espace.towers.mlp import MLP


class TestMLP(TowerTests):
    tower = MLP
    options = {"hidden_units": [16, 8], "activation": "tanh"}


class TestMLPWithEverything(TowerTests):
    tower = MLP
    options = {"hidden_units": [16, 8], "activation": "prelu", "dropout": 0.1, "norm": "layer"}


class TestMLPWithBatchNorm(TowerTests):
    tower = MLP
    options = {"hidden_units": [16], "activation": "gelu", "norm": "batch"}


class TestSeparate(SharingTests):
    sharing = Separate


class TestNoLink(LinkTests):
    link = NoLink


class TestEntireSpace(ObjectiveTests):
    objective = EntireSpace


class TestParentSpace(ObjectiveTests):
    objective = ParentSpace


class TestParentSpacePerImpression(ObjectiveTests):
    objective = ParentSpace
    options = {"divide_by": "impressions"}


def test_the_mlp_is_the_paper_s_by_default():
    spec = FeatureSpec((Field("x", "vector", 20 * 18),), {})
    widths = [p.shape for p in MLP(spec).parameters() if p.dim() == 2]
    assert widths == [(360, 360), (200, 360), (80, 200)]


def test_the_mlp_equals_its_formula_in_float64():
    spec = FeatureSpec((Field("x", "vector", 5),), {})
    tower = MLP(spec, hidden_units=[4, 3]).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    (w1, b1), (w2, b2) = [(layer.weight, layer.bias) for layer in tower.layers if hasattr(layer, "weight")]
    expected = torch.relu(torch.relu(x @ w1.T + b1) @ w2.T + b2)
    assert torch.allclose(tower(Features.of_vector(x)), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["flat", "fields"])
def test_fields_are_slices_of_the_flat_vector(name):
    spec = FeatureSpec((Field("a", "id", 2), Field("b", "number", 3)), {})
    flat = torch.arange(10.0).view(2, 5)
    features = Features(spec, flat)
    assert torch.equal(torch.cat([features.field("a"), features.field("b")], dim=1), features.flat())
