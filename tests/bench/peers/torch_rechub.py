"""torch-rechub: MTLTrainer over a DataGenerator. Its towers have batch norm, which cannot be left out."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader
from torch_rechub.basic.features import SparseFeature  # type: ignore[import-not-found]
from torch_rechub.models.multi_task import ESMM  # type: ignore[import-not-found]
from torch_rechub.trainers import MTLTrainer  # type: ignore[import-not-found]
from torch_rechub.utils.data import DataGenerator, PredictDataset  # type: ignore[import-not-found]

from tests.bench.peers.common import DIM, FIELDS, HIDDEN, LR, Bench, encoded


def main() -> None:
    """Train, predict, print."""
    bench = Bench("torch_rechub", ["torch-rechub", "torch"])
    torch.set_num_threads(bench.options.threads)
    with bench.phase("prepare", bench.file_rows + bench.test_rows):
        train, test, sizes = encoded(bench)
        x, x_test = ({f: frame[f].to_numpy() for f in FIELDS} for frame in (train, test))
        y = train[["conversion", "click", "conversion"]].to_numpy()  # its order: after a click, click, both
        loader, *_ = DataGenerator(x, y).generate_dataloader(x, y, x, y, batch_size=bench.options.batch)
        features = [SparseFeature(f, vocab_size=n, embed_dim=DIM) for f, n in zip(FIELDS, sizes, strict=True)]
        tower = {"dims": HIDDEN}
        model = ESMM(features[:1], features[1:], tower, tower)
        device = {"device": bench.options.device}
        trainer = MTLTrainer(model, ["classification"] * 3, optimizer_params={"lr": LR}, n_epoch=1, **device)
    with bench.phase("train", bench.rows):
        trainer.train_one_epoch(loader)  # `fit` would validate too
    with bench.phase("predict", bench.test_rows):
        p = trainer.predict(model, DataLoader(PredictDataset(x_test), batch_size=bench.options.batch))
    bench.finish(click=[row[1] for row in p], conversion=[row[2] for row in p])


if __name__ == "__main__":
    main()
