"""Factorisation machine (Rendle, ICDM 2010, eq. 1), the FM component of DeepFM (Guo et al., IJCAI 2017, eq. 2).

    y_FM = <w, x> + sum over pairs i < j of <V_i, V_j> x_i x_j

<w, x> is `espace.FirstOrder`. The vectors V_i are the rows of the embedding; a field with several ids has the mean or sum of
theirs. The sum over pairs costs fields, not fields squared (Rendle, lemma 3.1): 1/2 ((sum V)^2 - sum V^2), summed over the
width.
"""

from __future__ import annotations

from torch import Tensor, nn

import espace


class FM(nn.Module):
    """Factorisation machine: first-order weights and the inner products of all pairs of fields.

    Its vector is the one number y_FM, a logit; the paper's w_0 is the bias of the head. shared_weights: all `fm` and `deepfm`
    towers have the same first-order weights of ids, instead of each its own.
    """

    logits = 1

    def __init__(self, spec: espace.FeatureSpec, *, shared_weights: bool = False) -> None:
        super().__init__()
        self.first_order = espace.FirstOrder(spec, "first order" if shared_weights else None)
        self.fields = espace.FieldMatrix(spec)
        self.out_features = 1

    def forward(self, features: espace.Features) -> Tensor:
        """(batch, 1)."""
        out: Tensor = self.first_order(features) + pairs(self.fields(features))
        return out


def pairs(vectors: Tensor) -> Tensor:
    """The inner products of all pairs of `vectors`, (batch, fields, width), added up: (batch, 1)."""
    squared = vectors.sum(1).square() - vectors.square().sum(1)  # (batch, width)
    return 0.5 * squared.sum(1, keepdim=True)
