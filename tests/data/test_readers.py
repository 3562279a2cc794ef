"""Laws of the readers: rows read the same however they are written, in flat memory, or with a clear error."""

from __future__ import annotations

import gzip
import inspect
import multiprocessing
import os
import pickle
import random
import shutil
from itertools import pairwise
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.dataset
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espace.data.reading import cache, convert, files, readers, schemas
from espace.data.reading.readers import Files, Piece
from espace.errors import DataError

ROWS = 1000
DATA = Path(os.environ.get("ESPACE_DATA", Path(__file__).parents[3] / "shared" / "data"))
real_data = pytest.mark.real_data
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data is not at {DATA}; set ESPACE_DATA")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ESPACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ESPACE_CACHE_GIB", raising=False)
    return tmp_path / "cache"


def table(rows=ROWS, seed=0):
    draw = np.random.default_rng(seed)
    user = pa.array(draw.integers(0, 2**60, rows), mask=draw.random(rows) < 0.1)
    return pa.table(
        {
            "user": user,  # nulls beside ids above 2**53
            "city": pa.array([None if n % 7 == 0 else f'c"{n},é' for n in range(rows)], pa.string()),
            "price": draw.random(rows).round(6),
            "click": pa.array(draw.integers(0, 2, rows), pa.int64()),
        }
    )


def write_parquet(data, path, rows=300):
    pq.write_table(data, path, row_group_size=rows, write_page_checksum=True)
    return str(path)


def write_csv(data, path):
    pc.write_csv(data, path)
    return str(path)


def write_text(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def write_gzip(data, path):
    write_csv(data, path.with_suffix(""))
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    path.with_suffix("").unlink()
    return str(path)


def write_arrow(data, path, rows=300, **options):
    with pa.ipc.new_file(path, data.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(data, max_chunksize=rows)
    return str(path)


def write_stream(data, path):
    with pa.ipc.new_stream(path, data.schema) as writer:
        writer.write_table(data, max_chunksize=300)
    return str(path)


def write_parts(data, folder):
    (folder / "second").mkdir(parents=True)
    write_csv(data.slice(0, 400), folder / "a.csv")
    write_parquet(data.slice(400, 300), folder / "b.parquet")
    write_arrow(data.slice(700), folder / "second" / "c.arrow")
    for noise in ("_SUCCESS", ".a.csv.crc", "README.md"):
        write_text(folder / noise, "not,data\n")
    return str(folder)


def written_as_list(data, folder):
    parts = [(300, "z.parquet"), (300, "y.parquet"), (400, "x.parquet")]
    starts = np.cumsum([0, *(rows for rows, _ in parts)])
    return [
        write_parquet(data.slice(start, rows), folder / name)
        for start, (rows, name) in zip(starts, parts, strict=False)
    ]


def written_for_glob(data, folder):
    for day in range(4):
        (folder / f"day-{day}").mkdir()
        write_parquet(data.slice(day * 250, 250), folder / f"day-{day}" / "part-0.parquet")
    return str(folder / "day-?" / "*.parquet")


WRITTEN = {
    "parquet": lambda data, folder: write_parquet(data, folder / "x.parquet"),
    "csv": lambda data, folder: write_csv(data, folder / "x.csv"),
    "gzipped csv": lambda data, folder: write_gzip(data, folder / "x.csv.gz"),
    "arrow file": lambda data, folder: write_arrow(data, folder / "x.arrow"),
    "compressed arrow file": lambda data, folder: write_arrow(data, folder / "x.feather", compression="zstd"),
    "arrow stream": lambda data, folder: write_stream(data, folder / "x.arrow"),
    "folder of parts": lambda data, folder: write_parts(data, folder / "parts"),
    "glob": written_for_glob,
    "list": written_as_list,
}


def read_all(reader, columns=None):
    columns = reader.schema.names if columns is None else columns
    return pa.concat_tables([reader.read(piece, columns) for piece in reader.pieces]).combine_chunks()


def make_damaged(path):
    """One row group in the middle no longer agrees with its checksum."""
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    end = chunk.dictionary_page_offset + chunk.total_compressed_size
    content = bytearray(path.read_bytes())
    for position in range(end - 40, end - 20):
        content[position] ^= 0xFF
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


# The same rows, however they are written


@pytest.mark.parametrize("written", WRITTEN)
def test_rows_and_their_order_do_not_depend_on_how_they_are_written(written, tmp_path):
    reader = Files(WRITTEN[written](table(), tmp_path), "train")
    assert read_all(reader).equals(table())
    assert reader.schema.equals(table().schema)
    assert sum(piece.rows for piece in reader.pieces) == ROWS


@pytest.mark.parametrize("written", WRITTEN)
def test_pieces_read_in_any_order_give_the_same_rows(written, tmp_path):
    reader = Files(WRITTEN[written](table(), tmp_path), "train")
    order = list(enumerate(reader.pieces))
    random.Random(0).shuffle(order)
    found = dict(sorted((number, reader.read(piece, ["user", "city"])) for number, piece in order))
    assert pa.concat_tables(found.values()).equals(table().select(["user", "city"]))


@pytest.mark.parametrize("written", WRITTEN)
def test_a_pickled_reader_reads_the_same(written, tmp_path):
    reader = Files(WRITTEN[written](table(), tmp_path), "train")
    read_all(reader)
    again = pickle.loads(pickle.dumps(reader))
    assert read_all(again).equals(table())
    assert (again.pieces, again.fingerprint) == (reader.pieces, reader.fingerprint)


def test_a_reader_works_in_a_spawned_process(tmp_path):
    reader = Files(write_parts(table(), tmp_path / "parts"), "train")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_all, [reader]).equals(table())


@pytest.mark.parametrize("written", ["parquet", "csv", "arrow file", "arrow stream", "folder of parts"])
def test_files_on_an_object_store_are_read_like_local_ones(written, tmp_path):
    local = Path(WRITTEN[written](table(), tmp_path))
    store = fsspec.filesystem("memory")
    store.put(str(local), f"/{tmp_path.name}/{local.name}", recursive=True)
    try:
        reader = Files(f"memory://{tmp_path.name}/{local.name}", "train")
        assert read_all(reader).equals(table())
        assert reader.pieces[0].source.startswith("memory://")
        assert read_all(pickle.loads(pickle.dumps(reader))).equals(table())
    finally:
        store.rm(f"/{tmp_path.name}", recursive=True)


def test_a_glob_and_a_file_uri_reach_the_same_files(tmp_path):
    path = written_for_glob(table(), tmp_path)
    assert read_all(Files(f"file://{path.replace('?', '*')}", "train")).equals(table())
    assert read_all(Files(str(tmp_path / "**" / "part-*.parquet"), "train")).equals(table())
    assert read_all(Files(str(tmp_path / "day-[0-3]"), "train")).equals(table())


def test_relative_paths_survive_a_change_of_the_working_folder(tmp_path, monkeypatch):
    write_parquet(table(), tmp_path / "x.parquet")
    monkeypatch.chdir(tmp_path)
    reader = Files("x.parquet", "train")
    monkeypatch.chdir("/")
    assert read_all(reader).equals(table())
    assert str(reader.pieces[1]) == "x.parquet, row group 1"


def test_a_glob_passes_over_folders_without_data(tmp_path):
    (tmp_path / "tmp").mkdir()
    write_parquet(table(), tmp_path / "x.parquet")
    assert read_all(Files(str(tmp_path / "*"), "train")).equals(table())


def test_a_name_with_brackets_is_a_name_when_the_file_exists(tmp_path):
    path = write_parquet(table(), tmp_path / "x[1].parquet")
    assert read_all(Files(path, "train")).equals(table())


# Columns


def test_columns_come_in_the_order_of_the_file_and_repeats_do_no_harm(tmp_path):
    reader = Files(write_parquet(table(), tmp_path / "x.parquet"), "train")
    assert read_all(reader, ["click", "user", "click"]).equals(table().select(["user", "click"]))


@pytest.mark.parametrize("written", ["parquet", "csv", "arrow file"])
def test_no_columns_still_count_the_rows(written, tmp_path):
    reader = Files(WRITTEN[written](table(), tmp_path), "train")
    assert [reader.read(piece, []).num_rows for piece in reader.pieces] == [piece.rows for piece in reader.pieces]


RICH = {
    "dictionary": (pa.array(["a", None, "a"]).dictionary_encode(), pa.string()),
    "large_string": (pa.array(["a", None, "b"], pa.large_string()), pa.string()),
    "string_view": (pa.array(["a", None, "b"], pa.string_view()), pa.string()),
    "large_list": (pa.array([["a"], None, []], pa.large_list(pa.large_string())), pa.list_(pa.string())),
    "fixed_size_list": (pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int32(), 2)), pa.list_(pa.int32())),
    "list of dictionary": (
        pa.ListArray.from_arrays([0, 1, 1, 2], pa.array(["a", "b"]).dictionary_encode()),
        pa.list_(pa.string()),
    ),
    "struct": (pa.array([{"x": "a"}] * 3, pa.struct({"x": pa.large_string()})), pa.struct({"x": pa.string()})),
    "uuid": (pa.array([b"0123456789abcdef"] * 3, pa.uuid()), pa.binary(16)),
    "list": (pa.array([[1], None, []], pa.list_(pa.int8())), pa.list_(pa.int8())),
    "runs": (pa.RunEndEncodedArray.from_arrays([2, 3], pa.array([1, None])), pa.int64()),
    "runs of text": (pa.RunEndEncodedArray.from_arrays([2, 3], pa.array(["a", None], pa.large_string())), pa.string()),
}


