"""Every optimiser and every schedule does what a loop by hand with torch's own does; a rate changes only when it was said."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch

from espace.errors import ConfigError, RunError
from espace.parts.schedules.constant import constant
from espace.parts.schedules.cosine import cosine
from espace.parts.schedules.linear import linear
from espace.parts.schedules.one_cycle import one_cycle
from espace.parts.schedules.plateau import Plateau
from espace.runs.experiment import Experiment
from espace.runs.fitting import Fitting
from espace.runs.opening import prepare
from espace.runs.optimising import steps_of
from espace.runs.report import Report
from espace.training.checkpoint import read_checkpoint
from tests.shop import Shop

QUIET = Report(quiet=True)
FEW = {"features": {"user_id": "id", "item_id": "id"}, "metrics": {"auc": None}, "test": None}
TRAINER = {"accelerator": "cpu", "precision": "32-true", "max_epochs": 1, "log_every_n_steps": 1}
TORCHS = {
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "adagrad": (torch.optim.Adagrad, {"weight_decay": 0.01}),
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.9, "momentum": 0.5}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
}
RATES = {"adam": 0.02, "adamw": 0.02, "adagrad": 0.02, "rmsprop": 0.005, "sgd": 0.1}
FACTORS = {
    "constant": lambda step, steps: min((step + 1) / 2, 1),
    "linear": lambda step, steps: min((step + 1) / 2, 1) * (1 - max(step - 2, 0) / (steps - 2)),
    "cosine": lambda step, steps: min((step + 1) / 2, 1) * (1 + math.cos(math.pi * max(step - 2, 0) / (steps - 2))) / 2,
}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.chdir(tmp_path)
    return Shop(tmp_path).fill(800)


def experiment(shop: Shop, overrides: tuple[str, ...] = (), **sections: object) -> Experiment:
    data = {"train": "train.parquet", "validation": "validation.parquet", "batch_size": 100}
    trainer = {**TRAINER, **sections.pop("trainer", {})}
    return Experiment.from_yaml(shop.yaml(**{**FEW, "data": data, **sections, "trainer": trainer}), overrides)


def by_hand(made: Experiment, kind: type, options: dict, factor, lr: float, tables_lr: float, folder: Path):
    """The weights after an epoch of torch's own optimiser, and the loss of all batches before and after it."""
    fitting = Fitting(made.config, made.registry, prepare(made.config, made.registry, QUIET), folder, QUIET)
    module = fitting._module()
    batches = [*fitting._data(False).train]
    named = dict(module.model.named_parameters())
    tables = [p for name, p in named.items() if name.startswith("embeddings")]
    rest = [p for name, p in named.items() if not name.startswith("embeddings")]
    optimizer = kind([{"params": tables, "lr": tables_lr}, {"params": rest, "lr": lr}], **options)
    base, losses = [tables_lr, lr], [loss_of(module, batches)]
    for step, batch in enumerate(batches):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * factor(step, len(batches))
        optimizer.zero_grad()
        module._losses(batch).loss.backward()
        for p in tables:
            p.grad = p.grad.to_dense() if p.grad.is_sparse else p.grad
        optimizer.step()
    losses.append(loss_of(module, batches))
    return {f"model.{name}": p.detach() for name, p in named.items()}, losses


@torch.no_grad()
def loss_of(module, batches) -> float:
    """The sum over all batches."""
    return sum(float(module._losses(batch).loss) for batch in batches)


