"""The laws of towers for `din`, and its forward against equation 3 of the paper in plain loops, in float64."""

from __future__ import annotations

import pytest
import torch
from din_loops import assert_close, built, dot, events_of, linear, numbers, softmax, through
from espace_din import DIN
from espace_din.dice import Dice

from espace.testing import TowerTests, example_features, example_spec

SIDE = {"history": ["history_time"]}


class TestDIN(TowerTests):
    tower = DIN
    options = {"hidden_units": [8, 5], "attention_units": 6}


class TestDINWithSideSequences(TowerTests):
    tower = DIN
    options = {"side": SIDE, "hidden_units": [8], "dropout": 0.1, "activation": "relu"}


class TestDINWithSoftmax(TowerTests):
    tower = DIN
    options = {"softmax": True, "activation": "prelu", "hidden_units": [8]}


def interest(unit, events, side, target, normalise):
    """v_U(A) of one row: equation 3."""
    scores = []
    for e, s in zip(events, side, strict=True):
        minus = [x - y for x, y in zip(e, target, strict=True)]
        times = [x * y for x, y in zip(e, target, strict=True)]
        hidden = through([unit.activation], linear(unit.hidden, [*e, *target, *minus, *times, *s]))
        scores.append(linear(unit.out, hidden)[0])
    weights = softmax(scores) if normalise else scores
    width = unit.width + unit.side
    return [
        dot(weights, column) for column in zip(*([*e, *s] for e, s in zip(events, side, strict=True)), strict=True)
    ] or [0.0] * width


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("activation", ["dice", "prelu"])
def test_din_is_equation_3_for_every_history(activation, normalise):
    tower, features = built(DIN, side=SIDE, activation=activation, softmax=normalise, hidden_units=[5, 3])
    out = tower(features)
    for row in range(6):
        history, carts = (events_of(features, name, row) for name in ("history", "carts"))
        times, target = events_of(features, "history_time", row), numbers(features.field("item")[row])
        first = interest(tower.units[0], history, times, target, normalise)
        second = interest(tower.units[1], carts, [[]] * len(carts), target, normalise)
        assert_close(out[row], through(tower.layers, [*numbers(features.flat()[row]), *first, *second]))


def test_the_activation_unit_sees_the_real_events_and_nothing_else():
    tower, features = built(DIN, attention_units=7)
    seen = {}
    for i, name in enumerate(("history", "carts")):
        tower.units[i].hidden.register_forward_hook(lambda *_: pytest.fail("it is never built"))
        tower.units[i].activation.register_forward_hook(lambda _, x, y, n=name: seen.update({n: (x[0].shape, y.shape)}))
    tower(features)
    shapes = {name: (len(features.ragged(name).values), 7) for name in seen}
    assert seen == {name: (shape, shape) for name, shape in shapes.items()}
    assert shapes == {"history": (7, 7), "carts": (6, 7)}


def pooled_of(tower, features):
    """What the histories add to the flat vector: (batch, their widths)."""
    seen = []
    handle = tower.layers.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    tower(features)
    handle.remove()
    return seen[0][:, features.flat().shape[1] :]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
def test_an_empty_history_is_exact_zeros(train, normalise):
    tower, features = built(DIN, softmax=normalise)
    pooled = pooled_of(tower.train(train), features)
    assert not pooled[0, :4].any()  # row 0 has no history, but carts
    assert pooled[0, 4:].all()
    assert not pooled_of(tower, example_features(example_spec(), empty=True)).any()


def test_what_the_batch_teaches_dice_is_of_real_events_only():
    tower, features = built(DIN, train=0)
    inputs = []
    tower.units[0].activation.register_forward_hook(lambda _, x, y: inputs.append(x[0]))
    tower.train()(features)
    assert_close(tower.units[0].activation.mean, numbers(0.1 * inputs[0].sum(0) / 7))


def test_a_given_target_is_compared_with_all_histories():
    tower, features = built(DIN, target="user", history=["carts", "history"])
    assert [(h.name, h.target) for h in tower.histories] == [("carts", "user"), ("history", "user")]
    changed = features.flat().clone()
    changed[:, features.spec.slices["item"]] += 1.0
    other = type(features)(features.spec, changed, {n: lambda n=n: features.ragged(n) for n in features.spec.sequences})
    assert torch.equal(pooled_of(tower, features), pooled_of(tower, other))


def test_the_defaults_are_the_papers():
    tower = DIN(example_spec())
    assert [unit.hidden.out_features for unit in tower.units] == [36, 36]
    assert [layer.out_features for layer in tower.layers[::2]] == [200, 80]
    assert all(isinstance(layer, Dice) for layer in [*tower.layers[1::2], *(unit.activation for unit in tower.units)])
    assert (tower.softmax, tower.out_features) == (False, 80)


def test_without_hidden_units_the_interests_stand_beside_the_flat_vector():
    spec = example_spec()
    tower = DIN(spec, hidden_units=[]).double()
    features = example_features(spec)
    assert tower.out_features == spec.width + 8
    assert torch.equal(tower(features)[:, : spec.width], features.flat())
