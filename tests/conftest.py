"""What tests share: a cache of their own, one thread, a shop with data, and one trained run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.shop import CONFIG, SPLITS, Shop, Trained

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read once, when triton is imported


@pytest.fixture(scope="session", autouse=True)
def _quiet_neighbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the user's own folders, takes more than one core, or rounds otherwise than on another machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESPACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("ESPACE_STATE", str(tmp_path_factory.mktemp("state")))
        patch.setenv("OMP_NUM_THREADS", "1")  # of subprocesses
        patch.setenv("ESPACE_PRECISION", "32-true")
        torch.set_num_threads(1)
        yield


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A folder, the working directory of the test, with training, validation and test rows."""
    monkeypatch.chdir(tmp_path)
    return Shop(tmp_path).fill(600)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run on 2,000 rows of every kind of feature. Not to be changed."""
    shop = Shop(tmp_path_factory.mktemp("trained")).fill(2000)
    files = {split: str(shop.folder / f"{split}.parquet") for split in SPLITS}
    shop.yaml(data={**CONFIG["data"], **files})
    run = shop.folder / "run"
    said = shop.espace("fit", shop.folder / "shop.yaml", "--run-dir", run)
    assert said.code == 0, said
    return Trained(shop, run, said)
