"""The door of YAML: whatever stands in the file, `espace show` and `check` end with 0, or with 2 and what is wrong."""

from __future__ import annotations

import copy
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from tests.fuzz.doors import ACCEPTED, REFUSED, try_door
from tests.shop import Shop

FEW = 25
MEMORY = 16 * 2**30  # bytes of addresses that one process may take while it is tried
HOME = Path(__file__).parents[2] / "examples"
SMALL = {"train": 300, "validation": 60, "test": 60, "users": 40, "items": 30}
NAMES = ("esmm", "esm2", "merges", "choice", "revenue", "aitm", "view_through", "netcvr", "follow_ups", "division")


def small(name: str) -> dict[str, Any]:
    """An example whose simulator draws few rows."""
    tree: dict[str, Any] = yaml.safe_load((HOME / f"{name}.yaml").read_text())
    tree["data"] |= {key: number for key, number in SMALL.items() if key in tree["data"] or key in ("users", "items")}
    return tree


TREES = {name: small(name) for name in NAMES}
NUMBERS = [0, 1, -1, 3, 2**31, 2**40, 2**63 - 1, 2**63, 10**20, 10**40, -(2**63), 0.5, 1e-308, 1e308, -1.5, 7e22]
NUMBERS += [float("nan"), float("inf"), float("-inf")]
TEXTS = [
    "",
    " ",
    "null",
    "yes",
    "12:30",
    "0x10",
    "1e3",
    "mlp",
    "deepfm",
    "simulator",
    "click",
    "impression -> click",
    ".",
]
TEXTS += ["${chain}", "${name}", "${nothing}", "${oc.env:HOME}", "${oc.env:ESPACE_NONE}", "${", "${data.train}${tower}"]
TEXTS += ["${.x}", "${oc.create:{}}", "a.parquet", "/", "é", "\x1b[2J", "\x00", "\x85", "\u202e", "\ufeff", "a" * 5000]
TEXTS += [
    "entire_space",
    "parent_space",
    "softmax",
    "none",
    "click * 2",
    "p ** 9 ** 9",
    "*",
    "{}",
    "-",
    "?",
    "&a",
    "!!x",
]
SCALARS = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.sampled_from([None, True, False]))
KEYS = st.one_of(
    st.sampled_from(TEXTS),
    st.sampled_from(
        ["type", "chain", "data", "features", "tower", "towers", "metrics", "scores", "labels", "stages", "dim"]
    ),
    st.sampled_from(
        ["sampler", "weighting", "sharing", "link", "trainer", "optimizer", "plugins", "seed", "user_id", "split"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)
DEEP = st.integers(1, 80).map(lambda depth: _nested(depth))


def _nested(depth: int) -> object:
    found: object = 1
    for level in range(depth):
        found = [found] if level % 2 else {"x": found}
    return found


def places(tree: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place of a tree, but its root."""
    items: Any = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def texts(draw: st.DrawFn) -> str:
    """The YAML of an example, its tree changed in up to three places, and perhaps its text too."""
    tree = copy.deepcopy(TREES[draw(st.sampled_from(NAMES))])
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        _change(draw, tree)
    _cut_down(tree.get("data"))
    text: str = yaml.dump(tree, Dumper=yaml.SafeDumper, sort_keys=False, allow_unicode=draw(st.booleans()))
    if draw(st.integers(0, 9)) == 0:
        at, cut = draw(st.integers(0, len(text))), draw(st.sampled_from([0, 0, 1, 5, 10**6]))
        text = (
            text[:at]
            + draw(st.sampled_from([*TEXTS, "\t", "\n", ": ", "'", '"', "[", "}", "<<: ", "---\n"]))
            + text[at + cut :]
        )
    return text


def _cut_down(data: object) -> None:
    """Rows that would only take long to draw are fewer; what cannot be drawn at all stays."""
    for part in ("train", "validation", "test") if isinstance(data, dict) else ():
        if isinstance(data.get(part), int) and 2_000 < data[part] < 2**39:
            data[part] = 2_000


def _change(draw: st.DrawFn, tree: dict[str, Any]) -> None:
    """Another value, another key, a key more or less, somewhere."""
    path = draw(st.sampled_from([*places(tree)] or [("name",)]))
    parent: Any = tree
    for step in path[:-1]:
        parent = parent[step]
    key, what = path[-1], draw(st.sampled_from(["replace", "replace", "replace", "drop", "add", "rename"]))
    if what == "drop":
        parent.pop(key, None) if isinstance(parent, dict) else parent.pop(key)
    elif what == "replace":
        parent[key] = draw(st.one_of(SCALARS, SCALARS, VALUES, DEEP))
    elif isinstance(parent, dict):
        parent[draw(KEYS)] = parent.pop(key, None) if what == "rename" else draw(VALUES)
    else:
        parent.insert(key, draw(VALUES))


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.chdir(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, before[1]))
    yield Shop(tmp_path)
    resource.setrlimit(resource.RLIMIT_AS, before)


def judge(shop: Shop, text: str) -> str:
    """Both commands say the same of the file itself; `check` may find more in the data."""
    (shop.folder / "x.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    shown, said = shop.espace("show", "x.yaml"), shop.espace("check", "x.yaml")
    assert shown.code in (0, 2)
    assert said.code in (0, 2)
    assert said.code >= shown.code
    for one in (shown, said):
        assert one.code == 0 or len(one.error) > len("espace: ")
        assert not set(one.out + one.error) & set("\x00\x1b\x85\u202e")
    return ACCEPTED if said.code == 0 else REFUSED


def test_a_small_example_is_accepted(shop: Shop) -> None:
    assert judge(shop, yaml.safe_dump(TREES["esmm"])) == ACCEPTED


def test_whatever_stands_in_a_yaml_is_taken_or_refused_in_words(shop: Shop) -> None:
    try_door("yaml", texts(), lambda text: judge(shop, text), FEW)
