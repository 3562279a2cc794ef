"""What a part remembers, as a checkpoint keeps it."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor


def reread(state: object) -> Any:
    """A state as it is read from a checkpoint. Raises for what cannot be read without running code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def text_of(state: object) -> str:
    """A state as a text that shows every number of it, to the last digit."""
    if isinstance(state, Tensor):
        return f"{state.dtype} {state.tolist()}"
    if isinstance(state, dict):
        return str({str(key): text_of(value) for key, value in state.items()})
    return str([text_of(value) for value in state]) if isinstance(state, list | tuple) else repr(state)