@pytest.mark.parametrize("kind", RICH)
@pytest.mark.parametrize("write", [write_parquet, write_arrow, write_stream])
def test_rich_types_are_read_as_the_few_plain_ones(kind, write, tmp_path):
    column, plain = RICH[kind]
    if "runs" in kind and write is write_parquet:
        pytest.skip("Parquet has no such type")
    reader = Files(
        write(pa.table({"x": column}), tmp_path / f"x{'.parquet' * (write is write_parquet) or '.arrow'}"), "t"
    )
    assert reader.schema == pa.schema([("x", plain)])
    assert read_all(reader)["x"].type == plain
    storage = column.storage if isinstance(column, pa.ExtensionArray) else column
    assert read_all(reader)["x"].to_pylist() == storage.to_pylist()


def test_types_of_several_files_are_promoted_to_one_that_holds_both(tmp_path):
    narrow = pa.table({"n": pa.array([1, None], pa.int32()), "f": pa.array([1, 2], pa.int64()), "s": pa.nulls(2)})
    wide = pa.table({"s": ["x"], "n": pa.array([2**60], pa.int64()), "f": [0.5]})
    reader = Files([write_parquet(t, tmp_path / f"{i}.parquet") for i, t in enumerate([narrow, wide])], "train")
    assert reader.schema == pa.schema([("n", pa.int64()), ("f", pa.float64()), ("s", pa.string())])
    assert read_all(reader).to_pydict() == {"n": [1, None, 2**60], "f": [1.0, 2.0, 0.5], "s": [None, None, "x"]}


def test_a_promotion_never_rounds_an_id(tmp_path):
    exact, rounded = pa.table({"id": [2**53 + 1]}), pa.table({"id": [1.0]})
    source = [write_parquet(t, tmp_path / f"{i}.parquet") for i, t in enumerate([exact, rounded])]
    reader = Files(source, "train")
    with pytest.raises(DataError, match=r"0.parquet, row group 0: column 'id' is int64 and cannot be read as double"):
        reader.read(reader.pieces[0], ["id"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([pa.null(), pa.int8(), pa.int32(), pa.int64(), pa.float64()]), min_size=1))