@pytest.mark.parametrize("schedule", FACTORS)
@pytest.mark.parametrize("name", TORCHS)
def test_a_run_is_the_loop_by_hand_and_its_loss_falls(shop, name, schedule):
    kind, options = TORCHS[name]
    lr = RATES[name]
    rates = {"type": name, "lr": lr, "tables_lr": 2 * lr, "schedule": {"type": schedule, "warmup_steps": 2}, **options}
    made = experiment(shop, optimizer=rates)
    wanted, losses = by_hand(made, kind, options, FACTORS[schedule], lr, 2 * lr, shop.folder)
    made.fit(shop.folder / "run", report=QUIET)
    found = read_checkpoint(shop.folder / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    for key, weights in wanted.items():
        torch.testing.assert_close(found[key], weights, rtol=1e-4, atol=1e-5)
    assert losses[1] < losses[0]


# -- schedules against torch's own


def torchs(made, steps: int) -> list[float]:
    """The factors of a scheduler of torch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = made(optimizer), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return found


@pytest.mark.parametrize("steps", [2, 3, 10, 101])
def test_schedules_are_those_of_torch(steps):
    of = torch.optim.lr_scheduler
    pairs = [
        (cosine(steps, final=0.2), lambda o: of.CosineAnnealingLR(o, steps, eta_min=0.2)),
        (linear(steps, final=0.2), lambda o: of.LinearLR(o, 1.0, 0.2, steps)),
        (one_cycle(steps), lambda o: of.OneCycleLR(o, 1.0, steps, cycle_momentum=False)),
        (constant(steps, warmup_steps=0), lambda o: of.ConstantLR(o, 1.0)),
    ]
    for ours, theirs in pairs:
        assert [ours(step) for step in range(steps)] == pytest.approx(torchs(theirs, steps), abs=1e-9)


def test_plateau_is_that_of_torch_and_goes_on_from_its_state():
    losses = [5.0, 4.0, 4.0, 4.1, 3.9999, 4.2, 4.3, 3.0, 3.1, 3.2, math.nan, 3.3, 3.4, 3.5, 3.6]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, min_lr=0.1, eps=0)
    ours = Plateau(None, factor=0.5, patience=1, least=0.1)
    for loss in losses:
        state, ours = ours.state_dict(), Plateau(None, factor=0.5, patience=1, least=0.1)
        ours.load_state_dict(state)
        theirs.step(loss)
        ours.judged(loss)
        assert ours(7) == optimizer.param_groups[0]["lr"]


def test_a_rise_comes_before_and_every_schedule_stays_within_it():
    for schedule in (constant(20, warmup_steps=4), linear(20, warmup_steps=4), cosine(20, warmup_steps=4)):
        assert [schedule(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
        assert all(0 <= schedule(step) <= 1 for step in range(25))


def test_schedules_that_need_an_end_say_so(shop):
    with pytest.raises(ConfigError, match=r"optimizer.schedule: its end is not known, since only time ends the run"):
        cosine(None)
    with pytest.raises(ConfigError, match="warmup_steps 8 leaves nothing of the run's 8 steps"):
        linear(8, warmup_steps=8)


@pytest.mark.parametrize(
    ("trainer", "steps"),
    [
        ({}, 8),
        ({"max_epochs": 3}, 24),
        ({"max_steps": 5, "max_epochs": 2}, 5),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, 6),
        ({"limit_train_batches": 0.5}, 4),
        ({"limit_train_batches": 3}, 3),
    ],
)
def test_the_number_of_steps_is_that_of_the_run(shop, trainer, steps):
    made = experiment(shop, trainer=trainer)
    assert steps_of(made.config, 8) == steps
    made.fit(shop.folder / "run", report=QUIET)
    assert read_checkpoint(shop.folder / "run" / "checkpoints" / "last.ckpt")["global_step"] == steps


def test_only_time_leaves_the_number_of_steps_open(shop):
    assert steps_of(experiment(shop, trainer={"max_epochs": -1, "max_time": "00:00:01:00"}).config, 8) is None


# -- configuration


@pytest.mark.parametrize(
    ("optimizer", "problem"),
    [
        ({"type": "adamm"}, r"optimizer.type: there is no optimizer 'adamm'. Did you mean 'adam"),
        ({"type": "sgd", "momentun": 0.9}, r"optimizer.momentun: there is no such key. Did you mean 'momentum'\?"),
        ({"type": "sgd", "betas": [0.9, 0.99]}, r"optimizer.betas: there is no such key"),
        ({"type": "adamw", "tables": "exact"}, r"optimizer.tables: with adamw every row may move in every step"),
        ({"schedule": "cosin"}, r"optimizer.schedule: there is no schedule 'cosin'. Did you mean 'cosine'\?"),
        ({"schedule": {"type": "cosine", "final": 2.0}}, r"optimizer.schedule.final: 2.0 is not a number"),
        ({"type": "sgd", "nesterov": True}, r"optimizer: sgd cannot be built: Nesterov momentum requires"),
    ],
)
def test_what_is_wrong_with_an_optimizer_is_told_where_it_stands(shop, optimizer, problem):
    with pytest.raises(ConfigError, match=problem):
        experiment(shop, optimizer=optimizer).fit(shop.folder / "run", report=QUIET)


def test_an_option_of_a_schedule_can_be_set_by_an_override(shop):
    made = experiment(shop, ("optimizer.schedule.warmup_steps=3", "optimizer.type=sgd"), optimizer={"lr": 0.1})
    assert made.config.optimizer.schedule.options == {"warmup_steps": 3}
    assert made.config.optimizer.options["momentum"] == 0.0


# -- going on with another rate


def test_a_rate_changes_when_a_run_goes_on_only_where_that_is_said(shop, capsys):
    run, more = shop.folder / "run", {"max_epochs": 2}
    experiment(shop, optimizer={"lr": 0.01}).fit(run, report=QUIET)
    with pytest.raises(RunError, match=r"begun with another optimizer. optimizer.lr was 0.01, now it is 0.5"):
        experiment(shop, optimizer={"lr": 0.5}, trainer=more).fit(resume=run, report=QUIET)
    with pytest.raises(RunError, match=r"begun with another optimizer. optimizer.eps was"):
        experiment(shop, ("optimizer.eps=0.1",), optimizer={"lr": 0.01}, trainer=more).fit(resume=run, report=QUIET)
    said = experiment(shop, ("optimizer.lr=0.5",), optimizer={"lr": 0.01}, trainer=more)
    said.fit(resume=run, report=Report())
    assert "optimizer.lr was 0.01 and is 0.5 from here on" in " ".join("".join(capsys.readouterr()).split())
    content = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert (content["global_step"], content["optimizer_states"][0]["param_groups"][0]["lr"]) == (16, 0.5)
    Experiment.from_yaml(run / "config.yaml", ["trainer.max_epochs=3"]).fit(resume=run, report=QUIET)
