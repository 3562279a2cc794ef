"""Pieces of chain: a YAML with a piece is the YAML that has all of it written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from espace import ChainPiece
from espace.config import Config, json_schema, load, override, save
from espace.config import load_with_plugins as read
from espace.errors import ChainError, ConfigError
from tests.shop import put, rows

PLUGIN = '''\
"""Pieces to add."""

import espace


def refund(*, after: str = "conversion", weight: float = 2.0) -> espace.ChainPiece:
    """A purchase may be sent back."""
    said = {"refund": {"weight": weight, "kind": "binary"}}
    return espace.ChainPiece([f"{after} -> refund else keep"], labels={"refund": "returned"}, stages=said)


def review() -> espace.ChainPiece:
    """Whoever keeps it may write about it."""
    return espace.ChainPiece(["keep -> review"])


def faulty(*, how: str):
    """Wrong in some way."""
    if how == "value":
        raise ValueError("how has to be another")
    said = {"kind": {"refunded": {"kind": "binarry"}}, "key": {"refunded": {"wieght": 1}}, "class": {"refunded": {"kind": set()}}}
    pieces = {
        "type": ["conversion -> refunded"],
        "grammar": espace.ChainPiece(["conversion > refunded"]),
        "other": espace.ChainPiece(["conversion -> refunded"], labels={"click": "clk"}),
        "overlap": espace.ChainPiece(["conversion -> refunded", "click -> refunded"]),
    }
    return pieces.get(how) or espace.ChainPiece(["conversion -> refunded"], stages=said[how])


@espace.hookimpl
def register_pieces(register):
    register("refund", refund)
    register("review", review)
    register("faulty", faulty)
'''
SHOP = """\
chain:
  - impression -> click -> conversion
data: {train: a.parquet}
features: {user_id: id}
plugins: [./pieces.py]
"""
WRITTEN = """\
chain:
  - impression -> click -> conversion
  - conversion -> refund else keep
  - keep -> review
