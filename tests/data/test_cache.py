"""Nothing in the cache is believed: whatever is flipped, cut, swapped or gone there, what is learnt and trained is the same."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
import torch

from espace.data.encoding.encoded import Encoded
from espace.data.reading import cache, formats, sealed
from espace.data.reading.readers import Files
from espace.errors import DataError
from espace.runs.experiment import Experiment
from espace.runs.opening import prepare
from espace.runs.report import Report
from espace.training.checkpoint import read_checkpoint
from tests.shop import CONFIG, Shop, rows

ARRAYS = [np.arange(7, dtype=np.int32), np.empty((0, 3), np.float32), np.array([[True], [False]])]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ESPACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Rows in Parquet and in CSV, so that every kind of file comes to lie in the cache."""
    monkeypatch.chdir(tmp_path)
    made = Shop(tmp_path)
    made.write(rows(60, 0), "train.parquet", group=40)
    plain = rows(30, 1).drop_columns(["history", "tags", "tag_weights", "text"])
    pc.write_csv(plain, tmp_path / "validation.csv")
    features = {k: v for k, v in CONFIG["features"].items() if k not in ("history", "tags", "text")}
    data = {"train": "train.parquet", "validation": "validation.csv", "weight": "weight", "batch_size": 16}
    made.yaml(data=data, features=features, trainer={"accelerator": "cpu", "max_steps": 4}, metrics={})
    return made


def learnt(shop: Shop) -> list:
    """All that training gets of the data, as plain values."""
    formats._opened.cache_clear()  # as in a new process
    sealed._whole.clear()
    made = Experiment.from_yaml("shop.yaml")
    prepared = prepare(made.config, made.registry, Report(quiet=True))
    found: list = [prepared.encoder.identity, repr(prepared.scans)]
    for part in prepared.parts.values():
        encoded = Encoded(part, prepared.encoder, labels=True, keep=True)
        for number in range(len(part.reader.pieces)):
            found += [tensor.numpy().tobytes() for tensor in encoded.piece(number).tensors()]
    return found


def kept(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]


def test_a_sealed_file_gives_back_what_was_written_and_nothing_when_any_byte_is_another(tmp_path):
    path = tmp_path / "file"
    sealed.write(path, "key", {"a": [1, 2.5, None]}, ARRAYS)
    good = path.read_bytes()
    values, arrays = sealed.read(path, "key")
    assert values == {"a": [1, 2.5, None]}
    assert all(
        a.dtype == b.dtype and a.shape == b.shape and (a == b).all() for a, b in zip(arrays, ARRAYS, strict=True)
    )
    for at in range(len(good)):
        path.write_bytes(flipped(good, at))
        with pytest.raises(sealed.DamagedError, match="not as it was written"):
            sealed.read(path, "key")
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(sealed.DamagedError, match=r"not as it was written|is empty"):
            sealed.read(path, "key")
    path.write_bytes(good)
    with pytest.raises(sealed.DamagedError, match="was written for key"):
        sealed.read(path, "another")


def test_a_sealed_parquet_file_is_read_as_before_and_any_byte_counts(tmp_path):
    path, table = tmp_path / "x.parquet", pa.table({"a": range(20), "b": ["x"] * 20})
    pq.write_table(table, path)
    sealed.seal_parquet(path, "key")
    good = path.read_bytes()
    assert pq.read_table(path).equals(table)
    assert sealed.is_whole(path, "key")
    for at in range(len(good)):
        path.write_bytes(flipped(good, at))
        sealed._whole.clear()  # two writes within a tick of the clock
        assert not sealed.is_whole(path, "key"), at
    for size in range(len(good)):
        path.write_bytes(good[:size])
        assert not sealed.is_whole(path, "key"), size
    path.write_bytes(good)
    assert sealed.is_whole(path, "key")


