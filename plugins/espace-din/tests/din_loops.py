"""The pieces of the papers' equations in plain loops on plain numbers."""

from __future__ import annotations

import math

import torch
from espace_din.dice import Dice
from torch import nn

from espace.testing import example_features, example_spec


def built(tower, *, rows=6, train=2, **options):
    """A tower in eval mode with parameters drawn at random, Dice's running averages included, and features for it."""
    torch.manual_seed(0)
    spec = example_spec()
    module = tower(spec, **options).double()
    for seed in range(train):
        module(example_features(spec, 16, seed))
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("alpha"):
                p.normal_()
    return module.eval(), example_features(spec, rows, seed=5)


def numbers(tensor):
    """Plain Python numbers, in float64."""
    return tensor.detach().tolist()


def events_of(features, name, row):
    """The vectors of one row's history, in order."""
    ragged = features.ragged(name)
    return numbers(ragged.values[ragged.offsets[row] : ragged.offsets[row + 1]])


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax(scores):
    powers = [math.exp(s) for s in scores]
    return [p / sum(powers) for p in powers]


def linear(layer, x):
    bias = [0.0] * layer.out_features if layer.bias is None else numbers(layer.bias)
    return [dot(w, x) + b for w, b in zip(numbers(layer.weight), bias, strict=True)]


def dice(layer, x):
    """Equation 9 of DIN with the running averages."""
    out = []
    for s, a, mean, var in zip(x, *map(numbers, (layer.alpha, layer.mean, layer.var)), strict=True):
        p = sigmoid((s - mean) / math.sqrt(var + 1e-8))
        out.append(p * s + (1 - p) * a * s)
    return out


def through(layers, x):
    """A stack of layers, in eval mode."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = linear(layer, x)
        elif isinstance(layer, Dice):
            x = dice(layer, x)
        elif isinstance(layer, nn.PReLU):
            x = [s if s > 0 else a * s for s, a in zip(x, numbers(layer.weight), strict=True)]
        elif isinstance(layer, nn.LeakyReLU):
            x = [s if s > 0 else 0.01 * s for s in x]
        else:
            assert isinstance(layer, nn.Dropout)
    return x


def assert_close(tensor, expected):
    torch.testing.assert_close(tensor.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-11)
