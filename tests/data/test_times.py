"""Laws of times: one time is one time however it is written, a bound is on the clock of the column, and no part of a
time split reaches into another."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espace.data.reading.split import Between
from espace.data.reading.times import Clock, joined, overlaps
from espace.errors import DataError
from espace.runs.experiment import Experiment
from tests.shop import put, rows

DAYS = [datetime(2026, 11, 8), datetime(2026, 11, 9), datetime(2026, 11, 10)]
WRITTEN = {  # how a day may stand in a column; how a bound may be written; data.split.format
    "ISO 8601": ("%Y-%m-%d", "%Y-%m-%d", None),
    "ISO 8601 without dashes": ("%Y%m%d", "%Y%m%d", None),
    "with the hour": ("%Y-%m-%d 00:00:00", "%Y-%m-%d", None),
    "with T": ("%Y-%m-%dT00:00", "%Y-%m-%dT00:00:00", None),
    "with parts of a second": ("%Y-%m-%dT00:00:00.000000", "%Y-%m-%d", None),
    "with a zone": ("%Y-%m-%dT00:00:00+09:00", "%Y-%m-%d", None),
    "with UTC, and the bound too": ("%Y-%m-%dT00:00:00Z", "%Y-%m-%dT09:00+09:00", None),
    "month first": ("%m/%d/%Y", "%m/%d/%Y", "%m/%d/%Y"),
    "day first, the bound in ISO 8601": ("%d.%m.%y", "%Y-%m-%d", "%d.%m.%y"),
    "names of months": ("%d %b %Y", "%d %b %Y", "%d %b %Y"),
}
KINDS = [
    pa.date32(),
    pa.date64(),
    *(pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "Asia/Tokyo")),
]


def mask(values, since=None, until=None, format=None):
    return Between("t", since, until, format).mask(pa.table({"t": values}), 0, "f.parquet").tolist()


@pytest.mark.parametrize("written", WRITTEN)
def test_text_is_compared_as_the_time_that_it_says(written):
    day, bound, format = WRITTEN[written]
    values = pa.array([*(d.strftime(day) for d in DAYS), None, ""])
    for place, text in enumerate(d.strftime(bound) for d in DAYS):
        early = [i < place for i in range(3)]
        assert mask(values, until=text, format=format) == [*early, False, False]
        assert mask(values, since=text, format=format) == [*(not e for e in early), False, False]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("bound", ["2026-11-09", "2026-11-09T00:00", "20261109", "2026-11-09 00:00:00.0"])
def test_a_bound_is_on_the_clock_of_the_column(kind, bound):
    zone = ZoneInfo(getattr(kind, "tz", None) or "UTC")
    times = [d.replace(tzinfo=zone).astimezone(timezone.utc).replace(tzinfo=None) for d in DAYS]
    values = pa.array(times, pa.timestamp("us")).cast(kind)
    assert mask(values, until=bound) == [True, False, False]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York", "+05:30"])
def test_a_bound_with_a_zone_is_one_instant_in_every_zone(zone):
    values = pa.array([datetime(2026, 11, 8, 15), datetime(2026, 11, 8, 14, 59)]).cast(pa.timestamp("s", "UTC"))
    assert mask(values.cast(pa.timestamp("s", zone)), since="2026-11-09T00:00+09:00") == [True, False]


@settings(max_examples=100, deadline=None)
@given(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)), st.integers(-14 * 60, 14 * 60))
def test_iso_8601_is_read_as_python_reads_it(time, minutes):
    zone = timezone(timedelta(minutes=minutes))
    micros = (time.replace(tzinfo=zone) - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)
    for text in (time.replace(tzinfo=zone).isoformat(), time.replace(tzinfo=zone).isoformat(" ", "microseconds")):
        span = Clock("t").span(pa.chunked_array([[text]]), "f")
        assert (span.low, span.first) == (micros, text)


@pytest.mark.parametrize("text", ["11/10/2026", "9", "2026-13-01", "2026-02-30", "tomorrow", "2026-11-8", "10:00"])
def test_text_that_is_no_time_is_refused_with_its_row(text):
    values = pa.array(["2026-11-08", text])
    with pytest.raises(DataError, match=rf"f.parquet, row 1: 't' is text and has '{text}', which is no .*split.format"):
        mask(values, until="2026-11-09")
    with pytest.raises(DataError, match=r"which is no time of the form '%Y-%m-%d'. Mend the column, or data.split.for"):
        mask(pa.array(["2026-11-08", "x"]), until="2026-11-09", format="%Y-%m-%d")


@pytest.mark.parametrize(
    ("values", "bound", "message"),
    [
        (["2026-11-08"], "11/9/2026", r"type string, with '11/9/2026'. Write the bound .* in ISO 8601"),
        (["2026-11-08"], "2026-11-09T00:00Z", r"has a zone, but not all times of the column have one"),
        (pa.array(DAYS), "2026-11-09T00:00Z", r"type timestamp\[us\], with '2026-11-09T00:00Z'. Write the bound"),
        (pa.array(DAYS), 1_794_096_000, r"type timestamp\[us\], with 1794096000. Write the bound .*as in 2024-01-31"),
        (pa.array([1, 2]), "2026-11-09", r"type int64, with '2026-11-09'"),
    ],
)
def test_a_bound_that_the_column_cannot_be_compared_with_is_refused(values, bound, message):
    with pytest.raises(DataError, match=message):
        mask(values if isinstance(values, pa.Array) else pa.array(values), until=bound)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.none() | st.integers(-5, 5), max_size=4), min_size=1, max_size=4))
def test_the_span_of_pieces_is_that_of_the_whole(pieces):
    span = None
    for piece in pieces:
        span = joined(span, Clock("t").span(pa.chunked_array([pa.array(piece, pa.int64())]), "f"))
    known = [value for piece in pieces for value in piece if value is not None]
    assert (span and (span.low, span.high)) == ((min(known), max(known)) if known else None)


def prepared(shop, **data):
    yaml = shop.yaml(data={"train": "train.parquet", "batch_size": 256, **data})
    return shop.espace("check", yaml), Experiment.from_yaml(yaml).check()


BOUNDS = {
    "days": (lambda day: day, (5, 7, 9)),
    "text": (lambda day: [f"{11 + d % 2}/{d + 1}/2026" for d in day], ("11/5/2026", "11/9/2026", "12/4/2026")),
    "times": (
        lambda day: pa.array([datetime(2026, 1, 1 + d) for d in day]).cast(pa.timestamp("ms", "Asia/Tokyo")),
        ("2026-01-04", "2026-01-06", "2026-01-08"),
    ),
}


@pytest.mark.parametrize("kind", BOUNDS)
def test_parts_of_a_time_split_follow_one_another_and_the_audit_shows_it(kind, shop):
    column, bounds = BOUNDS[kind]
    shop.write(put(rows(600), day=column))
    names = ("train_until", "validation_until", "test_until")
    format = {"format": "%m/%d/%Y"} if kind == "text" else {}
    said, found = prepared(shop, split={"by": "day", **dict(zip(names, bounds, strict=True)), **format})
    spans = {name: scan.span for name, scan in found.scans.items()}
    assert list(spans) == ["train", "validation", "test"]
    assert spans["train"].high < spans["validation"].low <= spans["validation"].high < spans["test"].low
    assert overlaps("day", spans) == []
    assert "is not later than" not in said.out
    for span in spans.values():
        assert all(text in said.out for text in (span.type, span.first, span.last))
    kept = sum(scan.tally.rows for scan in found.scans.values())
    assert (
        f"{600 - kept} of 600 rows are in no part, since their 'day' is missing or not before {bounds[2]}." in said.out
    )
    again = Experiment.from_yaml("shop.yaml").check()  # from the cache
    assert {name: scan.span for name, scan in again.scans.items()} == spans


def test_files_that_overlap_in_time_are_told(shop):
    early, late, without = rows(300), put(rows(300, 1), day=lambda v: [d + 8 for d in v]), rows(300, 2)
    for name, table in (("train", early), ("validation", late), ("test", without.drop_columns("day"))):
        shop.write(table, f"{name}.parquet")
    said, _ = prepared(shop, validation="validation.parquet", test="test.parquet", split={"by": "day"})
    told = (
        "Note: validation: its times of 'day' begin at 8, not after those of train, which end at 9: validation is not"
    )
    assert said.code == 0
    assert f"{told} later than train." in " ".join(said.out.split())
    said, _ = prepared(shop, validation="validation.parquet", split={"by": "day"}, share=0.9)
    assert "is not later than" in said.out
    said = shop.espace("check", "shop.yaml", "data.split.by=dya")
    assert "data.split.by: train.parquet has no column 'dya'. Did you mean 'day'?" in said.error


def test_test_rows_of_a_time_split_are_judged_again_by_evaluate(shop):
    shop.write(rows(600))
    split = {"by": "day", "train_until": 5, "validation_until": 7, "test_until": 9}
    yaml = shop.yaml(data={"train": "train.parquet", "split": split}, trainer={"accelerator": "cpu", "max_steps": 2})
    assert shop.espace("fit", yaml, "--run-dir", "run").code == 0
    for part in ("validation", "test"):
        said = shop.espace("evaluate", "run", "--split", part)
        assert said.code == 0, said
        assert f"Results on {part}" in said.out
