"""NextRec: `model.fit` on a DataFrame. It clips gradients to norm 1 and saves a checkpoint; neither can be left out."""

from __future__ import annotations

import logging
import os
import tempfile

import torch
from nextrec.basic.features import SparseFeature  # type: ignore[import-not-found]
from nextrec.models.multitask.esmm import ESMM  # type: ignore[import-not-found]

from tests.bench.peers.common import DIM, FIELDS, HIDDEN, LABELS, LR, Bench, encoded


def main() -> None:
    """Train, predict, print."""
    bench = Bench("nextrec", ["nextrec", "torch"])
    torch.set_num_threads(bench.options.threads)
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NEXTREC_LOG_DIR"] = folder
        with bench.phase("prepare", bench.file_rows + bench.test_rows):
            train, test, sizes = encoded(bench)
            features = [SparseFeature(f, vocab_size=n, embedding_dim=DIM) for f, n in zip(FIELDS, sizes, strict=True)]
            tower = {"hidden_dims": HIDDEN}
            model = ESMM([], features, [], tower, tower, target=LABELS)
            model.compile("adam", optimizer_params={"lr": LR}, loss="bce")
            loader = model.prepare_data_loader(train, batch_size=bench.options.batch)
        with bench.phase("train", bench.rows):
            model.fit(loader, epochs=1, metrics=["auc"], use_tensorboard=False, summary_sections=[])
        with bench.phase("predict", bench.test_rows):
            p = model.predict(test, batch_size=bench.options.batch, return_dataframe=False)
    bench.finish(click=p[:, 0], conversion=p[:, 1])


if __name__ == "__main__":
    main()