def test_the_common_type_does_not_depend_on_the_order_of_the_files(kinds):
    named = [(f"{n}.parquet", pa.schema([("x", kind)])) for n, kind in enumerate(kinds)]
    assert schemas.agree(named) == schemas.agree(named[::-1])


ODD = {
    "interval": pa.array([pa.MonthDayNano([1, 2, 3]), None, None], pa.month_day_nano_interval()),
    "duration": pa.array([5, None, 7], pa.duration("ns")),
    "struct of intervals": pa.array([None] * 3, pa.struct({"x": pa.month_day_nano_interval()})),
    "union": pa.UnionArray.from_dense(
        pa.array([0] * 3, pa.int8()), pa.array(range(3), pa.int32()), [pa.array(range(3))]
    ),
    "half": pa.array([1.0, None, 2.0], pa.float16()),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("write", [write_parquet, write_arrow, write_stream])
@pytest.mark.parametrize("folder", ["", "day=3"])
def test_only_a_column_that_is_read_can_be_refused_for_its_type(kind, write, folder, tmp_path):
    (tmp_path / folder).mkdir(exist_ok=True)
    data = pa.table({"y": [1, 0, 1], "odd": ODD[kind]})
    try:
        path = write(data, tmp_path / folder / f"x{'.parquet' * (write is write_parquet) or '.arrow'}")
    except pa.ArrowNotImplementedError:
        pytest.skip("Parquet has no such type")
    reader = Files(path, "train")
    assert read_all(reader, ["y"]).to_pydict() == {"y": [1, 0, 1]}
    if "odd" not in reader.schema.names:
        assert "x.arrow: column 'odd' is of type" in reader.apart["odd"]
        with pytest.raises(
            DataError, match=r"x.arrow: column 'odd' is of type .*, which cannot be kept. Write a plainer"
        ):
            reader.read(reader.pieces[0], ["y", "odd"])


# Columns in the names of folders


FOLDERS = {
    "numbers": (["day=01", "day=2", "day=-3"], pa.int32(), [1, 2, -3]),
    "dates": (["day=2024-01-01", "day=2024-01-02"], pa.string(), ["2024-01-01", "2024-01-02"]),
    "number and text": (["day=1", "day=x"], pa.string(), ["1", "x"]),
    "null": (["day=__HIVE_DEFAULT_PARTITION__", "day=4"], pa.int32(), [None, 4]),
    "too large": (["day=2147483648"], pa.string(), ["2147483648"]),
    "escaped": (["day=1%202%3A3", "day=b=c", "day="], pa.string(), ["1 2:3", "b=c", ""]),
    "the outer folder": (["day=1/day=2"], pa.int32(), [1]),
    "numbers that are none": (["day=+1", "day= 1", "day=1_0"], pa.string(), ["+1", " 1", "1_0"]),
}


@pytest.mark.parametrize("folders", FOLDERS)
def test_folders_are_columns_as_they_are_for_pyarrow(folders, tmp_path):
    names, kind, values = FOLDERS[folders]
    for number, name in enumerate(names):
        (tmp_path / "data" / name).mkdir(parents=True)
        write_parquet(pa.table({"n": [number]}), tmp_path / "data" / name / "x.parquet")
    found = read_all(Files(str(tmp_path / "data"), "train"))
    assert found["day"].type == kind
    assert dict(zip(found["n"].to_pylist(), found["day"].to_pylist(), strict=True)) == dict(enumerate(values))
    partitioned = pa.dataset.dataset(tmp_path / "data", partitioning="hive", format="parquet").to_table()
    assert found.sort_by("n").equals(partitioned.sort_by("n"))


@pytest.mark.parametrize("kind", ["parquet", "csv", "arrow file", "arrow stream"])
def test_folders_are_columns_in_every_format_and_on_an_object_store(kind, tmp_path):
    for day in (1, 2):
        (tmp_path / f"day={day}" / "country=NA").mkdir(parents=True)
        WRITTEN[kind](table(10, day), tmp_path / f"day={day}" / "country=NA")
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path), f"/{tmp_path.name}", recursive=True)
    try:
        for source in (str(tmp_path), f"{tmp_path}/day=*/*/*", f"memory://{tmp_path.name}"):
            reader = pickle.loads(pickle.dumps(Files(source, "train")))
            found = read_all(reader, ["day", "country"])
            assert found.to_pydict() == {"day": [1] * 10 + [2] * 10, "country": ["NA"] * 20}
            rows = pa.concat_tables([table(10, 1), table(10, 2)])
            assert read_all(reader).select(["user", "click"]).equals(rows.select(["user", "click"]))
    finally:
        store.rm(f"/{tmp_path.name}", recursive=True)


def test_what_a_folder_says_is_content_and_a_column_of_the_file_goes_before_it(tmp_path):
    for name in ("day=1", "day=2"):
        (tmp_path / name).mkdir()
        write_parquet(pa.table({"n": [7]}), tmp_path / name / "x.parquet")
    readers = [Files(str(tmp_path / name), "train") for name in ("day=1", "day=2")]
    assert [read_all(reader)["day"].to_pylist() for reader in readers] == [[1], [2]]
    assert readers[0].fingerprint != readers[1].fingerprint
    write_parquet(pa.table({"day": ["monday"]}), tmp_path / "day=1" / "x.parquet")
    assert read_all(Files(str(tmp_path / "day=1"), "train")).to_pydict() == {"day": ["monday"]}


# CSV


def read_csv(tmp_path, text, name="x.csv", **options):
    return read_all(Files(write_text(tmp_path / name, text), "train", **options))


