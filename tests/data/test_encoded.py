"""What is kept of an encoded piece is the piece, and is found again only for the same rows and the same encoder."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from espace.data.encoding.encoded import Encoded
from espace.data.reading import cache
from espace.data.reading.split import HeldOut, Part
from espace.errors import DataError
from espace.runs.experiment import Experiment
from espace.runs.opening import prepare
from espace.runs.report import Report


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("ESPACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def prepared(shop):
    def make(**sections):
        made = Experiment.from_yaml(shop.yaml(**sections))
        return prepare(made.config, made.registry, Report(quiet=True))

    return make


@pytest.fixture
def readings(monkeypatch):
    """The pieces that are read from the user's files."""
    seen, read = [], Part.read

    def noted(part, piece, columns):
        seen.append((part.name, piece))
        return read(part, piece, columns)

    monkeypatch.setattr(Part, "read", noted)
    return seen


def same(one, other):
    for field in fields(one):
        a, b = (getattr(batch, field.name) for batch in (one, other))
        if field.name in ("lists", "extras"):
            assert [*a] == [*b]
            a, b = ([vars(v) if hasattr(v, "offsets") else v for v in side.values()] for side in (a, b))
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def encoded(prepared, name="train", **more):
    given = {"part": prepared.parts[name], "encoder": prepared.encoder, "labels": True, "keep": True, **more}
    return Encoded(**given)


def test_a_kept_piece_is_the_piece_and_is_read_once(prepared, readings):
    data = prepared()
    pieces = range(len(data.parts["train"].reader.pieces))
    readings.clear()
    plain = [encoded(data, keep=False).piece(n) for n in pieces]
    for _ in range(3):
        for n in pieces:
            same(encoded(data).piece(n), plain[n])
    assert readings == [("train", n) for n in pieces] * 2  # once without keeping, once with


def test_other_rows_another_encoder_and_no_labels_are_kept_apart(prepared, readings):
    data = prepared()
    part = data.parts["train"]
    others = [
        {"part": replace(part, keep=HeldOut(0.5, 0, True))},
        {"part": data.parts["validation"]},
        {"encoder": prepared(features={"user_id": "id"}).encoder},
        {"encoder": prepared(embedding={"dim": 6}).encoder},
        {"labels": False},
    ]
    encoded(data).piece(0)
    readings.clear()
    for other in others:
        same(encoded(data, **other).piece(0), encoded(data, **other, keep=False).piece(0))
    assert len(readings) == 2 * len(others)


def test_a_file_cut_off_is_made_again(prepared):
    data = prepared()
    whole = encoded(data).piece(0)
    (path, *_) = (cache.folder() / "tables").glob("*.batch")
    for size in (path.stat().st_size - 1, path.stat().st_size // 2, 10, 0):
        path.write_bytes(path.read_bytes()[:size])
        same(encoded(data).piece(0), whole)
        same(encoded(data).piece(0), whole)


def test_data_larger_than_half_the_cache_is_not_kept(prepared, monkeypatch):
    data = prepared()
    monkeypatch.setenv("ESPACE_CACHE_GIB", "1e-6")
    encoded(data).piece(0)
    assert not [*(cache.folder() / "tables").glob("*.batch")]


def test_a_cache_that_cannot_be_written_does_not_stop_a_run(prepared, monkeypatch):
    def full(*_):
        raise DataError("no room")

    data = prepared()
    monkeypatch.setattr(cache.Kept, "filled", full)
    same(encoded(data).piece(0), encoded(data, keep=False).piece(0))


def test_training_does_not_change_what_is_kept(prepared):
    data = prepared(features={"user_id": {"type": "id", "unknown_rate": 0.5}})
    before = encoded(data).piece(0).ids.clone()
    from espace.data.stream.plan import Plan
    from espace.data.stream.stream import Stream

    plan = Plan(data.scans["train"].counts, 64, 0, True, 1000)
    for _ in range(2):
        ids = torch.cat([b.ids for b in Stream(data.parts["train"], data.encoder, plan, training=True, keep=True)])
    assert np.unique(ids.numpy()).size
    assert torch.equal(encoded(data).piece(0).ids, before)
