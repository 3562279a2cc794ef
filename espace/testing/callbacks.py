"""Laws of callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from espace.errors import PluginError
from espace.testing.law import law
from espace.testing.states import reread, text_of
from espace.training.guests import check_states
from espace.training.trainer import lightning_quiet


class _Tiny(pl.LightningModule):
    """One layer, of which every step draws from a random state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(3, 1, dtype=torch.float64)
        nn.init.constant_(self.model.weight, 0.5)
        nn.init.zeros_(self.model.bias)
        self.told: dict[str, float] = {}

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        torch.manual_seed(self.global_step)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = (self.model(batch).squeeze(1) - batch.sum(1)).square().mean()
        self.told["train/loss"] = float(loss.detach())
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.told["val/loss"] = float((self.model(batch).squeeze(1) - batch.sum(1)).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def _trained(callback: Any, epochs: int, folder: Path, start: Path | None = None) -> pl.Trainer:
    rows = torch.randn(16, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    with lightning_quiet():
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            val_check_interval=2,
            num_sanity_val_steps=0,
            callbacks=[callback],
            default_root_dir=folder,
            **off,  # type: ignore[arg-type]
        )
        trainer.fit(_Tiny(), DataLoader(rows, 4), DataLoader(rows, 16), ckpt_path=start)  # type: ignore[arg-type]
    return trainer


class CallbackTests:
    """Laws of a callback. Set `callback` and `options`."""

    callback: ClassVar[Callable[..., Any]]
    options: ClassVar[Mapping[str, object]] = {}

    def build(self) -> Any:
        """A new one with the options."""
        return type(self).callback(**self.options)

    def test_is_a_callback_of_lightning(self) -> None:
        assert isinstance(self.build(), pl.Callback), "it inherits from pytorch_lightning.Callback"
        assert self.build() is not self.build(), "the factory gives a new one each time"

    def test_two_of_the_same_options_have_one_place_in_a_checkpoint(self) -> None:
        assert self.build().state_key == self.build().state_key, "a resumed run finds its state again"

    def test_its_state_is_plain_and_comes_back(self, tmp_path: Path) -> None:
        callback = self.build()
        _trained(callback, 1, tmp_path)
        state = callback.state_dict()
        try:
            check_states({callback.state_key: state})
        except PluginError as error:
            raise AssertionError("what it keeps is plain values and tensors") from error
        other = self.build()
        with law("it takes back what it gave"):
            other.load_state_dict(reread(state))
        assert text_of(other.state_dict()) == text_of(state), "it gives again what it took back"

    def test_a_run_that_is_resumed_ends_as_one_that_was_never_stopped(self, tmp_path: Path) -> None:
        whole, first, second = self.build(), self.build(), self.build()
        at_once = _trained(whole, 2, tmp_path)
        with law("its state goes into a checkpoint and comes out of it"):
            _trained(first, 1, tmp_path).save_checkpoint(tmp_path / "last.ckpt")
            resumed = _trained(second, 2, tmp_path, tmp_path / "last.ckpt")
        pairs = zip(at_once.lightning_module.parameters(), resumed.lightning_module.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), "weights are the same whether a run was stopped or not"
        assert text_of(whole.state_dict()) == text_of(second.state_dict()), "and so is what the callback keeps"
