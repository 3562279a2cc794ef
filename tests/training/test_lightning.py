"""Training: what one run promises, with and without validation, and what stops it."""

from __future__ import annotations

import csv
import json
import math
import os
import random

import numpy as np
import pyarrow as pa
import pytest
import torch

from espace.config import load as load_config
from espace.errors import ConfigError, NonFiniteError, RunError
from espace.runs.experiment import Experiment
from espace.runs.fitting import Fitting
from espace.runs.opening import prepare
from espace.runs.report import Report
from espace.runs.run import load
from espace.training.callbacks import _is_finite, quarters
from espace.training.checkpoint import read_checkpoint
from espace.training.trainer import trainer_problems
from tests.shop import CONFIG, rows

TRAINER = {"accelerator": "cpu", "max_epochs": 1}
DATA = {**CONFIG["data"], "test": None, "batch_size": 64}  # 600 rows: 10 batches an epoch


def experiment(shop, *, trainer=None, data=None, **sections):
    """`data` and `trainer` are edited, the rest replaced."""
    tree = {"data": {**DATA, **(data or {})}, "trainer": {**TRAINER, **(trainer or {})}, **sections}
    return Experiment.from_yaml(shop.yaml(**tree))


def fit(shop, name="run", **sections):
    """A finished run folder."""
    experiment(shop, **sections).fit(shop.folder / name)
    return shop.folder / name


def train(shop, name="run", **sections):
    """The folder of a run that was trained, without the results and pictures that take most of the time here."""
    made, report = experiment(shop, **sections), Report(quiet=True)
    (shop.folder / name).mkdir()
    prepared = prepare(made.config, made.registry, report)
    Fitting(made.config, made.registry, prepared, shop.folder / name, report).run(resume=False)
    return shop.folder / name


def weights(run, name="last"):
    return read_checkpoint(run / "checkpoints" / f"{name}.ckpt")["state_dict"]


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def lines(run):
    with (run / "metrics.csv").open() as file:
        return [(int(row["step"]), int(row["epoch"]), row["name"], float(row["value"])) for row in csv.DictReader(file)]


def results(run):
    return json.loads((run / "results.json").read_text())


def test_one_seed_gives_the_same_bits_and_another_does_not(shop):
    one, again, other = (train(shop, name, seed=seed) for name, seed in (("one", 1), ("again", 1), ("other", 2)))
    assert equal(weights(one), weights(again))
    assert (one / "metrics.csv").read_text() == (again / "metrics.csv").read_text()
    assert not equal(weights(one), weights(other))


def test_the_random_state_of_the_caller_neither_matters_nor_changes(shop):
    torch.manual_seed(1)
    one = fit(shop, "one")
    torch.manual_seed(2)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), dict(os.environ)
    other = fit(shop, "other")
    assert equal(weights(one), weights(other))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2:] == (random.getstate(), dict(os.environ))


def test_a_line_has_the_number_of_steps_and_the_epoch_that_it_is_about(shop):
    run = train(shop, trainer={"log_every_n_steps": 4, "val_check_interval": 5, "max_epochs": 2})
    places = {
        name: [(step, epoch) for step, epoch, n, _ in lines(run) if n == name] for name in ("train/loss", "val/loss")
    }
    assert places["train/loss"] == [(4, 0), (8, 0), (12, 1), (16, 1), (20, 1)]
    assert places["val/loss"] == [(5, 0), (10, 0), (15, 1), (20, 1)]
    assert (run / "metrics.csv").read_bytes().count(b"\r") == 0


def test_an_epoch_has_four_validations_and_the_last_is_at_its_end():
    for batches in range(1, 700):
        found = quarters(batches)
        assert len(found) == min(batches, 4)
        assert found[-1] == batches
        sizes = np.diff([0, *found])
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(
    ("trainer", "steps"),
    [
        ({"max_epochs": 2}, [3, 5, 8, 10, 13, 15, 18, 20]),
        ({"limit_train_batches": 0.7}, [2, 4, 6, 7]),
        ({"limit_train_batches": 3}, [1, 2, 3]),
        ({"max_steps": 14, "max_epochs": 2}, [3, 5, 8, 10, 13, 14]),
        ({"val_check_interval": 0.25}, [2, 4, 6, 8, 10]),
    ],
)
def test_validation_comes_after_every_quarter_of_an_epoch_unless_the_trainer_says_when(trainer, steps, shop):
    run = train(shop, trainer=trainer)
    assert [step for step, _, name, _ in lines(run) if name == "val/loss"] == steps


