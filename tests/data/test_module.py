"""Lightning reads from a thread as it reads without one. The CPU stands in for the GPU to which that thread sends."""

from __future__ import annotations

import json
import threading
import time

import pytest
import torch

from espace.data.stream import module
from espace.data.stream.stream import Stream
from espace.errors import NonFiniteError
from espace.runs import fitting
from espace.runs.experiment import Experiment
from espace.runs.fitting import Fitting
from espace.runs.opening import prepare
from espace.runs.report import Report
from espace.training.checkpoint import read_checkpoint
from tests.shop import CONFIG

SINGLE = {name: kind for name, kind in CONFIG["features"].items() if name not in ("history", "tags")}  # no lists
TRAINER = {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 1}
DATA = {**CONFIG["data"], "batch_size": 64, "shuffle_rows": 100}  # 600 rows: 10 batches an epoch


@pytest.fixture(params=[SINGLE, CONFIG["features"]], ids=["windows", "batches"])
def features(request):
    return request.param


@pytest.fixture
def sending(monkeypatch):
    """Call it, and streams send to the CPU as to a GPU. Returns the list of the streams that were read so."""
    found = []

    def start():
        plain = Stream._windows

        def windows(stream, *place):
            found.append(stream)
            return plain(stream, *place)

        monkeypatch.setattr(Stream, "_windows", windows)
        for place in (module, fitting):
            monkeypatch.setattr(place, "gpu_of", lambda trainer: trainer.strategy.root_device)
        return found

    return start


def experiment(shop, features, trainer=None, **sections):
    tree = {"data": DATA, "features": features, "trainer": {**TRAINER, **(trainer or {})}, **sections}
    return Experiment.from_yaml(shop.yaml(**tree))


def train(shop, name, *arguments, resume=False, **sections):
    """The folder of a run that was trained, without results and pictures."""
    made, report, folder = experiment(shop, *arguments, **sections), Report(quiet=True), shop.folder / name
    folder.mkdir(exist_ok=True)
    prepared = prepare(made.config, made.registry, report)
    Fitting(made.config, made.registry, prepared, folder, report).run(resume)
    return folder


def same(one, other):
    weights = [read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (one, other)]
    lines = [(run / "metrics.csv").read_text() for run in (one, other)]
    return lines[0] == lines[1] and all(torch.equal(weights[0][n], weights[1][n]) for n in weights[1])


def no_thread_is_left():
    end = time.monotonic() + 20
    while (left := [t for t in threading.enumerate() if t.name == "prefetch"]) and time.monotonic() < end:
        time.sleep(0.01)
    return not left


def test_a_run_that_reads_in_a_thread_has_the_same_bits_and_returns_a_model_on_the_cpu(shop, features, sending):
    halves = {"val_check_interval": 5}
    plain = experiment(shop, features, halves).fit(shop.folder / "plain")
    read = sending()
    sent = experiment(shop, features, halves).fit(shop.folder / "sent")
    assert same(plain.folder, sent.folder)
    results = [json.loads((run.folder / "results.json").read_text()) for run in (plain, sent)]
    assert results[0] == results[1]
    names = [stream.part.name for stream in read]
    assert names == [*["train", "validation", "validation"] * 2, "validation", "test"]
    assert all(stream.device == torch.device("cpu") for stream in read)
    assert {t.device.type for m in (sent.model, sent.weighting) for t in m.state_dict().values()} == {"cpu"}
    assert no_thread_is_left()


@pytest.mark.parametrize(
    "trainer",
    [
        {"limit_train_batches": 7, "max_epochs": 3},
        {"max_steps": 13},
        {"limit_val_batches": 1, "val_check_interval": 3},
        {"accumulate_grad_batches": 3},
    ],
    ids=lambda trainer: next(iter(trainer)),
)
def test_limits_and_early_ends_change_no_bit_and_leave_no_thread(shop, features, sending, trainer):
    plain = train(shop, "plain", features, trainer)
    assert sending() == []
    assert same(plain, train(shop, "sent", features, trainer))
    assert no_thread_is_left()


def test_patience_stops_in_the_same_place(shop, features, sending):
    options = {"trainer": {"max_epochs": 30, "val_check_interval": 3}, "patience": 2, "optimizer": {"lr": 0.3}}
    plain = train(shop, "plain", features, **options)
    sending()
    sent = train(shop, "sent", features, **options)
    assert same(plain, sent)
    assert read_checkpoint(sent / "checkpoints" / "last.ckpt")["global_step"] < 300
    assert no_thread_is_left()


def test_a_run_goes_on_from_the_middle_of_an_epoch_with_the_same_bits(shop, features, sending):
    whole = train(shop, "whole", features, checkpoint_every=1)
    sending()
    train(shop, "parts", features, {"max_steps": 13}, checkpoint_every=1)
    assert same(whole, train(shop, "parts", features, resume=True, checkpoint_every=1))
    assert no_thread_is_left()


def test_an_error_in_a_step_ends_the_thread(shop, features, sending):
    sending()
    with pytest.raises(NonFiniteError, match="the loss is"):
        train(shop, "run", features, optimizer={"lr": 1e38})
    assert no_thread_is_left()


def test_only_cuda_devices_are_sent_to():
    class Trainer:
        def __init__(self, device):
            self.strategy, self.root_device = self, torch.device(device)

    assert [module.gpu_of(Trainer(d)) for d in ("cpu", "mps", "cuda:1")] == [None, None, torch.device("cuda:1")]
