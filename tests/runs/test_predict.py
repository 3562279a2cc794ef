"""`espace predict` and `espace.load(run).predict` give one set of numbers, however the rows come in."""

from __future__ import annotations

import gc
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import espace
from espace.data.reading.readers import Files
from espace.errors import DataError
from tests.shop import CONFIG, Shop, put, rows

MARGINALS = ["p_click", "p_conversion"]
NAMES = ["p_click", "p_conversion", "p_conversion_given_click"]
READ = ["user_id", "item_id", "place", "price", "age", "history", "tags", "tag_weights", "text"]
TREE = ["impression -> click", "click -> cart | wish else browse", "cart -> buy", "wish -> buy", "browse -> buy"]
ROWS = rows(600, 7)
UNHELD = {
    "interval": pa.month_day_nano_interval(),
    "list of intervals": pa.list_(pa.month_day_nano_interval()),
    "empty struct": pa.struct([]),
}


@pytest.fixture(scope="module")
def model(trained):
    return espace.load(trained.run)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A few steps on ESM2's chain."""
    shop = Shop(tmp_path_factory.mktemp("tree"))
    click = ROWS["click"].to_numpy()
    cart, wish = click * (np.arange(600) % 3 == 0), click * (np.arange(600) % 3 == 1)
    shop.write(put(ROWS, cart=cart, wish=wish, buy=click * (np.arange(600) % 2)))
    yaml = shop.folder / shop.yaml(
        chain=TREE,
        data={"train": str(shop.folder / "train.parquet"), "validation": str(shop.folder / "train.parquet")},
        features={"user_id": "id", "item_id": "id"},
        trainer={"accelerator": "cpu", "max_steps": 2},
    )
    said = shop.espace("fit", yaml, "--run-dir", shop.folder / "run")
    assert said.code == 0, said
    return espace.load(shop.folder / "run").predict(ROWS)


@pytest.fixture
def predict(shop, trained):
    """Run `espace predict` on the trained run, and read what it wrote."""

    def run(source, *options):
        said = shop.espace("predict", trained.run, "--data", source, "--out", "p.parquet", *options)
        assert said.code == 0, said
        return pq.read_table("p.parquet")

    return run


def as_text(table):
    """The rows as a CSV file can hold them: lists as text with a separator."""
    lists = [f.name for f in table.schema if pa.types.is_list(f.type)]

    def text(values):
        return [None if v is None else "|".join(map(str, v)) for v in values]

    return put(table, **dict.fromkeys(lists, text))


class TestValues:
    def test_the_file_has_the_bits_that_python_gives(self, shop, predict, model):
        shop.write(ROWS, group=600)
        expected = model.predict(ROWS)
        assert expected.column_names == NAMES
        assert predict("train.parquet").select(NAMES).equals(expected)

    @pytest.mark.parametrize("group", [1, 7, 599])
    def test_how_rows_are_grouped_into_pieces_does_not_matter(self, shop, predict, model, group):
        some = ROWS.slice(0, 40) if group == 1 else ROWS
        shop.write(some, group=group)
        found, expected = predict("train.parquet"), model.predict(some)
        assert found.select(READ).equals(some.select(READ)), "rows stay in their order"
        for name in NAMES:
            np.testing.assert_allclose(found[name].to_numpy(), expected[name].to_numpy(), rtol=2e-6)

    def test_a_number_far_from_all_that_training_saw_is_told_once_and_predicted(self, shop, trained):
        far = put(ROWS, price=np.where(np.arange(600) % 50 == 49, 1e9, 1.0))
        shop.write(far, group=100)
        said = shop.espace("predict", trained.run, "--data", "train.parquet", "--out", "p.parquet")
        assert said.code == 0, said
        assert said.out.count("'price' is far from all that training saw: 1e+09 (") == 1
        assert "row group 0, row 49), where it was" in said.out
        model = espace.load(trained.run)
        with pytest.warns(UserWarning, match=r"'price' is far .* \(the table, row 49\)"):
            assert model.predict(far).num_rows == 600
        assert model.predict(far).num_rows == 600, "and not again"

    def test_a_table_longer_than_a_batch_gives_the_same(self, model):
        long = pa.concat_tables([ROWS] * 30)
        found, expected = model.predict(long), model.predict(ROWS)
        assert found.num_rows == 18_000
        np.testing.assert_allclose(found["p_click"].to_numpy(), np.tile(expected["p_click"].to_numpy(), 30), rtol=2e-6)

    def test_a_child_is_never_more_probable_than_its_parent(self, model):
        click, conversion, given = (model.predict(ROWS)[name].to_numpy() for name in NAMES)
        assert (conversion <= click).all()
        assert (conversion > 0).all()
        assert (click < 1).all()
        np.testing.assert_allclose(conversion, click * given, rtol=1e-6)

    def test_a_lone_checkpoint_gives_the_same_bits(self, trained, model, tmp_path):
        lone = shutil.copy(trained.run / "checkpoints" / "best.ckpt", tmp_path / "model.ckpt")
        assert espace.load(lone).predict(ROWS).equals(model.predict(ROWS))

    def test_loading_twice_gives_the_same_bits(self, trained, model):
        assert espace.load(trained.run).predict(ROWS).equals(model.predict(ROWS))