def test_bom_crlf_quotes_and_line_breaks_in_quotes_are_understood(tmp_path):
    text = b'\xef\xbb\xbfa,b\r\n1,"x,""y"\r\n2,"two\nlines"\r\n'
    assert read_csv(tmp_path, text).to_pydict() == {"a": [1, 2], "b": ['x,"y', "two\nlines"]}


def test_empty_cells_are_null_and_a_country_is_not(tmp_path):
    found = read_csv(tmp_path, 'n,s\n,\n1,""\n2,NA\n')
    assert found.to_pydict() == {"n": [None, 1, 2], "s": [None, None, "NA"]}


def test_more_marks_of_null_can_be_named_and_those_that_are_always_stay(tmp_path):
    text = 'n,s\n1.5,N/A\nN/A,-\n"N/A",x\n-,NULL\n,\n2,"-"\n'
    found = read_csv(tmp_path, text, null_values=["N/A", "-"])
    assert found.to_pydict() == {"n": [1.5, None, None, None, None, 2], "s": [None, None, "x", None, None, None]}
    plain = read_csv(tmp_path, text)
    assert plain.schema == pa.schema([("n", pa.string()), ("s", pa.string())])
    assert plain["s"].to_pylist() == ["N/A", "-", "x", None, None, "-"]
    late = read_csv(tmp_path, "n\n" + "1\n" * 100 + "-999\n", null_values=["-999"], column_types={"n": "int8"})
    assert late["n"].to_pylist() == [1] * 100 + [None]


@pytest.mark.parametrize(
    ("name", "text"), [("x.tsv", "a\tb\n1\t2\n"), ("x.TXT", "a\tb\n1\t2\n"), ("x.csv", "a,b\n1,2\n")]
)
def test_the_ending_says_the_delimiter(name, text, tmp_path):
    assert read_csv(tmp_path, text, name).to_pydict() == {"a": [1], "b": [2]}


def test_options_say_delimiter_names_and_types(tmp_path):
    found = read_csv(
        tmp_path, "007;1\n", delimiter=";", column_names=["id", "n"], column_types={"id": "string", "n": "int8"}
    )
    assert found.equals(pa.table({"id": ["007"], "n": pa.array([1], pa.int8())}))


@pytest.mark.parametrize(
    ("early", "late", "kind"),
    [
        ("1", "x", pa.string()),
        ("1", "2.5", pa.float64()),
        ("", "7", pa.int64()),
        ("", "0.5", pa.float64()),
        ("", "x", pa.string()),
        ("0.5", "x", pa.string()),
        ("true", "7", pa.string()),
        ("1", str(2**64 - 1), pa.string()),  # as float64 it would be rounded
        ("", str(2**64 - 1), pa.string()),
        (str(2**64 - 1), "1", pa.string()),
    ],
)
def test_a_column_that_drifts_is_read_from_the_start_in_a_wider_type(early, late, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "_BLOCK", 256)
    found = read_csv(tmp_path, "a,b\n" + f"{early},z\n" * 500 + f"{late},z\n")["a"]
    assert found.type == kind
    values = found.cast(pa.string()).to_pylist()
    assert values[:500] == [pa.scalar(early or None, pa.string()).cast(kind).cast(pa.string()).as_py()] * 500
    assert values[-1] == late


def test_several_columns_may_drift(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "_BLOCK", 64)
    found = read_csv(tmp_path, "a,b,c\n" + "1,2,\n" * 50 + "x,2,\n" * 50 + "1,y,3\n")
    assert found.schema == pa.schema([("a", pa.string()), ("b", pa.string()), ("c", pa.int64())])
    assert found["b"].to_pylist() == ["2"] * 100 + ["y"]


def test_a_csv_becomes_row_groups_of_65_536(tmp_path):
    data = pa.table({"n": pa.array(range(150_000))})
    reader = Files(write_csv(data, tmp_path / "x.csv"), "train")
    assert [piece.rows for piece in reader.pieces] == [65_536, 65_536, 18_928]
    assert read_all(reader).equals(data)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 12))
