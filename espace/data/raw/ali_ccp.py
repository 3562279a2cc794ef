"""Ali-CCP (tianchi.aliyun.com/dataset/408), the public data of ESMM (Ma et al., SIGIR 2018), as it is published.

`sample_skeleton_*.csv` has a line per impression: its number, click, buy, the index of its common features, a count,
and the features of item, context and their combinations with the user. `common_features_*.csv` has the features of
users: index, count, features.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from espace.data.raw.features import FEATURES, Field, read
from espace.data.raw.lines import Lines, Tally
from espace.data.raw.release import Form, Published, Release

USER = (
    *(Field(name) for name in ("101", "121", "122", "124", "125", "126", "127", "128", "129")),
    *(Field(name, "many") for name in ("109_14", "110_14", "127_14", "150_14")),
)
REST = (
    *(Field(name) for name in ("205", "206", "207")),
    Field("210", "many"),
    Field("216"),
    *(Field(name, "weighted") for name in ("508", "509", "702")),
    Field("853", "many"),
    Field("301"),
)
_KEY = r"[^\x00-,]+"
_COUNT = "[0-9]{1,9}"
_LABELS = [("sample_id", pa.int64()), ("click", pa.int8()), ("conversion", pa.int8())]
_USER_COLUMNS = [column for field in USER for column in field.columns]
_REST_COLUMNS = [column for field in REST for column in field.columns]
_ROWS = pa.schema([*_LABELS, *_REST_COLUMNS, ("key", pa.binary())])
_SHARED = pa.schema([*_USER_COLUMNS, ("key", pa.binary()), ("size", pa.int64())])


def _rows(lines: Lines, tally: Tally) -> pa.Table:
    (sample, click, conversion, key, _), columns = read(lines, 5, REST, tally)
    labels = [
        column.cast(pa.string()).cast(kind)
        for column, (_, kind) in zip((sample, click, conversion), _LABELS, strict=True)
    ]
    return pa.Table.from_arrays([*labels, *columns, key], schema=_ROWS)


def _shared(lines: Lines, tally: Tally) -> pa.Table:
    (key, _), columns = read(lines, 2, USER, tally)
    lengths = [pc.list_value_length(column) for column in columns if pa.types.is_list(column.type)]
    size = np.sum([np.asarray(length) for length in lengths], axis=0)  # values and weights
    return pa.Table.from_arrays([*columns, key, pa.array(size, pa.int64())], schema=_SHARED)


_RATES = {"ctr": 0.0389, "cvr": 0.0054, "rows_within": 0.002}

ALI_CCP = Release(
    name="ali-ccp",
    rows_file="sample_skeleton_{split}.csv",
    shared_file="common_features_{split}.csv",
    rows=Form(f"[0-9]{{1,18}},[01],[01],{_KEY},{_COUNT},{FEATURES}", _ROWS, _rows),
    shared=Form(f"{_KEY},{_COUNT},{FEATURES}", _SHARED, _shared),
    columns=pa.schema([*_LABELS, *_USER_COLUMNS, *_REST_COLUMNS]),
    published={
        "sample_skeleton": {"train": Published(42.3e6, **_RATES), "test": Published(43.0e6, **_RATES)},
    },
)
