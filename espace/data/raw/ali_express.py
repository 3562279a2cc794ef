"""AliExpress search (tianchi.aliyun.com/dataset/74690; Li et al., CIKM 2020), one country, as it is published.

`*_item_*.csv` has a line per impression: the search it belongs to, 47 features of the item, and 0, 1 (click) or 2
(click and conversion). `*_user_*.csv` has a line per search: its number and 32 features of user and query. There are no
headers. The columns get the names and the order that MTReclib gave them, which most papers use.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from espace.data.raw.lines import Lines, Tally
from espace.data.raw.release import Form, Published, Release

_KEY = "[0-9]{1,18}"
_CATEGORY = "(?:-?[0-9]{1,15}(?:[.]0)?)?"
_NUMBER = "(?:-?[0-9]+(?:[.][0-9]*)?(?:[eE][+-]?[0-9]{1,2})?)?"


def _names(kinds: Sequence[bool], categories: int, numbers: int) -> list[str]:
    """Names in order; kinds: which columns are categories; after so many categories and numbers of the other file."""
    found = []
    for is_category in kinds:
        categories, numbers = categories + is_category, numbers + (not is_category)
        found.append(f"categorical_{categories}" if is_category else f"numerical_{numbers}")
    return found


USER = _names([column <= 8 or column >= 32 for column in range(2, 34)], 0, 0)  # columns of the file, from 1
ITEM = _names([column in (19, 34, 35, 36, 40, 41, 42) for column in range(2, 49)], 9, 23)


def _typed(names: Sequence[str]) -> list[tuple[str, pa.DataType]]:
    return [(name, pa.int64() if name.startswith("categorical") else pa.float32()) for name in names]


_ROWS = pa.schema(
    [("search_id", pa.int64()), *_typed(ITEM), ("click", pa.int8()), ("conversion", pa.int8()), ("key", pa.int64())]
)
_SHARED = pa.schema([*_typed(USER), ("key", pa.int64()), ("size", pa.int64())])


def _pattern(names: Sequence[str]) -> str:
    return ",".join(_CATEGORY if name.startswith("categorical") else _NUMBER for name in names)


def _read(lines: Lines, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    """Numbers with commas between them as columns, those of categories as float64; nothing at all is null."""
    kinds = {name: pa.float64() if name.startswith("categorical") else pa.float32() for name in names}
    convert = pa.csv.ConvertOptions(column_types=kinds | {"key": pa.int64(), "label": pa.int8()}, null_values=[""])
    read = pa.csv.ReadOptions(use_threads=False, block_size=lines.data.size + 1, column_names=list(names))
    table = pa.csv.read_csv(pa.BufferReader(lines.data), read_options=read, convert_options=convert)
    return dict(zip(names, table.columns, strict=True))


def _rows(lines: Lines, tally: Tally) -> pa.Table:
    found = _read(lines, ["key", *ITEM, "label"])
    found |= {"search_id": found["key"]}
    found |= {name: pc.greater_equal(found["label"], least) for name, least in (("click", 1), ("conversion", 2))}
    return pa.table([found[name].cast(kind) for name, kind in zip(_ROWS.names, _ROWS.types, strict=True)], schema=_ROWS)


def _shared(lines: Lines, tally: Tally) -> pa.Table:
    found = _read(lines, ["key", *USER]) | {"size": pa.chunked_array([np.zeros(len(lines), np.int64)])}
    columns = [found[name].cast(kind) for name, kind in zip(_SHARED.names, _SHARED.types, strict=True)]
    return pa.table(columns, schema=_SHARED)


def _published(rows: float, clicks: float, conversions: float) -> Published:
    return Published(rows, clicks / rows, conversions / clicks, rows_within=0.03)  # they are rounded that much


_FEATURES = sorted([*USER, *ITEM], key=lambda name: (name[0], int(name.rpartition("_")[2])))

ALI_EXPRESS = Release(
    name="ali-express",
    rows_file="*_item_{split}.csv",
    shared_file="*_user_{split}.csv",
    rows=Form(f"{_KEY},{_pattern(ITEM)},[012]", _ROWS, _rows),
    shared=Form(f"{_KEY},{_pattern(USER)}", _SHARED, _shared),
    columns=pa.schema([("search_id", pa.int64()), *_typed(_FEATURES), ("click", pa.int8()), ("conversion", pa.int8())]),
    published={
        "nl_": {"train": _published(12.2e6, 0.25e6, 8.9e3), "test": _published(5.6e6, 0.14e6, 4.9e3)},
        "es_": {"train": _published(22.3e6, 0.57e6, 12.9e3), "test": _published(9.3e6, 0.27e6, 6.1e3)},
        "fr_": {"train": _published(18.2e6, 0.34e6, 9.0e3), "test": _published(8.8e6, 0.20e6, 5.3e3)},
        "us_": {"train": _published(20.0e6, 0.29e6, 7.0e3), "test": _published(7.5e6, 0.16e6, 3.9e3)},
    },
)