def test_the_loss_of_a_line_is_the_mean_over_all_rows_since_the_line_before(shop):
    whole = {"batch_size": 600, "shuffle": False, "weight": None}
    small = {"optimizer": {"lr": 1e-30}, "tower": {"type": "mlp", "hidden_units": [8]}}
    small["features"] = {"user_id": {"type": "id", "unknown_rate": 0}, "age": "number"}
    one = train(shop, "one", data=whole, trainer={"log_every_n_steps": 1}, **small)
    many = train(shop, "many", data={**whole, "batch_size": 64}, trainer={"log_every_n_steps": 10}, **small)
    expected, found = ({n: v for _, _, n, v in lines(run) if n.startswith("train/")} for run in (one, many))
    assert found == pytest.approx(expected, rel=1e-5)


def test_lines_come_with_the_optimisers_steps_when_gradients_are_accumulated(shop):
    run = train(shop, trainer={"log_every_n_steps": 1, "accumulate_grad_batches": 4})
    assert [step for step, _, name, _ in lines(run) if name == "train/loss"] == [1, 2, 3]


def test_the_best_weights_are_those_of_the_best_validation(shop):
    trainer = {"val_check_interval": 2, "max_epochs": 2, "precision": "32-true"}  # on every machine
    run = fit(shop, optimizer={"lr": 1.0}, trainer=trainer)
    losses = {step: value for step, _, name, value in lines(run) if name == "val/loss"}
    best = min(losses, key=losses.get)
    assert 0 < best < 20
    assert read_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"] == best
    assert results(run)["val/loss"] == pytest.approx(losses[best], rel=1e-6)


def test_a_monitor_that_is_better_when_higher_picks_the_highest(shop):
    run = train(
        shop, optimizer={"lr": 0.3}, trainer={"val_check_interval": 2, "max_epochs": 2}, monitor="val/click/auc"
    )
    scores = {step: value for step, _, name, value in lines(run) if name == "val/click/auc"}
    assert read_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"] == max(scores, key=scores.get)


@pytest.mark.parametrize("trainer", [{"max_steps": 2, "max_epochs": -1}, {"val_check_interval": 7}])
def test_the_last_weights_are_always_judged(shop, trainer):
    run = train(shop, trainer=trainer)
    last = read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"]
    assert last == max(step for step, _, name, _ in lines(run) if name == "val/loss")
    assert (run / "checkpoints" / "best.ckpt").exists()


@pytest.mark.parametrize("data", [{"validation": None}, {"validation": None, "test": "test.parquet"}])
def test_without_validation_rows_the_last_weights_are_the_best(shop, data):
    run = fit(shop, data=data, patience=1, checkpoint_every=10)
    assert equal(*(load(run, name).model.state_dict() for name in ("best", "last")))
    assert {name.split("/")[0] for name in results(run)} == ({"test"} if "test" in data else set())
    assert load(run).predict(rows(5)).num_rows == 5


def test_with_validation_switched_off_the_last_weights_are_the_best(shop):
    run = fit(shop, trainer={"limit_val_batches": 0}, checkpoint_every=10)
    assert equal(*(load(run, name).model.state_dict() for name in ("best", "last")))
    assert "val/loss" in results(run)


def test_a_monitor_without_a_value_leaves_the_last_weights(shop):
    table = rows(600, 1)
    column = table.schema.get_field_index("conversion")
    shop.write(table.set_column(column, "conversion", pa.array([None] * 600, pa.int8())), "validation.parquet")
    run = train(shop, monitor="val/conversion/auc")
    assert equal(*(load(run, name).model.state_dict() for name in ("best", "last")))


def test_a_run_for_some_time_is_not_one_epoch(shop):
    tree = {"data": DATA, "trainer": {"accelerator": "cpu", "max_time": "00:00:00:02"}}
    Experiment.from_yaml(shop.yaml(**tree)).fit(shop.folder / "run")
    assert read_checkpoint(shop.folder / "run" / "checkpoints" / "last.ckpt")["global_step"] > 10


