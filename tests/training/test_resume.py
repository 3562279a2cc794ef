"""A run that is stopped anywhere and resumed ends with the same bits, and the same metrics, as one that never was."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from espace.data.reading.split import Part
from espace.errors import DataError, RunError
from espace.runs.experiment import Experiment
from espace.runs.fitting import Fitting
from espace.runs.opening import Prepared, prepare
from espace.runs.report import Report
from espace.training.callbacks import Checkpoints
from espace.training.checkpoint import read_checkpoint
from tests import guests
from tests.shop import Shop, rows

QUIET = Report(quiet=True)
SECTIONS: dict[str, Any] = {
    "data": {
        "train": "train.parquet",
        "validation": "validation.parquet",
        "weight": "weight",
        "batch_size": 64,  # 7 batches an epoch, the last one short
        "shuffle_rows": 150,
    },
    "features": {
        "user_id": {"type": "id", "unknown_rate": 0.05},
        "item_id": "id",
        "price": {"type": "number", "log1p": True},
        "history": {"type": "sequence", "share": "item_id"},
    },
    "tower": {"type": "mlp", "hidden_units": [8], "dropout": 0.3},
    "metrics": {"auc": None, "calibration": None, "count": None},
    "test": None,
}
TRAINER = {"accelerator": "cpu", "max_epochs": 3, "log_every_n_steps": 2}
SCHEDULES: dict[str, dict[str, Any]] = {
    "no validation": {"trainer": {"limit_val_batches": 0, "max_epochs": 2}},
    "validation after each quarter": {"trainer": {"max_epochs": 2}},
    "validation inside the epoch": {"trainer": {"val_check_interval": 3}},
    "validation at its end": {"trainer": {"val_check_interval": 1.0, "max_epochs": 2}},
    "validation in every second epoch": {"trainer": {"val_check_interval": 1.0, "check_val_every_n_epoch": 2}},
    "validation counted over epochs": {
        "trainer": {"val_check_interval": 5, "check_val_every_n_epoch": None, "max_epochs": 2}
    },
    "accumulated gradients": {"trainer": {"val_check_interval": 4, "accumulate_grad_batches": 3}},
    "accumulated, no validation": {
        "trainer": {"limit_val_batches": 0, "accumulate_grad_batches": 3, "max_epochs": 2},
    },
    "steps that end in mid epoch": {"trainer": {"val_check_interval": 3, "max_steps": 12}},
    "a limit to the epoch": {"trainer": {"val_check_interval": 2, "limit_train_batches": 5, "max_epochs": 2}},
    "one batch an epoch": {"trainer": {"limit_train_batches": 1}},
    "a share of the epoch": {"trainer": {"val_check_interval": 0.5, "limit_train_batches": 0.5}},
    "a callback of a plugin": {
        "plugins": ["./guests.py"],
        "callbacks": {"a": "shrink", "b": {"type": "again", "by": 0.01}},
        "trainer": {"val_check_interval": 3, "max_epochs": 1},
    },
    **{
        f"{optimizer['type']}, {optimizer['schedule']['type']}": {
            "optimizer": {"lr": 0.02, **optimizer},
            "trainer": {"val_check_interval": 2, "max_epochs": 1},
        }
        for optimizer in (
            {"type": "adam", "tables_lr": 0.05, "schedule": {"type": "cosine", "warmup_steps": 2}},
            {"type": "adamw", "tables_lr": 0.05, "schedule": {"type": "linear", "final": 0.1}},
            {"type": "adagrad", "schedule": {"type": "plateau", "patience": 0, "threshold": 0.9}},
            {"type": "rmsprop", "momentum": 0.5, "schedule": {"type": "one_cycle"}},
            {"type": "sgd", "momentum": 0.9, "nesterov": True, "schedule": {"type": "constant", "warmup_steps": 3}},
        )
    },
    "averaged weights": {
        "optimizer": {"lr": 0.02, "average": 0.9},
        "trainer": {"val_check_interval": 2, "max_epochs": 1},
    },
    "patience": {"patience": 2, "trainer": {"val_check_interval": 2}, "optimizer": {"lr": 0.3}},
}
COUNTS = dict(
    zip(SCHEDULES, [14, 14, 21, 14, 21, 14, 9, 6, 12, 10, 3, 9, *[7] * 7], strict=False)
)  # patience ends when it ends


class Killed(BaseException):
    """The end of a process."""


@dataclass
class Kept:
    """A last.ckpt as it was when so many batches were trained, and the metrics.csv of that moment."""

    batches: int
    folder: Path

    def put(self, run: Path) -> None:
        """Give a run the place of this one."""
        shutil.copy(self.folder / "last.ckpt", run / "checkpoints" / "last.ckpt")


@dataclass
class Lab:
    """A small experiment whose data is read once and that is trained again and again."""

    shop: Shop
    prepared: Prepared
    kept: list[Kept] = field(default_factory=list)

    def train(self, folder: Path, *, resume: bool = False, **sections: Any) -> Path:
        """Train with some sections of the YAML replaced."""
        experiment = Experiment.from_yaml(
            self.shop.yaml(**{**SECTIONS, **sections, "trainer": {**TRAINER, **sections.get("trainer", {})}})
        )
        folder.mkdir(exist_ok=True)
        Fitting(experiment.config, experiment.registry, self.prepared, folder, QUIET).run(resume)
        return folder

    def train_and_keep(self, folder: Path, **sections: Any) -> Path:
        """Train, and keep a copy of every last.ckpt."""
        write = Checkpoints.save_last

        def save(callback: Checkpoints, trainer: Any) -> None:
            write(callback, trainer)
            self._keep(folder, trainer.fit_loop.epoch_loop.batch_progress.total.processed)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "save_last", save)
            return self.train(folder, checkpoint_every=1, **sections)

    def train_to_the_next_checkpoint(self, folder: Path, *, resume: bool, **sections: Any) -> int | None:
        """Train, and die when a last.ckpt was written: after so many batches; None for a run that came to its end."""
        write, places = Checkpoints.save_last, []

        def save(callback: Checkpoints, trainer: Any) -> None:
            write(callback, trainer)
            places.append(trainer.fit_loop.epoch_loop.batch_progress.total.processed)
            raise Killed

        with pytest.MonkeyPatch.context() as patch, suppress(Killed):
            patch.setattr(Checkpoints, "save_last", save)
            self.train(folder, resume=resume, checkpoint_every=1, **sections)
        return places[0] if places else None

    def _keep(self, run: Path, batches: int) -> None:
        copy = Kept(batches, run.parent / f"after {batches} batches")
        copy.folder.mkdir()
        for name in ("checkpoints/last.ckpt", "metrics.csv"):
            if (run / name).exists():
                shutil.copy(run / name, copy.folder)
        self.kept.append(copy)

    def resumed(self, whole: Path, kept: Kept, **sections: Any) -> Path:
        """A copy of the finished run, whose later metrics and best.ckpt have to be forgotten, resumed from one place."""
        run = whole.parent / f"resumed {kept.batches}"
        shutil.copytree(whole, run)
        kept.put(run)
        return self.train(run, resume=True, checkpoint_every=self.kept[-1].batches, **sections)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shop = Shop(folder).fill(440)
        shop.write(rows(440), group=100)
        guests.written(folder)
        experiment = Experiment.from_yaml(shop.yaml(**SECTIONS))
        yield shop, prepare(experiment.config, experiment.registry, QUIET)


@pytest.fixture
def lab(data):
    return Lab(*data)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resuming_from_every_checkpoint_gives_the_same_bits_and_metrics(lab, tmp_path, schedule):
    sections = SCHEDULES[schedule]
    whole = lab.train_and_keep(tmp_path / "whole", **sections)
    wrong = {k.batches: differences(whole, lab.resumed(whole, k, **sections)) for k in lab.kept}
    assert {place: found for place, found in wrong.items() if found} == {}
    assert len(wrong) == COUNTS.get(schedule, len(wrong))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_that_is_stopped_after_every_checkpoint_ends_with_the_same_bits_and_metrics(lab, tmp_path, schedule):
    sections = SCHEDULES[schedule]
    whole = lab.train_and_keep(tmp_path / "whole", **sections)
    places = [lab.train_to_the_next_checkpoint(tmp_path / "run", resume=False, **sections)]
    while places[-1] is not None and len(places) <= len(lab.kept):
        places.append(lab.train_to_the_next_checkpoint(tmp_path / "run", resume=True, **sections))
    assert places == [*(k.batches for k in lab.kept), None]
    assert differences(whole, tmp_path / "run") == []


@pytest.mark.parametrize("schedule", ["validation inside the epoch", "accumulated gradients"])
def test_a_checkpoint_comes_after_every_line_of_its_metrics(lab, tmp_path, schedule):
    whole = lab.train_and_keep(tmp_path / "whole", **SCHEDULES[schedule])
    lines = (whole / "metrics.csv").read_text()
    for kept in lab.kept:
        written = (kept.folder / "metrics.csv").read_text() if (kept.folder / "metrics.csv").exists() else ""
        size = read_checkpoint(kept.folder / "last.ckpt")["espace_metrics"]["size"]
        assert lines[:size] == written


def test_checkpoints_wait_for_the_optimiser_when_gradients_are_accumulated(lab, tmp_path):
    lab.train_and_keep(tmp_path / "whole", **SCHEDULES["accumulated gradients"])
    assert [k.batches for k in lab.kept] == [3, 6, 7, 10, 13, 14, 17, 20, 21]


def test_patience_counts_validations_without_improvement(lab, tmp_path):
    whole = lab.train_and_keep(tmp_path / "whole", **SCHEDULES["patience"])
    losses = [float(line.split(",")[3]) for line in metrics_of(whole).splitlines() if ",val/loss," in line]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == best + 1 + 2 < 10
    assert read_checkpoint(whole / "checkpoints" / "best.ckpt")["global_step"] == 7 * (best // 3) + 2 * (best % 3 + 1)


def values_of(run, extra):
    """`{step, epoch and name: value}` of all lines of metrics but the extra ones."""
    lines = [line.rpartition(",") for line in metrics_of(run).splitlines()[1:] if line not in extra]
    return {name: float(value) for name, _, value in lines}


@pytest.mark.parametrize("schedule", ["validation inside the epoch", "validation at its end", "no validation"])
def test_a_finished_run_goes_on_for_more_epochs(lab, tmp_path, schedule):
    trainer = SCHEDULES[schedule]["trainer"]
    trainer = {**trainer, "max_epochs": 3}
    whole = lab.train_and_keep(tmp_path / "whole", trainer=trainer)
    run = lab.train(tmp_path / "run", trainer={**trainer, "max_epochs": 1})
    if schedule == "no validation":
        lab.kept[6].put(run)
    lab.train(run, resume=True, trainer=trainer, checkpoint_every=21)
    extra = {line for line in metrics_of(run).splitlines() if line.startswith("7,0,val")}
    assert values_of(run, extra) == pytest.approx(values_of(whole, extra), rel=1e-6, nan_ok=True)
    one, other = (read_checkpoint(r / "checkpoints" / "last.ckpt") for r in (run, whole))
    if extra:  # rows caught up in it, so that later they did in two times and not in one
        for name, weights in one["state_dict"].items():
            torch.testing.assert_close(weights, other["state_dict"][name], rtol=1e-5, atol=1e-7)
    else:
        assert all(same(one[part], other[part]) for part in ("state_dict", "optimizer_states"))


@pytest.mark.parametrize("workers", [(0, 1), (1, 0)])
def test_the_count_of_workers_changes_nothing(lab, tmp_path, workers):
    before, after = ({**SECTIONS["data"], "workers": n} for n in workers)
    sections = SCHEDULES["validation inside the epoch"]
    whole = lab.train_and_keep(tmp_path / "whole", data=before, **sections)
    assert differences(whole, lab.resumed(whole, lab.kept[9], data=after, **sections)) == []


def test_the_place_is_kept_when_the_data_gives_out(lab, tmp_path, monkeypatch):
    sections = {**SCHEDULES["validation inside the epoch"], "data": {**SECTIONS["data"], "keep_encoded": False}}
    whole = lab.train(tmp_path / "whole", checkpoint_every=21, **sections)
    saved = {}
    for reading in (1, 3, 4, 5, 7, 8, 10, 15, 22):  # in the first window, in validations, in the first one of an epoch
        with monkeypatch.context() as patch:
            patch.setattr(Part, "read", taken_away_at(reading))
            with pytest.raises(DataError, match="taken away"):
                lab.train(tmp_path / f"{reading}", **sections)
        saved[reading] = (tmp_path / f"{reading}" / "checkpoints" / "last.ckpt").exists()
        if saved[reading]:
            run = lab.train(tmp_path / f"{reading}", resume=True, checkpoint_every=21, **sections)
            assert differences(whole, run) == []
    assert [reading for reading in saved if not saved[reading]] == [
        1,
        3,
        4,
        5,
    ]  # nothing was trained, or not yet validated


def taken_away_at(reading: int) -> Any:
    """`Part.read` that fails from the given call on."""
    read, left = Part.read, iter(range(1, reading))

    def fail(part: Part, piece: int, columns: Any) -> Any:
        if next(left, None) is None:
            raise DataError("the disk was taken away")
        return read(part, piece, columns)

    return fail


def test_a_run_is_not_resumed_on_other_batches(lab, tmp_path):
    def experiment(**trainer):
        return Experiment.from_yaml(lab.shop.yaml(**{**SECTIONS, "trainer": {**TRAINER, **trainer}}))

    experiment(max_epochs=1).fit(tmp_path / "run")
    with pytest.raises(RunError, match=r"begun with another trainer\.limit_train_batches"):
        experiment(limit_train_batches=3).fit(resume=tmp_path / "run")
    with pytest.raises(RunError, match=r"begun with another trainer\.accumulate_grad_batches"):
        experiment(accumulate_grad_batches=2).fit(resume=tmp_path / "run")


def differences(one: Path, other: Path) -> list[str]:
    """What two finished runs have not in common."""
    found = [] if metrics_of(one) == metrics_of(other) else ["metrics.csv"]
    for name in ("last", "best"):
        contents = [read_checkpoint(run / "checkpoints" / f"{name}.ckpt") for run in (one, other)]
        parts = {"state_dict", "optimizer_states", "callbacks", "global_step"} & contents[0].keys()
        found += [f"{name}: {part}" for part in sorted(parts) if not same(*(c[part] for c in contents))]
    return found


def metrics_of(run: Path) -> str:
    return (run / "metrics.csv").read_text() if (run / "metrics.csv").exists() else ""


def same(one: Any, other: Any) -> bool:
    """The same bits."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
