"""The laws of towers, and each tower against its paper's equations written out in plain loops over Python floats."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from espace_attention import AutoInt, FiBiNET, FinalMLP, MaskNet

import espace
from espace.testing import TowerTests, example_features, example_spec

ROWS = range(6)
FIELDS = ["user", "item", "context", "city", "tags", "history", "age", "price", "text"]  # those that have a vector


class TestAutoInt(TowerTests):
    tower = AutoInt
    options = {"layers": 2, "width": 5}


class TestAutoIntPlus(TowerTests):
    tower = AutoInt
    options = {"layers": 1, "heads": 3, "width": 4, "hidden_units": [6, 4], "dropout": 0.2, "norm": "layer"}


class TestFiBiNET(TowerTests):
    tower = FiBiNET
    options = {"hidden_units": [8, 5]}


class TestFiBiNETWithAMatrixForEachField(TowerTests):
    tower = FiBiNET
    options = {"bilinear": "field_each", "original": "bilinear", "hidden_units": [8], "norm": "layer"}


class TestFiBiNETWithOneMatrix(TowerTests):
    tower = FiBiNET
    options = {"bilinear": "field_all", "hidden_units": [], "shared_weights": True}


class TestSerialMaskNet(TowerTests):
    tower = MaskNet
    options = {"block_units": 6, "dropout": 0.1}


class TestParallelMaskNet(TowerTests):
    tower = MaskNet
    options = {"structure": "parallel", "blocks": 2, "block_units": 6, "reduction_ratio": 0.5, "hidden_units": [7, 5]}


class TestFinalMLP(TowerTests):
    tower = FinalMLP
    options = {"hidden_units1": [8, 6], "hidden_units2": [9], "heads": 3, "gate_units": [5]}


class TestFinalMLPWithContexts(TowerTests):
    tower = FinalMLP
    options = {
        "hidden_units1": [8],
        "hidden_units2": [4],
        "heads": 4,
        "context1": ["user", "history"],
        "context2": ["item", "price"],
        "gate_units": [],
        "norm": "none",
    }


def built(tower, **options):
    torch.manual_seed(0)
    spec = example_spec()
    module = tower(spec, **options).double().eval()
    return module, example_features(spec)


def times(x, weight, bias=None):
    """W x + b, the rows of the weight being those of W."""
    products = [sum(w * number for w, number in zip(row, x, strict=True)) for row in weight.tolist()]
    return products if bias is None else [p + b for p, b in zip(products, bias.tolist(), strict=True)]


def relu(x):
    return [max(number, 0.0) for number in x]


def add(x, y):
    return [a + b for a, b in zip(x, y, strict=True)]


def multiply(x, y):
    return [a * b for a, b in zip(x, y, strict=True)]


def layer_norm(x, gain, bias):
    mean = sum(x) / len(x)
    variance = sum((number - mean) ** 2 for number in x) / len(x)
    normal = [(number - mean) / math.sqrt(variance + 1e-5) for number in x]
    return add(multiply(normal, gain.tolist()), bias.tolist())


def deep(x, layers):
    """ReLU(W x + b) for each linear layer, the deep network in eval mode."""
    for layer in layers:
        if isinstance(layer, torch.nn.Linear):
            x = relu(times(x, layer.weight, layer.bias))
    return x


def vectors(features, matrix, row):
    """The row's field vectors, those of another width taken to the common one by their matrix."""
    maps = iter([m for block in matrix.maps for m in block.mT])
    found = []
    for name in FIELDS:
        own = features.field(name)[row].tolist()
        found.append(own if len(own) == matrix.width else times(own, next(maps)))
    return found


def close(found, expected):
    return torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def interacting(e, layer, heads, width):
    """Equations 5 to 8 of AutoInt on one row's vectors."""
    query, key, value, res = layer.maps.weight.split(heads * width)
    out = []
    for m in range(len(e)):
        combined = []
        for h in range(heads):
            of_head = slice(h * width, (h + 1) * width)
            asked = times(e[m], query[of_head])
            scores = [math.exp(sum(multiply(asked, times(other, key[of_head])))) for other in e]
            head = [0.0] * width
            for score, other in zip(scores, e, strict=True):
                alpha = score / sum(scores)
                head = add(head, [alpha * number for number in times(other, value[of_head])])
            combined += head
        out.append(relu(add(combined, times(e[m], res))))
    return out


@pytest.mark.parametrize("hidden_units", [[], [5, 3]])
def test_autoint_is_equations_5_to_8_with_the_joint_network_beside_it(hidden_units):
    tower, features = built(AutoInt, layers=2, heads=3, width=2, hidden_units=hidden_units)
    for row in ROWS:
        e = vectors(features, tower.fields, row)
        for layer in tower.layers:
            e = interacting(e, layer, 3, 2)
        expected = [number for vector in e for number in vector]
        if hidden_units:
            expected += deep(features.flat()[row].tolist(), tower.deep)
        assert close(tower(features)[row], expected)