def test_checkpoints_are_plain_and_tensorboard_has_its_file(shop):
    run = train(shop)
    for name in ("best", "last"):
        content = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert set(content["espace"]) >= {"format", "config", "encoder"}
    assert sorted(p.name for p in (run / "checkpoints").iterdir() if "sha" not in p.name) == ["best.ckpt", "last.ckpt"]
    assert [p.name[:19] for p in (run / "tensorboard").glob("events*")] == ["events.out.tfevents"]


def test_a_resumed_run_hides_from_tensorboard_what_it_does_again(shop):
    run = fit(shop)
    files = set((run / "tensorboard").glob("events*"))
    experiment(shop, trainer={"max_epochs": 2}).fit(resume=run)
    assert len(set((run / "tensorboard").glob("events*")) - files) == 1
    assert len({(step, name) for step, _, name, _ in lines(run)}) == len(lines(run))


POISON = '''
"""A tower whose gradient is NaN from the given batch on, though its output is finite."""
import espace
import torch
from torch import nn

class Poison(nn.Module):
    def __init__(self, spec, *, at: int = 4):
        super().__init__()
        self.layer, self.out_features = nn.Linear(spec.width, 4), 4
        self.at, self.batches = at, 0

    def forward(self, features):
        out = self.layer(features.flat())
        self.batches += self.training
        return out + torch.sqrt(out * 0) if self.batches >= self.at else out

@espace.hookimpl
def register_towers(register):
    register("poison", Poison)
'''


def is_finite(run, name):
    return all(bool(torch.isfinite(w).all()) for w in weights(run, name).values())


def fail(shop, *overrides, **sections):
    """What `espace fit` says, and the run folder it leaves behind."""
    shop.yaml(**{"data": DATA, "trainer": TRAINER, "checkpoint_every": 1, **sections})
    return shop.espace("fit", "shop.yaml", "--run-dir", "run", *overrides), shop.folder / "run"


def test_a_loss_that_is_not_finite_exits_with_3_and_leaves_finite_weights(shop):
    said, run = fail(shop, "optimizer.lr=1e30")
    assert said.code == 3
    assert (
        "step 2: the loss is nan (click = nan, conversion = nan). The last checkpoint has finite weights" in said.error
    )
    assert is_finite(run, "last")
    assert not (run / "results.json").exists()


def test_huge_features_are_named_as_a_cause(shop):
    table = rows(600)
    text = pa.array([[1e30, 0.0, 0.0]] * 600, pa.list_(pa.float32()))
    shop.write(table.set_column(table.schema.get_field_index("text"), "text", text))
    said, run = fail(shop, features={"text": {"type": "vector", "size": 3}, "user_id": "id"}, optimizer={"lr": 1e10})
    assert said.code == 3
    assert "look for extreme numbers among the features" in said.error
    assert list(run.glob("checkpoints/*.ckpt")) == []


@pytest.mark.parametrize("clip", [None, 1.0])
def test_weights_that_are_not_finite_never_replace_a_checkpoint(shop, clip):
    (shop.folder / "poison.py").write_text(POISON)
    trainer = {**TRAINER, "val_check_interval": 3, "gradient_clip_val": clip}
    said, run = fail(shop, plugins=["./poison.py"], tower="poison", trainer=trainer)
    assert said.code == 3
    what = "not all weights are finite" if clip is None else "the norm of the gradient is nan"
    assert f"step 4: {what}" in said.error
    assert is_finite(run, "last")
    assert is_finite(run, "best")
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 3


def test_the_way_out_after_a_loss_that_was_not_finite_is_to_resume_with_care(shop):
    (shop.folder / "poison.py").write_text(POISON)
    said, run = fail(shop, plugins=["./poison.py"], tower={"type": "poison", "at": 7})
    assert said.code == 3
    assert shop.espace("fit", "--resume", run).code == 0  # the counter of the tower began anew


