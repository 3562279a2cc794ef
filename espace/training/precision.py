"""Which numbers matrix products are made of: 16 bits where the machine has units for them, else 32."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch


def default_precision(accelerator: object = "auto") -> str:
    """$ESPACE_PRECISION if it is set. Else `bf16-mixed` where products of bfloat16 matrices have units of their own
    (AMX on a CPU, tensor cores from Ampere on), else `32-true`. `accelerator` is Lightning's option.

    A CPU that has bfloat16 vectors only multiplies float32 matrices faster.
    """
    if wanted := os.environ.get("ESPACE_PRECISION"):
        return wanted
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else _has_amx()
    return "bf16-mixed" if fast and accelerator in ("auto", "gpu", "cuda", "cpu") else "32-true"


def _has_amx() -> bool:
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)  # newer than the oldest torch that espace runs on
    return bool(asked and asked())


def autocast(precision: object, device: torch.device | str) -> AbstractContextManager[object]:
    """What a model trained with `precision`, of Lightning's trainer, is to be evaluated in."""
    kinds = {"bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16, "16-mixed": torch.float16, "16": torch.float16}
    kind = kinds.get(str(precision))
    return nullcontext() if kind is None else torch.autocast(torch.device(device).type, kind)
