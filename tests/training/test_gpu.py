"""What only a CUDA device can show: kernels against the CPU's, steps as graphs against steps kernel by kernel, a fit there."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from espace.runs.experiment import Experiment
from espace.training.graphs import Graphed
from espace.training.optim import LazyAdam
from tests.bench.data import experiment, write

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
ROWS = 3_000


def steps(count, width, number, seed=0):
    """`[(rows, values)]`: the first rows are looked up far more often than the last."""
    g = torch.Generator().manual_seed(seed)
    return [
        ((ROWS * torch.rand(count, generator=g) ** 4).long(), torch.randn(count, width, generator=g))
        for _ in range(number)
    ]


def moved(device, made, width, **options):
    """The table, on the CPU, after steps on `device`."""
    table = nn.Parameter(torch.randn(ROWS, width, generator=torch.Generator().manual_seed(0)).to(device))
    optimizer = LazyAdam([table], **options)
    for number, (rows, values) in enumerate(made):
        optimizer.param_groups[0]["lr"] = 0.01 / (1 + number % 3)
        rows, values = rows.to(device), values.to(device)
        optimizer.catch_up(table, rows.int())
        table.grad = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=False)
        optimizer.step()
    optimizer.settle()
    return table.detach().cpu()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("width", [1, 5, 18, 33])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 5_000, 300_000])
def test_rows_move_as_on_a_cpu(count, width, exact):
    made = steps(count, width, 30 if count < 10_000 else 4)
    ours, theirs = (moved(device, made, width, exact=exact) for device in ("cuda", "cpu"))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6 if count < 10_000 else 2e-5)


def test_rows_left_alone_for_long_are_those_of_a_cpu():
    made = [(rows[:2], values[:2]) for rows, values in steps(2, 18, 400)]
    ours, theirs = (moved(device, made, 18, exact=True) for device in ("cuda", "cpu"))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)


def test_the_same_look_ups_give_the_same_bits():
    made = steps(200_000, 18, 5)
    assert torch.equal(moved("cuda", made, 18, exact=True), moved("cuda", made, 18, exact=True))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "train.parquet", 40_000)


def fit(folder, data, name, accelerator="gpu", **values):
    """metrics.csv of a fit, as {(step, name): value}."""
    tree = experiment(data, batch_size=2048, split={"share": 0.2})
    trainer = {"accelerator": accelerator, "precision": "32-true", "log_every_n_steps": 5, **values.pop("trainer", {})}
    tree |= {"trainer": {"max_epochs": 2, **trainer}, **values}
    (folder / f"{name}.yaml").write_text(json.dumps(tree))
    Experiment.from_yaml(folder / f"{name}.yaml").fit(folder / name)
    lines = [line.split(",") for line in (folder / name / "metrics.csv").read_text().splitlines()[1:]]
    return {(int(step), metric): float(value) for step, _, metric, value in lines}


def close(ours, theirs, rtol=2e-3):
    """Losses and areas under the curve; what is counted in bins jumps."""
    assert ours.keys() == theirs.keys()
    smooth = {k: v for k, v in ours.items() if "loss" in k[1] or k[1].endswith("/auc") or "gate" in k[1]}
    wrong = {k: (v, theirs[k]) for k, v in smooth.items() if abs(v - theirs[k]) > rtol * abs(theirs[k]) + 2e-4}
    assert smooth
    assert not wrong


@pytest.fixture
def replayed(monkeypatch):
    """A list that gets an item for each step that was replayed."""
    found, gives = [], Graphed.give_gradients
    monkeypatch.setattr(Graphed, "give_gradients", lambda self: (found.append(1), gives(self))[1])
    return found


@pytest.mark.parametrize("tables", ["exact", "lazy", "dense"])
@pytest.mark.parametrize("more", [{}, {"sharing": "mmoe"}, {"trainer": {"gradient_clip_val": 1.0}}], ids=str)
def test_a_fit_with_graphs_is_the_fit_without(tmp_path, data, replayed, tables, more):
    more = {**more, "optimizer": {"tables": tables}}
    with_graphs = fit(tmp_path, data, "with", **more)
    assert len(replayed) > 20, "steps were not replayed"
    close(with_graphs, fit(tmp_path, data, "without", cuda_graphs=False, **more))


def test_a_fit_is_that_of_a_cpu(tmp_path, data):
    close(fit(tmp_path, data, "gpu"), fit(tmp_path, data, "cpu", accelerator="cpu"), rtol=0.02)


@pytest.mark.parametrize("compiled", [False, True])
def test_numbers_of_16_bits_train_nearly_alike(tmp_path, data, replayed, compiled):
    half = fit(tmp_path, data, "half", trainer={"precision": "bf16-mixed"}, compile=compiled)
    assert replayed
    close(half, fit(tmp_path, data, "whole"), rtol=0.03)


def test_a_run_goes_on_from_its_last_checkpoint(tmp_path, data):
    whole = fit(tmp_path, data, "whole")
    fit(tmp_path, data, "half", trainer={"max_epochs": 1})
    Experiment.from_yaml(tmp_path / "whole.yaml").fit(resume=tmp_path / "half")
    lines = [line.split(",") for line in (tmp_path / "half" / "metrics.csv").read_text().splitlines()[1:]]
    close({(int(step), metric): float(value) for step, _, metric, value in lines}, whole)
