"""Laws of data.share: nested, drawn by the seed, of training rows only, and shown."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest

from espace.data.reading.split import Everything, HeldOut, Sampled
from espace.runs.experiment import Experiment

ROWS = 4_000
TABLE = pa.table({"x": range(ROWS)})


def rows(share, seed=0, piece=0, of=None):
    return Sampled(share, seed, of or Everything()).mask(TABLE, piece, "here")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("piece", [0, 3])
def test_a_smaller_share_is_among_a_larger_one_and_has_its_size(seed, piece):
    shares = (0.01, 0.1, 0.1 + 1e-9, 0.5, 0.99)
    masks = [rows(s, seed, piece) for s in shares]
    for small, large in itertools.pairwise(masks):
        assert not (small & ~large).any()
    for share, mask in zip(shares, masks, strict=True):
        assert abs(mask.mean() - share) < 4 * np.sqrt(share * (1 - share) / ROWS)


def test_it_is_a_function_of_seed_and_piece():
    assert (rows(0.5) == rows(0.5)).all()
    assert (rows(0.5) != rows(0.5, seed=1)).any()
    assert (rows(0.5) != rows(0.5, piece=1)).any()


@pytest.mark.parametrize("seed", range(4))
def test_the_same_share_is_drawn_inside_and_outside_of_another_filter(seed):
    held = HeldOut(0.3, seed, inside=False)
    inside = held.mask(TABLE, 0, "here")
    assert (rows(0.4, seed, of=held) == (rows(0.4, seed) & inside)).all()
    assert abs(rows(0.4, seed)[inside].mean() - 0.4) < 0.04


def prepared(shop, *overrides):
    return Experiment.from_yaml(shop.yaml(), overrides).check()


def test_only_training_rows_are_left_out_and_vocabularies_learn_from_the_rest(shop):
    whole, part = prepared(shop), prepared(shop, "data.share=0.1")
    assert 30 < part.scans["train"].tally.rows < 90
    for name in ("validation", "test"):
        assert part.scans[name].tally == whole.scans[name].tally
    assert part.encoder.layout.slots["item_id"].rows < whole.encoder.layout.slots["item_id"].rows


def test_validation_rows_of_a_split_stay_what_they_are(shop):
    split = ("data.validation=null", "data.split={share: 0.25}")
    whole, part = prepared(shop, *split), prepared(shop, *split, "data.share=0.5")
    assert part.scans["validation"].tally == whole.scans["validation"].tally
    numbers = [[set(p.parts["train"].read(i, [])[1].tolist()) for i in (0, 1)] for p in (whole, part)]
    assert all(few < many for many, few in zip(*numbers, strict=True))


def test_the_audit_tells_how_many_rows_are_left(shop):
    said = shop.espace("check", shop.yaml(), "data.share=0.5")
    left = prepared(shop, "data.share=0.5").scans["train"].tally.rows
    assert f"data.share: training sees {left} rows, a share of 0.5." in said.out
    assert "data.share" not in shop.espace("check", shop.yaml()).out


def test_none_left_is_refused(shop):
    said = shop.espace("check", shop.yaml(), "data.share=0.0000001")
    assert said.code == 2
    assert "is there and falls into the random share of 1e-07. Change data.split or data.share." in said.error


def test_the_fingerprint_of_the_rows_knows_the_share(shop):
    identities = [prepared(shop, f"data.share={s}").parts["train"].identity for s in (0.5, 0.6, 1.0)]
    assert len(set(identities)) == 3
