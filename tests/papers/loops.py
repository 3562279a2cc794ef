"""Vectors and matrices as lists of Python floats, and a way to draw a small mixture: what the equations are checked with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from espace.model.features import Features, FeatureSpec, Field
from espace.parts.towers.mlp import MLP

Vector = list[float]


def linear(layer: Any, x: Sequence[float]) -> Vector:
    """W x + b, W x where the layer has no b."""
    weight, bias = layer.weight.tolist(), [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
    return [b + sum(w * v for w, v in zip(row, x, strict=True)) for row, b in zip(weight, bias, strict=True)]


def tanh_layers(layers: Any, x: Vector) -> Vector:
    """Linear, tanh, and so on."""
    for layer in layers:
        x = [math.tanh(v) for v in x] if isinstance(layer, nn.Tanh) else linear(layer, x)
    return x


def softmax(scores: Sequence[float]) -> Vector:
    exps = [math.exp(score) for score in scores]
    return [e / sum(exps) for e in exps]


def mixed(weights: Sequence[float], vectors: Sequence[Vector]) -> Vector:
    """sum over i of weights_i vectors_i"""
    assert len(weights) == len(vectors)
    return [sum(w * v[j] for w, v in zip(weights, vectors, strict=True)) for j in range(len(vectors[0]))]


def gated(gate: Any, x: Vector, vectors: Sequence[Vector]) -> Vector:
    """sum over i of softmax(W x)_i f_i; f_1 where there is no other."""
    weights = [1.0] if gate.layer is None else softmax(linear(gate.layer, x))
    return mixed(weights, vectors)


def drawn(seed: int) -> tuple[Random, FeatureSpec, Callable[[FeatureSpec], nn.Module], list[str], Features]:
    """Random: a source of numbers, a layout, what builds an expert, one to three transitions, and some rows in float64."""
    random = Random(seed)
    torch.manual_seed(seed)
    spec = FeatureSpec((Field("a", "id", random.randint(1, 3)), Field("b", "number", random.randint(1, 3))), {})
    units = [random.randint(1, 4) for _ in range(random.randint(1, 2))]
    names = [f"s{i}_to_s{i + 1}" for i in range(random.randint(1, 3))]
    rows = torch.randn(random.randint(1, 4), spec.width, dtype=torch.float64)
    return random, spec, lambda seen: MLP(seen, hidden_units=units, activation="tanh"), names, Features(spec, rows)


def assert_rows(found: Tensor, expected: Sequence[Vector]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
