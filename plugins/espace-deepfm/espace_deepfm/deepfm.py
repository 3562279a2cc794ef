"""DeepFM (Guo et al., IJCAI 2017, arXiv 1703.04247).

    y = sigmoid(y_FM + y_DNN)                                     (1)
    y_FM: see fm.py                                               (2)
    a_0 = [e_1, ..., e_m]                                         (3)
    a_{l+1} = sigma(W_l a_l + b_l)                                (4)

Both components read the same embedding. y_DNN = w a_H + b and the sum are the head's: it begins with a weight of 1 on y_FM.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import espace
from espace_deepfm.fm import FM


class DeepFM(nn.Module):
    """A factorisation machine beside a deep network on the same embedding: [y_FM, a_H].

    The defaults are the paper's (section 3.1): three layers of 400, ReLU, dropout 0.5. shared_weights: as in `fm`.
    """

    logits = 1

    def __init__(
        self,
        spec: espace.FeatureSpec,
        *,
        hidden_units: list[espace.Count] = [400, 400, 400],  # noqa: B006, it is read only
        activation: espace.Activation = "relu",
        dropout: espace.Dropout = 0.5,
        norm: espace.Norm = "none",
        shared_weights: bool = False,
    ) -> None:
        super().__init__()
        self.fm = FM(spec, shared_weights=shared_weights)
        self.deep = espace.dense(spec.width, hidden_units, activation=activation, dropout=dropout, norm=norm)
        self.out_features = 1 + (hidden_units or [spec.width])[-1]

    def forward(self, features: espace.Features) -> Tensor:
        """(batch, 1 + the last of hidden_units)."""
        return torch.cat([self.fm(features), self.deep(features.flat())], dim=1)
