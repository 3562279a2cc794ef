"""Labels of a chain: what follows is filled in, contradictions are found and mended as asked."""

import numpy as np
import pyarrow as pa
import pytest

from espace.chain.chain import Chain
from espace.data.encoding.labels import read_label, resolve
from espace.errors import DataError

FUNNEL = Chain.parse(["impression -> click -> read -> finish"])
BRANCHED = Chain.parse(["impression -> click", "click -> cart | wish else browse", "cart -> buy", "browse -> buy"])


def columns(chain, rows):
    """{stage: column} from rows written as one digit per labelled stage, `?` for unknown."""
    table = np.array([[-1 if c == "?" else int(c) for c in row] for row in rows], np.int8)
    return {stage: table[:, i] for i, stage in enumerate(chain.labelled)}


def resolved(chain, row, policy="error"):
    found = resolve(chain, columns(chain, [row]), policy)
    return dict(zip(chain.stages[1:], found.values[0].tolist(), strict=True)), found


@pytest.mark.parametrize(
    ("row", "expected"),
    [("0??", "000"), ("10?", "100"), ("1??", "1??"), ("???", "???"), ("11?", "11?"), ("?0?", "?00")],
)
def test_a_null_below_a_known_0_is_a_0_and_stays_unknown_otherwise(row, expected):
    values, _ = resolved(FUNNEL, row)
    assert "".join("?" if v < 0 else str(v) for v in values.values()) == expected


@pytest.mark.parametrize(
    ("row", "browse"), [("100?", 1), ("110?", 0), ("101?", 0), ("000?", 0), ("1?0?", -1), ("?00?", -1), ("11??", 0)]
)
def test_an_else_stage_happened_where_its_parent_did_and_none_of_the_others(row, browse):
    assert resolved(BRANCHED, row)[0]["browse"] == browse


def test_a_child_without_its_parent_is_an_orphan_and_two_exclusive_outcomes_are_a_clash():
    assert resolved(FUNNEL, "010")[1].orphans["read"].all()
    assert not resolved(FUNNEL, "?10")[1].orphans["read"].any(), "an unknown parent contradicts nothing"
    assert resolved(BRANCHED, "1110")[1].clashes["click_to_cart_or_wish"].all()
    assert resolved(BRANCHED, "1011")[1].orphans["buy"].all(), "nobody buys after a wish in this chain"
    assert not resolved(BRANCHED, "1001")[1].broken.any(), "buying after browsing is in the chain"


def test_zero_takes_children_back_and_promote_lets_parents_happen():
    assert list(resolved(FUNNEL, "011", "zero")[0].values()) == [0, 0, 0]
    assert list(resolved(FUNNEL, "001", "promote")[0].values()) == [1, 1, 1]
    assert list(resolved(BRANCHED, "1110", "zero")[0].values()) == [1, 1, 0, 0, 0]
    for policy in ("zero", "promote"):
        assert not resolved(FUNNEL, "011", policy)[1].broken.any()
    for policy in ("error", "drop"):
        assert resolved(FUNNEL, "011", policy)[1].broken.all()


def test_no_mended_row_contradicts_the_chain_whatever_it_was():
    rows = [f"{i:04b}" for i in range(16)] + ["?110", "1?11", "11?1", "0??1"]
    for chain in (BRANCHED, Chain.parse(["i -> a -> b -> c -> d"])):
        found = resolve(chain, columns(chain, rows), "zero")
        again = {s: found.values[:, chain.stages.index(s) - 1] for s in chain.labelled}
        assert not found.broken.any()
        assert np.array_equal(resolve(chain, again, "error").values, found.values), "mending twice changes nothing"


def test_labels_of_any_type_that_hold_1_0_and_null_are_read():
    expected = [1, 0, -1]
    for values in ([1, 0, None], [True, False, None], [1.0, 0.0, float("nan")], ["1", "0", None], ["1.0", "0", None]):
        assert read_label(pa.array(values), "f", "click").tolist() == expected
    assert read_label(pa.array(["1", "0", None]).dictionary_encode(), "f", "click").tolist() == expected


@pytest.mark.parametrize(
    ("values", "shown"), [([0, 2], "click = 2"), ([0.0, 0.5], "click = 0.5"), ([1, -1], "click = -1")]
)
def test_a_label_that_is_not_1_0_or_null_names_place_and_value(values, shown):
    with pytest.raises(
        DataError, match=f"part.parquet, row group 1, row 1: {shown}, but a label is 1, 0 or null; 1 of 2"
    ):
        read_label(pa.array(values), "part.parquet, row group 1", "click")


def test_a_label_column_of_words_says_so():
    with pytest.raises(DataError, match="label column 'click' is of type string"):
        read_label(pa.array(["yes", "no"]), "f", "click")
