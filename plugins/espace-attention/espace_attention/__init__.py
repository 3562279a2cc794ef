"""Towers in which fields weigh, mask or gate each other: AutoInt, FiBiNET, MaskNet, FinalMLP."""

import espace
from espace_attention.autoint import AutoInt
from espace_attention.fibinet import FiBiNET
from espace_attention.finalmlp import FinalMLP
from espace_attention.masknet import MaskNet


@espace.hookimpl
def register_towers(register: espace.Register[espace.Tower]) -> None:
    """Bring `autoint`, `fibinet`, `masknet` and `finalmlp`."""
    register("autoint", AutoInt)
    register("fibinet", FiBiNET)
    register("masknet", MaskNet)
    register("finalmlp", FinalMLP)