def test_gradients_are_clipped_over_dense_and_sparse_ones_and_the_rate_stays(shop):
    free, wide, tight = (train(shop, f"{c}", trainer={"gradient_clip_val": c}) for c in (None, 1e9, 1e-9))
    assert equal(weights(free), weights(wide))
    assert not equal(weights(free), weights(tight))
    for run in (free, tight):
        (group,) = read_checkpoint(run / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"]
        assert group["lr"] == 0.01


def test_exact_tables_train_to_the_weights_of_dense_ones(shop):
    """Ids, histories and bags look rows up; validations and checkpoints read whole tables."""
    trainer = {"max_epochs": 3, "val_check_interval": 4, "precision": "64-true"}
    runs = {}
    for tables in ("dense", "exact", "lazy"):
        runs[tables] = train(shop, tables, trainer=trainer, optimizer={"lr": 0.01, "tables": tables})
    for name in ("best", "last"):
        dense, exact, lazy = (weights(runs[tables], name) for tables in ("dense", "exact", "lazy"))
        for key, value in dense.items():
            torch.testing.assert_close(exact[key], value, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(
            lazy["model.embeddings.:shared.tables.4.weight"], dense["model.embeddings.:shared.tables.4.weight"]
        )
    values = {tables: [value for *_, value in lines(run)] for tables, run in runs.items()}
    assert values["exact"] == pytest.approx(values["dense"], rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.int64])
@pytest.mark.parametrize("numbers", [[], [1], [-2, 3], [1, torch.inf], [-torch.inf, 1], [1, torch.nan, 2]])
def test_weights_are_finite_when_every_one_is(kind, numbers):
    if kind == torch.int64 and not all(map(math.isfinite, numbers)):
        return
    weights = torch.tensor(numbers).to(kind)
    assert _is_finite(weights) == bool(torch.isfinite(weights).all())


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16-mixed", 0.01), ("64-true", 1e-4)])
def test_other_precisions_train_to_nearly_the_same_metrics(shop, precision, tolerance):
    one, other = results(fit(shop, "one")), results(fit(shop, "other", trainer={"precision": precision}))
    for name in ("val/loss", "val/click/auc", "val/conversion/log_loss"):
        assert other[name] == pytest.approx(one[name], rel=tolerance)
    dtype = torch.float64 if precision == "64-true" else torch.float32
    assert {w.dtype for w in weights(shop.folder / "other").values()} == {dtype}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_epoch": 3}, "Lightning's Trainer has no option 'max_epoch'. Did you mean 'max_epochs'?"),
        ({"callbacks": []}, "trainer.callbacks: espace sets it; write them under the key callbacks"),
        (
            {"logger": False},
            "trainer.logger: espace sets it; metrics always go to metrics.csv, and the key loggers says where else",
        ),
        (
            {"num_sanity_val_steps": 2},
            "trainer.num_sanity_val_steps: espace sets it; the audit looks at the validation",
        ),
        ({"gradient_clip_algorithm": "value"}, "trainer.gradient_clip_algorithm: only 'norm' is possible"),
        (
            {"precision": "bf16-true"},
            "trainer.precision: with bf16-true the weights lose what a step adds. Set bf16-mixed",
        ),
        ({"strategy": "ddp_spawn"}, "trainer.strategy: 'ddp_spawn' is not possible"),
    ],
)
def test_options_that_cannot_work_are_refused_with_the_reason(options, problem):
    (found,) = trainer_problems(options)
    assert problem in found


def test_other_options_are_for_lightning():
    assert (
        trainer_problems({"max_epochs": 3, "precision": "64-true", "strategy": "ddp", "gradient_clip_val": 1.0}) == []
    )


@pytest.mark.parametrize(("limit", "batches"), [(3, 3), (0.5, 5), (1, 1), (1.0, 10), (99, 10)])
def test_a_limit_to_the_epoch_is_applied_once(shop, limit, batches):
    run = train(shop, trainer={"limit_train_batches": limit})
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == batches


def test_a_limit_that_leaves_no_batch_is_refused(shop):
    with pytest.raises(
        ConfigError, match=r"limit_train_batches: 0.01 of the 10 batches of an epoch is less than one. Set it to 0.1"
    ):
        fit(shop, trainer={"limit_train_batches": 0.01})


def test_a_run_is_not_resumed_without_a_checkpoint_or_on_other_data(shop):
    with pytest.raises(RunError, match=r"there is no checkpoints/last.ckpt to go on from"):
        experiment(shop).fit(resume=shop.folder / "nothing")
    run = fit(shop)
    shop.write(rows(600, seed=9))
    with pytest.raises(RunError, match="the training data is not what it was when the run began"):
        experiment(shop).fit(resume=run)


