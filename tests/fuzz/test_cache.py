"""The door of the cache: whatever became of the files in it, what is learnt of the data is the same to the bit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.csv as pc
import pytest
from hypothesis import strategies as st

from espace.data.encoding.encoded import Encoded
from espace.data.reading import formats, sealed
from espace.runs.experiment import Experiment
from espace.runs.opening import prepare
from espace.runs.report import Report
from tests.fuzz.doors import ACCEPTED, try_door, verdict
from tests.shop import CONFIG, Shop, put, rows

FEW = 12
FLAT = ("user_id", "item_id", "place", "price", "age")
PLACE = st.floats(0, 1, exclude_max=True)  # of a byte in a file, or of a file among files
DAMAGE = st.one_of(
    st.tuples(st.just("flip"), PLACE, PLACE, st.integers(1, 255)),
    st.tuples(st.just("cut"), PLACE, PLACE, st.none()),
    st.tuples(st.just("add"), PLACE, PLACE, st.binary(min_size=1, max_size=200)),
    st.tuples(st.just("fill"), PLACE, PLACE, st.binary(min_size=1, max_size=200)),
    st.tuples(st.just("delete"), PLACE, PLACE, st.none()),
    st.tuples(st.just("swap"), PLACE, PLACE, st.none()),
    st.tuples(st.just("copy"), PLACE, PLACE, st.none()),
    st.tuples(st.just("other data"), PLACE, PLACE, st.none()),
)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, list[Any]]:
    """A cache of a small shop; one of a shop with other rows and the same columns; and what is learnt of the first."""
    monkeypatch.chdir(tmp_path)
    shop = Shop(tmp_path)
    features = {name: CONFIG["features"][name] for name in FLAT}
    data = {"train": "train.parquet", "validation": "validation.csv", "weight": "weight", "batch_size": 16}
    shop.yaml(data=data, features=features, trainer={"accelerator": "cpu"}, metrics={})
    for seed, name in ((5, "other"), (0, "cache")):
        shop.write(rows(60, seed), "train.parquet", group=40)
        plain = rows(30, seed + 1).drop_columns(["history", "tags", "tag_weights", "text"])
        pc.write_csv(put(plain, place=list(range(30))), tmp_path / "validation.csv")
        monkeypatch.setenv("ESPACE_CACHE", str(tmp_path / name))
        whole = learnt()
    shutil.copytree(tmp_path / "cache", tmp_path / "good")
    return tmp_path / "cache", tmp_path / "other", whole


def learnt() -> list[Any]:
    """All that training gets of the data, as plain values, read as by a new process."""
    formats._opened.cache_clear()
    sealed._whole.clear()
    made = Experiment.from_yaml("shop.yaml")
    prepared = prepare(made.config, made.registry, Report(quiet=True))
    found: list[Any] = [prepared.encoder.identity, repr(prepared.encoder.numbers), repr(prepared.scans)]
    for part in prepared.parts.values():
        encoded = Encoded(part, prepared.encoder, labels=True, keep=True)
        for number in range(len(part.reader.pieces)):
            found += [tensor.numpy().tobytes() for tensor in encoded.piece(number).tensors()]
    return found


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def do(folder: Path, other: Path, what: str, which: float, where: float, more: Any) -> None:
    """One damage: to a byte, from a byte on, or to a file as a whole."""
    found = files(folder)
    if not found:
        return
    path, second = found[int(which * len(found))], found[int(where * len(found))]
    content, at = path.read_bytes(), int(where * path.stat().st_size)
    if what == "flip" and content:
        path.write_bytes(content[:at] + bytes([content[at] ^ more]) + content[at + 1 :])
    elif what == "cut":
        os.truncate(path, at)
    elif what in ("add", "fill"):
        path.write_bytes(content[:at] + more + content[at + (len(more) if what == "fill" else 0) :])
    elif what == "delete":
        path.unlink()
    elif what == "swap":
        path.write_bytes(second.read_bytes())
        second.write_bytes(content)
    elif what == "copy":
        second.write_bytes(content)
    elif foreign := [p for p in files(other) if p.suffix == path.suffix]:
        path.write_bytes(foreign[int(where * len(foreign))].read_bytes())


def judge(cached: tuple[Path, Path, list[Any]], damages: list[tuple[str, float, float, Any]]) -> str:
    """What is learnt is what was learnt, or there is an error of espace."""
    folder, other, whole = cached
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("good"), folder)
    for damage in damages:
        do(folder, other, *damage)
    found: list[list[Any]] = []
    told = verdict(lambda: found.append(learnt()))
    assert told != ACCEPTED or found[0] == whole
    return told


def test_whatever_became_of_the_cache_what_is_learnt_is_the_same(cached: tuple[Path, Path, list[Any]]) -> None:
    assert {p.suffix for p in files(cached[0])} == {".scan", ".batch", ".parquet", ".json"}
    try_door("cache", st.lists(DAMAGE, min_size=1, max_size=4), lambda damages: judge(cached, damages), FEW)
