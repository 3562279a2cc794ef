"""Blocks of towers: each against its formula, and extra tables from the tower's question to the embedding's answer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import espace
from espace.errors import EspaceError
from espace.model import blocks
from espace.model.features import ExtraTable
from espace.testing import example_features, example_spec, rows_of


def test_a_dense_stack_is_linear_norm_activation_dropout():
    stack = espace.dense(5, [4, 3], activation="tanh", norm="layer", dropout=0.5)
    assert [type(layer).__name__ for layer in stack] == ["Linear", "LayerNorm", "Tanh", "Dropout"] * 2
    assert espace.dense(5, [])(torch.ones(2, 5)).shape == (2, 5)


def test_fields_of_the_common_width_stay_as_they_are_and_others_are_mapped():
    spec = example_spec()
    matrix, features = espace.FieldMatrix(spec).double(), example_features(spec)
    out = matrix(features)
    names = [f.name for f in spec.fields if f.width]
    assert matrix.width == 4  # that of most fields with ids
    assert matrix.fields == tuple(names)
    maps = {"city": matrix.maps[0][0], "age": matrix.maps[1][0], "price": matrix.maps[1][1], "text": matrix.maps[2][0]}
    for place, name in enumerate(names):
        own = features.field(name)
        expected = torch.stack([sum(v[i] * maps[name][i] for i in range(len(v))) for v in own]) if name in maps else own
        assert torch.allclose(out[:, place], expected, atol=1e-12), name


def test_a_field_matrix_has_the_width_that_is_asked_for():
    spec = example_spec()
    assert espace.FieldMatrix(spec, 5).double()(example_features(spec)).shape == (6, 9, 5)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_field_matrix_works_on_few_rows(rows):
    spec = example_spec()
    features = rows_of(example_features(spec), torch.arange(rows))
    assert espace.FieldMatrix(spec).double()(features).shape == (rows, 9, 4)


def test_another_module_s_vector_is_one_field():
    features = espace.Features.of_vector(torch.randn(3, 7))
    matrix = espace.FieldMatrix(features.spec)
    assert torch.equal(matrix(features)[:, 0], features.flat())


def test_towers_that_ask_under_one_name_share_a_table_and_others_do_not():
    spec = example_spec()
    own, shared = spec.ask(2), spec.ask(1, "first order")
    assert spec.ask(1, "first order") == shared
    assert spec.ask(2) != own
    assert spec.extra_width == 2 + 1 + 2
    with pytest.raises(EspaceError, match="extra table 'first order': one tower asks for a width of 1, another for 3"):
        spec.ask(3, "first order")


def test_what_was_asked_of_another_spec_is_refused():
    table = example_spec().ask(1)
    with pytest.raises(EspaceError, match="this extra table was asked of another spec"):
        example_features(example_spec()).extra(table)


def test_a_vector_has_no_ids_and_so_nothing_extra():
    assert espace.Features.of_vector(torch.randn(3, 7)).extra(ExtraTable(0, 2)).shape == (3, 0, 2)


@pytest.mark.parametrize("rows", [0, 1])
def test_batch_norm_trains_on_a_batch_of_one_row_or_none(rows):
    stack = espace.dense(5, [4], norm="batch").train()
    stack(torch.randn(8, 5))
    out = stack(torch.randn(rows, 5))
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert all(p.grad is not None for p in stack.parameters())


def test_a_layer_is_torchs_and_its_weights_and_their_gradient_lie_by_columns():
    """Loading and copying leave them so; a copy of the gradient would cost what the order gains."""
    ours, x = espace.dense(9, [5, 3]), torch.randn(7, 9)
    theirs = nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU())
    ours.load_state_dict(theirs.state_dict())
    ours = copy.deepcopy(ours)
    torch.testing.assert_close(ours(x), theirs(x))
    for stack in (ours, theirs):
        stack(x).square().sum().backward()
    for mine, plain in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, plain.grad)
        assert mine.dim() == 1 or mine.stride() == mine.grad.stride() == (1, len(mine))


@pytest.mark.parametrize("width", [1, 7, 8, 23, 414])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_of_rounded_numbers_is_the_layer_itself_where_nothing_is_rounded(width, bias):
    """With 64 bits in place of 16, on the CPU."""
    g = torch.Generator().manual_seed(width)
    x = torch.randn(50, width, dtype=torch.float64, generator=g, requires_grad=True)
    layer = nn.Linear(width, 5, bias=bias).double()
    given = (x, layer.weight, layer.bias) if bias else (x, layer.weight)
    upstream = torch.randn(50, 5, dtype=torch.float64, generator=g)
    out = blocks._rounded_product(x, layer.weight, layer.bias, torch.float64)
    torch.testing.assert_close(out, layer(x))
    twice = out + blocks._rounded_product(x, layer.weight, layer.bias, torch.float64)  # rounds x once
    ours, theirs = (torch.autograd.grad(o, given, upstream) for o in (twice, 2 * layer(x)))
    torch.testing.assert_close(ours, theirs)


def test_a_layer_rounds_to_the_precision_asked_for_and_gives_gradients_in_that_of_its_numbers():
    x, layer = torch.randn(300, 20, requires_grad=True), nn.Linear(20, 16)
    out = blocks._rounded_product(x, layer.weight, layer.bias, torch.bfloat16)
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    found = [x.grad, layer.weight.grad, layer.bias.grad]
    assert all(grad.dtype == torch.float32 for grad in found)
    wanted = torch.autograd.grad(layer(x).square().mean(), (x, layer.weight, layer.bias))
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()
