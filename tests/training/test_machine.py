"""What this machine and this process cannot do is said before the data is read, and a run leaves torch as it was."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import espace
from espace.errors import ConfigError
from tests.shop import Shop


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"accelerator": "tpu"}, r"trainer.accelerator: 'tpu' is not on this machine, which has .*cpu.*\. Set auto"),
        ({"accelerator": "gpuu"}, r"trainer.accelerator: 'gpuu' is not .* Did you mean 'gpu'\?"),
        ({"accelerator": "cpu", "devices": 0}, r"trainer: Lightning refuses these options: .*devices=0"),
        ({"accelerator": "cpu", "max_time": "soon"}, r"trainer: Lightning refuses these options: .*soon"),
    ],
)
def test_what_the_machine_lacks_is_told_by_check_and_by_fit(shop: Shop, options: dict[str, object], says: str) -> None:
    experiment = espace.Experiment.from_yaml(shop.yaml(trainer=options))
    for tried in (experiment.check, experiment.fit):
        with pytest.raises(ConfigError, match=says):
            tried()
    assert not (shop.folder / "runs").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gradient_clip_val", -1),
        ("gradient_clip_val", float("nan")),
        ("accumulate_grad_batches", 0),
        ("check_val_every_n_epoch", 0),
        ("log_every_n_steps", -1),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(shop: Shop, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"trainer\.{name}: .* or more\. Set it higher"):
        espace.Experiment.from_yaml(shop.yaml(trainer={name: value}))


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64])
def test_a_seed_that_no_generator_takes_is_refused(shop: Shop, seed: int) -> None:
    with pytest.raises(ConfigError, match=r"seed: .* is not a whole number of at least 0 and of at most 4,294,967,295"):
        espace.Experiment.from_yaml(shop.yaml(seed=seed))


@pytest.mark.parametrize("tables", ["exact", "lazy", "dense"])
def test_a_deterministic_run_trains_and_leaves_torch_as_it_was(shop: Shop, tables: str) -> None:
    trainer = {"accelerator": "cpu", "deterministic": True, "max_steps": 2}
    path, before = shop.yaml(trainer=trainer, optimizer={"tables": tables}), dict(os.environ)
    run = espace.Experiment.from_yaml(path).fit(shop.folder / "run")
    assert run is not None
    assert not torch.are_deterministic_algorithms_enabled()
    assert dict(os.environ) == before


def test_further_devices_are_refused_where_no_file_can_be_run_again(shop: Shop) -> None:
    shop.yaml(trainer={"accelerator": "cpu", "devices": 2})
    program = "import espace; espace.Experiment.from_yaml('shop.yaml').check()"
    for how in (["-c", program], ["-"]):
        said = subprocess.run([sys.executable, *how], input=program, capture_output=True, text=True, timeout=300)
        assert said.returncode == 1
        assert "trainer.devices: 2 devices need as many processes" in said.stderr