def bilinear(v, pairs, kind):
    """(v_i W) o v_j of all pairs, W being the pair's."""
    out = []
    for number, (i, j) in enumerate(itertools.combinations(range(len(v)), 2)):
        matrix = pairs.weight[{"field_all": 0, "field_each": i, "field_interaction": number}[kind]]
        out += multiply(times(v[i], matrix.T), v[j])
    return out


@pytest.mark.parametrize("original", ["hadamard", "bilinear"])
@pytest.mark.parametrize("kind", ["field_all", "field_each", "field_interaction"])
def test_fibinet_is_senet_pairs_and_a_deep_network_beside_a_linear_part(kind, original):
    tower, features = built(FiBiNET, bilinear=kind, original=original, hidden_units=[4, 3])
    for row in ROWS:
        e = vectors(features, tower.fields, row)
        z = [sum(vector) / len(vector) for vector in e]
        a = relu(times(relu(times(z, tower.senet.down.weight)), tower.senet.up.weight))
        v = [[weight * number for number in vector] for weight, vector in zip(a, e, strict=True)]
        if original == "bilinear":
            p = bilinear(e, tower.original, kind)
        else:
            p = [number for x, y in itertools.combinations(e, 2) for number in multiply(x, y)]
        expected = deep(p + bilinear(v, tower.reweighted, kind), tower.deep)
        out = tower(features)[row]
        assert close(out[1:], expected)
        assert close(out[:1], [linear_part(features, tower.first_order, row)])


def linear_part(features, module, row):
    """A weight for every id, and for every column that has none."""
    ids = sum(features.extra(module.table)[row, :, 0].tolist())
    columns = [number for name in ("age", "price", "text") for number in features.field(name)[row].tolist()]
    return ids + times(columns, module.linear.weight)[0]


def test_the_weights_of_senet_differ_from_row_to_row_and_are_not_negative():
    tower, features = built(FiBiNET, hidden_units=[4])
    e = tower.fields(features)
    weights = (tower.senet(e) / e).mean(2)  # (batch, fields)
    assert (weights >= 0).all()
    assert weights.std(0).max() > 1e-3


def mask(embedding, block):
    """Equation 5 of MaskNet."""
    hidden = relu(times(embedding, block.aggregate.weight, block.aggregate.bias))
    return times(hidden, block.project.weight, block.project.bias)


def mask_block(embedding, x, block):
    """Equations 12 and 14 of MaskNet."""
    return relu(
        layer_norm(times(multiply(mask(embedding, block), x), block.hidden.weight), block.norm.weight, block.norm.bias)
    )


def ln_emb(e, norm):
    """Equation 9 of MaskNet."""
    normal = [layer_norm(vector, norm.gain[i], norm.bias[i]) for i, vector in enumerate(e)]
    return [number for vector in normal for number in vector]


def randomised(tower):
    """The same with gains and biases that are not 1 and 0, so that a test sees where they stand."""
    for name, parameter in tower.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter)
    return tower


def test_a_serial_masknet_is_equations_5_9_12_and_14():
    tower, features = built(MaskNet, blocks=3, block_units=4)
    randomised(tower)
    for row in ROWS:
        e = vectors(features, tower.fields, row)
        embedding = [number for vector in e for number in vector]
        x = ln_emb(e, tower.norms[0])
        for block in tower.blocks:
            x = mask_block(embedding, x, block)
        assert close(tower(features)[row], x)


def test_a_parallel_masknet_is_equations_15_and_16():
    tower, features = built(MaskNet, structure="parallel", blocks=2, block_units=4, hidden_units=[5, 3])
    randomised(tower)
    for row in ROWS:
        e = vectors(features, tower.fields, row)
        embedding = [number for vector in e for number in vector]
        merged = [
            number
            for block, norm in zip(tower.blocks, tower.norms, strict=True)
            for number in mask_block(embedding, ln_emb(e, norm), block)
        ]
        assert close(tower(features)[row], deep(merged, tower.deep))


def gated(features, gate, names, row):
    """2 sigmoid(g) o e of FinalMLP."""
    context = [n for name in names for n in features.field(name)[row].tolist()] or gate.vector[0].tolist()
    g = times(deep(context, gate.hidden), gate.out.weight, gate.out.bias)
    return multiply([2 / (1 + math.exp(-number)) for number in g], features.flat()[row].tolist())


@pytest.mark.parametrize(("context1", "context2"), [([], []), (["user", "tags"], ["price"]), (["text"], [])])
def test_finalmlp_with_its_head_is_the_sum_of_bilinear_fusions_over_heads(context1, context2):
    options = {"hidden_units1": [5, 4], "hidden_units2": [6], "heads": 2, "gate_units": [3], "norm": "none"}
    tower, features = built(FinalMLP, context1=context1, context2=context2, **options)
    head = torch.nn.Linear(tower.out_features, 1).double()
    torch.nn.init.ones_(head.weight[:, : tower.logits])
    for row in ROWS:
        o1 = deep(gated(features, tower.gate1, context1, row), tower.stream1)
        o2 = deep(gated(features, tower.gate2, context2, row), tower.stream2)
        w1, w2 = head.weight[0, 1:5].tolist(), head.weight[0, 5:].tolist()
        y = head.bias.item() + sum(multiply(w1, o1)) + sum(multiply(w2, o2))
        for j in range(2):
            part1, part2 = o1[2 * j : 2 * j + 2], o2[3 * j : 3 * j + 3]
            y += sum(multiply(times(part1, tower.fusion.weight[j].T), part2))
        assert close(head(tower(features))[row], [y])


