"""FuxiCTR: its FeatureProcessor, its Parquet loader on Ray, `model.fit`. Its zoo has no ESMM, so one is written here on its
MultiTaskModel. It clips gradients to norm 10, which cannot be left out."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import torch
from fuxictr.preprocess import FeatureProcessor, build_dataset  # type: ignore[import-not-found]
from fuxictr.pytorch.dataloaders import RankDataLoader  # type: ignore[import-not-found]
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block  # type: ignore[import-not-found]
from fuxictr.pytorch.models import MultiTaskModel  # type: ignore[import-not-found]
from torch import Tensor, nn

from tests.bench.peers.common import DIM, FIELDS, HIDDEN, LABELS, LR, Bench


class ESMM(MultiTaskModel):  # type: ignore[misc]
    """Two towers on one embedding; the second task is the product."""

    def __init__(self, feature_map: Any) -> None:
        tasks = ["binary_classification"] * 2
        never = {"eval_steps": 10**9, "verbose": 0, "metrics": ["AUC"], "model_root": ""}
        super().__init__(feature_map, model_id="ESMM", task=tasks, num_tasks=2, **never)
        self.embedding_layer = FeatureEmbedding(feature_map, DIM)
        self.towers = nn.ModuleList(MLP_Block(DIM * len(FIELDS), HIDDEN, output_dim=1) for _ in range(2))
        self.compile("adam", "binary_cross_entropy", LR)
        self.reset_parameters()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        click, given = (torch.sigmoid(tower(x)) for tower in self.towers)
        return {"click_pred": click, "conversion_pred": click * given}

    def load_weights(self, checkpoint: str) -> None:
        """`fit` ends by loading the best validated weights; here nothing is validated."""


def main() -> None:
    """Train, predict, print."""
    bench = Bench("fuxictr", ["fuxictr", "torch", "ray", "polars"])
    torch.set_num_threads(bench.options.threads)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        with bench.phase("prepare", bench.file_rows + bench.test_rows):
            columns = [{"name": FIELDS, "active": True, "dtype": "int", "type": "categorical"}]
            labels = [{"name": name, "dtype": "float"} for name in LABELS]
            processor = FeatureProcessor(columns, labels, dataset_id="bench", data_root=folder)
            paths = {f"{part}_data": str(getattr(bench.options, part)) for part in ("train", "test")}
            train, _, test = build_dataset(processor, data_format="parquet", **paths)
            load = {"data_format": "parquet", "batch_size": bench.options.batch}
            batches, _ = RankDataLoader(processor.feature_map, "train", train_data=train, **load)
            test_batches = RankDataLoader(processor.feature_map, "test", test_data=test, **load)
            batches.dataset = batches.dataset.limit(bench.rows).materialize()  # else read when the training starts
            test_batches.dataset = test_batches.dataset.materialize()
            model = ESMM(processor.feature_map)
        with bench.phase("train", bench.rows):
            model.fit(batches, epochs=1)
        with bench.phase("predict", bench.test_rows):
            p = model.predict(test_batches)
    bench.finish(click=p["click"], conversion=p["conversion"])


if __name__ == "__main__":
    main()
