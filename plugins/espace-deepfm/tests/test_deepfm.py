"""The laws of towers, and each tower against its paper's equations written out in plain loops, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from espace_deepfm import FM, DeepFM, XDeepFM

import espace
from espace.testing import TowerTests, example_features, example_spec


class TestFM(TowerTests):
    tower = FM


class TestFMWithSharedWeights(TowerTests):
    tower = FM
    options = {"shared_weights": True}


class TestDeepFM(TowerTests):
    tower = DeepFM
    options = {"hidden_units": [8, 5], "dropout": 0.2}


class TestXDeepFM(TowerTests):
    tower = XDeepFM
    options = {"cin_units": [7, 3], "hidden_units": [6], "norm": "layer"}


def fields_of(features: espace.Features, matrix: espace.FieldMatrix) -> list[list[torch.Tensor]]:
    """Each row's vectors of `matrix.width`, mapped there where they are not that wide, by hand."""
    spec = features.spec
    maps = iter([m for block in matrix.maps for m in block])
    mapped = {f.name: next(maps) for f in spec.fields if f.width not in (0, matrix.width)}
    return [
        [
            features.field(n)[row] @ mapped[n] if n in mapped else features.field(n)[row]
            for n in (f.name for f in spec.fields if f.width)
        ]
        for row in range(len(features.flat()))
    ]


def first_order(features: espace.Features, module: espace.FirstOrder, row: int) -> torch.Tensor:
    """<w, x>: a weight for every id, and for every column that has none."""
    spec = features.spec
    out = sum(features.extra(module.table)[row, i, 0] for i in range(len(spec.categorical)))
    rest = [f for f in spec.fields if f not in spec.categorical and f.width]
    columns = [features.field(f.name)[row, i] for f in rest for i in range(f.width)]
    return out + sum(w * x for w, x in zip(module.linear.weight[0], columns, strict=True))


def built(tower, **options):
    torch.manual_seed(0)
    spec = example_spec()
    module = tower(spec, **options).double().eval()
    return module, example_features(spec)


def test_fm_is_equation_2_of_deepfm():
    tower, features = built(FM)
    vectors = fields_of(features, tower.fields)
    for row in range(6):
        expected = first_order(features, tower.first_order, row)
        for a, b in itertools.combinations(vectors[row], 2):
            expected = expected + sum(x * y for x, y in zip(a, b, strict=True))
        assert torch.allclose(tower(features)[row, 0], expected, atol=1e-12)


def test_deepfm_is_the_sum_of_its_parts_in_equation_1():
    tower, features = built(DeepFM, hidden_units=[5, 3])
    head = torch.nn.Linear(tower.out_features, 1).double()
    torch.nn.init.ones_(head.weight[:, :1])
    (w0, b0), (w1, b1) = [(layer.weight, layer.bias) for layer in tower.deep if hasattr(layer, "weight")]
    for row in range(6):
        a = features.flat()[row]
        for w, b in ((w0, b0), (w1, b1)):
            a = torch.stack(
                [max(sum(w[o, i] * a[i] for i in range(len(a))) + b[o], a.new_zeros(())) for o in range(len(b))]
            )
        y_dnn = sum(head.weight[0, 1 + i] * a[i] for i in range(len(a))) + head.bias[0]
        assert torch.allclose(head(tower(features))[row, 0], tower.fm(features)[row, 0] + y_dnn, atol=1e-12)


def test_the_cin_is_equation_6():
    tower, features = built(XDeepFM, cin_units=[3, 2], hidden_units=[4])
    x0s = fields_of(features, tower.fields)
    for row in range(6):
        x0, x, pooled = x0s[row], x0s[row], []
        for weight in tower.cin.weights:
            w = weight.view(len(weight), len(x), len(x0))
            x = [sum(w[h, i, j] * (x[i] * x0[j]) for i in range(len(x)) for j in range(len(x0))) for h in range(len(w))]
            pooled += [vector.sum() for vector in x]
        out = tower(features)[row]
        assert torch.allclose(out[0], first_order(features, tower.first_order, row), atol=1e-12)
        assert torch.allclose(out[1:6], torch.stack(pooled), atol=1e-12)
        assert torch.allclose(out[6:], tower.deep(features.flat())[row], atol=1e-12)


def test_the_defaults_are_the_papers():
    spec = example_spec()
    widths = [layer.out_features for layer in DeepFM(spec).deep if hasattr(layer, "out_features")]
    drops = [layer.p for layer in DeepFM(spec).deep if isinstance(layer, torch.nn.Dropout)]
    assert (widths, drops) == ([400, 400, 400], [0.5] * 3)
    cin = XDeepFM(spec).cin
    assert [len(w) for w in cin.weights] == [200, 200, 200]


@pytest.mark.parametrize("shared", [True, False])
def test_first_order_weights_are_shared_or_the_tower_s_own(shared):
    spec = example_spec()
    one, other = (FM(spec, shared_weights=shared) for _ in range(2))
    assert (one.first_order.table == other.first_order.table) is shared
    assert spec.extra_width == (1 if shared else 2)


def test_behind_experts_there_are_no_ids_and_the_first_order_part_is_linear():
    tower = DeepFM(espace.FeatureSpec.of_vector(5), hidden_units=[4]).eval()
    x = torch.randn(3, 5)
    out = tower(espace.Features.of_vector(x))
    assert torch.allclose(out[:, :1], tower.fm.first_order.linear(x), atol=1e-6)


def test_a_cin_without_layers_is_refused():
    with pytest.raises(ValueError, match="cin_units is empty"):
        XDeepFM(example_spec(), cin_units=[])