class TestTables:
    def test_a_dict_of_lists_is_a_table(self, model):
        assert model.predict(ROWS.slice(0, 5).to_pydict()).equals(model.predict(ROWS.slice(0, 5)))

    def test_a_record_batch_is_a_table(self, model):
        batch = ROWS.slice(0, 5).to_batches()[0]
        assert model.predict(batch).equals(model.predict(ROWS.slice(0, 5)))

    def test_columns_stand_in_any_order_and_others_are_ignored(self, model):
        shuffled = put(ROWS, other=[0] * 600).select([*reversed(ROWS.column_names), "other"])
        assert model.predict(shuffled).equals(model.predict(ROWS))

    def test_a_table_without_rows_gives_one_without_rows(self, model):
        found = model.predict(ROWS.slice(0, 0))
        assert (found.num_rows, found.column_names) == (0, NAMES)

    def test_labels_and_weights_are_not_needed(self, model):
        assert model.predict(ROWS.select(READ)).equals(model.predict(ROWS))

    def test_what_is_no_table_says_what_to_give(self, model):
        with pytest.raises(DataError, match=r"the table: a dict cannot be read as columns: .* Give a pyarrow Table"):
            model.predict({"user_id": [1, 2], "item_id": [3]})
        with pytest.raises(DataError, match=r"the table: a list cannot be read as columns: .* a dict of lists"):
            model.predict([1, 2])

    def test_a_missing_column_names_the_nearest(self, model):
        with pytest.raises(DataError, match=r"no column 'user_id', which the model reads\. Did you mean 'usr_id'\?"):
            model.predict(ROWS.rename_columns({"user_id": "usr_id"}))

    def test_a_column_that_is_there_twice_is_refused_if_the_model_reads_it(self, model):
        twice = ROWS.append_column("click", ROWS["click"])
        assert model.predict(twice).equals(model.predict(ROWS))
        with pytest.raises(DataError, match="the table: has more than one column named 'user_id'"):
            model.predict(twice.append_column("user_id", ROWS["user_id"]))

    def test_a_value_that_cannot_be_read_names_its_row(self, model):
        long = pa.concat_tables([ROWS] * 30)
        wrong = put(long, price=lambda v: [*("1" for _ in v[:-2]), "cheap", "2"])
        with pytest.raises(
            DataError, match="the table: 'price' is of type string and is no number; row 17998 has 'cheap'"
        ):
            model.predict(wrong)


class TestChains:
    def test_every_stage_and_every_edge_that_does_not_leave_the_root_has_a_column(self, tree):
        given = ["cart_given_click", "wish_given_click", "browse_given_click"]
        given += ["buy_given_cart", "buy_given_wish", "buy_given_browse"]
        stages = ["click", "cart", "wish", "browse", "buy"]
        assert set(tree.column_names) == {f"p_{name}" for name in [*stages, *given]}

    def test_exclusive_outcomes_sum_to_their_parent_and_paths_to_their_end(self, tree):
        p = {name: tree[f"p_{name}"].to_numpy() for name in (c[2:] for c in tree.column_names)}
        np.testing.assert_allclose(p["cart"] + p["wish"] + p["browse"], p["click"], rtol=1e-6)
        paths = [p[s] * p[f"buy_given_{s}"] for s in ("cart", "wish", "browse")]
        np.testing.assert_allclose(sum(paths), p["buy"], rtol=1e-6)