labels: {refund: returned}
stages: {refund: {weight: 2.0}}
data: {train: a.parquet}
features: {user_id: id}
plugins: [./pieces.py]
"""


@pytest.fixture
def file(tmp_path: Path) -> Any:
    (tmp_path / "pieces.py").write_text(PLUGIN)

    def write(text: str) -> Path:
        (tmp_path / "x.yaml").write_text(text)
        return tmp_path / "x.yaml"

    return write


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return [problem.replace(f"{path.parent}/", "") for problem in caught.value.problems]


# The same as written out


def test_a_piece_is_its_lines_labels_and_options_written_out(file: Any) -> None:
    added = load(file(f"{SHOP}pieces: [refund, review]\n"))
    assert added == load(file(WRITTEN))
    assert added == load(file(SHOP), ["pieces=[refund, review]"])


def test_an_option_says_where_it_is_added(file: Any) -> None:
    added = load(file(f"{SHOP}pieces: [{{type: refund, after: click}}]\n"))
    assert added.chain == ["impression -> click -> conversion", "click -> refund else keep"]
    assert added == load(file(f"{SHOP}pieces: [refund]\n"), ["pieces.0.after=click"])


def test_a_chain_in_one_text_takes_a_piece_too(file: Any) -> None:
    text = SHOP.replace("chain:\n  - impression", "chain: impression")
    assert load(file(f"{text}pieces: [refund]\n")) == load(file(f"{SHOP}pieces: [refund]\n"))


def test_what_the_file_says_goes_before_what_the_piece_says(file: Any) -> None:
    text = f"{SHOP}pieces: [refund]\nlabels: {{refund: back, click: clk}}\nstages: {{refund: {{weight: 0.5}}}}\n"
    config = load(file(text))
    assert config.labels == {"refund": "back", "click": "clk"}
    assert config.stages["refund"].weight == 0.5
    assert load(file(text), ["stages.refund.weight=3"]).stages["refund"].weight == 3


def test_a_saved_configuration_needs_the_piece_no_more(file: Any, tmp_path: Path) -> None:
    config, registry = read(file(f"{SHOP}pieces: [refund]\n"))
    save(config, tmp_path / "saved.yaml")
    assert load(tmp_path / "saved.yaml") == config == Config.from_dict(config.to_dict(), registry)
    assert config.pieces == []
    (tmp_path / "pieces.py").unlink()
    assert load(tmp_path / "saved.yaml", ["plugins=[]"]).chain == config.chain
    more = override(config, ["pieces=[review]"], registry)
    assert more.chain == load(file_with(tmp_path)).chain


def file_with(folder: Path) -> Path:
    (folder / "pieces.py").write_text(PLUGIN)
    (folder / "y.yaml").write_text(WRITTEN)
    return folder / "y.yaml"


def test_a_run_with_a_piece_trains_predicts_and_is_repeated_from_its_own_file(shop: Any) -> None:
    (shop.folder / "pieces.py").write_text(PLUGIN)
    for seed, name in enumerate(("train", "validation")):
        table = rows(600, seed)
        returned = table["conversion"].to_numpy() * (np.arange(600) % 3 == 0)
        shop.write(put(table, returned=returned), f"{name}.parquet")
    yaml = shop.yaml(
        pieces=["refund"],
        plugins=["./pieces.py"],
        data={"train": "train.parquet", "validation": "validation.parquet"},
        features={"user_id": "id"},
        trainer={"accelerator": "cpu", "max_steps": 2},
    )
    out = shop.espace("show", yaml).out
    assert "    conversion -> refund else keep\n" in out
    assert "    refund: column returned\n" in out
    for source, run in ((yaml, "run"), ("run/config.yaml", "again")):
        said = shop.espace("fit", source, "--run-dir", run)
        assert said.code == 0, said
        said = shop.espace("predict", run, "--data", "validation.parquet", "--out", f"{run}.parquet")
        assert said.code == 0, said
    assert pq.read_table("run.parquet").equals(pq.read_table("again.parquet"))
    assert {"p_refund", "p_keep_given_conversion"} <= {*pq.read_table("run.parquet").column_names}


# What is refused


@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        ("[refnud]", "pieces[0]: there is no piece 'refnud'. Did you mean 'refund'?"),
        ("refund", "pieces: 'refund' is not a list. Write them in brackets, as in [refund]."),
        (
            "[{after: click}]",
            "pieces[0].type: this is missing. It has to be the name of a piece: faulty, refund, review.",
        ),
        ("[{type: refund, aftr: click}]", "pieces[0]: refund has no option 'aftr'. Did you mean 'after'?"),
        ("[{type: refund, after: 3}]", "pieces[0].after: 3 is not text."),
        ("[faulty]", "pieces[0]: faulty needs the option 'how', text."),
        (
            "[{type: refund, after: conversoin}]",
            "pieces[0]: refund: it follows 'conversoin', which the chain lacks. Add a line that leads to it. Did you mean"
            " 'conversion'? Options of refund: after, weight.",
        ),
        ("[review]", "pieces[0]: review: it follows 'keep', which the chain lacks. Add a line that leads to it."),
        ("[review, refund]", "pieces[0]: review: it follows 'keep'"),
        (
            "[refund, {type: refund, after: click}]",
            "pieces[1]: refund: it brings 'refund', which is there already. Rename that one, or leave one of them out.",
        ),
        ("[{type: faulty, how: value}]", "pieces[0]: faulty cannot be built: how has to be another"),
        ("[{type: faulty, how: type}]", "pieces[0]: faulty cannot be built: it gives"),
        ("[{type: faulty, how: class}]", "pieces[0]: faulty cannot be built: Object of type set"),
        (
            "[{type: faulty, how: grammar}]",
            "pieces[0]: faulty: line 1 of the piece: 'conversion > refunded' in",
        ),
        ("[{type: faulty, how: other}]", "pieces[0]: faulty: it has defaults for 'click', which it does not bring."),
        (
            "[{type: faulty, how: overlap}]",
            "pieces[0]: faulty: 'refunded' is reached from 'click' and from 'conversion'",
        ),
        (
            "[{type: faulty, how: kind}]",
            "stages.refunded.kind: there is no stage kind 'binarry'. Did you mean 'binary'?",
        ),
        ("[{type: faulty, how: key}]", "stages.refunded.wieght: there is no such key. Did you mean 'weight'?"),
    ],
)
def test_what_cannot_be_added_is_refused_at_the_line_of_the_piece(file: Any, pieces: str, why: str) -> None:
    (problem,) = problems(file(f"{SHOP}pieces: {pieces}\n"))
    assert problem.startswith("x.yaml:6:")
    assert problem.split(": ", 1)[1].startswith(why), problem


def test_other_problems_are_told_in_the_same_go(file: Any) -> None:
    told = problems(file(f"{SHOP}pieces: [refnud]\nseed: x\n"), "tower=mpl")
    assert [line.split(": ")[1] for line in told] == ["pieces[0]", "seed", "tower"]
    told = problems(file(f"{SHOP}pieces: [refnud]\nlabels: {{refund: back}}\n"))
    assert len(told) == 1, "what the piece would have brought is not missed again"
    told = problems(file(SHOP.replace("->", ">") + "pieces: [refund]\n"))
    assert len(told) == 1
    assert told[0].startswith("x.yaml:2:5: chain[0]: 'impression > click > conversion'")


def test_a_label_of_a_piece_that_is_a_feature_is_refused_at_the_feature(file: Any) -> None:
    (problem,) = problems(file(SHOP.replace("user_id: id", "returned: id") + "pieces: [refund]\n"))
    assert problem.startswith("x.yaml:4:12: features.returned: the column 'returned' is the label of 'refund'")


# In Python, in lists and for editors


def test_a_piece_knows_what_it_brings_and_follows() -> None:
    piece = ChainPiece(["pay -> refund else keep", "keep -> review", "keep => stars"])
    assert piece.brings == ("refund", "keep", "review", "stars")
    assert piece.follows == ("pay",)
    assert piece.added_to(["click -> pay"]) == ["click -> pay", *piece.lines]
    with pytest.raises(ChainError, match="it brings 'stars', which is there already"):
        piece.added_to(["click -> pay", "pay => stars"])


def test_lists_and_the_json_schema_have_the_pieces(file: Any, shop: Any) -> None:
    _, registry = read(file(SHOP))
    said = shop.espace("list", "pieces", "--plugin", str(shop.folder / "pieces.py"))
    assert "  refund  (" in said.out
    assert "A purchase may be sent back.\n      after: text; default 'conversion'\n" in said.out
    schema = json_schema(registry)
    assert {"type": "array", "items": {"$ref": "#/$defs/pieces"}} in schema["properties"]["pieces"]["anyOf"]
    bare, refund, *_ = schema["$defs"]["pieces"]["oneOf"]
    assert bare["enum"] == ["refund", "review"]
    assert set(refund["properties"]) == {"type", "after", "weight"}
    assert json.dumps(schema)
