"""The laws of towers for `dien`, and its forward and its auxiliary loss against the paper in plain loops, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from din_loops import assert_close, built, dot, events_of, linear, numbers, sigmoid, softmax, through
from espace_din import DIEN
from espace_din.dice import Dice
from espace_din.dien import negatives, next_event_loss

from espace.testing import TowerTests, example_features, example_spec

SIDE = {"history": ["history_time"]}


class TestDIEN(TowerTests):
    tower = DIEN
    options = {"hidden_units": [8, 5]}


class TestDIENWithSideSequences(TowerTests):
    tower = DIEN
    options = {"side": SIDE, "hidden_units": [8], "activation": "prelu", "dropout": 0.1, "auxiliary": 0.0}


def states_of(gru, inputs, attention=None):
    """Equations 2 to 5, and 11 and 12 with attention, of one row: its states, from zero on."""
    width, found = gru.width, [[0.0] * gru.width]
    for t, i in enumerate(inputs):
        h, by_input, by_state = found[-1], linear(gru.input, i), linear(gru.state, found[-1])
        new = []
        for k in range(width):
            u = sigmoid(by_input[k] + by_state[k])
            r = sigmoid(by_input[width + k] + by_state[width + k])
            c = math.tanh(by_input[2 * width + k] + r * by_state[2 * width + k])
            u = u if attention is None else attention[t] * u
            new.append((1 - u) * h[k] + u * c)
        found.append(new)
    return found


def rows_of_events(features, row):
    """The events of both histories of one row, those of the first with their times."""
    history, times = events_of(features, "history", row), events_of(features, "history_time", row)
    return [[*e, *s] for e, s in zip(history, times, strict=True)], events_of(features, "carts", row)


def test_dien_is_equations_2_to_12_for_every_history():
    tower, features = built(DIEN, side=SIDE, hidden_units=[5, 3])
    out = tower(features)
    for row in range(6):
        target, found = numbers(features.field("item")[row]), numbers(features.flat()[row])
        for evolution, events in zip(tower.evolutions, rows_of_events(features, row), strict=True):
            interests = states_of(evolution.extractor, events)[1:]
            asked = linear(evolution.attention, target)  # W e_a
            attention = softmax([dot(h, asked) for h in interests])
            found += states_of(evolution.evolving, interests, attention)[-1]
        assert_close(out[row], through(tower.layers, found))


def in_steps(features, name):
    """(row, place) of every event: the first ones of all rows, then the second ones; the longest rows first."""
    counts = [len(events_of(features, name, row)) for row in range(6)]
    rows = sorted(range(6), key=lambda row: -counts[row])
    return [(row, t) for t in range(max(counts)) for row in rows if counts[row] > t]


def test_the_auxiliary_loss_is_equation_6_times_alpha():
    tower, features = built(DIEN, side=SIDE, auxiliary=0.3)
    torch.manual_seed(8)
    tower.train()(features)
    torch.manual_seed(8)
    total = 0.0
    for which, name in enumerate(("history", "carts")):
        order = in_steps(features, name)
        events = [rows_of_events(features, row)[which][t] for row, t in order]
        pairs = [i for i, (_, t) in enumerate(order) if t > 0]
        drawn = negatives(len(pairs), len(events), torch.device("cpu")).tolist()
        for positive, negative in zip(pairs, drawn, strict=True):
            row, t = order[positive]
            h = states_of(tower.evolutions[which].extractor, rows_of_events(features, row)[which])[t]
            total -= math.log(sigmoid(dot(h, events[positive]))) + math.log(1 - sigmoid(dot(h, events[negative])))
    assert_close(tower.auxiliary_loss, 0.3 * total / 6)


def test_a_negative_is_another_event_and_each_is_as_likely():
    torch.manual_seed(0)
    drawn = torch.stack(
        [negatives(3, 5, torch.device("cpu")) for _ in range(4000)]
    )  # of 5 events the last 3 follow one
    for pair in range(3):
        counts = drawn[:, pair].bincount(minlength=5)
        assert counts[2 + pair] == 0
        assert all(900 < c < 1100 for i, c in enumerate(counts.tolist()) if i != 2 + pair)


def test_a_negative_that_equals_the_positive_does_not_count():
    states, following = torch.randn(2, 2, 3, dtype=torch.float64)
    others = torch.stack([following[0], -following[1]])
    x, y = (dot(numbers(states[i]), numbers(following[i])) for i in range(2))
    expected = -math.log(sigmoid(x)) - math.log(sigmoid(y)) - math.log(1 - sigmoid(-y))
    assert_close(next_event_loss(states, following, others), expected)


def gradients(auxiliary):
    tower, features = built(DIEN, train=0, auxiliary=auxiliary, history=["history"])
    torch.manual_seed(2)
    (tower.train()(features).sum() + tower.auxiliary_loss).backward()
    return {name: p.grad for name, p in tower.named_parameters()}


def test_the_auxiliary_loss_adds_to_the_gradient_of_the_extractor_only_and_in_proportion():
    none, one, two = (gradients(a) for a in (0.0, 1.0, 2.0))
    for name in none:
        assert torch.allclose(two[name] - none[name], 2 * (one[name] - none[name]), atol=1e-10)
        assert torch.equal(one[name], none[name]) is ("extractor" not in name)


@pytest.mark.parametrize("empty", [False, True])
def test_in_eval_mode_nothing_is_drawn_and_nothing_is_added(empty):
    tower, _ = built(DIEN)
    features = example_features(example_spec(), empty=empty)
    before = torch.get_rng_state()
    tower(features)
    assert torch.equal(before, torch.get_rng_state())
    assert tower.auxiliary_loss == 0
    assert not tower.auxiliary_loss.requires_grad


def test_a_recurrence_takes_a_step_for_every_real_event_and_no_more():
    tower, features = built(DIEN)
    rows = []
    for gru in (tower.evolutions[0].extractor, tower.evolutions[0].evolving):
        gru.state.register_forward_hook(lambda _, x, y: rows.append(len(x[0])))
    tower(features)
    assert rows == [4, 2, 1] * 2  # rows with 0, 1, 2, 3, 0 and 1 events


def test_a_row_without_events_has_a_final_state_of_zeros():
    tower, features = built(DIEN)
    seen = []
    tower.layers.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    tower(features)
    width = features.flat().shape[1]
    assert not seen[0][0, width : width + 4].any()
    assert seen[0][1, width : width + 4].all()


def test_the_defaults_are_those_of_the_paper_and_its_code():
    tower = DIEN(example_spec())
    assert [layer.out_features for layer in tower.layers[::2]] == [200, 80]
    assert all(isinstance(layer, Dice) for layer in tower.layers[1::2])
    assert tower.auxiliary == 1.0