def test_whatever_is_damaged_in_the_cache_the_same_is_learnt(shop, folder):
    whole = learnt(shop)
    files = kept(folder)
    assert {p.suffix for p in files} == {".scan", ".batch", ".parquet", ".json"}
    for path in files:
        good = path.read_bytes()
        for at in range(0, len(good), len(good) // 5):
            path.write_bytes(flipped(good, at))
            assert learnt(shop) == whole, (path.name, at)
        path.write_bytes(good[: len(good) // 2])
        assert learnt(shop) == whole, path.name
        path.write_bytes(b"")
        assert learnt(shop) == whole, path.name
        path.unlink()
        assert learnt(shop) == whole, path.name


def test_files_of_the_cache_that_changed_places_are_not_taken_for_each_other(shop, folder):
    whole = learnt(shop)
    for suffix in (".scan", ".batch"):
        one, other, *_ = [p for p in kept(folder) if p.suffix == suffix]
        first = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(first)
        assert learnt(shop) == whole


def test_a_table_of_other_rows_is_not_taken_for_the_one_whose_name_it_got(shop, folder):
    """Whole as it is: a cache is copied, and put together from two."""
    whole = learnt(shop)
    (mine,) = folder.rglob("*.parquet")
    good = mine.read_bytes()
    others = rows(30, 2).drop_columns(["history", "tags", "tag_weights", "text"])
    pc.write_csv(others, "other.csv")
    Files("other.csv", "validation")
    (other,) = set(folder.rglob("*.parquet")) - {mine}
    mine.write_bytes(other.read_bytes())
    for path in kept(folder):
        if path.suffix in (".scan", ".batch"):
            path.unlink()
    assert learnt(shop) == whole
    assert mine.read_bytes() == good


def test_a_fit_with_every_file_of_the_cache_damaged_ends_with_the_same_bits(shop, folder):
    def trained(name: str) -> dict:
        formats._opened.cache_clear()
        sealed._whole.clear()
        said = shop.espace("fit", "shop.yaml", "--run-dir", name)
        assert said.code == 0, said
        return read_checkpoint(Path(name) / "checkpoints" / "last.ckpt")["state_dict"]

    first = trained("empty")
    for path in kept(folder):
        good = path.read_bytes()
        path.write_bytes(flipped(good, len(good) // 3))
    second = trained("flipped")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_whole_cache_may_go_while_it_is_used(shop, folder):
    whole = learnt(shop)
    shutil.rmtree(folder)
    assert learnt(shop) == whole
    reader = Files("validation.csv", "validation")
    shutil.rmtree(folder)
    assert reader.read(reader.pieces[0], ["click"]).num_rows == 30  # it is open
    formats._opened.cache_clear()
    assert reader.read(reader.pieces[0], ["click"]).num_rows == 30  # it is made again


def test_a_cache_that_takes_no_files_costs_time_and_not_the_run(shop, folder, monkeypatch):
    whole = learnt(shop)
    shutil.rmtree(folder)
    (folder / "tables").mkdir(parents=True)
    shutil.copy("validation.csv", "kept.csv")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealed, "write", full)
    assert learnt(shop) == whole
    assert [p.suffix for p in kept(folder)].count(".tmp") == 0


def test_a_disk_that_does_not_keep_what_is_written_is_told_with_a_way_out(shop, monkeypatch):
    monkeypatch.setattr(sealed, "seal_parquet", lambda path, key: None)
    with pytest.raises(
        DataError, match=r"cache: what is written there is not what is read, 3 times\. Set ESPACE_CACHE"
    ):
        Files("validation.csv", "validation")


def write_arrow(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)


@pytest.mark.parametrize("ending", ["parquet", "csv", "arrow"])
def test_rows_altered_in_place_are_noticed_though_the_file_is_open_and_its_times_are_set_back(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    write = {
        "parquet": pq.write_table,
        "csv": pc.write_csv,
        "arrow": write_arrow,
    }[ending]
    write(rows(40).select(["click", "user_id"]), path)
    reader = Files(str(path), "train")
    reader.check()
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("rb+") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match=r"x\.\w+: the file changed since the start\. Leave the data alone"):
        reader.check()
    with pytest.raises(DataError, match=r"the file changed since the start|cannot be read"):
        reader.read(reader.pieces[0], ["click"])


def test_a_file_that_was_only_linked_or_touched_back_is_what_it_was(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(rows(40).select(["click"]), path)
    reader, before = Files(str(path), "train"), path.stat()
    os.link(path, tmp_path / "second.parquet")
    path.chmod(0o600)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    reader.check()
    assert reader.read(reader.pieces[0], ["click"]).num_rows == 40


def test_what_was_remembered_of_a_file_is_forgotten_when_it_is_altered(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(rows(40).select(["click"]), path)
    first, before = Files(str(path), "train").fingerprint, path.stat()
    pq.write_table(pa.table({"click": rows(40)["click"][::-1]}), path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    formats._opened.cache_clear()
    assert Files(str(path), "train").fingerprint != first


def test_training_rows_altered_while_training_stop_the_run_with_a_message(shop, monkeypatch):
    """Though every piece comes out of the cache, and none is read again."""
    from espace.training.callbacks import Checkpoints

    def alter(callback: Checkpoints, *_: object) -> None:
        with open("train.parquet", "rb+") as file:
            file.seek(100)
            file.write(b"\0")

    learnt(shop)
    monkeypatch.setattr(Checkpoints, "on_train_start", alter)
    said = shop.espace("fit", "shop.yaml", "--run-dir", "run", "trainer.max_steps=8")
    assert said.code == 2
    assert "train.parquet: the file changed since the start" in said.error
    assert cache.folder().exists()