class TestFiles:
    def test_all_columns_pass_through_and_probabilities_come_last(self, shop, predict):
        found = predict(shop.write(ROWS, "in.parquet"))
        assert found.select(ROWS.column_names).equals(ROWS)
        assert found.column_names == [*ROWS.column_names, *NAMES]

    def test_only_the_kept_columns_pass_through_in_their_order(self, predict):
        kept = ("--keep", "session", "--keep", "user_id", "--keep", "session")
        assert predict("test.parquet", *kept).column_names == ["session", "user_id", *NAMES]

    def test_label_columns_are_not_needed(self, shop, predict, model):
        shop.write(ROWS.select(READ), "unlabelled.parquet", group=600)
        assert predict("unlabelled.parquet").select(NAMES).equals(model.predict(ROWS))

    def test_predicting_on_predictions_replaces_them(self, predict):
        first = predict("test.parquet", "--keep", "user_id", *(o for c in READ[1:] for o in ("--keep", c)))
        os.replace("p.parquet", "again.parquet")
        assert predict("again.parquet").equals(first)

    def test_empty_row_groups_are_passed_over(self, shop, predict, model):
        with pq.ParquetWriter("gaps.parquet", ROWS.schema) as writer:
            for part in (ROWS.slice(0, 0), ROWS.slice(0, 300), ROWS.slice(0, 0), ROWS.slice(300), ROWS.slice(0, 0)):
                writer.write_table(part)
        assert pq.ParquetFile("gaps.parquet").num_row_groups > 2
        np.testing.assert_allclose(predict("gaps.parquet")["p_click"], model.predict(ROWS)["p_click"], rtol=2e-6)

    def test_a_folder_is_read_in_the_order_of_its_names(self, shop, predict):
        (shop.folder / "days").mkdir()
        shop.write(ROWS.slice(0, 200), "days/b.parquet")
        shop.write(ROWS.slice(200), "days/a.parquet")
        expected = pa.concat_tables([ROWS.slice(200), ROWS.slice(0, 200)])
        for source in ("days", "days/*.parquet"):
            assert predict(source).select(READ).equals(expected.select(READ))

    @pytest.mark.parametrize("kind", UNHELD)
    def test_a_column_that_parquet_cannot_hold_is_left_out_and_that_is_told(self, shop, trained, kind):
        odd = ROWS.append_column("odd", pa.nulls(600, UNHELD[kind])).append_column("zone", pa.nulls(600))
        with pa.ipc.new_file("odd.arrow", odd.schema) as writer:
            writer.write_table(odd, max_chunksize=400)
        asked = ("predict", trained.run, "--data", "odd.arrow", "--out", "p.parquet")
        said = shop.espace(*asked)
        assert said.code == 0, said
        assert f"Note: the column 'odd' is not passed on: Parquet cannot hold its type, {UNHELD[kind]}." in said.out
        assert pq.read_table("p.parquet").column_names == [*ROWS.column_names, "zone", *NAMES]
        said = shop.espace(*asked, "--keep", "user_id", "--keep", "odd")
        assert said.code == 2
        assert "odd.arrow: --keep names the column 'odd', but Parquet cannot hold its type" in said.error

    def test_a_column_that_not_all_files_have_is_not_passed_on_and_that_is_told(self, shop, trained):
        (shop.folder / "days").mkdir()
        shop.write(ROWS.slice(0, 300), "days/a.parquet")
        shop.write(ROWS.slice(300).append_column("late", pa.array([1] * 300)), "days/b.parquet")
        said = shop.espace("predict", trained.run, "--data", "days", "--out", "p.parquet")
        assert (
            "the column 'late' is not passed on: not all files have it, or not in one type that can be kept."
            in said.out
        )
        assert pq.read_table("p.parquet").column_names == [*ROWS.column_names, *NAMES]
        said = shop.espace("predict", trained.run, "--data", "days", "--out", "p.parquet", "--keep", "late")
        assert "no column 'late', which --keep names. days/a.parquet: has no column 'late' (int64)" in said.error

    def test_what_folders_say_is_read_and_passed_on(self, shop, predict, model):
        for age in (20, 70):
            (shop.folder / f"rows/age={age}").mkdir(parents=True)
            shop.write(ROWS.drop_columns("age"), f"rows/age={age}/x.parquet")
        found, expected = predict("rows"), [model.predict(put(ROWS, age=[age] * 600)) for age in (20, 70)]
        assert found["age"].to_pylist() == [20] * 600 + [70] * 600
        assert found.select(NAMES).equals(pa.concat_tables(expected))

    @pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.csv.gz"])
    def test_csv_gives_what_parquet_gives(self, predict, model, name):
        options = pa.csv.WriteOptions(delimiter="\t" if name.endswith("tsv") else ",")
        with pa.output_stream(name) as file:  # compressed by its ending
            pa.csv.write_csv(as_text(ROWS), file, options)
        found = predict(name)
        np.testing.assert_allclose(found["p_conversion"], model.predict(ROWS)["p_conversion"], rtol=2e-6)

    def test_the_options_of_the_run_s_reader_apply(self, shop):
        pa.csv.write_csv(as_text(ROWS), "semi.csv", pa.csv.WriteOptions(delimiter=";"))
        data = {"train": "semi.csv", "validation": "semi.csv", "delimiter": ";"}
        yaml = shop.yaml(data=data, features={"user_id": "id"}, trainer={"accelerator": "cpu", "max_steps": 1})
        assert shop.espace("fit", yaml, "--run-dir", "run").code == 0
        said = shop.espace("predict", "run", "--data", "semi.csv", "--out", "p.parquet")
        assert said.code == 0, said
        assert pq.read_table("p.parquet").num_rows == 600

    def test_the_last_line_tells_what_was_written_unless_quiet(self, shop, trained):
        command = ("predict", trained.run, "--data", "test.parquet", "--out", "sub/folder/p.parquet")
        assert shop.espace(*command).out == "600 rows with 3 probabilities: sub/folder/p.parquet\n"
        assert shop.espace(*command, "--quiet").out == ""


