"""Parts of dates as features: the same from every type that holds a moment, in the zone that training saw."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espace.data.encoding.columns import Id, Number, columns_as_text
from espace.data.encoding.encode import Encoder
from espace.data.encoding.learn import Learner
from espace.data.encoding.table import Columns
from espace.errors import DataError
from tests.data.test_encode import CHAIN

MOMENTS = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1)).map(lambda t: t.replace(microsecond=0))
MANY = st.lists(st.none() | MOMENTS, min_size=1, max_size=6)
UTC = dt.timezone.utc


def part(feature, **columns):
    return Columns(pa.table(columns), "here").part_of(feature, feature.part, None)[0]


def trained(feature, **columns):
    learner = Learner([feature])
    learner.add(Columns(pa.table(columns), "train"))
    made = {"dim": 4, "tables": learner.tables(), "numbers": learner.numbers(), "kinds": learner.kinds}
    return Encoder([feature], CHAIN, {}, **made)


def encoded(encoder, **columns):
    batch = encoder.encode(pa.table(columns), "new", labels=False)
    return torch.cat([batch.ids.double(), batch.numbers.double()], dim=1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hour", lambda t: t.hour),
        ("weekday", lambda t: t.weekday()),
        ("day", lambda t: t.day),
        ("month", lambda t: t.month),
        ("age", lambda t: (dt.datetime(2024, 2, 29) - t).total_seconds() / 86_400),
    ],
)
@given(MANY)
@settings(max_examples=40, deadline=None)
def test_a_part_is_that_of_the_calendar_whatever_holds_the_moment(name, expected, moments):
    feature = Number("x", part=name, at="2024-02-29" if name == "age" else None)
    values = pa.array(moments, pa.timestamp("s"))
    texts = pa.array([None if t is None else t.isoformat() for t in moments], pa.string())
    wanted = [np.nan if t is None else expected(t) for t in moments]
    for held in (values, values.cast(pa.timestamp("us")), values.cast(pa.timestamp("ns")), texts):
        np.testing.assert_allclose(part(feature, x=held), wanted, rtol=1e-12)


def test_an_age_is_counted_at_a_column_or_at_a_day_and_as_an_id_in_whole_days():
    born = pa.array([dt.date(2024, 1, 1), dt.date(2024, 1, 1), None])
    at = pa.array([dt.datetime(2024, 1, 2, 12), dt.datetime(2023, 12, 31, 12), dt.datetime(2024, 1, 1)])
    assert part(Number("x", part="age", at="y"), x=born, y=at).tolist() == pytest.approx(
        [1.5, -0.5, np.nan], nan_ok=True
    )
    ids, _ = Columns(pa.table({"x": born, "y": at}), "here").category_of(Id("x", part="age", at="y"))
    assert ids.to_pylist() == [1, -1, None]


def test_a_part_is_told_in_the_zone_that_training_saw():
    tokyo = pa.array([dt.datetime(2024, 1, 1, 23, tzinfo=UTC)], pa.timestamp("us", "Asia/Tokyo"))
    encoder = trained(Id("x", part="hour"), x=tokyo)
    for same in (tokyo, tokyo.cast(pa.timestamp("ns", "UTC")), pa.array(["2024-01-01 23:00:00Z"])):
        assert encoded(encoder, x=same).tolist() == [[3]], "8 o'clock in Tokyo"
    with pytest.raises(DataError, match=r"new, column 'x': it was timestamp\[us, tz=Asia/Tokyo\] in training and is"):
        encoded(encoder, x=tokyo.cast(pa.timestamp("us")))


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("ns", "UTC"), pa.date32()])
def test_a_moment_as_a_plain_number_is_refused_with_the_parts(kind):
    with pytest.raises(
        DataError, match=r"'ts' is of type .* and is no number. Take a part of it, as in ts_hour: {type"
    ):
        trained(Number("ts"), ts=pa.array([0], pa.int64() if kind != pa.date32() else pa.int32()).cast(kind))


def test_a_span_of_time_as_a_plain_number_is_refused_too():
    with pytest.raises(DataError, match=r"of type duration\[ns\] and is no number. Write it as a number, such as sec"):
        trained(Number("x"), x=pa.array([1], pa.duration("ns")))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([5], "it is of type int64, which has no parts of a date. Write timestamps"),
        (["2024-01-01", "soon"], "it is text, and 'soon' is no date or time"),
        (["2024-01-01", "2024-01-01 08:00:00Z"], "it is text, and some of it has a time zone, and some none"),
    ],
)
def test_what_has_no_parts_says_so(values, said):
    with pytest.raises(DataError, match=f"here, column 'x': {said}"):
        part(Number("x", part="hour"), x=values)


def test_an_age_between_a_moment_with_a_zone_and_one_without_is_refused():
    moment = dt.datetime(2024, 1, 1)
    with pytest.raises(DataError, match=r"here, column 'x': its age is counted from .*, of which one has a time zone"):
        part(Number("x", part="age", at="y"), x=pa.array([moment]), y=pa.array([moment.replace(tzinfo=UTC)]))


def test_a_column_of_dates_is_not_left_as_text():
    assert columns_as_text([Id("a"), Id("b", part="hour"), Number("c")]) == ["a"]