def test_regrouping_keeps_rows_and_sizes(sizes, group):
    starts = np.cumsum([0, *sizes])
    batches = [pa.record_batch({"n": np.arange(a, b)}) for a, b in pairwise(starts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "GROUP_ROWS", group)
        found = list(convert._groups(batches))
    assert [n for t in found for n in t["n"].to_pylist()] == list(range(sum(sizes)))
    assert all(t.num_rows % group == 0 for t in found[:-1])
    assert all(t.num_rows < 2 * group + 9 for t in found)


# Empty files


@pytest.mark.parametrize("empty", ["parquet", "csv", "arrow file", "arrow stream"])
def test_a_file_without_rows_is_passed_over(empty, tmp_path):
    nothing = pa.table({"other": pa.array([], pa.string())})
    full = write_parquet(table(), tmp_path / "full.parquet")
    reader = Files([WRITTEN[empty](nothing, tmp_path), full], "train")
    assert read_all(reader).equals(table())


def test_empty_row_groups_keep_the_numbers_of_the_others(tmp_path):
    path = tmp_path / "x.parquet"
    with pq.ParquetWriter(path, table().schema) as writer:
        for rows in (10, 0, 20):
            writer.write_table(table(rows))
    groups = pq.ParquetFile(path).metadata.num_row_groups
    reader = Files(str(path), "train")
    assert [piece.rows for piece in reader.pieces] == [10, 20]
    assert reader.pieces[-1].index == groups - 1


# Memory


@pytest.mark.parametrize("write", [write_parquet, write_csv])
def test_memory_is_bounded_by_the_row_group_and_not_by_the_file(write, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "GROUP_ROWS", 16_384)
    monkeypatch.setattr(convert, "_BLOCK", 1 << 16)
    groups = 40
    rows = groups * 16_384
    data = pa.table({"n": np.random.default_rng(0).integers(0, 2**60, rows), "m": np.arange(rows)})
    is_csv, size = write is write_csv, data.nbytes
    source = write(data, tmp_path / "x.csv") if is_csv else write(data, tmp_path / "x.parquet", 16_384)
    pool, default = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        reader = Files(source, "train")
        seen = sum(reader.read(piece, ["n", "m"]).num_rows for piece in reader.pieces)
    finally:
        pa.set_memory_pool(default)
    assert (seen, len(reader.pieces)) == (rows, groups)
    assert 0 < pool.max_memory() < 4 * size / groups


# Fingerprints


def test_the_fingerprint_is_of_the_content_and_its_order_not_of_names(tmp_path):
    one, two = (write_parquet(table(seed=n), tmp_path / f"{n}.parquet") for n in (1, 2))
    (tmp_path / "copy").mkdir()
    other = shutil.copy(one, tmp_path / "copy" / "renamed.parquet")
    assert Files([one, two], "train").fingerprint == Files([other, two], "validation").fingerprint
    assert Files([one, two], "train").fingerprint != Files([two, one], "train").fingerprint
    assert Files(one, "train").fingerprint != Files(two, "train").fingerprint


def test_the_fingerprint_of_a_csv_follows_content_and_options(tmp_path):
    path = write_text(tmp_path / "x.csv", "a,b\n1,2\n")
    assert Files(path, "t").fingerprint != Files(path, "t", column_types={"a": "string"}).fingerprint
    before = Files(path, "t").fingerprint
    write_text(tmp_path / "x.csv", "a,b\n1,3\n")
    assert Files(path, "t").fingerprint != before


def test_a_digest_is_remembered_until_the_file_changes(tmp_path, cache_folder):
    path = tmp_path / "x.bin"
    local = files._filesystem("")[0]
    path.write_bytes(b"one")
    first = cache.fingerprint(local, str(path), 3, 1)
    path.write_bytes(b"two")
    assert cache.fingerprint(local, str(path), 3, 1) == first
    assert cache.fingerprint(local, str(path), 3, 2) != first
    (cache_folder / "fingerprints.json").write_text("{cut off")
    assert cache.fingerprint(local, str(path), 3, 1) != first


def test_the_fingerprint_of_a_remote_file_is_of_address_size_and_time():
    store = files._filesystem("memory://")[0]
    prints = {cache.fingerprint(store, *seen) for seen in [("/a", 1, 1), ("/b", 1, 1), ("/a", 2, 1), ("/a", 1, 2)]}
    assert len(prints) == 4


# The cache


def tables_in(folder):
    return sorted((folder / "tables").iterdir())


def test_the_cache_folder_is_chosen_by_the_environment(tmp_path, monkeypatch):
    assert cache.folder() == tmp_path / "cache"
    monkeypatch.delenv("ESPACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "espace"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "espace"
    assert cache.folder().is_dir()


def test_a_second_start_does_not_convert_again(tmp_path, cache_folder):
    source = write_csv(table(), tmp_path / "x.csv")
    first = Files(source, "train")
    (made,) = tables_in(cache_folder)
    inode = made.stat().st_ino
    second = Files(shutil.copy(source, tmp_path / "y.csv"), "train")
    assert [path.stat().st_ino for path in tables_in(cache_folder)] == [inode]
    assert read_all(second).equals(read_all(first))


def test_an_ending_that_changes_the_delimiter_changes_the_table(tmp_path):
    assert read_csv(tmp_path, "a\tb,c\n1\t2,3\n", "x.tsv").column_names == ["a", "b,c"]
    assert read_csv(tmp_path, "a\tb,c\n1\t2,3\n", "x.csv").column_names == ["a\tb", "c"]


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path, cache_folder):
    bad = write_text(tmp_path / "x.csv", "a,b\n" + "1,2\n" * 100_000 + "1\n")
    with pytest.raises(DataError, match=r"x.csv, line 100002"):
        Files(bad, "train")
    assert tables_in(cache_folder) == []


def test_a_conversion_that_is_interrupted_leaves_nothing_behind(cache_folder):
    def interrupted(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.Kept("x").filled(interrupted)
    assert tables_in(cache_folder) == []


def test_a_table_removed_by_another_process_is_made_again(tmp_path, cache_folder):
    reader = Files(write_csv(table(), tmp_path / "x.csv"), "train")
    for path in tables_in(cache_folder):
        path.unlink()
    assert read_all(pickle.loads(pickle.dumps(reader))).equals(table())


def test_the_bound_removes_the_table_used_longest_ago_but_none_in_use(cache_folder, monkeypatch):
    monkeypatch.setenv("ESPACE_CACHE_GIB", str(250 / 1024**3))

    def fill(key, age):
        kept = cache.Kept(key)
        os.utime(kept.filled(lambda path: path.write_bytes(b"x" * 100) and None), (1e9 - age, 1e9 - age))
        return kept

    held = fill("held", age=40)
    for key, age in [("oldest", 30), ("newer", 20)]:
        fill(key, age)
    fill("newest", age=0)
    assert held.path.exists()
    assert [path.stem for path in tables_in(cache_folder)] == ["held", "newest"]
    del held
    fill("another", age=0)
    assert [path.stem for path in tables_in(cache_folder)] == ["another", "newest"]


def test_using_a_table_makes_it_young(tmp_path, cache_folder):
    source = write_csv(table(), tmp_path / "x.csv")
    Files(source, "train")
    (made,) = tables_in(cache_folder)
    os.utime(made, (1, 1))
    Files(source, "validation")
    assert made.stat().st_mtime > 1e9


def test_what_a_killed_process_left_is_removed_after_a_day(cache_folder):
    cache.Kept("a").filled(lambda path: path.write_bytes(b"x") and None)
    for name, age in [(".old.1.tmp", 1e6), (".young.2.tmp", 0)]:
        path = cache_folder / "tables" / name
        path.write_bytes(b"half")
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    cache.Kept("b").filled(lambda path: path.write_bytes(b"x") and None)
    assert [path.name for path in tables_in(cache_folder)] == [".young.2.tmp", "a.parquet", "b.parquet"]


def test_a_cache_that_cannot_be_written_stops_a_csv_but_not_parquet(tmp_path, monkeypatch):
    monkeypatch.setenv("ESPACE_CACHE", write_text(tmp_path / "taken", "a file stands here"))
    assert read_all(Files(write_parquet(table(), tmp_path / "x.parquet"), "train")).equals(table())
    with pytest.raises(DataError, match=r"taken: the cache folder cannot be written: .*Set ESPACE_CACHE"):
        Files(write_csv(table(), tmp_path / "x.csv"), "train")


def test_a_bound_that_is_no_number_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ESPACE_CACHE_GIB", "20G")
    with pytest.raises(DataError, match="ESPACE_CACHE_GIB: '20G' is not a number"):
        Files(write_csv(table(), tmp_path / "x.csv"), "train")


# Errors: where, what, with the values, and the way out


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "trian.parquet",
            r"train: '.*trian.parquet' does not exist. In '.*' there is no 'trian.parquet'. Did you mean 'train",
        ),
        ("dta/train.parquet", r"there is no 'dta'. Did you mean 'data'\?"),
        ("*.parq", r"train: no file matches '.*\*.parq'. '.*' has: data, empty, notes.md, train.parquet\."),
        (
            "empty",
            r"train: the folder '.*empty' has no data files \(names that start with _ or . are ignored\); it has: n",
        ),
        (
            "notes.md",
            r"notes.md: the ending '.md' says no format. Known: .parquet, .*use the reader parquet, csv or arrow",
        ),
        (["train.parquet", "./train.parquet"], r"train: '.*train.parquet' is named twice. Take it out"),
        ([], r"train: \[\] names no files. Give a file"),
        (None, r"train: None names no files"),
        ("train.parquet/*.csv", r"train: no file matches '.*\*.csv'. '.*train.parquet' has: nothing"),
        ("file:///a b/x.csv", r"file:///a b/x.csv: cannot be reached: Cannot parse URI"),
        ("nosuch://a/b.parquet", r"nosuch://a/b.parquet: cannot be reached: Protocol not known: nosuch"),
        ("memory://nothing/here.csv", r"train: 'memory://nothing/here.csv' does not exist"),
    ],
)
def test_a_source_that_means_no_files_says_why(source, message, tmp_path):
    for folder in ("data", "empty"):
        (tmp_path / folder).mkdir()
    write_parquet(table(), tmp_path / "train.parquet")
    write_text(tmp_path / "notes.md", "x")
    here = {str: lambda s: s if "://" in s else f"{tmp_path}/{s}", list: lambda s: [f"{tmp_path}/{e}" for e in s]}
    with pytest.raises(DataError, match=message):
        Files(here.get(type(source), lambda s: s)(source), "train")


