"""The average of the last weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import espace
from espace.model.embedding import Table
from espace.training.averaging import Average
from tests.shop import CONFIG, Shop


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = Table(torch.randn(4, 2), sparse=False)
        self.layer = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)


def test_an_average_is_the_exponentially_weighted_mean_of_the_weights_it_saw() -> None:
    module = Small().double()
    average = Average({"a": module}, 0.8)
    expected = module.layer.weight.detach().clone()
    for step in range(1, 60):
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(torch.randn_like(p))
            module.norm.running_mean.copy_(torch.randn(3))  # type: ignore[union-attr,arg-type]
        average.update(step)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.layer.weight.detach()
    torch.testing.assert_close(average.state()["a.layer.weight"], expected, rtol=1e-12, atol=1e-12)
    assert "a.norm.running_mean" in average.state()


def test_weights_are_back_after_the_averages_stood_in_their_place_and_tables_never_move() -> None:
    module = Small()
    average = Average({"a": module}, 0.9)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1.0)
    average.update(1)
    before = {n: t.clone() for n, t in module.state_dict().items()}
    means = {n: t.clone() for n, t in average.state().items()}
    with average.in_place():
        assert torch.equal(module.layer.weight, means["a.layer.weight"])
        assert torch.equal(module.table.weight, before["table.weight"])
        assert not torch.equal(module.layer.weight, before["layer.weight"])
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    assert all(torch.equal(t, means[n]) for n, t in average.state().items())


def test_other_averages_are_refused() -> None:
    average = Average({"a": Small()}, 0.9)
    for state in (None, {}, {**average.state(), "a.layer.weight": torch.zeros(2)}):
        with pytest.raises(ValueError, match="not those of these weights"):
            average.load(state)


def test_what_is_judged_in_training_is_what_is_kept(shop: Shop) -> None:
    """The best checkpoint has the loss that its validation had: averages were judged, and averages were saved."""
    optimizer = {"lr": 0.05, "average": 0.9}
    run = espace.Experiment.from_yaml(shop.yaml(optimizer=optimizer, data=CONFIG["data"] | {"batch_size": 50})).fit("a")
    assert run is not None
    told = [line.split(",") for line in (shop.folder / "a/metrics.csv").read_text().splitlines()]
    losses = [float(value) for _, _, name, value in told if name == "val/loss"]
    assert run.results["val/loss"] == pytest.approx(min(losses), rel=1e-6)
    last = torch.load(shop.folder / "a/checkpoints/last.ckpt", weights_only=True)
    key = next(k for k in last["state_dict"] if k.startswith("model.towers") and k.endswith("weight"))
    assert not torch.equal(last["state_dict"][key], last["espace_average"][key])


@pytest.mark.parametrize("name", ["best", "last"])
def test_what_predicts_are_the_averages(shop: Shop, name: str) -> None:
    """Of a run whose last weights are its best, both checkpoints give the averages, whatever stands in them beside."""
    data = {k: v for k, v in CONFIG["data"].items() if k != "validation"} | {"batch_size": 50}
    espace.Experiment.from_yaml(shop.yaml(optimizer={"lr": 0.05, "average": 0.9}, data=data, checkpoint_every=12)).fit(
        "a"
    )
    content = torch.load(shop.folder / "a/checkpoints/last.ckpt", weights_only=True)
    state = espace.load("a", checkpoint=name).model.state_dict()
    for key, mean in content["espace_average"].items():
        if key.startswith("model."):
            assert torch.equal(state[key.removeprefix("model.")], mean), key
