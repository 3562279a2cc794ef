"""The laws of towers, and each tower against its paper's equations written out in plain loops, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from espace_dcn import DCN, WideDeep

import espace
from espace.testing import TowerTests, example_features, example_spec


class TestDCN(TowerTests):
    tower = DCN
    options = {"hidden_units": [8, 5], "dropout": 0.2}


class TestCrossLayersAlone(TowerTests):
    tower = DCN
    options = {"cross_layers": 3, "rank": 4, "hidden_units": []}


class TestDCNParallel(TowerTests):
    tower = DCN
    options = {"structure": "parallel", "hidden_units": [8], "norm": "layer"}


class TestMixtureWithSoftmax(TowerTests):
    tower = DCN
    options = {"rank": 3, "experts": 4, "hidden_units": [8]}


class TestMixtureWithSigmoid(TowerTests):
    tower = DCN
    options = {"rank": 3, "experts": 2, "gate": "sigmoid", "nonlinearity": "tanh", "hidden_units": [8]}


class TestMixtureWithoutGate(TowerTests):
    tower = DCN
    options = {"rank": 3, "experts": 2, "gate": "constant", "nonlinearity": "hard_tanh", "hidden_units": [8]}


class TestWideDeep(TowerTests):
    tower = WideDeep
    options = {"hidden_units": [8, 5], "norm": "batch"}


class TestWideDeepWithSharedWeights(TowerTests):
    tower = WideDeep
    options = {"hidden_units": [8], "shared_weights": True}


# The papers' equations on lists of plain numbers


def times(matrix, vector):
    return [sum(w * v for w, v in zip(row, vector, strict=True)) for row in matrix]


def plus(one, other):
    return [a + b for a, b in zip(one, other, strict=True)]


def relu_layers(sequential, a):
    """h_{l+1} = f(W_l h_l + b_l)."""
    for layer in (m for m in sequential if isinstance(m, torch.nn.Linear)):
        a = [max(z, 0.0) for z in plus(times(layer.weight.tolist(), a), layer.bias.tolist())]
    return a


def equation_1(tower, x0):
    x = x0
    for layer in tower.cross:
        inside = plus(times(layer.weight.tolist(), x), layer.bias.tolist())
        x = [a * z + b for a, z, b in zip(x0, inside, x, strict=True)]
    return x


def gates_of(layer, gate, x):
    if gate == "constant":
        return [1.0] * layer.shape[0]
    logits = plus(times(layer.gate.weight.tolist(), x), layer.gate.bias.tolist())
    if gate == "sigmoid":
        return [1 / (1 + math.exp(-z)) for z in logits]
    return [math.exp(z) / sum(math.exp(other) for other in logits) for z in logits]


def equations_3_and_4(tower, gate, g, x0):
    """The sum over experts of G_i(x) x_0 o (U g(C g(V^T x)) + b), and x; without g it is equation 3."""
    x = x0
    for layer in tower.cross:
        rank, bias, after = layer.shape[1], layer.bias.tolist(), list(x)
        for i, share in enumerate(gates_of(layer, gate, x)):
            own = slice(i * rank, (i + 1) * rank)
            inside = times(layer.down.weight[own].tolist(), x)
            if g is not None:
                inside = [g(z) for z in times(layer.inner[i].tolist(), [g(z) for z in inside])]
            expert = [
                a * z for a, z in zip(x0, plus(times(layer.up.weight[:, own].tolist(), inside), bias), strict=True)
            ]
            after = plus(after, [share * e for e in expert])
        x = after
    return x


def built(tower, **options):
    """A tower whose biases are not zero, and features."""
    torch.manual_seed(0)
    spec = example_spec()
    module = tower(spec, **options).double().eval()
    for name, parameter in module.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter)
    return module, example_features(spec)


def same(out, expected):
    return torch.allclose(out, torch.tensor(expected, dtype=torch.float64), atol=1e-10)


def test_a_stack_is_equation_1_below_the_deep_network():
    tower, features = built(DCN, cross_layers=3, hidden_units=[6, 4])
    rows = features.flat().tolist()
    assert same(tower(features), [relu_layers(tower.deep, equation_1(tower, x0)) for x0 in rows])


def test_parallel_is_the_cross_layers_beside_the_deep_network():
    tower, features = built(DCN, structure="parallel", hidden_units=[6, 4])
    rows = features.flat().tolist()
    assert same(tower(features), [equation_1(tower, x0) + relu_layers(tower.deep, x0) for x0 in rows])


def test_a_rank_is_equation_2():
    tower, features = built(DCN, rank=3, hidden_units=[])
    for layer in tower.cross:
        u, v = layer.up.weight.tolist(), layer.down.weight.T.tolist()
        layer.weight = torch.tensor([times(v, row) for row in u], dtype=torch.float64)  # U V^T, row by row
        assert torch.linalg.matrix_rank(layer.weight) == 3
    assert same(tower(features), [equation_1(tower, x0) for x0 in features.flat().tolist()])


@pytest.mark.parametrize("gate", ["softmax", "sigmoid", "constant"])
def test_a_mixture_is_equation_3(gate):
    tower, features = built(DCN, rank=3, experts=2, gate=gate, hidden_units=[])
    rows = features.flat().tolist()
    assert same(tower(features), [equations_3_and_4(tower, gate, None, x0) for x0 in rows])


@pytest.mark.parametrize(
    ("nonlinearity", "g"),
    [("hard_tanh", lambda z: min(max(z, -1.0), 1.0)), ("tanh", math.tanh), ("relu", lambda z: max(z, 0.0))],
)
def test_a_nonlinear_mixture_is_equation_4(nonlinearity, g):
    tower, features = built(DCN, rank=3, experts=2, nonlinearity=nonlinearity, hidden_units=[])
    rows = features.flat().tolist()
    assert same(tower(features), [equations_3_and_4(tower, "softmax", g, x0) for x0 in rows])


def test_one_expert_has_a_sigmoid_gate_where_it_is_asked_for():
    tower, features = built(DCN, rank=3, gate="sigmoid", hidden_units=[])
    assert same(tower(features), [equations_3_and_4(tower, "sigmoid", None, x0) for x0 in features.flat().tolist()])


def test_wide_and_deep_is_equation_3_with_a_weight_of_1_on_the_wide_part():
    tower, features = built(WideDeep, hidden_units=[6, 4])
    head = torch.nn.Linear(tower.out_features, 1).double()
    torch.nn.init.ones_(head.weight[:, :1])
    spec = features.spec
    names = [f.name for f in spec.fields if f not in spec.categorical and f.width]
    for row, x in enumerate(features.flat().tolist()):
        columns = [value for name in names for value in features.field(name)[row].tolist()]
        wide = features.extra(tower.wide.table)[row].sum().item() + times(tower.wide.linear.weight.tolist(), columns)[0]
        deep = times(head.weight[:, 1:].tolist(), relu_layers(tower.deep, x))[0]
        assert math.isclose(head(tower(features))[row].item(), wide + deep + head.bias.item(), abs_tol=1e-10)


def test_the_defaults_are_the_papers():
    spec = example_spec()
    dcn, wide_deep = DCN(spec), WideDeep(spec)
    widths = [[m.out_features for m in t.deep if isinstance(m, torch.nn.Linear)] for t in (dcn, wide_deep)]
    assert widths == [[768, 768], [1024, 512, 256]]
    assert [tuple(layer.weight.shape) for layer in dcn.cross] == [(spec.width, spec.width)] * 2
    assert not any(isinstance(m, torch.nn.Dropout) for t in (dcn, wide_deep) for m in t.modules())


def test_cross_layers_begin_as_in_the_paper():
    torch.manual_seed(0)
    spec = espace.FeatureSpec.of_vector(400)
    layer = DCN(spec, hidden_units=[]).cross[0]
    assert math.isclose(layer.weight.std().item(), (2 / 400) ** 0.5, rel_tol=0.05)
    assert not layer.bias.any()
    low = DCN(spec, rank=100, experts=4, nonlinearity="tanh", hidden_units=[]).cross[0]
    found = [w.std().item() for w in (low.down.weight, low.up.weight, low.inner)]
    assert found == pytest.approx([(2 / 400) ** 0.5, (2 / 100) ** 0.5, (2 / 100) ** 0.5], rel=0.05)
    assert not low.bias.any()


@pytest.mark.parametrize("tower", [DCN, WideDeep])
def test_it_works_behind_experts_where_there_are_no_ids(tower):
    module = tower(espace.FeatureSpec.of_vector(5), hidden_units=[4]).eval()
    out = module(espace.Features.of_vector(torch.randn(3, 5)))
    assert out.shape == (3, module.out_features)


@pytest.mark.parametrize("options", [{"experts": 4}, {"gate": "sigmoid"}, {"nonlinearity": "tanh"}], ids=str)
def test_what_belongs_to_low_rank_layers_is_refused_without_a_rank(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"{name}: {value}.* Set rank, for instance to \d+, a quarter"):
        DCN(example_spec(), **options)


def test_nothing_beside_the_cross_layers_is_refused():
    with pytest.raises(ValueError, match=r"structure: parallel needs hidden_units\. Give some"):
        DCN(example_spec(), structure="parallel", hidden_units=[])