def test_a_secret_in_an_address_is_not_shown():
    with pytest.raises(DataError) as caught:
        Files("nosuch://key:secret@bucket/x.parquet?token=secret", "train")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.parquet",
            b"a,b\n1,2\n",
            r"x.parquet: is not a Parquet file, or is cut off or damaged: .*magic.*Write it again",
        ),
        ("x.parquet", b"", r"x.parquet: is not a Parquet file, or is cut off or damaged: Parquet file size is 0 bytes"),
        ("x.arrow", b"a,b\n1,2\n", r"x.arrow: is not an Arrow file or stream, or is cut off"),
        ("x.arrow", b"ARROW1\x00\x00cut off", r"x.arrow: is not an Arrow file, or is cut off or damaged"),
        ("x.feather", b"FEA1 and so on", r"x.feather: is Feather version 1"),
        ("x.csv", b"", r"x.csv: is empty: no header and no rows"),
        ("x.csv", b"a,b\n1,2\n1,2,3\n", r"x.csv, line 3 .*: 3 values where 2 are expected: '1,2,3'. Mend the line"),
        ("x.csv", b"a,a\n1,2\n", r"x.csv: has more than one column named 'a'. .*set column_names"),
        ("x.csv", b"a;b\n1;2\n", r"x.csv: split at ',', its first line is one column: 'a;b'. Set delimiter: ';'"),
        ("x.csv", b"a,b\n1,\xff\n", r"x.csv: column 'b' is not UTF-8 text. .*iconv"),
        ("x.csv", b"\xff\xfea\x00,\x00b\x00\n", r"x.csv: .* is not UTF-8 text"),
        (
            "x.csv.gz",
            gzip.compress(b"a,b\n1,2\n" * 100, mtime=0)[:-12],
            r"x.csv.gz: cannot be read as CSV: Truncated compressed",
        ),
        ("x.csv.gz", b"a,b\n1,2\n", r"x.csv.gz: cannot be read as CSV: zlib inflate failed"),
        ("x.csv", b"a,b\n", r"train: no rows: .*x.csv is empty"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(name, content, message, tmp_path):
    with pytest.raises(DataError, match=message):
        Files(write_text(tmp_path / name, content), "train")


def test_a_quote_that_is_never_closed_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "_BLOCK", 1 << 20)
    text = 'a,b\n1,"' + "x\n" * 1_200_000
    with pytest.raises(
        DataError, match=r"x.csv: a line is longer than 1 MiB. Most often a quote is opened and never closed"
    ):
        read_csv(tmp_path, text)


