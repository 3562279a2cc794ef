"""The laws of towers for `bst`, and its forward against the paper's equations in plain loops, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from din_loops import assert_close, built, dot, events_of, linear, numbers, softmax, through
from espace_din import BST
from espace_din.bst import latest

import espace
from espace.data.batch import Ragged
from espace.testing import TowerTests, example_spec

SIDE = {"history": ["history_time"]}


class TestBST(TowerTests):
    tower = BST
    options = {"hidden_units": [8, 5], "length": 6}


class TestBSTWithSideSequences(TowerTests):
    tower = BST
    options = {"side": SIDE, "hidden_units": [8], "length": 2, "blocks": 2, "heads": 3}


def normed(layer, x):
    """Layer normalisation of one vector."""
    mean = sum(x) / len(x)
    scale = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + layer.eps)
    return [w * (v - mean) / scale + b for v, w, b in zip(x, numbers(layer.weight), numbers(layer.bias), strict=True)]


def attended(block, x):
    """Equations 1 to 3 on the vectors `x` of one row's places."""
    width, heads = len(x[0]), block.heads
    projected = [linear(block.projections, v) for v in x]
    q, k, v = ([p[i * width : (i + 1) * width] for p in projected] for i in range(3))
    d = width // heads
    out = []
    for place in range(len(x)):
        joined = []
        for head in range(heads):
            part = slice(head * d, (head + 1) * d)
            weights = softmax([dot(q[place][part], other[part]) / math.sqrt(d) for other in k])
            joined += [dot(weights, column) for column in zip(*(other[part] for other in v), strict=True)]
        out.append(linear(block.joined, joined))
    return out


def after(block, x):
    """Equations 5 and 6."""
    first = [
        normed(block.norms[0], [a + b for a, b in zip(old, new, strict=True)])
        for old, new in zip(x, attended(block, x), strict=True)
    ]
    return [
        normed(block.norms[1], [a + b for a, b in zip(v, through(block.feed_forward, v), strict=True)]) for v in first
    ]


def sequence(transformer, events, target):
    """All places of one row: zeros, the latest events, the target."""
    kept = events[-transformer.length :]
    missing = transformer.length - len(kept)
    target = [*target, *[0.0] * (transformer.event_width - len(target))]
    positions = numbers(transformer.positions)
    x = [[*e, *positions[len(kept) - i]] for i, e in enumerate([*kept, target])]
    for block in transformer.blocks:
        x = after(block, x)
    return [*[0.0] * (missing * transformer.width), *(value for place in x for value in place)]


@pytest.mark.parametrize(("length", "blocks", "heads"), [(4, 1, 2), (2, 2, 4)])
def test_bst_is_equations_1_to_6_for_every_history(length, blocks, heads):
    tower, features = built(BST, side=SIDE, length=length, blocks=blocks, heads=heads, hidden_units=[5, 3])
    out = tower(features)
    for row in range(6):
        target, found = numbers(features.field("item")[row]), numbers(features.flat()[row])
        history, times = events_of(features, "history", row), events_of(features, "history_time", row)
        both = [[*e, *s] for e, s in zip(history, times, strict=True)]
        found += sequence(tower.transformers[0], both, target)
        found += sequence(tower.transformers[1], events_of(features, "carts", row), target)
        assert_close(out[row], through(tower.layers, found))


def with_history(features, change):
    """The same features, but for the events of row 3, of which there are 3."""
    history = features.ragged("history")
    values = history.values.clone()
    first = int(history.offsets[3])
    values[first : first + 3] = change(values[first : first + 3])
    found = {n: lambda n=n: features.ragged(n) for n in features.spec.sequences}
    found["history"] = lambda: Ragged(values, history.offsets)
    return espace.Features(features.spec, features.flat(), found)


def test_only_the_latest_events_are_read_and_their_order_matters():
    tower, features = built(BST, length=2, hidden_units=[5])
    before = tower(features)[3]
    oldest = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    assert torch.equal(tower(with_history(features, lambda x: x + oldest))[3], before)
    assert not torch.allclose(tower(with_history(features, lambda x: x + oldest.roll(1)))[3], before)
    assert not torch.allclose(tower(with_history(features, lambda x: x[[0, 2, 1]]))[3], before)


def test_the_latest_events_stand_at_the_end():
    events = torch.arange(1.0, 7.0)[:, None]
    padded, mask = latest(events, torch.tensor([0, 0, 1, 4, 6]), 2)
    assert padded[:, :, 0].tolist() == [[0, 0], [0, 1], [3, 4], [5, 6]]
    assert mask.tolist() == [[False, False], [False, True], [True, True], [True, True]]


def test_dropout_is_in_the_blocks_and_only_in_training():
    tower, features = built(BST, hidden_units=[5], dropout=0.5)
    assert torch.equal(tower(features), tower(features))
    tower.train()
    assert not torch.allclose(tower(features), tower(features))
    assert not any(isinstance(layer, torch.nn.Dropout) for layer in tower.layers)


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_a_position_has_at_least_4_numbers_and_makes_the_heads_share_evenly(heads):
    for transformer in BST(example_spec(), side=SIDE, heads=heads, hidden_units=[5]).transformers:
        more = transformer.width - transformer.event_width
        assert 4 <= more < 4 + heads
        assert transformer.width % heads == 0


def test_the_defaults_are_the_papers():
    tower = BST(example_spec())
    transformer = tower.transformers[0]
    assert [layer.out_features for layer in tower.layers[::2]] == [1024, 512, 256]
    assert all(isinstance(layer, torch.nn.LeakyReLU) for layer in tower.layers[1::2])
    assert (transformer.length, len(transformer.blocks)) == (20, 1)
    assert (transformer.blocks[0].heads, transformer.blocks[0].dropout.p) == (8, 0.2)
