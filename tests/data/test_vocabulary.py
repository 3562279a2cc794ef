"""Vocabularies: a look-up is total, stable and survives being saved."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espace.data.encoding.columns import Feature, Id
from espace.data.encoding.learn import Learner
from espace.data.encoding.table import Columns
from espace.data.encoding.vocabulary import FIRST, NULL, UNKNOWN, ValueCounts, Vocabulary, hash_rows, key_of
from espace.data.reading.spelling import canonical
from espace.errors import DataError

INTS = st.lists(st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 50), max_size=30)
TEXTS = st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=6), max_size=30)


def learnt(values, **options):
    counts = ValueCounts()
    counts.add(canonical(values))
    return counts.vocabulary(options.get("min_count", 1), options.get("max_size"))


@given(st.one_of(INTS.map(lambda v: pa.array(v, pa.int64())), TEXTS.map(lambda v: pa.array(v, pa.string()))))
@settings(max_examples=80, deadline=None)
def test_every_known_value_has_its_own_row_and_null_has_row_2(values):
    vocabulary = learnt(values)
    rows = vocabulary.encode(canonical(values))
    for value, row in zip(canonical(values).to_pylist(), rows.tolist(), strict=True):
        assert row == NULL if value is None else str(vocabulary.values[row - FIRST].as_py()) == str(value)
    assert len(set(vocabulary.values.to_pylist())) == len(vocabulary.values)


@given(INTS, TEXTS)
@settings(max_examples=60, deadline=None)
def test_no_value_of_whatever_type_crashes_a_look_up(numbers, texts):
    for known in (pa.array(numbers, pa.int64()), pa.array(texts, pa.string())):
        vocabulary = learnt(known)
        for asked in (
            pa.array(numbers, pa.int64()),
            pa.array(texts, pa.string()),
            pa.array([1.5, float("nan"), -2.0, float("inf")]),
            pa.array([True, None]),
            pa.array([b"\xff\xfe", b"a"]),
            pa.array([2**64 - 1], pa.uint64()),
            pa.array([0], pa.timestamp("us")),
        ):
            rows = vocabulary.encode(canonical(asked))
            assert ((rows >= UNKNOWN) & (rows < vocabulary.rows)).all()


def test_whole_numbers_are_found_whether_written_as_number_float_or_text():
    numbers, texts = learnt(pa.array([7, 8, 123])), learnt(pa.array(["7", "8", "123", "x"]))
    for vocabulary in (numbers, texts):
        expected = vocabulary.encode(canonical(pa.array([123, 9])))
        assert expected[0] >= FIRST
        assert expected[1] == UNKNOWN
        for same in (pa.array([123.0, 9.0]), pa.array(["123", "9"]), pa.array([123, 9], pa.int8())):
            assert np.array_equal(vocabulary.encode(canonical(same)), expected)
    assert numbers.encode(pa.array(["0123", "123 ", "1e2", "-0"])).tolist() == [UNKNOWN] * 4


def test_ids_above_2_to_the_53_with_nulls_stay_apart():
    values = pa.array([2**53, 2**53 + 1, None])
    assert len(set(learnt(values).encode(canonical(values)).tolist())) == 3


def test_the_most_frequent_values_come_first_and_the_rare_ones_are_unknown():
    values = pa.array(["a"] * 3 + ["b"] * 5 + ["c"] + ["d"] * 2)
    assert learnt(values).values.to_pylist() == ["b", "a", "d", "c"]
    assert learnt(values, min_count=2).encode(pa.array(["c"])).tolist() == [UNKNOWN]
    assert learnt(values, max_size=2).values.to_pylist() == ["b", "a"]


def test_counting_in_pieces_equals_counting_at_once(monkeypatch):
    random = np.random.default_rng(0)
    values = pa.array(random.integers(0, 500, 20_000))
    monkeypatch.setattr(ValueCounts, "_SLACK", 1000)
    pieces = ValueCounts()
    for at in range(0, 20_000, 777):
        pieces.add(values.slice(at, 777))
    at_once = learnt(values)
    found = pieces.vocabulary(1, None)
    assert found.values.equals(at_once.values)
    assert found.counts.equals(at_once.counts)


@pytest.mark.parametrize("threads", [1, 8])
def test_features_that_share_a_table_count_together_whatever_the_threads(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(ValueCounts, "_SLACK", 100)
    random = np.random.default_rng(0)
    features: list[Feature] = [Id("f0"), *(Id(f"f{i}", share="f0") for i in range(1, 12)), Id("alone")]
    pieces = [pa.table({f.name: random.integers(0, 3_000, 2_000) for f in features}) for _ in range(20)]
    learner = Learner(features)
    for piece in pieces:
        learner.add(Columns(piece, "here"))
    shared = [values for piece in pieces for values in piece.columns[:-1]]
    for name, columns in (("f0", shared), ("alone", [piece["alone"] for piece in pieces])):
        found, expected = learner.tables()[name], learnt(pa.concat_arrays([c.combine_chunks() for c in columns]))
        assert isinstance(found, Vocabulary)
        assert found.values.equals(expected.values)
        assert found.counts.equals(expected.counts)


def test_every_column_that_cannot_be_read_is_told_in_the_order_of_the_features(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    wrong = [f"f{i}" for i in range(20)]
    table = Columns(pa.table({name: [[1]] for name in wrong} | {"right": [1]}), "here")
    with pytest.raises(DataError) as told:
        Learner([Id(name) for name in [*wrong[:7], "right", *wrong[7:]]]).add(table)
    assert [line.split("'")[1] for line in str(told.value).splitlines()] == wrong


@pytest.mark.parametrize("values", [pa.array([5, -1, 2**60]), pa.array(["é", "", "x"]), pa.array([], pa.int64())])
def test_a_saved_vocabulary_gives_the_same_rows(values, tmp_path):
    vocabulary = learnt(values)
    copy = Vocabulary.from_state(vocabulary.state())
    vocabulary.save(tmp_path / "v.parquet")
    table = pq.read_table(tmp_path / "v.parquet")
    assert table.column_names == ["value", "count"]
    assert table["value"].to_pylist() == vocabulary.values.to_pylist() == copy.values.to_pylist()
    assert np.array_equal(copy.encode(values), vocabulary.encode(values))


def test_the_dense_and_the_sorted_look_up_agree():
    random = np.random.default_rng(1)
    near = random.choice(10_000, 500, replace=False)
    far = near.astype(np.int64) * 2**40
    asked = random.integers(-10, 10_010, 3000)
    dense, ordered = learnt(pa.array(near)), learnt(pa.array(far))
    assert np.array_equal(dense.encode(pa.array(asked)) > 1, ordered.encode(pa.array(asked * 2**40)) > 1)


@pytest.mark.parametrize("known", [[5], [-5, 0, 7], [-(2**63), -(2**63) + 3], [2**63 - 1, 2**63 - 4], []])
def test_only_what_is_known_is_found_at_both_ends_of_what_is_known(known):
    vocabulary = learnt(pa.array(known, pa.int64()))
    near = {v + d for v in [*known, 0, -(2**63), 2**63 - 1] for d in (-2, -1, 0, 1, 2)}
    asked = sorted(v for v in near if -(2**63) <= v < 2**63)
    rows = vocabulary.encode(pa.array(asked, pa.int64()))
    assert [v for v, row in zip(asked, rows, strict=True) if row != UNKNOWN] == sorted(known)


def test_the_hash_is_xxh64_of_salt_and_text():
    """Test vectors for other languages: 3 + xxh64(salt, 0x00, text; seed 0) mod buckets."""
    assert hash_rows(pa.array(["a", None, "b", "a"]), "item", 1000).tolist() == VECTORS
    assert np.array_equal(hash_rows(pa.array([12]), "item", 1000), hash_rows(pa.array(["12"]), "item", 1000))
    assert (
        hash_rows(pa.array(["a"]), "other", 2**31 - 8).tolist()
        != hash_rows(pa.array(["a"]), "item", 2**31 - 8).tolist()
    )


VECTORS = [579, NULL, 821, 579]


def test_keys_group_equal_values_across_pieces_and_types_of_text():
    one, two = key_of(pa.array(["x", "y", None])), key_of(pa.array(["y", "x", None]).dictionary_encode())
    assert one.tolist() == [two[1], two[0], two[2]]
    assert key_of(pa.array([3, 1, 3])).tolist() == [3, 1, 3]


def test_a_struct_cannot_be_a_category():
    with pytest.raises(DataError, match="cannot be a category"):
        canonical(pa.array([{"a": 1}]))