@pytest.mark.parametrize("write", [write_parquet, write_arrow, write_stream])
def test_a_file_cut_off_is_refused_at_the_start(write, tmp_path):
    path = tmp_path / ("x.parquet" if write is write_parquet else "x.arrow")
    write(table(), path)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(DataError, match=r"cut off( or damaged)?: .*Write it again"):
        Files(str(path), "train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": "||"}, r"train: delimiter is '\|\|'. Give one character"),
        ({"column_names": ["a"]}, r"x.csv, line 1 .*: 2 values where 1 are expected"),
        ({"column_names": ["a", "a"]}, r"train: column_names: has more than one column named 'a'"),
        ({"column_types": {"b": "int46"}}, r"column_types.b: no type 'int46'. Did you mean 'int64'\?"),
        ({"column_types": {"bb": "int64"}}, r"x.csv: column_types names 'bb', which is no column. Did you mean 'b'"),
        ({"column_types": {"b": "int8"}}, r"x.csv, line 3: column 'b' has '300', which is not int8. Mend column_types"),
        ({"format": "cvs"}, r"x.csv: no format 'cvs'. Did you mean 'csv'"),
        ({"format": "parquet"}, r"x.csv: is not a Parquet file"),
        ({"format": "arrow"}, r"x.csv: is not an Arrow file or stream"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, tmp_path):
    path = write_text(tmp_path / "x.csv", "a,b\n1,2\n3,300\n")
    with pytest.raises(DataError, match=message):
        Files(path, "train", **options)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"a": ["x"], "click": [1]},
            r"2.parquet: column 'a' is string, but int64 in .*1.parquet. Write both with one type",
        ),
        (
            {"a": [1], "clik": [1]},
            r"2.parquet: has no column 'click' \(int64\), which .*1.parquet has. Did you mean 'clik'",
        ),
        ({"a": [1], "click": [1], "z": [1]}, r"1.parquet: has no column 'z' \(int64\), which .*2.parquet has"),
        ({"a": [1], "click": [[1]]}, r"2.parquet: column 'click' is list<item: int64>, but int64 in .*1.parquet"),
    ],
)
def test_files_that_disagree_are_both_named(other, message, tmp_path):
    one = write_parquet(pa.table({"a": [1], "click": [1]}), tmp_path / "1.parquet")
    two = write_parquet(pa.table(other), tmp_path / "2.parquet")
    reader = Files([one, two], "train")
    with pytest.raises(DataError, match=message):
        reader.read(reader.pieces[0], ["a", "click", "z"])


def test_all_disagreements_of_two_files_come_at_once(tmp_path):
    write_parquet(pa.table({"a": [1], "b": [1], "c": [1]}), tmp_path / "1.parquet")
    write_parquet(pa.table({"a": ["x"], "b": ["x"]}), tmp_path / "2.parquet")
    reader = Files(str(tmp_path / "*.parquet"), "train")
    with pytest.raises(DataError, match=r"'a' is(.|\n)*'b' is(.|\n)*'c'"):
        reader.read(reader.pieces[0], ["a", "b", "c"])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_files_may_differ_in_columns_that_nothing_reads(order, tmp_path):
    tables = [table(10), table(10, 1).append_column("later", pa.array([1] * 10)), table(10, 2).drop_columns("price")]
    tables[0] = tables[0].set_column(1, "city", pa.array(range(10)))
    paths = [write_parquet(tables[i], tmp_path / f"{i}.parquet") for i in order]
    reader = Files(paths, "train")
    assert sorted(reader.schema.names) == ["click", "user"]
    assert read_all(reader).equals(pa.concat_tables(tables[i].select(["user", "click"]) for i in order))
    assert sorted(reader.apart) == ["city", "later", "price"]


def test_a_column_that_is_not_there_is_named_with_what_was_meant(tmp_path):
    reader = Files(write_parquet(table(), tmp_path / "x.parquet"), "train")
    with pytest.raises(DataError, match=r"x.parquet: has no column 'clik'. Did you mean 'click'\?\n.*no column 'usr'"):
        reader.read(reader.pieces[0], ["clik", "usr"])


def test_two_columns_of_one_name_are_refused(tmp_path):
    data = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(DataError, match=r"x.parquet: has more than one column named 'a'"):
        Files(write_parquet(data, tmp_path / "x.parquet"), "train")


def test_a_damaged_row_group_is_named_and_the_others_are_read(tmp_path):
    path = tmp_path / "x.parquet"
    write_parquet(table(), path)
    make_damaged(path)
    reader = Files(str(path), "train")
    assert reader.read(reader.pieces[0], ["user"]).equals(table().select(["user"]).slice(0, 300))
    with pytest.raises(
        DataError, match=r"x.parquet, row group 1: cannot be read: .*CRC.*changed since the start or is damaged"
    ):
        reader.read(reader.pieces[1], ["user"])
    assert reader.read(reader.pieces[2], ["user"]).num_rows == 300


def test_a_piece_of_another_time_is_refused(tmp_path):
    reader = Files(write_parquet(table(), tmp_path / "x.parquet"), "train")
    path = str(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"row group 0: has 300 rows, at the start it had 301"):
        reader.read(Piece(path, 0, 301), ["user"])
    with pytest.raises(DataError, match=r"row group 9: cannot be read"):
        reader.read(Piece(path, 9, 300), ["user"])


def test_a_damaged_record_batch_is_named(tmp_path):
    path = tmp_path / "x.arrow"
    write_arrow(pa.table({"s": ["abcdefghij"] * 100}), path, rows=50)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"abcdefghij", b"abc\xff\xfeefghij"[:10]))
    reader = Files(str(path), "train")
    with pytest.raises(DataError, match=r"x.arrow, row group 1: cannot be read: .*UTF8"):
        reader.read(reader.pieces[1], ["s"])


