"""Laws of data.share: nested, drawn by the seed, of training rows only, and shown."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest

from espace.data.reading.spelling import canonical
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


BY = {  # the values of a column in their order, as a CSV has them, and two bounds among them
    "days": ([f"{n}" for n in range(1, 41)], 12, 30),
    "zip codes": ([f"{n:05}" for n in range(461, 501)], 470, 490),
    "with leading zeros of several widths": ([f"{n:0{1 + n % 4}}" for n in range(80, 120)], 90, 105),
    "seconds": ([f"{1_700_000_000 + n}" for n in range(40)], 1_700_000_010, 1_700_000_030),
    "fractions": ([f"{n / 4}" for n in range(40)], 2.5, 8),
    "dates": ([f"2024-01-{n + 1:02}" for n in range(31)], "2024-01-10", "2024-01-25"),
    "dates in digits": ([f"202401{n + 1:02}" for n in range(31)], 20240110, 20240125),
}


@pytest.mark.parametrize(
    ("hive", "values", "train", "validation"),
    [(hive, *found) for hive in (False, True) for name, found in BY.items() if not (hive and name == "fractions")],
)
def test_a_split_is_the_same_where_its_column_is_an_id_too_which_keeps_its_text(
    shop, hive, values, train, validation, monkeypatch
):
    monkeypatch.setenv("ESPACE_CACHE", str(shop.folder / "cache"))
    rows = [f"{n % 3},{n % 2}" for n in range(len(values))]
    if hive:
        for value, row in zip(values, rows, strict=True):
            (shop.folder / "data" / f"by={value}").mkdir(parents=True)
            (shop.folder / "data" / f"by={value}" / "rows.csv").write_text(f"x,click\n{row}\n")
    else:
        lines = [f"{v},{row}" for v, row in zip(values, rows, strict=True)]
        (shop.folder / "data.csv").write_text("\n".join(["by,x,click", *lines, ""]))
    split = {"by": "by", "train_until": train, "validation_until": validation, "test_until": 2_000_000_000}
    if isinstance(train, str):
        split["test_until"] = "2030-01-01"
    found = []
    for feature in ("x", "by"):
        path = shop.yaml(
            chain=["impression -> click"],
            data={"train": "data" if hive else "data.csv", "split": split},
            features={feature: "id"},
            metrics=None,
        )
        found.append(Experiment.from_yaml(path).check())
    alone, both = ({n: (s.tally.rows, s.span and s.span.low) for n, s in f.scans.items()} for f in found)
    assert both == alone
    vocabulary = found[1].encoder.tables["by"]
    assert set(map(str, vocabulary.values.to_pylist())) == set(
        canonical(pa.array(values[: both["train"][0]])).to_pylist()
    )