def widths_of(layers):
    return [layer.out_features for layer in layers if isinstance(layer, torch.nn.Linear)]


def drops_of(layers):
    return [layer.p for layer in layers if isinstance(layer, torch.nn.Dropout)]


def test_the_defaults_of_autoint_are_the_paper_s():
    tower = AutoInt(example_spec())
    assert [(layer.heads, layer.maps.out_features) for layer in tower.layers] == [(2, 4 * 2 * 32)] * 3
    assert (tower.deep, tower.out_features) == (None, len(FIELDS) * 64)


def test_the_defaults_of_fibinet_are_the_paper_s():
    tower = FiBiNET(example_spec())
    assert tower.senet.down.out_features == len(FIELDS) // 3
    assert len(tower.reweighted.weight) == len(FIELDS) * (len(FIELDS) - 1) // 2
    assert not list(tower.original.parameters())
    assert (widths_of(tower.deep), drops_of(tower.deep)) == ([400] * 3, [0.5] * 3)


def test_the_defaults_of_masknet_are_the_paper_s():
    serial, parallel = MaskNet(example_spec()), MaskNet(example_spec(), structure="parallel")
    assert [(b.aggregate.out_features, b.hidden.out_features) for b in serial.blocks] == [(72, 400), *[(800, 400)] * 2]
    assert [(b.aggregate.out_features, b.hidden.out_features) for b in parallel.blocks] == [(72, 400)] * 3
    assert (widths_of(parallel.deep), drops_of(parallel.deep)) == ([400] * 3, [])


def test_the_defaults_of_finalmlp_are_those_released_for_criteo():
    tower = FinalMLP(example_spec())
    assert (widths_of(tower.stream1), drops_of(tower.stream1)) == ([400] * 3, [0.2] * 3)
    assert (widths_of(tower.stream2), drops_of(tower.stream2)) == ([1000], [0.3])
    assert any(isinstance(layer, torch.nn.BatchNorm1d) for layer in tower.stream2)
    assert tower.fusion.weight.shape == (200, 2, 5)
    assert widths_of(tower.gate1.hidden) == [800]


@pytest.mark.parametrize(
    ("tower", "options"),
    [(AutoInt, {}), (MaskNet, {}), (MaskNet, {"structure": "parallel"}), (FinalMLP, {"heads": 2})],
)
def test_a_tower_behind_experts_reads_their_one_vector(tower, options):
    module = tower(espace.FeatureSpec.of_vector(5), **options)
    x = torch.randn(3, 5)
    out = module(espace.Features.of_vector(x))
    assert out.shape == (3, module.out_features)
    torch.autograd.backward(out.sum())
    assert all(p.grad is not None for p in module.parameters())
    assert not torch.allclose(module.eval()(espace.Features.of_vector(x)), module(espace.Features.of_vector(x + 1)))


def test_fibinet_needs_two_fields():
    with pytest.raises(ValueError, match=r"sees only 'vector'.*set another tower under towers"):
        FiBiNET(espace.FeatureSpec.of_vector(5))


def test_a_serial_masknet_has_no_network_to_merge_blocks():
    with pytest.raises(ValueError, match=r"hidden_units \[8\].*Set structure: parallel"):
        MaskNet(example_spec(), hidden_units=[8])


def test_masknet_cannot_normalise_fields_of_one_number():
    with pytest.raises(ValueError, match=r"only one, which would always become 0.*two or more"):
        MaskNet(espace.FeatureSpec.of_vector(1))


def test_heads_that_do_not_divide_both_streams_are_refused_with_a_number_that_does():
    with pytest.raises(ValueError, match=r"200 heads do not divide.*12 and 18.*Set heads to 6"):
        FinalMLP(example_spec(), hidden_units1=[12], hidden_units2=[18])


def test_a_context_is_a_field_that_has_a_vector():
    with pytest.raises(ValueError, match=r"context1: there is no field 'usr'. Did you mean 'user'"):
        FinalMLP(example_spec(), context1=["usr"])
    with pytest.raises(ValueError, match=r"context2: 'carts' is a sequence that is not pooled.*pool: mean"):
        FinalMLP(example_spec(), context2=["item", "carts"])
    with pytest.raises(ValueError, match=r"no field 'user'. Known: vector.*behind experts it has to be"):
        FinalMLP(espace.FeatureSpec.of_vector(5), context1=["user"])
