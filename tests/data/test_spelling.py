"""One spelling for one value: an id depends neither on what holds it nor on what stands beside it in its column."""

import csv
import datetime as dt
import decimal
import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from espace.data.encoding.columns import Hash, Id, Sequence
from espace.data.encoding.encode import Encoder, kinds_from_state
from espace.data.encoding.learn import Learner
from espace.data.encoding.table import Columns
from espace.data.encoding.vocabulary import key_of
from espace.data.reading.readers import Files
from espace.data.reading.spelling import canonical
from espace.errors import DataError
from tests.data.test_encode import CHAIN

NULLS = {"", "\\N", "NULL", "null", "NaN", "nan"}  # what a cell of a CSV cannot hold
LETTERS = st.characters(codec="utf-8", exclude_characters="\r\n\0\x1f", exclude_categories=("Cs",))
MOMENTS = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1))
DAYS = st.dates(dt.date(1900, 1, 1), dt.date(2200, 1, 1))


def whole(bits, low=None):
    return st.integers(-(2**bits) if low is None else low, 2**bits - 1)


def decimals(places):
    return st.integers(-(10**9), 10**9).map(lambda n: decimal.Decimal(n).scaleb(-places).quantize(decimal.Decimal(1)))


VALUES = {  # type: its values
    pa.int64(): whole(63),
    pa.int8(): whole(7),
    pa.uint64(): whole(64, 0),
    pa.float64(): (whole(53, -(2**53) + 1)).map(float) | st.sampled_from([0.1, -2.5, 1234.5]),
    pa.float32(): whole(24, -(2**24) + 1).map(float) | st.sampled_from([0.5, 0.25]),
    pa.decimal128(20, 2): decimals(2),
    pa.bool_(): st.booleans(),
    pa.date32(): DAYS,
    pa.timestamp("us"): MOMENTS | DAYS.map(lambda d: dt.datetime.combine(d, dt.time())),
    pa.timestamp("us", "Asia/Tokyo"): MOMENTS.map(lambda t: t.replace(tzinfo=dt.timezone.utc)),
    pa.string(): st.text(LETTERS, max_size=8).filter(lambda t: t not in NULLS)
    | st.sampled_from(["00501", "501", "08:00", "true", "0x1A", "1e5", "1.5e-07", "2024-01-01", "+5", "-0"]),
}
COLUMNS = st.sampled_from(list(VALUES)).flatmap(
    lambda kind: st.lists(st.none() | VALUES[kind], min_size=1, max_size=8).map(lambda v: pa.array(v, kind))
)
TEXT = settings(max_examples=60, deadline=None)


def ids(values):
    """The spelling of every value."""
    return [None if v is None else str(v) for v in canonical(values).to_pylist()]


def read_back(path, rows):
    reader = Files(str(path), "train", ["x"])
    found = [v for piece in reader.pieces for v in ids(Columns(reader.read(piece, ["x"]), "x").array("x"))]
    assert len(found) == rows
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESPACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield tmp_path_factory.mktemp("files")