def test_a_record_batch_whose_head_is_damaged_is_found_at_the_start(tmp_path):
    path = tmp_path / "x.arrow"
    write_arrow(pa.table({"n": range(100)}), path, rows=50)
    content = bytearray(path.read_bytes())
    head = content.rindex(b"\xff\xff\xff\xff", 0, content.rindex(b"\xff\xff\xff\xff"))
    content[head + 8 : head + 40] = b"\xaa" * 32
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x.arrow: is not an Arrow file, or is cut off or damaged"):
        Files(str(path), "train")


def start_then(change, tmp_path, ending="parquet"):
    """A reader in another process: it opens the file only after the change."""
    path = tmp_path / f"x.{ending}"
    WRITTEN["parquet" if ending == "parquet" else "csv"](table(), tmp_path)
    reader = Files(str(path), "train")
    formats_cache_clear()
    change(path)
    return reader


def formats_cache_clear():
    from espace.data.reading import formats

    formats._opened.cache_clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Path.unlink, r"x.parquet: the file is gone. Put it back"),
        (
            lambda path: write_parquet(table(10), path),
            r"x.parquet: the file changed since the start \([\d,]+ bytes then, ",
        ),
        (lambda path: os.utime(path, (1, 1)), r"x.parquet: the file changed since the start"),
    ],
)
def test_a_file_that_is_gone_or_changed_since_the_start_is_refused(change, message, tmp_path):
    reader = start_then(change, tmp_path)
    with pytest.raises(DataError, match=message):
        reader.read(reader.pieces[0], ["user"])


def test_a_converted_file_does_not_need_its_original(tmp_path):
    assert read_all(start_then(Path.unlink, tmp_path, "csv")).equals(table())


def test_a_remote_file_that_changed_is_refused():
    store = fsspec.filesystem("memory")
    with store.open("/espace-changed.csv", "wb") as file:
        file.write(b"a,b\n1,2\n")
    place = files.find("memory://espace-changed.csv", "train", bool)[0]
    place.check()
    store.pipe("/espace-changed.csv", b"a,b\n1,3\n")
    with pytest.raises(DataError, match=r"memory://espace-changed.csv: the file changed since the start"):
        place.check()
    store.rm("/espace-changed.csv")


class Locked(fsspec.AbstractFileSystem):
    """A store that lists its files and lets nobody read them."""

    protocol = "locked"

    def info(self, path, **_):
        return {"name": path, "size": 3, "type": "file"}

    def _open(self, path, *_, **__):
        raise PermissionError(path)


@pytest.mark.parametrize("format", ["parquet", "csv", "arrow"])
def test_a_file_that_may_not_be_read_says_so(format):
    fsspec.register_implementation("locked", Locked, clobber=True)
    with pytest.raises(DataError, match=r"locked://x.parquet: permission denied. Give this user the right to read it"):
        Files("locked://x.parquet", "train", format=format)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_local_file_that_may_not_be_read_says_so(tmp_path):
    path = write_parquet(table(), tmp_path / "x.parquet")
    os.chmod(path, 0)
    with pytest.raises(DataError, match=r"x.parquet: permission denied"):
        Files(path, "train")


# The public door


def test_the_readers_come_through_the_public_hook():
    found = {}
    readers.register_readers(lambda name, factory: found.update({name: factory}))
    assert list(found) == ["files", "parquet", "csv", "arrow"]
    for factory in found.values():
        kinds = [parameter.kind for parameter in inspect.signature(factory).parameters.values()]
        assert kinds[:3] == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 3, "source, split and text"
        assert set(kinds[3:]) <= {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(("name", "written"), [("parquet", "parquet"), ("csv", "csv"), ("arrow", "arrow file")])
def test_a_named_format_is_read_whatever_the_ending(name, written, tmp_path):
    path = Path(WRITTEN[written](table(), tmp_path)).rename(tmp_path / "part-00000")
    assert read_all(getattr(readers, name)(str(path), "train")).equals(table())
    assert read_all(getattr(readers, name)(str(tmp_path / "part-*"), "train")).equals(table())


# Real data


@real_data
@needs_data
@pytest.mark.parametrize("path", sorted(DATA.glob("aliccp_format/*.csv")), ids=lambda path: path.name)
def test_the_published_csv_samples_are_read(path):
    header = path.read_text().splitlines()[0].split(",")
    named = {"column_names": [f"c{n}" for n in range(len(header))]} if header[0] == "0" else {}
    reader = Files(str(path), "train", **named)
    lines = len(path.read_text().splitlines())
    assert read_all(reader).num_rows == lines - (not named)
    assert reader.schema.names == (named.get("column_names") or header)
    assert {str(kind) for kind in reader.schema.types} <= {"int64", "double"}


@real_data
@needs_data
def test_ragged_text_names_the_line():
    path = str(DATA / "aliccp_format" / "paddlerec_esmm_small.txt")
    with pytest.raises(DataError, match=r"paddlerec_esmm_small.txt: .*Set delimiter: ','"):
        Files(path, "train")
    names = [f"c{n}" for n in range(999)]
    with pytest.raises(
        DataError, match=r"paddlerec_esmm_small.txt, line 1 .*: \d+ values where 999 are expected: '1,1,1,210:1,"
    ):
        Files(path, "train", delimiter=",", column_names=names)


@real_data
@needs_data
@pytest.mark.parametrize("name", ["train", "validation"])
def test_the_news_impressions_are_read_whole(name):
    path = DATA / "ebnerd" / f"{name}.parquet"
    reader = Files(str(path), name)
    columns = ["history", "click", "read"]
    expected = pq.ParquetFile(path).read_row_group(4, columns=columns).select(columns)
    assert sum(piece.rows for piece in reader.pieces) == pq.read_metadata(path).num_rows
    assert reader.read(reader.pieces[4], columns).equals(expected)
    assert isinstance(reader.pieces[0], Piece)