class TestInterruptions:
    def stopped(self, model, out, source, stop):
        """Predict until `stop` interrupts; what the folder holds then."""
        stream = model.predict_file(Files(source, "predict"), out)
        next(stream)
        stop(stream)
        return {p.name for p in out.parent.iterdir()}

    def test_an_interrupted_prediction_leaves_no_half_file(self, shop, model, tmp_path):
        source = str(shop.write(ROWS, "in.parquet", group=100))
        (tmp_path / "out").mkdir()
        assert self.stopped(model, tmp_path / "out" / "p.parquet", source, lambda s: s.close()) == set()

    def test_the_file_before_stays_when_the_input_breaks(self, shop, model, tmp_path):
        source = shop.write(ROWS, "in.parquet", group=100)
        out = tmp_path / "out" / "p.parquet"
        out.parent.mkdir()
        out.write_text("as it was")

        def stop(stream):
            os.truncate(source, 5000)
            with pytest.raises(DataError, match=r"in\.parquet, row group \d"):
                list(stream)

        assert self.stopped(model, out, str(source), stop) == {"p.parquet"}
        assert out.read_text() == "as it was"

    def test_ctrl_c_ends_with_130(self, shop):
        stop = "if not self.training and os.path.exists('stop'): raise KeyboardInterrupt"
        plugin = shop.tower("stops", top="import os", step=stop)
        yaml = shop.yaml(plugins=[plugin], tower="stops", trainer={"accelerator": "cpu", "max_steps": 1})
        assert shop.espace("fit", yaml, "--run-dir", "run").code == 0
        (shop.folder / "stop").touch()
        before = set(shop.folder.iterdir())
        said = shop.espace("predict", "run", "--data", "test.parquet", "--out", "p.parquet")
        assert (said.code, said.error) == (130, "espace: interrupted")
        assert set(shop.folder.iterdir()) == before


