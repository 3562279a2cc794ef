"""The door of checkpoints: bytes that were damaged are refused; content that another wrote is refused, or obeys the chain."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import strategies as st

import espace
from espace.training.checkpoint import read_checkpoint, write_checkpoint
from tests.fuzz.doors import ACCEPTED, REFUSED, try_door, verdict
from tests.shop import Shop, Trained, rows

FEW = 20
ROWS = rows(8, 3)
PLACE = st.floats(0, 1, exclude_max=True)
SCALARS: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63 - 1,
    -(2**63),
    10**30,
    0.5,
    -0.5,
    float("nan"),
    float("inf"),
]
SCALARS += ["", "mlp", "id", "click", "impression -> click", "\x1b[2J", "${name}", b"", [], {}, [1], {"x": 1}, (1, 2)]
TENSORS = [
    torch.empty(0),
    torch.tensor(1.0),
    torch.full((3,), torch.nan),
    torch.full((2, 2), torch.inf),
    torch.zeros(5),
]
TENSORS += [torch.tensor([1, -1]), torch.full((4,), 2**62), torch.zeros((2, 3), dtype=torch.uint8), torch.tensor(1j)]
TENSORS += [torch.eye(3).to_sparse(), torch.empty(3, device="meta"), torch.zeros(2, dtype=torch.bool)]
BYTES = st.tuples(st.sampled_from(["flip", "cut", "fill"]), PLACE, st.binary(min_size=1, max_size=64))
CONTENT = st.tuples(
    st.sampled_from(["replace", "replace", "replace", "drop", "add", "swap", "tensor"]),
    st.lists(PLACE, min_size=8, max_size=8),
    st.one_of(st.sampled_from(SCALARS), st.sampled_from(TENSORS)),
)
BYTE_CHANGES = st.tuples(st.just("bytes"), st.lists(BYTES, min_size=1, max_size=3))
CONTENT_CHANGES = st.tuples(st.just("content"), st.lists(CONTENT, max_size=2))
RESUMED = st.tuples(st.just("resume"), st.lists(CONTENT, max_size=2))
EXAMPLES = st.one_of(*[BYTE_CHANGES] * 10, *[CONTENT_CHANGES] * 10, RESUMED)


@pytest.fixture
def made(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained run, in a folder of its own; and a short one beside it, which can go on."""
    shutil.copytree(trained.run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    shop = Shop(tmp_path).fill(120)
    small = {"features": {"user_id": "id", "price": "number"}, "metrics": None, "optimizer": {"lr": 0.01}}
    trainer = {"accelerator": "cpu", "max_steps": 1}
    said = shop.espace("fit", shop.yaml(**small, trainer=trainer), "--run-dir", "short", "-q")
    assert said.code == 0, said
    return tmp_path


def mutated(content: Any, what: str, steps: list[float], value: Any) -> None:
    """Change one place of nested mappings and lists, to which the numbers lead."""
    node = content
    for step in steps:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = keys[int(step * len(keys))]
        inner = node[key]
        if not isinstance(inner, dict | list) or not inner or step is steps[-1]:
            break
        node = inner
    _change(node, key, what, inner, value, steps[-1])


def _change(node: Any, key: Any, what: str, inner: Any, value: Any, at: float) -> None:
    value = copy.copy(value)
    if what == "drop":
        del node[key]
    elif what == "add" and isinstance(node, dict):
        node["another"] = value
    elif what == "swap":
        other = list(node)[int(at * len(node))] if isinstance(node, dict) else int(at * len(node))
        node[key], node[other] = node[other], node[key]
    elif what == "tensor" and isinstance(inner, torch.Tensor) and inner.numel():
        flat = inner.clone().flatten()
        flat[int(at * len(flat))] = value if isinstance(value, int | float) and abs(value) < 100 else 0
        node[key] = flat.view(inner.shape)
    else:
        node[key] = value


def damaged(good: bytes, what: str, where: float, more: bytes) -> bytes:
    at = int(where * len(good))
    if what == "cut":
        return good[:at]
    if what == "fill":
        return good[:at] + more + good[at + len(more) :]
    return good[:at] + bytes([good[at] ^ (more[0] or 1)]) + good[at + 1 :]


def judge(folder: Path, good: dict[str, bytes], example: tuple[str, list[Any]]) -> str:
    """Refused; or the same model for the same bytes; or one whose probabilities obey the chain."""
    kind, changes = example
    if kind == "bytes":
        return _judge_bytes(folder / "run" / "checkpoints" / "best.ckpt", good["run"], changes)
    name, file = ("short", "last") if kind == "resume" else ("run", "best")
    path = folder / name / "checkpoints" / f"{file}.ckpt"
    path.write_bytes(good[name])
    content = read_checkpoint(path)
    for change in changes:
        mutated(content, *change)
    write_checkpoint(content, path)
    if kind == "resume":
        said = Shop(folder).espace("fit", "--resume", "short", "trainer.max_steps=2", "-q")
        assert said.code in (0, 2, 3)
        assert changes or said.code == 0
        return ACCEPTED if said.code == 0 else REFUSED
    found: list[pa.Table] = []
    told = verdict(lambda: found.append(espace.load(folder / "run").predict(ROWS)))
    assert changes or told == ACCEPTED
    for table in found:
        p = [table[name].to_numpy() for name in table.column_names if name.startswith("p_")]
        assert all(len(v) == len(ROWS) and ((v >= 0) & (v <= 1)).all() for v in p)
    return told


def _judge_bytes(path: Path, good: bytes, changes: list[Any]) -> str:
    bad = good
    for change in changes:
        bad = damaged(bad, *change) if bad else bad
    path.write_bytes(bad)
    told = verdict(lambda: read_checkpoint(path))
    assert (told == ACCEPTED) == (bad == good)
    return told


def test_whatever_became_of_a_checkpoint_it_is_refused_or_obeys_the_chain(made: Path) -> None:
    names = {"run": "run/checkpoints/best.ckpt", "short": "short/checkpoints/last.ckpt"}
    good = {name: (made / file).read_bytes() for name, file in names.items()}
    shutil.copytree(made / "short", made / "kept")

    def again(example: tuple[str, list[Any]]) -> str:
        if example[0] == "resume":
            shutil.rmtree(made / "short")
            shutil.copytree(made / "kept", made / "short")
        return judge(made, good, example)

    try_door("checkpoint", EXAMPLES, again, FEW)
