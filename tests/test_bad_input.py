"""Whatever is wrong with the data, the YAML, a plugin or a run folder is told in one message, with exit code 2.

Every message names the place, the value and the way out; no test here sees a traceback, since `Shop.espace` raises for one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.shop import CONFIG, put, rows

DATA, FEATURES = CONFIG["data"], CONFIG["features"]
ROWS = rows(600, 0)
TREE = ["impression -> click", "click -> cart | wish else browse", "cart -> buy", "wish -> buy"]
ORPHANS = 11
CSV = {"user_id": "id", "age": "number", "history": "sequence"}


def refused(said, *texts, code=2):
    assert said.code == code, said
    assert said.error.startswith("espace: "), said
    for text in texts:
        assert text in said.error, f"{text!r} is not in {said.error!r}"
    return said


def data(**changes):
    return {name: value for name, value in {**DATA, **changes}.items() if value is not None}


def train_on(name, **changes):
    return data(train=name, validation=None, test=None, **changes)


def csv_lines():
    lines = ["user_id,age,history,click,conversion"]
    return lines + [f"{i % 5},{i % 30},i{i % 3}|i{i % 4},{int(i % 3 == 0)},{int(i % 6 == 0)}" for i in range(300)]


class TestFiles:
    def test_all_that_are_missing_are_named_at_once(self, shop):
        said = shop.espace("check", shop.yaml(data=data(train="trian.parquet", test="no/such.parquet")))
        refused(
            said, "train: 'trian.parquet' does not exist", "Did you mean 'train.parquet'?", "test: 'no/such.parquet'"
        )

    @pytest.mark.parametrize("content", [b"", b"no parquet at all " * 20], ids=["empty", "text"])
    def test_a_file_that_is_no_parquet(self, shop, content):
        (shop.folder / "odd.parquet").write_bytes(content)
        refused(shop.espace("check", shop.yaml(data=data(train="odd.parquet"))), "odd.parquet: is not a Parquet file")

    def test_a_file_that_is_cut_off(self, shop):
        os.truncate("train.parquet", 5000)
        refused(
            shop.espace("check", shop.yaml()), "train.parquet: is not a Parquet file, or is cut off", "Write it again"
        )

    @pytest.mark.parametrize("split", ["train", "validation", "test"])
    def test_a_file_without_rows(self, shop, split):
        shop.write(ROWS.slice(0, 0), "zero.parquet")
        refused(
            shop.espace("check", shop.yaml(data=data(**{split: "zero.parquet"}))), f"{split}: no rows: zero.parquet"
        )

    def test_an_ending_that_says_no_format(self, shop):
        shutil.copy("train.parquet", "train.xlsx")
        refused(
            shop.espace("check", shop.yaml(data=data(train="train.xlsx"))), "train.xlsx: the ending '.xlsx' says no"
        )

    def test_files_of_one_folder_that_disagree(self, shop):
        (shop.folder / "days").mkdir()
        shop.write(ROWS, "days/1.parquet")
        shop.write(ROWS.drop_columns(["price"]), "days/2.parquet")
        refused(
            shop.espace("check", shop.yaml(data=data(train="days"))),
            "features.price: days/2.parquet: has no column 'price' (double), which days/1.parquet has.",
        )

    def test_files_of_one_folder_that_disagree_in_what_nothing_reads(self, shop):
        (shop.folder / "days").mkdir()
        shop.write(ROWS, "days/1.parquet")
        shop.write(put(ROWS, added_later=[1] * 600, session=lambda v: [str(s) for s in v]), "days/2.parquet")
        said = shop.espace("check", shop.yaml(data=data(train="days"), metrics=None))
        assert said.code == 0, said
        refused(shop.espace("check", "shop.yaml", "data.weight=added_later"), "data.weight: days/1.parquet: has no")

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("1,2,3", ["line 151", "3 values where 5 are expected: '1,2,3'", "Mend the line"]),
            ("1,old,i1,0,0", ["'age' is of type string and is no number; row 149 has 'old'", "as an id"]),
            ("1,N/A,i1,0,0", ["row 149 has 'N/A'", "a missing value, list it in data.null_values."]),
            (
                "1,3,i1,maybe,0",
                ["label column 'click'", "a label is 1, 0 or null; row 149 has 'maybe'", "under labels"],
            ),
            ("1,3,i1,N/A,0", ["label column 'click'", "row 149 has 'N/A'", "list it in data.null_values."]),
            ('1,3,"i1,0,0', ["line 151", "Mend the line"]),
        ],
        ids=[
            "short",
            "text in a number",
            "a mark of null in a number",
            "text in a label",
            "a mark of null in a label",
            "open quote",
        ],
    )
    def test_a_csv_with_a_bad_line_says_which(self, shop, line, says):
        lines = csv_lines()
        lines[150] = line
        (shop.folder / "bad.csv").write_text("\n".join(lines))
        said = shop.espace("check", shop.yaml(data={"train": "bad.csv"}, features=CSV, metrics=None))
        refused(said, "bad.csv", *says)

    def test_a_csv_with_other_marks_of_null_is_read_when_they_are_named(self, shop):
        lines = csv_lines()
        lines[150] = "N/A,N/A,N/A,N/A,0"
        (shop.folder / "good.csv").write_text("\n".join(lines))
        yaml = shop.yaml(data={"train": "good.csv", "null_values": ["N/A"]}, features=CSV, metrics=None)
        assert shop.espace("check", yaml).code == 0
        refused(
            shop.espace("check", yaml, "data.null_values=[-9]"), "data.null_values[0]: -9 is not text. Put it in quo"
        )

    @pytest.mark.parametrize("content", ["", "user_id,age,history,click,conversion\n"], ids=["empty", "header only"])
    def test_a_csv_without_rows(self, shop, content):
        (shop.folder / "bad.csv").write_text(content)
        said = shop.espace("check", shop.yaml(data={"train": "bad.csv"}, features=CSV, metrics=None))
        refused(said, "bad.csv")


class TestColumns:
    def test_all_that_are_missing_are_named_at_once(self, shop):
        yaml = shop.yaml(
            labels={"click": "clik"},
            features={
                **FEATURES,
                "user_id": {"type": "id", "column": "usr_id"},
                "tags": {"type": "bag", "weights": "tw"},
            },
            data=data(
                weight="wieght",
                potential={"conversion_given_click": "convrsion"},
                validation=None,
                split={"by": "dya", "train_until": 5},
            ),
            metrics={"gauc": {"type": "gauc", "by": "sesion"}},
        )
        refused(
            shop.espace("check", yaml),
            "features.user_id: train.parquet and test.parquet have no column 'usr_id'. Did you mean 'user_id'?",
            "features.tags.weights: train.parquet and test.parquet have no column 'tw'.",
            "labels.click: train.parquet and test.parquet have no column 'clik'. Did you mean 'click'?",
            "data.weight: train.parquet and test.parquet have no column 'wieght'. Did you mean 'weight'?",
            "data.potential.conversion_given_click:",
            "Did you mean 'conversion'?",
            "metrics.gauc.by: train.parquet and test.parquet have no column 'sesion'. Did you mean 'session'?",
            "data.split.by: train.parquet has no column 'dya'. Did you mean 'day'?",
        )

    @pytest.mark.parametrize(
        ("feature", "says"),
        [
            ({"item_id": "number"}, "'item_id' is of type string and is no number; row 0 has 'i"),
            ({"item_id": {"type": "number", "buckets": 3}}, "Declare the feature as an id, or mend the column."),
            ({"history": "number"}, "Declare the feature as a sequence, a bag or a vector"),
            ({"history": "id"}, "'history' is of type list<element: string>, but an id is one value a row."),
            ({"history": {"type": "hash", "buckets": 3}}, "Declare the feature as a sequence or a bag."),
            ({"user_id": "sequence"}, "column 'user_id': it is of type int64, but several values a row need a list"),
            ({"user_id": "bag"}, "Declare the feature as an id or a number, or write lists."),
            ({"price": {"type": "vector", "size": 2}}, "column 'price': it is of type double"),
            ({"text": {"type": "vector", "size": 4}}, "row 0: 'text' has 3 numbers, but the feature has size: 4."),
            ({"tags": {"type": "bag", "weights": "text"}}, "row 0: 'text' has 3 weights for"),
            ({"tags": {"type": "bag", "weights": "age"}}, "column 'age': it is of type int64"),
            ({"tags": {"type": "bag", "weights": "tags"}}, "'tags' is of type string and is no number; row"),
        ],
    )
    def test_a_value_of_the_wrong_type_is_found_before_training(self, shop, feature, says):
        yaml = shop.yaml(features=feature, data=train_on("train.parquet"))
        refused(shop.espace("check", yaml), "train.parquet, row group 0", says)

    def test_every_column_of_a_wrong_type_is_named_at_once(self, shop):
        shop.write(put(ROWS, click=lambda v: ["yes" if c else "no" for c in v], weight=lambda v: [-w for w in v]))
        wrong = {"item_id": "number", "history": "id", "user_id": "sequence"}
        said = shop.espace("check", shop.yaml(features=wrong, data=train_on("train.parquet")))
        refused(said, "'item_id'", "'history'", "'user_id'", "'click'", "the weight weight =")

    @pytest.mark.parametrize("value", [-1.0, None, float("nan"), float("inf")])
    def test_a_row_weight_is_a_number_and_not_negative(self, shop, value):
        shop.write(put(ROWS, weight=lambda v: [*v[:502], value, *v[503:]]))
        said = shop.espace("check", shop.yaml(data=train_on("train.parquet")))
        refused(
            said, "train.parquet, row group 1, row 2: the weight weight =", "Mend the column, or change data.weight."
        )

    def test_weights_that_are_all_zero_leave_nothing_to_train_on(self, shop):
        shop.write(put(ROWS, weight=[0.0] * 600))
        refused(shop.espace("check", shop.yaml(data=train_on("train.parquet"))), "the weights of all 600 rows are 0")

    def test_a_negative_weight_in_a_bag(self, shop):
        shop.write(put(ROWS, tag_weights=lambda v: [[-1.0 for _ in weights] for weights in v]))
        refused(shop.espace("check", shop.yaml()), "'tag_weights' has weights that are negative or missing.")


class TestLabels:
    def test_a_label_of_2_names_file_row_and_value(self, shop):
        shop.write(put(ROWS, click=lambda v: [*v[:507], 2, *v[508:]]))
        said = shop.espace("check", shop.yaml())
        refused(
            said, "train.parquet, row group 1, row 7: click = 2, but a label is 1, 0 or null; 1 of 100 rows are not."
        )

    def test_the_row_that_is_named_is_that_of_the_file_after_a_split_too(self, shop):
        shop.write(
            put(ROWS, click=lambda v: [*v[:400], 2, *v[401:]], day=lambda v: [int(i >= 300) for i in range(600)])
        )
        split = {"by": "day", "train_until": 1}
        said = shop.espace("check", shop.yaml(data=train_on("train.parquet", split=split)))
        refused(said, "train.parquet, row group 0, row 400: click = 2")

    def test_a_label_of_text_shows_it(self, shop):
        shop.write(put(ROWS, click=lambda v: [None if i < 3 else ["no", "yes"][c] for i, c in enumerate(v)]))
        said = shop.espace("check", shop.yaml())
        refused(said, "the label column 'click' is of type string", "row 3 has '", "or name another one under labels.")

    def test_a_label_of_lists(self, shop):
        shop.write(put(ROWS, click=lambda v: [[c] for c in v]))
        refused(shop.espace("check", shop.yaml()), "the label column 'click' is of type list<element: int64>")

    def test_text_and_booleans_that_are_1_and_0_are_labels(self, shop):
        shop.write(put(ROWS, click=lambda v: [str(c) for c in v], conversion=lambda v: [bool(c) for c in v]))
        assert shop.espace("check", shop.yaml()).code == 0

    def test_a_label_that_never_happens_in_training(self, shop):
        shop.write(put(ROWS, conversion=[0] * 600))
        said = shop.espace("check", shop.yaml())
        refused(
            said, "the label of 'conversion', column 'conversion', is never 1 in 600 known rows", "Check the column"
        )

    def test_a_label_that_is_never_known(self, shop):
        shop.write(put(ROWS, click=pa.nulls(600, pa.int8())))
        refused(shop.espace("check", shop.yaml()), "the label of 'click', column 'click', is never 1 in 0 known rows")

    def test_a_label_that_never_happens_in_validation_is_a_note(self, shop):
        shop.write(put(ROWS, conversion=[0] * 600), "validation.parquet")
        said = shop.espace("check", shop.yaml())
        assert said.code == 0
        assert "Note: validation: 'conversion' never happens in 600 known rows" in said.out

    @pytest.mark.parametrize("shuffle", [True, False])
    def test_rows_sorted_by_a_label_are_a_note(self, shop, shuffle):
        order = np.argsort(ROWS["click"].to_numpy(), kind="stable")
        shop.write(ROWS.take(order), group=100)
        said = shop.espace("check", shop.yaml(data=data(shuffle=shuffle)))
        assert said.code == 0, said
        assert "Note: train: the rows look sorted: 'click' is 1 in 0.00% to 100.00% of the rows of a piece." in said.out
        assert ("rows from all over the data" in said.out) == shuffle
        assert ("set data.shuffle: true" in said.out) != shuffle
        shop.write(ROWS, group=100)
        assert "look sorted" not in shop.espace("check", shop.yaml()).out

    def test_numbers_far_from_all_that_training_saw_are_a_note(self, shop):
        shop.write(put(ROWS, price=[1e9] * 600), "validation.parquet")
        said = shop.espace("check", shop.yaml())
        assert said.code == 0, said
        assert "Note: validation: 'price' is far from all that training saw in 600 of 600 rows: 1e+09 (" in said.out

    def test_a_label_that_is_1_everywhere_is_a_note(self, shop):
        shop.write(put(ROWS, click=[1] * 600))
        said = shop.espace("check", shop.yaml())
        assert said.code == 0
        assert "Note: train: 'click' is 1 in all 600 known rows. Are the rows without it missing" in said.out


class TestViolations:
    @pytest.fixture
    def orphaned(self, shop):
        """The first conversions have no click."""
        bought = np.flatnonzero(ROWS["conversion"].to_numpy())[:ORPHANS]
        shop.write(put(ROWS, click=lambda v: [0 if i in bought else c for i, c in enumerate(v)]))
        self.clicks, self.bought = (int(np.sum(ROWS[c].to_numpy())) for c in ("click", "conversion"))
        return shop

    def test_a_child_without_its_parent_is_an_error_with_counts_and_rows(self, orphaned):
        said = orphaned.espace("check", orphaned.yaml())
        refused(
            said,
            f"train: {ORPHANS} of 600 rows have conversion = 1 but click = 0; in this chain conversion follows click",
            "(such as train.parquet, row group 0, row ",
            "Fix the labels, or set data.violations: drop (such rows are left out), zero (conversion = 0) or promote"
            " (click = 1). If conversion can happen without click, let the chain say so: impression -> click else"
            " no_click, no_click -> conversion.",
        )
        merged = ["impression -> click else no_click", "click -> conversion", "no_click -> conversion"]
        assert orphaned.espace("check", orphaned.yaml(chain=merged)).code == 0

    @pytest.mark.parametrize("policy", ["drop", "zero", "promote"])
    def test_every_policy_leaves_the_counts_it_promises(self, orphaned, policy):
        said = orphaned.espace("check", orphaned.yaml(data=train_on("train.parquet", violations=policy)))
        assert said.code == 0
        clicks, bought = self.clicks, self.bought
        expected = {
            "drop": (600 - ORPHANS, clicks - ORPHANS, bought - ORPHANS),
            "zero": (600, clicks - ORPHANS, bought - ORPHANS),
            "promote": (600, clicks, bought),
        }[policy]
        labels = said.out.partition("Which rows")[0].splitlines()
        table = {line.split()[0]: line.split() for line in labels if line.strip()}
        found = (int(table["click"][2]), int(table["click"][3]), int(table["conversion"][3]))
        assert found == expected
        assert table["conversion"][-1] == str(ORPHANS)

    @pytest.fixture
    def clashing(self, shop):
        """Clicks are carts, every third one of them a wish as well; some of both are bought."""
        click = ROWS["click"].to_numpy()
        wish, cart = click * (np.arange(600) % 3 == 0), click * (np.arange(600) % 9 != 0)
        shop.write(put(ROWS, cart=cart, wish=wish, buy=cart * (np.arange(600) % 2)), "tree.parquet")
        return shop, int((wish * cart).sum())

    def test_two_outcomes_that_exclude_each_other_are_an_error(self, clashing):
        shop, both = clashing
        said = shop.espace("check", shop.yaml(chain=TREE, data=train_on("tree.parquet")))
        refused(said, f"train: {both} of 600 rows have more than one of cart, wish", "declare independent transitions")

    @pytest.mark.parametrize("policy", ["drop", "zero"])
    def test_two_outcomes_that_exclude_each_other_are_mended(self, clashing, policy):
        shop, both = clashing
        said = shop.espace("check", shop.yaml(chain=TREE, data=train_on("tree.parquet", violations=policy)))
        assert said.code == 0, said
        assert f" {600 - both if policy == 'drop' else 600} " in said.out

    def test_promote_cannot_choose_between_two_outcomes(self, clashing):
        shop, both = clashing
        yaml = shop.yaml(chain=TREE[:2], data=train_on("tree.parquet", violations="promote"))
        refused(shop.espace("check", yaml), f"{both} rows contradict the chain in a way that data.violations: promote")

    def test_dropping_every_row_is_an_error(self, shop):
        shop.write(put(ROWS, click=[0] * 600, conversion=[1] * 600))
        said = shop.espace("check", shop.yaml(data=train_on("train.parquet", violations="drop")))
        refused(said, "train: all 600 rows contradict the chain, so drop leaves none. Check the labels.")


class TestLeaks:
    def test_a_feature_that_is_a_label(self, shop):
        features = {
            "user_id": "id",
            "click": "number",
            "x": {"type": "number", "column": "conversion"},
            "weight": "number",
        }
        refused(
            shop.espace("check", shop.yaml(features=features)),
            "features.click: the column 'click' is the label of 'click', which a prediction has not seen. Remove",
            "features.x: the column 'conversion' is the label of 'conversion'",
            "features.weight: the column 'weight' is the row weight",
        )

    def test_a_feature_that_equals_a_label_is_allowed_on_request_only(self, shop):
        shop.write(put(ROWS, paid=ROWS["conversion"], seen=["yes" if c else "no" for c in ROWS["click"].to_pylist()]))
        features = {**FEATURES, "paid": "number", "seen": "id"}
        refused(
            shop.espace("check", shop.yaml(features=features, data=train_on("train.parquet"))),
            "features.paid: alone it tells 'conversion' with an AUC of 1.0000, so it is most likely a copy of the label",
            "features.seen: alone it tells 'click' with an AUC of 1.0000",
            "Remove the feature, or list it in data.allow_leaks",
        )
        yaml = shop.yaml(features=features, data=train_on("train.parquet", allow_leaks=["paid", "seen"]))
        assert shop.espace("check", yaml).code == 0
        refused(shop.espace("check", yaml, "data.allow_leaks=[payd]"), "no feature 'payd'. Did you mean 'paid'?")


class TestSplit:
    @pytest.mark.parametrize(
        ("split", "says"),
        [
            (
                {"by": "day", "train_until": "2024-01-01"},
                "'day', which is of type int64, with '2024-01-01'. Write the bound",
            ),
            ({"by": "history", "train_until": "x"}, "'history', which is of type list<element: string>"),
            (
                {"by": "day", "train_until": -1},
                "train: none of the 600 rows of train.parquet has day < -1. Change data.split",
            ),
            ({"by": "day", "train_until": 50}, "validation: none of the 600 rows of train.parquet has 50 <= day."),
            (
                {"by": "day", "train_until": 5, "validation_until": 4},
                "none of the 600 rows of train.parquet has 5 <= day < 4",
            ),
            ({"share": 1e-9}, "validation: none of the 600 rows of train.parquet falls into the random share of 1e-09"),
            ({"share": 1.5}, "data.split.share: 1.5 is not a number above 0 and below 1"),
            ({"by": "day"}, "data.split: it is not complete. Write share: 0.1, or by: a column and train_until"),
            ({"share": 0.5, "by": "day", "train_until": 3}, "share draws rows at random, by takes the later ones."),
            ({"by": "day", "train_until": 3, "test_until": 5}, "test_until needs validation_until, from where on"),
            ({"by": "item_id", "train_until": "2024-01-01"}, "row 0: 'item_id' is text and has 'i"),
            (
                {"by": "day", "train_until": 3, "format": "%Y"},
                "format says how text is read, but 'day' is of type int64",
            ),
        ],
    )
    def test_a_split_that_cannot_be_made(self, shop, split, says):
        refused(shop.espace("check", shop.yaml(data=train_on("train.parquet", split=split))), says)

    def test_a_split_beside_a_validation_file(self, shop):
        refused(
            shop.espace("check", shop.yaml(data=data(split={"share": 0.5}))), "split and validation both say which rows"
        )
        split = {"by": "day", "train_until": 5, "validation_until": 7, "test_until": 8}
        yaml = shop.yaml(data=data(validation=None, split=split))
        refused(
            shop.espace("check", yaml), "data.split.test_until: it and data.test both say which rows are tested on."
        )

    def test_rows_whose_time_is_null_are_in_no_part_and_that_is_told(self, shop):
        shop.write(put(ROWS, day=lambda v: [None if i < 50 else d for i, d in enumerate(v)]))
        yaml = shop.yaml(data=train_on("train.parquet", split={"by": "day", "train_until": 7}))
        said = shop.espace("check", yaml)
        assert said.code == 0
        assert "Note: data.split: 50 of 600 rows are in no part, since their 'day' is missing." in said.out

    @pytest.mark.parametrize("bound", ["2024-01-10", "2024-01-10T00:00:00"])
    def test_dates_and_times_are_compared_as_such(self, shop, bound):
        times = [datetime(2024, 1, 1) + timedelta(hours=i) for i in range(600)]
        kinds = [pa.timestamp("ms"), pa.timestamp("us", tz="UTC")] + [pa.date32()] * (len(bound) == 10)
        for kind in kinds:
            shop.write(put(ROWS, day=pa.array(times, pa.timestamp("us")).cast(kind, safe=False)))
            said = shop.espace(
                "check", shop.yaml(data=train_on("train.parquet", split={"by": "day", "train_until": bound}))
            )
            assert said.code == 0, said
            assert " 216 " in said.out


class TestConfig:
    def test_several_mistakes_are_told_at_once_each_with_its_line(self, shop):
        said = shop.espace(
            "check",
            shop.yaml(
                chain=TREE,
                labels={"clck": "x", "browse": "b", "impression": "i"},
                stages={"by": {"weight": -1}},
                tower={"type": "mlpp"},
                towers={"conversion": "mlp", "cart_to_buy": {"type": "mlp", "hiden_units": [3]}},
                embeding={"dim": 3},
                optimizer={"lr": -1, "beta": 3},
                data=data(bach_size=3, batch_size=0),
                features={"user_id": {"type": "idd"}, "price": {"type": "number", "log1pp": True}},
                metrics={"gauc": "gauc", "x": "aucc"},
                sampler="oversampled",
                weighting={"type": "fixed", "a": 1},
                seed="x",
            ),
        )
        refused(
            said,
            "labels.clck: the chain has no such stage. Did you mean 'click'?",
            "labels.browse: the label of 'browse' follows from its siblings'.",
            "labels.impression: every row is one 'impression', so it has no label.",
            "stages.by: the chain has no such stage. Did you mean 'buy'?",
            "stages.by.weight: -1 is not a number of at least 0.",
            "tower.type: there is no tower 'mlpp'. Did you mean 'mlp'?",
            "towers.conversion: this is neither a stage that has a tower nor a transition.",
            "towers.cart_to_buy: mlp has no option 'hiden_units'. Did you mean 'hidden_units'?",
            "embeding: there is no such key. Did you mean 'embedding'?",
            "optimizer.lr: -1 is not a number above 0 or null.",
            "optimizer.beta: there is no such key. Did you mean 'betas'?",
            "data.bach_size: there is no such key. Did you mean 'batch_size'?",
            "data.batch_size: 0 is not a whole number above 0 or null.",
            "features.user_id.type: there is no kind of feature 'idd'. Did you mean 'id'?",
            "features.price: number has no option 'log1pp'. Did you mean 'log1p'?",
            "gauc needs the option 'by'",
            "metrics.x: there is no metric 'aucc'. Did you mean 'auc'?",
            "sampler: there is no sampler 'oversampled'. Did you mean 'oversample'?",
            "weighting: fixed has no option 'a'.",
            "seed: 'x' is not a whole number of at least 0",
        )
        assert said.error.count("shop.yaml:") == 20

    @pytest.mark.parametrize("seed", ["1.5", "true", "[1]", "1e3", "0x10"])
    def test_a_seed_is_a_whole_number(self, shop, seed):
        refused(
            shop.espace("check", shop.yaml(), f"seed={seed}"),
            f"override 'seed={seed}': seed:",
            "is not a whole number of at least 0 and of at most 4,294,967,295.",
        )

    def test_overrides_that_are_misspelt_or_malformed_are_told_at_once(self, shop):
        overrides = [
            "a.b",
            "=x",
            "tower.hidden_unit=[3]",
            "data.trian=x",
            "features.user_id.dim=[",
            "chain.0.x=3",
            "seed",
        ]
        refused(
            shop.espace("check", shop.yaml(), *overrides),
            "override 'a.b': it is not of the form a.b=value. Write, say, seed=1.",
            "override '=x': it is not of the form",
            "override 'tower.hidden_unit=[3]': tower: mlp has no option 'hidden_unit'. Did you mean 'hidden_units'?",
            "override 'data.trian=x': data.trian: there is no such key. Did you mean 'train'?",
            "override 'features.user_id.dim=[': this is not YAML",
            "override 'chain.0.x=3': chain[0] is",
            "override 'seed': it is not of the form",
        )

    def test_a_key_of_another_part_is_sent_there(self, shop):
        said = shop.espace("check", shop.yaml(lr=0.1, type="x", optimizer={"batch_size": 3, "seed": 1, "lrr": 1}))
        refused(
            said,
            "lr: there is no such key. It belongs to optimizer.",
            "type: there is no such key. Known: callbacks, chain,",
            "optimizer.batch_size: there is no such key. It belongs to data.",
            "optimizer.seed: there is no such key. It belongs to the top level.",
            "optimizer.lrr: there is no such key. Did you mean 'lr'?",
        )
        said = shop.espace("check", shop.yaml(trainer={"tables": "lazy", "patience": 3, "foo": 1}))
        refused(
            said,
            "trainer: Lightning's Trainer has no option 'tables'. It belongs to optimizer.",
            "trainer: Lightning's Trainer has no option 'patience'. It belongs to the top level.",
            "trainer: Lightning's Trainer has no option 'foo'. Known: accelerator,",
        )

    def test_a_monitor_that_is_misspelt_and_wrong_trainer_options_are_told_at_once(self, shop):
        trainer = {"max_epoch": 1, "logger": True, "max_epochs": "many", "devices": 1.5, "precision": "17"}
        refused(
            shop.espace("check", shop.yaml(monitor="val/conversion/acu", trainer=trainer)),
            "monitor: 'val/conversion/acu' is not measured. Did you mean 'val/conversion/auc'?",
            "trainer: Lightning's Trainer has no option 'max_epoch'. Did you mean 'max_epochs'?",
            "trainer.logger: espace sets it; metrics always go to metrics.csv",
            "trainer.max_epochs: 'many' is not a whole number or null.",
            "trainer.devices: 1.5 is not",
            "trainer.precision: '17' is not one of 64, 32, 16",
        )

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (
                {"accelerator": "gpux"},
                "trainer.accelerator: 'gpux' is not on this machine",
            ),
            ({"devices": 0}, "trainer: Lightning refuses these options: `Trainer(devices=0)`"),
            ({"strategy": "dpp"}, "trainer.strategy: 'dpp' is not possible"),
            ({"val_check_interval": "often"}, "Invalid time format for `val_check_interval`"),
            (
                {"val_check_interval": 100_000},
                "trainer.val_check_interval: 100,000 is more than the 3 batches of an epoch.",
            ),
            ({"max_epochs": 0}, "trainer.max_epochs: with 0 nothing is trained."),
            ({"max_steps": 0}, "trainer.max_steps: with 0 nothing is trained."),
            ({"limit_train_batches": 0}, "trainer.limit_train_batches: with 0 nothing is trained."),
        ],
    )
    def test_trainer_options_that_cannot_be_used_leave_no_folder(self, shop, options, says):
        yaml = shop.yaml(trainer={"accelerator": "cpu", **options})
        refused(shop.espace("fit", yaml, "--run-dir", "run"), says)
        assert not (shop.folder / "run").exists()

    def test_no_file_or_no_yaml(self, shop):
        shop.yaml()
        refused(shop.espace("check", "shpo.yaml"), "shpo.yaml: there is no such file. Did you mean 'shop.yaml'?")
        refused(shop.espace("fit"), "fit: name a YAML file, as in espace fit examples/esmm.yaml, or --resume RUN.")
        refused(shop.espace("fit", "tower.dropout=0.1"), "fit: name a YAML file")
        refused(shop.espace("check", "train.parquet"), "train.parquet:1:")
        refused(shop.espace("check", shop.text("")), "shop.yaml:1:1: the file is empty.")

    def test_a_kind_that_cannot_be_listed(self, shop):
        refused(shop.espace("list", "tower"), "list: there is no kind 'tower'. Did you mean 'towers'?")


class TestPlugins:
    def test_two_towers_of_one_name(self, shop):
        one, two = shop.tower("flat"), shop.tower("other")
        (shop.folder / "other.py").write_text((shop.folder / "flat.py").read_text())
        said = shop.espace("check", shop.yaml(plugins=[one, two]))
        refused(said, "tower 'flat' comes from", "flat.py and from", "other.py. Rename one of them")

    def test_a_tower_of_a_built_in_name(self, shop):
        refused(shop.espace("check", shop.yaml(plugins=[shop.tower("mlp")])), "tower 'mlp' comes from espace and from")

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("import nothing_like_this", "ModuleNotFoundError: No module named 'nothing_like_this'"),
            ("x = 1 / 0", "ZeroDivisionError: division by zero"),
            ("def broken(:", "SyntaxError: invalid syntax"),
        ],
    )
    def test_a_plugin_that_fails_to_import_names_file_and_line(self, shop, line, says):
        said = shop.espace("check", shop.yaml(plugins=[shop.tower("bad", top=line)]))
        refused(said, f"{shop.folder}/bad.py:3: {says}")

    def test_a_plugin_that_is_not_there(self, shop):
        shop.tower("flat")
        refused(
            shop.espace("check", shop.yaml(plugins=["./flatt.py"])), "there is no file", "Did you mean './flat.py'?"
        )
        refused(
            shop.espace("check", shop.yaml(plugins=["no_such_module"])), "write ./name.py for a file beside the YAML"
        )
        refused(shop.espace("list", "--plugin", "./no.py"), "plugins: ./no.py: there is no file")

    def test_a_tower_that_refuses_its_options(self, shop):
        plugin = shop.tower("odd", build="raise ValueError('width has to be even')")
        said = shop.espace("check", shop.yaml(plugins=[plugin], tower={"type": "odd", "width": 3}))
        refused(said, "tower of impression_to_click: odd cannot be built: width has to be even")

    def test_an_option_that_a_plugin_does_not_have(self, shop):
        said = shop.espace("check", shop.yaml(plugins=[shop.tower("flat")], tower={"type": "flat", "widht": 3}))
        refused(said, "tower: flat has no option 'widht'. Did you mean 'width'?")

    def test_a_tower_that_asks_for_a_field_that_is_not_there(self, shop):
        plugin = shop.tower("lost", step="features.field('usr_id')")
        said = shop.espace("fit", shop.yaml(plugins=[plugin], tower="lost"), "--run-dir", "run")
        refused(said, "features: there is no field 'usr_id'. Did you mean 'user_id'?")


class TestNumbersAndHistories:
    def test_what_is_not_finite_counts_as_missing(self, shop):
        odd = [float("nan"), float("inf"), -float("inf"), 1e300, None, 1.0]
        shop.write(put(ROWS, price=odd * 100, age=[float("nan")] * 600))
        said = shop.espace("fit", shop.yaml(), "--run-dir", "run")
        assert said.code == 0, said
        assert "Note: train: 'price' is missing or not finite in 500 of 600 rows" in said.out
        assert "Note: train: 'age' is missing or not finite in 600 of 600 rows" in said.out

    @pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.null()], ids=str)
    def test_histories_that_are_all_empty_are_trained_and_predicted(self, shop, kind):
        empty = pa.nulls(600, kind) if kind == pa.null() else pa.array([[], None] * 300, kind)
        for split in ("train", "test"):
            shop.write(put(ROWS, history=empty), f"{split}.parquet")
        features = {"user_id": "id", "history": "sequence"}
        yaml = shop.yaml(features=features, data=data(validation="train.parquet"))
        assert shop.espace("fit", yaml, "--run-dir", "run").code == 0
        for source in ("test.parquet", "validation.parquet"):
            assert shop.espace("predict", "run", "--data", source, "--out", "p.parquet").code == 0
            assert min(pq.read_table("p.parquet")["p_conversion"].to_pylist()) > 0

    def test_a_loss_that_is_not_finite_stops_with_code_3(self, shop):
        shop.write(put(ROWS, price=[1e38, -1e38] * 300))
        yaml = shop.yaml(features={"price": {"type": "number", "standardise": False}})
        said = shop.espace("fit", yaml, "--run-dir", "run")
        refused(said, "the loss is", "look for extreme numbers among the features", code=3)


class TestWhileTraining:
    STEPS = "global STEPS; STEPS += self.training"

    def test_a_file_that_is_cut_off_names_the_row_group_and_leaves_what_was_saved(self, shop):
        shop.write(rows(600, 0), group=60)
        cut = f"{self.STEPS}; STEPS == 9 and os.truncate('train.parquet', 5000)"
        plugin = shop.tower("cut", top="import os; STEPS = 0", step=cut)
        changes = {"shuffle_rows": 60, "batch_size": 60}
        yaml = shop.yaml(
            plugins=[plugin], tower="cut", data=data(**changes), trainer={"accelerator": "cpu", "max_epochs": 5}
        )
        refused(shop.espace("fit", yaml, "--run-dir", "run"), "train.parquet: the file changed since the start")
        for checkpoint in ("best", "last"):
            options = ("--data", "test.parquet", "--out", "p.parquet", "--checkpoint", checkpoint)
            said = shop.espace("predict", "run", *options)
            assert said.code == 0, said
        shop.write(rows(600, 0), group=60)
        assert shop.espace("fit", "--resume", "run").code == 0
        assert (shop.folder / "run" / "results.json").exists()

    def test_a_file_that_is_replaced_changes_nothing_until_the_next_start(self, shop):
        swap = "self.training and os.path.exists('other.parquet') and os.replace('other.parquet', 'train.parquet')"
        plugin = shop.tower("swap", top="import os", step=swap)
        shop.write(rows(600, 0), group=60)
        yaml = shop.yaml(plugins=[plugin], tower="swap", data=data(shuffle_rows=60, batch_size=60))
        assert shop.espace("fit", yaml, "--run-dir", "one").code == 0
        shop.write(rows(600, 9), "other.parquet", group=60)
        assert shop.espace("fit", yaml, "--run-dir", "two").code == 0
        assert not (shop.folder / "other.parquet").exists()
        assert (shop.folder / "one" / "results.json").read_text() == (shop.folder / "two" / "results.json").read_text()
        refused(shop.espace("fit", "--resume", "two"), "two: the training data is not what it was when the run began.")

    def test_a_file_that_is_cut_off_after_the_audit(self, shop):
        assert shop.espace("check", shop.yaml()).code == 0
        os.truncate("train.parquet", 5000)
        refused(
            shop.espace("fit", shop.yaml(), "--run-dir", "run"), "train.parquet: is not a Parquet file, or is cut off"
        )
        assert not (shop.folder / "run").exists()


class TestRunFolders:
    @pytest.fixture
    def copied(self, shop, trained):
        """A copy of the trained run, free to be damaged."""
        shutil.copytree(trained.run, "run")
        return shop

    def test_a_folder_that_is_not_empty_is_not_taken(self, shop):
        (shop.folder / "run").mkdir()
        (shop.folder / "run" / "notes.txt").write_text("mine")
        said = shop.espace("fit", shop.yaml(), "--run-dir", "run")
        refused(
            said,
            "run: it exists and is not empty. Choose another --run-dir.",
        )

    def test_a_run_is_not_written_over_but_gone_on_with(self, copied):
        said = copied.espace("fit", copied.yaml(), "--run-dir", "run")
        refused(
            said,
            "run: it exists and is not empty. Go on with it by espace fit --resume run, or choose another --run-dir",
        )

    @pytest.mark.parametrize("place", ["train.parquet", "train.parquet/run", "/proc/no/run"])
    def test_a_folder_that_cannot_be_made(self, shop, place):
        refused(shop.espace("fit", shop.yaml(), "--run-dir", place), f"{place}: it", "--run-dir")

    def test_data_that_is_wrong_leaves_no_folder_behind(self, shop):
        assert shop.espace("fit", shop.yaml(data=data(train="no.parquet")), "--run-dir", "run").code == 2
        assert not (shop.folder / "run").exists()

    def test_what_is_no_run_folder_cannot_be_resumed(self, shop):
        (shop.folder / "empty").mkdir()
        refused(shop.espace("fit", "--resume", "nothing"), "nothing: there is no such run folder")
        refused(shop.espace("fit", "--resume", "empty"), "empty: it is no run folder, there is no config.yaml in it.")

    def test_a_run_without_checkpoint_cannot_be_resumed(self, copied):
        shutil.rmtree("run/checkpoints")
        refused(copied.espace("fit", "--resume", "run"), "run: there is no checkpoints/last.ckpt to go on from.")

    def test_a_run_cannot_be_resumed_on_other_data(self, copied):
        copied.write(rows(600, 9))
        said = copied.espace("fit", "--resume", "run", "data.train=train.parquet")
        refused(said, "run: the training data is not what it was when the run began. Start a new run.")

    def test_a_run_cannot_be_resumed_as_another_model(self, copied):
        said = copied.espace("fit", "--resume", "run", "tower.hidden_units=[5]", "optimizer.eps=1", "data.batch_size=7")
        refused(said, "run: it was begun with another tower, optimizer, data.batch_size.", "Start a new run")

    @pytest.mark.parametrize("command", ["predict", "evaluate"])
    @pytest.mark.parametrize("place", ["nothing", ".", "test.parquet"])
    def test_what_is_no_run_cannot_be_used(self, shop, command, place):
        options = ("--data", "test.parquet", "--out", "p.parquet") if command == "predict" else ()
        refused(shop.espace(command, place, *options), f"{place}: ")
        assert not (shop.folder / "p.parquet").exists()

    def test_a_name_that_is_nearly_a_run_is_suggested(self, copied):
        refused(copied.espace("evaluate", "runn"), "runn: there is no such run folder", "Did you mean 'run'?")
        refused(copied.espace("evaluate", "."), "Below it are run.")

    @pytest.mark.parametrize("damage", ["a flipped bit", "cut off"])
    def test_a_damaged_checkpoint_is_noticed(self, copied, damage):
        file = copied.folder / "run" / "checkpoints" / "best.ckpt"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(bytes(content) if damage == "a flipped bit" else bytes(content[:999]))
        options = ("--data", "test.parquet", "--out", "p.parquet")
        refused(copied.espace("predict", "run", *options), "run/checkpoints/best.ckpt: the file is damaged")
        refused(
            copied.espace("evaluate", "run"), "run/checkpoints/best.ckpt: the file is damaged", "Use another checkpoint"
        )
        assert copied.espace("predict", "run", *options, "--checkpoint", "last").code == 0

    def test_a_checkpoint_of_something_else(self, shop):
        torch.save({"state_dict": {}}, "other.ckpt")
        said = shop.espace("predict", "other.ckpt", "--data", "test.parquet", "--out", "p.parquet")
        refused(said, "other.ckpt: it was not written by espace")

    def test_a_checkpoint_that_is_not_there(self, copied):
        refused(copied.espace("evaluate", "run", "--checkpoint", "bst"), "run/checkpoints/bst.ckpt: there is no such")

    def test_a_plugin_that_changed_since_the_training(self, shop):
        yaml = shop.yaml(plugins=[shop.tower("flat")], tower="flat", trainer={"accelerator": "cpu", "max_steps": 1})
        assert shop.espace("fit", yaml, "--run-dir", "run").code == 0
        shop.tower("flat", build="self.more = nn.Linear(2, 2)")
        command = ["predict", "run", "--data", "test.parquet", "--out", "p.parquet"]
        said = subprocess.run([sys.executable, "-m", "espace", *command], capture_output=True, text=True, check=False)
        assert said.returncode == 2, said
        assert "run/checkpoints/best.ckpt: its weights do not fit the model that is built now" in said.stderr
        assert "Traceback" not in said.stderr


class TestEvaluate:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--split", "tset"], "split: there is no part 'tset' of the data. Did you mean 'test'?"),
            (
                ["tower.hidden_units=[3]"],
                "tower: the run was trained with another one. Override data.* and metrics.* only.",
            ),
            (["data.test=null"], "data.test: no file is named there. Add data.test=FILE."),
            (["data.test=tes.parquet"], "test: 'tes.parquet' does not exist."),
            (["metrics.gauc.by=sesion"], "metrics.gauc.by: "),
            (["data.tset=x"], "data.tset: there is no such key. Did you mean 'test'?"),
            (["--out", "train.parquet/x.json"], "train.parquet/x.json: it cannot be written"),
        ],
    )
    def test_what_cannot_be_judged(self, shop, trained, options, says):
        refused(shop.espace("evaluate", trained.run, *options), says)

    def test_labels_that_contradict_the_chain_in_the_data_that_is_judged(self, shop, trained):
        shop.write(put(ROWS, click=[0] * 600), "test.parquet")
        said = shop.espace("evaluate", trained.run, "data.test=test.parquet")
        refused(said, "test: ", "rows have conversion = 1 but click = 0")


class TestPredict:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--data", "tset.parquet"], "'tset.parquet' does not exist."),
            (["--data", "empty"], "the folder 'empty' has no data files"),
            (["--data", "few.parquet"], "few.parquet: there is no column 'user_id', which the model reads."),
            (["--data", "lists.parquet"], "lists.parquet, row group 0: 'user_id' is of type list"),
            (
                ["--data", "test.parquet", "--keep", "sesion"],
                "no column 'sesion', which --keep names. Did you mean 'session'?",
            ),
            (["--data", "test.parquet", "--reader", "parqet"], "there is no reader 'parqet'. Did you mean 'parquet'?"),
        ],
    )
    def test_what_cannot_be_predicted_leaves_no_file(self, shop, trained, options, says):
        (shop.folder / "empty").mkdir()
        shop.write(ROWS.drop_columns(["user_id", "price"]), "few.parquet")
        shop.write(put(ROWS, user_id=lambda v: [[u] for u in v]), "lists.parquet")
        before = set(shop.folder.iterdir())
        refused(shop.espace("predict", trained.run, *options, "--out", "p.parquet"), says)
        assert set(shop.folder.iterdir()) == before

    @pytest.mark.parametrize("out", ["train.parquet/p.parquet", "/proc/no/p.parquet", "folder", "test.parquet"])
    def test_predictions_go_where_a_file_can_be_made_and_over_no_input(self, shop, trained, out):
        (shop.folder / "folder").mkdir()
        before = (shop.folder / "test.parquet").read_bytes()
        refused(
            shop.espace("predict", trained.run, "--data", "test.parquet", "--out", out), f"{out}: it ", "another --out"
        )
        assert (shop.folder / "test.parquet").read_bytes() == before

    def test_values_that_training_never_saw_get_valid_predictions(self, shop, trained):
        odd = {
            "user_id": ["x"] * 20 + [None] * 20 + ["-5"] * 20,
            "item_id": [-1, None, 2**62, 3, 4, 5] * 10,
            "place": [1.5, None] * 30,
            "price": [float("nan"), float("inf"), -float("inf"), 1e300, None, -3.0] * 10,
            "age": pa.nulls(60),
            "history": pa.array([[], None, [-7, None, 2**60]] * 20, pa.list_(pa.int64())),
            "tags": [["never", "seen"], None, []] * 20,
            "tag_weights": [[0.0, 0.0], None, []] * 20,
            "text": pa.array([None, [float("nan")] * 3] * 30, pa.list_(pa.float32())),
        }
        shop.write(pa.table(odd), "odd.parquet")
        said = shop.espace("predict", trained.run, "--data", "odd.parquet", "--out", "p.parquet", "--keep", "user_id")
        assert said.code == 0, said
        found = pq.read_table("p.parquet")
        for name in ("p_click", "p_conversion", "p_conversion_given_click"):
            values = found[name].to_numpy()
            assert ((values > 0) & (values < 1)).all()
