"""DeepCTR-Torch: `model.fit` on a dict of arrays. L2 on the tables, its default, is off, as in the other models."""

from __future__ import annotations

import sys
from types import ModuleType

import torch

sys.modules["deepctr_torch.utils"] = ModuleType(
    "deepctr_torch.utils"
)  # on import it would ask PyPI for its newest version
sys.modules["deepctr_torch.utils"].check_version = lambda version: None  # type: ignore[attr-defined]

from deepctr_torch.inputs import SparseFeat  # type: ignore[import-not-found] # noqa: E402
from deepctr_torch.models import ESMM  # type: ignore[import-not-found] # noqa: E402

from tests.bench.peers.common import DIM, FIELDS, HIDDEN, LABELS, Bench, encoded  # noqa: E402


def main() -> None:
    """Train, predict, print."""
    bench = Bench("deepctr_torch", ["deepctr-torch", "torch"])
    torch.set_num_threads(bench.options.threads)
    with bench.phase("prepare", bench.file_rows + bench.test_rows):
        train, test, sizes = encoded(bench)
        features = [SparseFeat(f, vocabulary_size=n, embedding_dim=DIM) for f, n in zip(FIELDS, sizes, strict=True)]
        x, x_test = ({f: frame[f].to_numpy() for f in FIELDS} for frame in (train, test))
        model = ESMM(features, tower_dnn_hidden_units=HIDDEN, l2_reg_embedding=0.0, device=bench.options.device)
        model.compile("adam", loss=["binary_crossentropy"] * 2)  # 1e-3
    with bench.phase("train", bench.rows):
        model.fit(x, train[LABELS].to_numpy(), batch_size=bench.options.batch, epochs=1, verbose=0)
    with bench.phase("predict", bench.test_rows):
        p = model.predict(x_test, batch_size=bench.options.batch)
    bench.finish(click=p[:, 0], conversion=p[:, 1])


if __name__ == "__main__":
    main()