def test_a_full_disk_stops_training_and_leaves_the_checkpoint_before(shop):
    run = train(shop)
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    (run / "checkpoints" / "last.ckpt.partial").symlink_to("/dev/full")
    said = shop.espace("fit", "--resume", run, "trainer.max_epochs=2")
    assert said.code == 2
    assert "last.ckpt: the checkpoint could not be written" in said.error
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    assert shop.espace("fit", "--resume", run, "trainer.max_epochs=2").code == 0


def test_a_diverging_run_from_python_raises_the_error_itself(shop):
    with pytest.raises(NonFiniteError, match="the loss is nan"):
        fit(shop, optimizer={"lr": 1e30})


# -- what towers may ask for

ASKING = """import espace, torch
from torch import nn


class Asking(nn.Module):
    auxiliary_loss = torch.zeros(())

    def __init__(self, spec, *, shared: bool = False):
        super().__init__()
        self.first_order = espace.FirstOrder(spec, "weights" if shared else None)
        self.pulled = nn.Parameter(torch.zeros(()))
        self.out_features = 1

    def forward(self, features):
        if self.training:
            self.auxiliary_loss = (self.pulled - 3).square()
        return self.first_order(features)


@espace.hookimpl
def register_towers(register):
    register("asking", Asking)
"""


def asking(shop, **sections):
    (shop.folder / "asking.py").write_text(ASKING)
    return train(shop, plugins=["./asking.py"], **sections)


def test_what_a_tower_adds_to_the_loss_is_trained_and_told(shop):
    run = asking(shop, tower="asking", trainer={"log_every_n_steps": 2})
    pulled = [w for name, w in weights(run).items() if name.endswith("pulled")]
    assert len(pulled) == 2
    assert all(w > 0.05 for w in pulled)  # Adam takes steps of about 0.01
    told = [value for _, _, name, value in lines(run) if name == "train/auxiliary_loss"]
    assert told == sorted(told, reverse=True)
    assert told[-1] < told[0] < 2 * 3.0**2
    losses = [v for _, _, n, v in lines(run) if n == "train/loss"]
    assert max(losses) < 2, "train/loss is the chain's"


@pytest.mark.parametrize(("shared", "more"), [(True, 1), (False, 2)])
def test_extra_tables_are_columns_of_the_embedding_which_are_trained_and_loaded(shop, shared, more):
    run = asking(shop, tower={"type": "asking", "shared": shared})
    (table,) = (w for n, w in weights(run, "best").items() if ".tables.4." in n)
    assert table.shape[1] == 4 + more
    assert table[:, 4:].abs().max() > 0.02, "they learn: the start has a deviation of 0.01"
    plugins = load_config(run / "config.yaml").plugins
    first = load(run, plugins=plugins).predict(rows(50, 5))
    assert load(run, plugins=plugins).predict(rows(50, 5)).equals(first)


def test_without_a_shared_embedding_each_tower_asks_its_own(shop):
    run = asking(shop, tower={"type": "asking", "shared": True}, embedding={"dim": 4, "shared": False})
    widths = [w.shape[1] for n, w in weights(run, "best").items() if ".tables.4." in n]
    assert widths == [5, 5]


LEARNT = """import espace, torch
from torch import nn


class Learnt(nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.s = nn.ParameterDict({term: nn.Parameter(torch.zeros(())) for term in weights})

    def forward(self, terms):
        return torch.stack([(-self.s[n]).exp() * value + self.s[n] for n, value in terms.items()]).sum()


@espace.hookimpl
def register_weightings(register):
    register("learnt", Learnt)
"""


def test_the_loss_of_validation_and_of_the_results_is_that_of_the_weights_that_were_learnt(shop):
    (shop.folder / "learnt.py").write_text(LEARNT)
    run = fit(shop, plugins=["./learnt.py"], weighting="learnt", trainer={"max_epochs": 2})
    state, results = weights(run, "best"), json.loads((run / "results.json").read_text())
    s = {n: float(state[f"weighting.s.{n}"]) for n in ("click", "conversion")}
    assert all(abs(v) > 0.02 for v in s.values()), "they learn"
    assert not [name for name in state if name.startswith("judge.terms.weighting")], "and stand there once"
    expected = sum(np.exp(-v) * results[f"val/loss/{n}"] + v for n, v in s.items())
    assert results["val/loss"] == pytest.approx(expected, rel=1e-6)
    best = min(value for _, _, name, value in lines(run) if name == "val/loss")
    assert best == pytest.approx(expected, rel=1e-5)
