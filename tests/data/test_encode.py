"""Encoding: every feature type, with nulls, wrong types and values never seen."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from espace.chain.chain import Chain
from espace.data.encoding.columns import Bag, Hash, Id, Number, Sequence, Vector
from espace.data.encoding.encode import Encoder, learnt_from_state
from espace.data.encoding.learn import Learner
from espace.data.encoding.strays import Strays
from espace.data.encoding.table import Columns
from espace.errors import DataError

CHAIN = Chain.parse(["impression -> click"])


def fitted(features, data, **options):
    learner = Learner(features)
    learner.add(Columns(pa.table(data), "train"))
    labels = options.pop("labels", {"click": "click"})
    return Encoder(features, CHAIN, labels, dim=4, tables=learner.tables(), numbers=learner.numbers(), **options)


def encode(encoder, data):
    return encoder.encode(pa.table(data), "f.parquet, row group 0", labels="click" in data)


def test_ids_of_one_width_stand_in_one_table_without_overlap():
    features = [Id("a"), Id("b", dim=8), Id("c"), Hash("d", buckets=10)]
    encoder = fitted(features, {"a": [1, 2], "b": ["x", "y"], "c": [5, 5], "d": [1, 2]})
    slots = encoder.layout.slots
    assert encoder.layout.rows == {4: 5 + 4 + 13, 8: 5}
    taken = [row for s in slots.values() if s.width == 4 for row in range(s.offset, s.offset + s.rows)]
    assert sorted(taken) == list(range(22))
    batch = encode(encoder, {"a": [1, None], "b": ["x", "z"], "c": [9, 5], "d": [1, None]})
    assert [f.name for f in encoder.ids] == ["a", "c", "d", "b"], "columns are ordered by width"
    assert batch.ids.dtype == torch.int32
    assert batch.ids[1, 0] == 2, "null"
    assert batch.ids[0, 1] == slots["c"].offset + 1, "unknown"


def test_a_history_that_shares_a_table_finds_the_same_rows():
    features = [Id("item"), Sequence("history", share="item", max_length=3)]
    encoder = fitted(features, {"item": [1, 2], "history": [[3, 1], []]})
    batch = encode(encoder, {"item": [1, 3], "history": [[9, 9, 3, 1, 2], None]})
    rows = {v: int(r) for v, r in zip([1, 3], batch.ids[:, 0], strict=True)}
    assert batch.lists["history"].offsets.tolist() == [0, 3, 3]
    assert batch.lists["history"].values.tolist()[:2] == [rows[3], rows[1]], "the last three events stay"


@pytest.mark.parametrize("keep", ["last", "first"])
def test_a_long_history_is_cut_on_the_stated_side(keep):
    encoder = fitted([Sequence("h", max_length=2, keep=keep)], {"h": [[1, 2, 3, 4]]})
    whole = fitted([Sequence("h")], {"h": [[1, 2, 3, 4]]})
    expected = encode(whole, {"h": [[3, 4] if keep == "last" else [1, 2]]}).lists["h"].values
    assert torch.equal(encode(encoder, {"h": [[1, 2, 3, 4]]}).lists["h"].values, expected)


def test_lists_are_read_from_list_columns_slices_and_text_alike():
    encoder = fitted([Bag("tags")], {"tags": [["a", "b"], ["c"]]})
    whole = pa.array([["x"], ["a", "b"], None, ["c"], []])
    forms = [
        whole.slice(1),
        whole.slice(1).cast(pa.large_list(pa.string())),
        pa.array(["a|b", None, "c", ""]),
    ]
    found = [encode(encoder, {"tags": form}).lists["tags"] for form in forms]
    for ragged in found:
        assert ragged.lengths.tolist() == [2, 0, 1, 0]
        assert torch.equal(ragged.values, found[0].values)


def test_weights_of_a_bag_need_one_for_each_value():
    encoder = fitted([Bag("tags", weights="w")], {"tags": [["a", "b"]], "w": [[1.0, 2.0]]})
    batch = encode(encoder, {"tags": [["a"], ["b", "a"]], "w": [[0.5], [1.0, 3.0]]})
    assert batch.lists["tags"].weights.tolist() == [0.5, 1.0, 3.0]
    with pytest.raises(DataError, match="row group 0, row 1: 'w' has 1 weights for 2 values of 'tags'"):
        encode(encoder, {"tags": [["a"], ["b", "a"]], "w": [[0.5], [1.0]]})


def test_numbers_are_standardised_and_what_is_missing_or_infinite_is_flagged():
    values = [1.0, 2.0, 3.0, None, float("nan"), float("inf")]
    encoder = fitted([Number("x")], {"x": values})
    batch = encode(encoder, {"x": values})
    deviation = np.std([1, 2, 3])
    assert torch.allclose(batch.numbers[:, 0], torch.tensor([-1 / deviation, 0, 1 / deviation, 0, 0, 0]).float())
    assert batch.numbers[:, 1].tolist() == [0, 0, 0, 1, 1, 1]


def test_log1p_is_safe_for_negative_numbers_and_a_constant_is_0():
    encoder = fitted([Number("x", log1p=True, standardise=False), Number("c")], {"x": [0.0], "c": [5]})
    batch = encode(encoder, {"x": [-np.expm1(2.0), np.expm1(3.0)], "c": [5, 5]})
    assert torch.allclose(batch.numbers[:, 0], torch.tensor([-2.0, 3.0]))
    assert batch.numbers[:, 2].tolist() == [0, 0]


def test_moments_over_pieces_equal_those_at_once():
    random = np.random.default_rng(0)
    values = random.normal(1e6, 3, 5000)
    learner = Learner([Number("x")])
    for at in range(0, 5000, 321):
        learner.add(Columns(pa.table({"x": values[at : at + 321]}), "train"))
    stats = learner.numbers()["x"]
    assert stats.mean == pytest.approx(values.mean(), rel=1e-12)
    assert stats.deviation == pytest.approx(values.std(), rel=1e-9)


def test_buckets_are_quantiles_or_the_edges_given_and_null_has_its_own_row():
    encoder = fitted([Number("x", buckets=4)], {"x": np.arange(1000)})
    rows = encode(encoder, {"x": np.arange(1000)}).ids[:, 0]
    assert np.bincount(rows.numpy())[3:].tolist() == pytest.approx([250] * 4, abs=2)
    given = fitted([Number("x", buckets=[0.0, 10.0])], {"x": [1.0]})
    assert encode(given, {"x": [-1.0, 0.0, 9.9, 10.0, None]}).ids[:, 0].tolist() == [3, 4, 4, 5, 2]


def test_a_vector_has_the_stated_size_and_a_missing_one_is_zero():
    encoder = fitted([Vector("v", size=2)], {"v": [[1.0, 2.0]]})
    assert encode(encoder, {"v": [[1.0, 2.0], None]}).numbers.tolist() == [[1, 2], [0, 0]]
    with pytest.raises(DataError, match="row 0: 'v' has 3 numbers, but the feature has size: 2"):
        encode(encoder, {"v": [[1.0, 2.0, 3.0]]})


def test_text_where_a_number_was_expected_names_column_and_value():
    encoder = fitted([Number("x")], {"x": [1.0]})
    assert encode(encoder, {"x": ["2.5"]}).numbers.shape == (1, 2), "text that is a number is one"
    with pytest.raises(DataError, match=r"f.parquet, row group 0: 'x' is of type string and is no number.*abc"):
        encode(encoder, {"x": ["abc"]})


def test_a_list_where_an_id_was_expected_says_what_to_do():
    encoder = fitted([Id("a")], {"a": [1]})
    with pytest.raises(DataError, match=r"'a' is of type list.*Declare the feature as a sequence or a bag"):
        encode(encoder, {"a": [[1]]})


def test_rows_whose_labels_contradict_the_chain_are_refused_or_dropped():
    chain = Chain.parse(["impression -> click -> buy"])
    data = pa.table({"a": [1, 2, 3], "click": [1, 0, 1], "buy": [1, 1, 0]})
    made = {"dim": 4, "tables": fitted([Id("a")], {"a": [1, 2, 3]}).tables, "numbers": {}}
    labels = {"click": "click", "buy": "buy"}
    with pytest.raises(DataError, match="1 of 3 rows have labels that contradict the chain, row 1"):
        Encoder([Id("a")], chain, labels, **made).encode(data, "f")
    batch = Encoder([Id("a")], chain, labels, policy="drop", **made).encode(data, "f")
    assert batch.labels.tolist() == [[1, 1], [1, 0]]


def test_row_weights_have_to_be_there_and_not_negative():
    encoder = fitted([Id("a")], {"a": [1]}, weight="w")
    data = {"a": [1, 1], "click": [0, 1]}
    assert encode(encoder, {**data, "w": [0.5, 2]}).weights.tolist() == [0.5, 2]
    for wrong in ([1.0, -1.0], [1.0, None]):
        with pytest.raises(DataError, match="row 1: the weight w"):
            encode(encoder, {**data, "w": wrong})


def test_the_state_of_an_encoder_gives_the_same_batches():
    features = [Id("a"), Id("s"), Hash("h", buckets=7), Number("x", log1p=True), Number("b", buckets=3)]
    data = {"a": [3, 1, None], "s": ["é", "u", "u"], "h": [1, 2, 3], "x": [1.0, 9.0, None], "b": [1, 2, 3]}
    encoder = fitted(features, data)
    tables, numbers = learnt_from_state(encoder.state())
    copy = Encoder(features, CHAIN, {"click": "click"}, dim=4, tables=tables, numbers=numbers)
    one, other = encode(encoder, data), encode(copy, data)
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.numbers, other.numbers)


@pytest.mark.parametrize("value", [0.1, -7e5, 1e-300, 3, 1 / 3])
@pytest.mark.parametrize("standardise", [True, False])
def test_a_number_that_never_varies_is_not_divided_by_the_rounding_of_its_mean(value, standardise):
    features = [Number("x", standardise=standardise)]
    learner = Learner(features)
    for rows in (1, 7, 1000, 333):
        learner.add(Columns(pa.table({"x": [value] * rows}), "train"))
    found = learner.numbers()["x"]
    assert found.deviation == 1
    assert found.low == found.high == value
    encoder = Encoder(features, CHAIN, {}, dim=4, tables={}, numbers={"x": found})
    near = encode(encoder, {"x": [value, value * 1.001]}).numbers[:, 0].double()
    expected = torch.tensor([0, 0.001 * value] if standardise else [value, 1.001 * value], dtype=torch.float64)
    assert torch.allclose(near, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shift", [0.0, 1e6, -1e9])
def test_a_number_that_varies_a_little_beside_its_size_is_still_standardised(shift):
    values = shift + np.random.default_rng(0).normal(size=500)
    batch = encode(fitted([Number("x")], {"x": values}), {"x": values})
    assert batch.numbers[:, 0].std(correction=0) == pytest.approx(1, rel=1e-4)


def looked(feature, trained, *pieces):
    """What is told of pieces after training on some numbers."""
    told = []
    found = Strays(fitted([feature], {"x": trained}), told.append)
    for number, piece in enumerate(pieces):
        found.add(Columns(pa.table({"x": pa.array(piece, pa.float64())}), f"row group {number}"))
    return found.found, told


def test_numbers_far_outside_what_training_saw_are_told_once_per_column_with_the_first_of_them():
    trained = np.linspace(1, 3, 100)  # a deviation of 0.58
    found, told = looked(Number("x"), trained, [2.0, None, 3.5, -4.0], [1.0, 500.0, float("nan")], [-90.0, 700.0, 8.0])
    assert told == [
        "'x' is far from all that training saw: 500 (row group 1, row 1), where it was 1 to 3. Probabilities there are"
        " guesses; compare the units of the column, or clip it."
    ]
    assert found["x"].rows == 3
    assert "in 3 of 10 rows: 500" in found["x"].told("x", 10)


@pytest.mark.parametrize(
    ("feature", "trained", "near", "far"),
    [
        (Number("x"), [0.0, 1.0], [-5.0, 6.0], [-5.1, 6.1]),
        (Number("x", standardise=False), [0.0, 1.0], [-10.0, 11.0], [-10.1, 11.1]),
        (Number("x", log1p=True), [0.0, np.expm1(1.0)], [np.expm1(6.0)], [np.expm1(6.1)]),
        (Number("x"), [0.1, 0.1], [0.1, 0.1 + 1e-9], [0.1001, -0.1]),
        (Number("x"), [None, None], [1e30], []),
        (Number("x", buckets=2), [0.0, 1.0], [-10.0, 11.0], [-10.1, 11.1]),
        (Number("x", buckets=[5.0]), [0.0, 1.0], [-10.0, 11.0], [-10.1, 11.1]),
        (Number("x", buckets=2, log1p=True), [0.0, np.expm1(1.0)], [np.expm1(11.0)], [np.expm1(11.1)]),
        (Number("x", buckets=2), [None, None], [1e30], []),
    ],
)
def test_far_is_ten_deviations_beyond_the_range_or_ten_widths_or_anything_but_the_constant(feature, trained, near, far):
    trained = pa.array(trained, pa.float64())
    assert looked(feature, trained, near)[1] == []
    assert [len(looked(feature, trained, [x])[1]) for x in far] == [1] * len(far)


def test_an_artefact_without_ranges_loads_and_tells_nothing():
    encoder = fitted([Number("x")], {"x": [1.0, 2.0]})
    state = encoder.state()
    old = {**state, "numbers": {name: values[:3] for name, values in state["numbers"].items()}}
    _, numbers = learnt_from_state(old)
    again = Encoder(encoder.features, CHAIN, {"click": "click"}, dim=4, tables={}, numbers=numbers)
    assert again.inputs == encoder.inputs
    found = Strays(again)
    found.add(Columns(pa.table({"x": [1e9]}), "new"))
    assert not found.found
    assert learnt_from_state(state)[1]["x"] == encoder.numbers["x"]
