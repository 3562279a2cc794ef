"""DeepCTR on TensorFlow: Keras' `fit` on a dict of arrays. L2 on the tables, its default, is off, as in the other models."""

from __future__ import annotations

import sys
from types import ModuleType

import tensorflow as tf  # type: ignore[import-untyped]

sys.modules["deepctr.utils"] = ModuleType("deepctr.utils")  # on import it would ask PyPI for its newest version
sys.modules["deepctr.utils"].check_version = lambda version: None  # type: ignore[attr-defined]

from deepctr.feature_column import SparseFeat  # type: ignore[import-not-found] # noqa: E402
from deepctr.models import ESMM  # type: ignore[import-not-found] # noqa: E402

from tests.bench.peers.common import DIM, FIELDS, HIDDEN, LABELS, Bench, encoded  # noqa: E402


def main() -> None:
    """Train, predict, print."""
    bench = Bench("deepctr_tf", ["deepctr", "tensorflow-cpu"])
    tf.config.threading.set_intra_op_parallelism_threads(bench.options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(bench.options.threads)
    with bench.phase("prepare", bench.file_rows + bench.test_rows):
        train, test, sizes = encoded(bench)
        features = [SparseFeat(f, vocabulary_size=n, embedding_dim=DIM) for f, n in zip(FIELDS, sizes, strict=True)]
        x, x_test = ({f: frame[f].to_numpy() for f in FIELDS} for frame in (train, test))
        model = ESMM(features, tower_dnn_hidden_units=HIDDEN, l2_reg_embedding=0.0)
        model.compile("adam", loss=["binary_crossentropy"] * 2)  # 1e-3
    with bench.phase("train", bench.rows):
        labels = [train[name].to_numpy() for name in LABELS]
        model.fit(x, labels, batch_size=bench.options.batch, epochs=1, verbose=2)
    with bench.phase("predict", bench.test_rows):
        click, conversion = model.predict(x_test, batch_size=bench.options.batch, verbose=0)
    bench.finish(click=click, conversion=conversion)


if __name__ == "__main__":
    main()