class TestContainers:
    @given(COLUMNS)
    @TEXT
    def test_parquet_and_arrow_files_give_the_ids_of_memory(self, folder, values):
        table = pa.table({"x": values})
        pq.write_table(table, folder / "x.parquet")
        with pa.ipc.new_file(folder / "x.arrow", table.schema) as writer:
            writer.write_table(table)
        for name in ("x.parquet", "x.arrow"):
            assert read_back(folder / name, len(values)) == ids(values)

    @given(COLUMNS)
    @TEXT
    @example(pa.array(["00501", "501"]))
    def test_a_csv_gives_the_ids_of_memory_whoever_wrote_it(self, folder, values):
        with (folder / "x.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("x", "y"), *((v, 0) for v in values.to_pylist())])  # as Python and pandas do
        assert read_back(folder / "x.csv", len(values)) == ids(values)
        pa.csv.write_csv(pa.table({"x": values, "y": [0] * len(values)}), folder / "arrow.csv")
        assert read_back(folder / "arrow.csv", len(values)) == ids(values)

    @given(COLUMNS.filter(lambda v: pa.types.is_string(v.type) or v.type in (pa.int64(), pa.float64(), pa.bool_())))
    @TEXT
    def test_json_gives_the_ids_of_memory(self, values):
        assert ids(pa.array(json.loads(json.dumps(values.to_pylist())), values.type)) == ids(values)

    @pytest.mark.parametrize("package", ["pandas", "polars"])
    def test_a_data_frame_gives_the_ids_of_memory(self, package):
        frames = pytest.importorskip(package)
        table = pa.table({"n": [5, 7, None], "t": ["a", None, "00501"], "d": [dt.date(2024, 1, 1)] * 3})
        frame = table.to_pandas() if package == "pandas" else frames.from_arrow(table)
        back = pa.table(frame) if package == "polars" else pa.Table.from_pandas(frame)
        for name in table.column_names:
            assert ids(back[name].combine_chunks()) == ids(table[name].combine_chunks())

    @given(MOMENTS.map(lambda t: t.replace(microsecond=0)) | DAYS)
    @TEXT
    def test_a_moment_is_one_id_whatever_its_unit_and_a_midnight_is_its_day(self, moment):
        kinds = [pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")]
        kinds += [] if isinstance(moment, dt.datetime) else [pa.date32(), pa.date64()]
        texts = [moment.isoformat(), str(moment)]
        assert len({*(ids(pa.array([moment]).cast(k))[0] for k in kinds), *ids(pa.array(texts))}) == 1

    def test_whole_numbers_are_one_id_and_text_that_is_none_stays_as_it_is(self):
        twelve = [pa.array([12]), pa.array([12.0]), pa.array([12], pa.uint64()), pa.array([decimal.Decimal("12.00")])]
        twelve += [pa.array([text]) for text in ("12", "12.0", "12.00", " 12 ")]
        assert {ids(values)[0] for values in twelve} == {"12"}
        others = ["012", "+12", "1.20", "1e1", "0x1A", "08:00", "TRUE", "12,0", "2024-13-01 00:00:00"]
        assert ids(pa.array(others)) == others


@given(COLUMNS)
@TEXT
def test_an_id_does_not_depend_on_the_others_of_its_column(values):
    assert [ids(values.slice(n, 1))[0] for n in range(len(values))] == ids(values)


@given(COLUMNS)
@TEXT
def test_a_spelling_is_its_own_spelling_and_the_key_of_a_group(values):
    texts = pa.array(ids(values), pa.string())
    assert ids(texts) == texts.to_pylist()
    assert key_of(values).tolist() == [key_of(texts.slice(n, 1))[0] for n in range(len(texts))]


@given(COLUMNS)
@TEXT
def test_a_value_known_from_one_container_has_its_row_from_another(values):
    texts = pa.array(ids(values), pa.string())
    for learnt, asked in ((values, texts), (texts, values)):
        encoder = trained(Id("x"), learnt)
        assert ids_of(encoder, asked) == ids_of(encoder, learnt)


@pytest.mark.parametrize(("kind", "least"), [(pa.float64(), 2**53), (pa.float32(), 2**24), (pa.float16(), 2**11)])
def test_floats_that_round_ids_are_refused_from_the_first_that_does(kind, least):
    assert ids(pa.array([np.dtype(kind.to_pandas_dtype()).type(least - 1)])) == [str(least - 1)]
    with pytest.raises(DataError, match=rf"2\*\*{least.bit_length() - 1}.*Write the column as int64 or as text"):
        canonical(pa.array([np.dtype(kind.to_pandas_dtype()).type(v) for v in (0, -least)]))


@pytest.mark.parametrize("text", ["1.152921504606847e+18", "1e+16", "9007199254740992.0", "-9.1e+15"])
def test_text_of_a_float_that_rounds_ids_is_refused_likewise(text):
    with pytest.raises(DataError, match=r"'.*' was written as a float at or above 2\*\*53"):
        canonical(pa.array(["7", text]))


def test_large_numbers_that_were_not_rounded_are_their_digits():
    values = ["9007199254740991.0", "9007199254740993.00", "1e+15", "1.5e+01", "9223372036854775808"]
    expected = ["9007199254740991", "9007199254740993", "1000000000000000", "15", "9223372036854775808"]
    assert ids(pa.array(values)) == expected


def test_bytes_that_are_no_text_stay_apart():
    assert len({*ids(pa.array([b"\xff", b"\xfe", b"a", None]))}) == 4


# A part of another type than training


def trained(feature, values):
    learner = Learner([feature])
    learner.add(Columns(pa.table({"x": values}), "train.parquet, row group 0"))
    made = {"dim": 4, "tables": learner.tables(), "numbers": {}}
    kept = json.loads(json.dumps({"kinds": {n: k.state() for n, k in learner.kinds.items()}}))
    return Encoder([feature], CHAIN, {}, kinds=kinds_from_state(kept), **made)


def ids_of(encoder, values):
    return encoder.encode(pa.table({"x": values}), "new.parquet, row group 0", labels=False).ids.tolist()


DAY = pa.array([dt.date(2024, 1, 1)])
NOON = pa.array([dt.datetime(2024, 1, 1, 12)])
OF_ONE_KIND = [
    (pa.array([1, 2]), pa.array([1.0, 2.0])),
    (pa.array([1, 2]), pa.array(["1", "2"])),
    (pa.array([True, False]), pa.array(["True", "False"])),
    (DAY, DAY.cast(pa.timestamp("ns"))),
    (DAY, pa.array(["2024-01-01"])),
    (NOON, NOON.cast(pa.timestamp("s"))),
    (NOON, pa.array(["2024-01-01T12:00"])),
    (pa.array([b"a"]), pa.array(["a"]).dictionary_encode()),
]


@pytest.mark.parametrize("feature", [Id("x"), Hash("x", buckets=1000)])
@pytest.mark.parametrize(("one", "other"), OF_ONE_KIND)
def test_a_part_of_another_type_is_converted_exactly(feature, one, other):
    for learnt, asked in ((one, other), (other, one)):
        assert ids_of(trained(feature, learnt), asked) == ids_of(trained(feature, learnt), learnt)


@pytest.mark.parametrize("feature", [Id("x"), Hash("x", buckets=1000)])
@pytest.mark.parametrize(
    ("learnt", "asked"),
    [
        (DAY, pa.array([19_723])),
        (pa.array([19_723]), DAY),
        (pa.array(["19723", "19724"]), DAY),
        (NOON, NOON.cast(pa.timestamp("us", "UTC"))),
        (pa.array([True]), pa.array([1])),
        (pa.array(["yes", "no"]), pa.array([True])),
        (DAY, pa.array(["01/01/2024"])),
    ],
)
def test_a_part_whose_type_cannot_be_converted_is_refused_with_both_types(feature, learnt, asked):
    said = rf"new.parquet, row group 0, column 'x': it was {learnt.type} in training and is {asked.type} here"
    with pytest.raises(DataError, match=said.replace("[", r"\[").replace("]", r"\]")):
        ids_of(trained(feature, learnt), asked)


def test_a_part_without_values_is_of_any_type():
    assert ids_of(trained(Id("x"), DAY), pa.nulls(2)) == [[2], [2]]
    assert ids_of(trained(Id("x"), pa.nulls(2)), DAY) == [[1]]


def test_files_of_one_part_may_hold_an_id_as_number_and_as_text(folder):
    pq.write_table(pa.table({"x": [501, None], "y": [1, 1]}), folder / "a.parquet")
    (folder / "b.csv").write_text("x,y\n501,1\n00501,1\n")
    reader = Files([str(folder / "a.parquet"), str(folder / "b.csv")], "train", ["x"])
    found = pa.concat_tables([reader.read(piece, ["x", "y"]) for piece in reader.pieces])
    assert found.to_pydict() == {"x": ["501", None, "501", "00501"], "y": [1, 1, 1, 1]}
    (folder / "b.csv").write_text("x,y\na501,1\n")
    reader = Files([str(folder / "a.parquet"), str(folder / "b.csv")], "train")
    with pytest.raises(DataError, match="column 'x' is string, but int64 in"):
        reader.read(reader.pieces[0], ["x"])


# Lists


@given(st.lists(st.none() | st.lists(st.none() | whole(63), max_size=4), min_size=1, max_size=6))
@TEXT
def test_a_list_is_the_same_events_as_a_column_as_json_and_with_a_separator(lists):
    """With what follows a separator, blanks, and nulls, which are no events."""
    forms = [
        pa.array(lists, pa.list_(pa.int64())),
        pa.array(lists, pa.large_list(pa.int64())),
        pa.array([None if v is None else json.dumps(v) for v in lists], pa.string()),
        pa.array([None if v is None else str(v) for v in lists], pa.string()),
        pa.array(
            [None if v is None else json.dumps([n if n is None else str(n) for n in v]) for v in lists], pa.string()
        ),
        pa.array(
            [None if v is None else "".join(f" {'' if n is None else n} |" for n in v) for v in lists], pa.string()
        ),
    ]
    expected = [[str(n) for n in v or () if n is not None] for v in lists]
    for form in forms:
        events = Columns(pa.table({"x": form}), "here").events_of(Sequence("x"))
        values, ends = ids(events.values), np.cumsum(events.lengths)
        assert [values[end - n : end] for n, end in zip(events.lengths, ends, strict=True)] == expected


@given(st.lists(st.text(LETTERS, max_size=5), max_size=4))
@TEXT
def test_text_in_a_list_is_read_from_json_and_from_python(values):
    kept = [v.strip() for v in values if v.strip()]
    for text in (json.dumps(values), json.dumps(values, ensure_ascii=False)):
        events = Columns(pa.table({"x": [text]}), "here").events_of(Sequence("x"))
        assert ids(events.values) == [i for i in ids(pa.array(kept, pa.string())) if i is not None]


@pytest.mark.parametrize(
    "text", ["[1 2 3]", "[1, 2", "[[1], [2]]", "['a' 'b']", "(1, 2)", "()", "{1, 2}", "array([1])"]
)
def test_text_that_begins_like_a_list_and_is_none_is_refused(text):
    table = Columns(pa.table({"x": ["1|2", text]}), "f.csv, row group 0", np.array([5, 9]))
    with pytest.raises(DataError, match=r"f.csv, row group 0, column 'x': row 9 has .* Write \[1, 2\] or .*'\|'"):
        table.events_of(Sequence("x"))


def test_text_in_brackets_beside_a_separator_is_an_event():
    events = Columns(pa.table({"x": ["(new)|(a, b)", "(new)"]}), "here").events_of(Sequence("x"))
    assert events.values.to_pylist() == ["(new)", "(a, b)", "(new)"]


def test_the_audit_tells_mean_length_empty_lists_and_the_most_frequent_event():
    learner = Learner([Sequence("x"), Sequence("h", column="x", buckets=10)])
    for piece in (["7|7|8", None], ["[7]", "[]"]):
        learner.add(Columns(pa.table({"x": pa.array(piece)}), "here"))
    for facts in learner.lists.values():
        assert (facts.rows, facts.empty, facts.events, facts.most, facts.times, facts.seen) == (4, 2, 4, "7", 3, 4)