class TestMemory:
    def peak(self, model, shop, groups, group=500):
        """Bytes of Arrow memory at the highest, while predicting a file of so many row groups."""
        table = pa.concat_tables([rows(group, seed % 3) for seed in range(groups)])
        source = str(shop.write(table, "in.parquet", group=group))
        del table
        gc.collect()
        pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
        pa.set_memory_pool(pool)
        try:
            assert max(model.predict_file(Files(source, "predict"), shop.folder / "p.parquet")) == groups * group
            return pool.max_memory()
        finally:
            pa.set_memory_pool(before)

    def test_the_peak_does_not_grow_with_the_row_groups(self, model, shop):
        self.peak(model, shop, 2)  # what is made once
        few, many = self.peak(model, shop, 4), self.peak(model, shop, 40)
        assert 0 < many < 1.2 * few, f"{few:,} bytes for 4 row groups, {many:,} for 40"


def test_the_shop_has_rows_of_every_kind():
    """Or the tests above would show less than they say."""
    assert CONFIG["features"].keys() <= {*ROWS.column_names}
    assert ROWS["price"].null_count
    assert ROWS["history"].null_count
    assert pc.min(pc.list_value_length(ROWS["tags"])).as_py() == 0


@pytest.mark.parametrize("name", ["none.parquet", "none.csv", "none.arrow", "nothing"])
def test_a_part_without_rows_gives_a_file_without_rows_and_with_all_columns(shop, predict, name):
    flat = ROWS.drop_columns(["history", "tags", "tag_weights", "text"]) if name == "none.csv" else ROWS
    none, empty = (
        flat.slice(0, 0),
        {c: pa.array([], pa.string()) for c in set(ROWS.column_names) - {*flat.column_names}},
    )
    none = put(none, **empty)
    if name == "nothing":
        (shop.folder / name).mkdir()
        for number in range(2):
            shop.write(none, f"{name}/{number}.parquet")
    elif name == "none.csv":
        pyarrow.csv.write_csv(none, shop.folder / name)
    elif name == "none.arrow":
        with pa.ipc.new_file(shop.folder / name, none.schema) as writer:
            writer.write_table(none)
    else:
        shop.write(none, name)
    found = predict(name)
    assert found.num_rows == 0
    assert found.column_names == [*none.column_names, *NAMES]
    assert predict(name, "--keep", "user_id").column_names == ["user_id", *NAMES]


@pytest.mark.parametrize(
    "as_written",
    [
        lambda c: c.combine_chunks().dictionary_encode(),
        lambda c: c.combine_chunks().cast(pa.string_view()),
        lambda c: _dictionary_of_views(c),
        lambda c: c.combine_chunks().cast(pa.large_string()).dictionary_encode(),
    ],
    ids=["dictionary", "view", "dictionary of views", "dictionary of large text"],
)
def test_a_category_is_the_text_that_it_stands_for(model, as_written):
    column = pa.chunked_array([ROWS["item_id"].to_pylist()[:300] + [None] * 300])
    plain, coded = ({"item_id": column}, {"item_id": as_written(column)})
    assert model.predict(put(ROWS, **coded)).equals(model.predict(put(ROWS, **plain)))


def _dictionary_of_views(column: pa.ChunkedArray) -> pa.Array:
    """As polars gives a Categorical or an Enum."""
    coded = column.combine_chunks().dictionary_encode()
    return pa.DictionaryArray.from_arrays(coded.indices.cast(pa.uint32()), coded.dictionary.cast(pa.string_view()))


def test_a_date_that_parquet_cannot_hold_is_told_and_can_be_left_out(shop, trained, predict):
    late = pa.array([2**62] * 600, pa.timestamp("s"))
    with pa.ipc.new_file(shop.folder / "late.arrow", put(ROWS, late=late).schema) as writer:
        writer.write_table(put(ROWS, late=late))
    said = shop.espace("predict", trained.run, "--data", "late.arrow", "--out", "p.parquet")
    assert said.code == 2
    assert "late.arrow, row group 0: a column cannot be written as Parquet" in said.error
    assert predict("late.arrow", "--keep", "user_id").num_rows == 600
