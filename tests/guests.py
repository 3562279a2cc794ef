"""A plugin file with callbacks, as text."""

FILE = '''
import numpy as np
import pytorch_lightning as pl
import torch
import espace


class Shrink(pl.Callback):
    """Makes a bias smaller by how many steps there were, and by chance."""

    def __init__(self, *, by: float = 1e-3, fail_at: int | None = None, odd: bool = False):
        self.by, self.fail_at, self.odd, self.steps = by, fail_at, odd, 0

    def on_train_batch_end(self, trainer, module, *_):
        self.steps += 1
        if self.steps == self.fail_at:
            raise ValueError("no more")
        with torch.no_grad():
            for head in module.model.heads.values():
                head.bias -= self.by * self.steps * torch.rand(())

    def state_dict(self):
        return {"steps": np.int64(self.steps) if self.odd else self.steps}

    def load_state_dict(self, state_dict):
        self.steps = state_dict["steps"]


class Again(Shrink):
    """Under another key."""

    state_key = "again"


@espace.hookimpl
def register_callbacks(register):
    register("shrink", Shrink)
    register("again", Again)
    register("no_callback", lambda: 3)
'''


def written(folder):
    """Write it into a folder; what the YAML has under `plugins`."""
    (folder / "guests.py").write_text(FILE)
    return ["./guests.py"]
