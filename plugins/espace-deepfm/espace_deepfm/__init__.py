"""Towers in which features meet in pairs: factorisation machine, DeepFM, xDeepFM."""

import espace
from espace_deepfm.deepfm import DeepFM
from espace_deepfm.fm import FM
from espace_deepfm.xdeepfm import XDeepFM


@espace.hookimpl
def register_towers(register: espace.Register[espace.Tower]) -> None:
    """Bring `fm`, `deepfm` and `xdeepfm`."""
    register("fm", FM)
    register("deepfm", DeepFM)
    register("xdeepfm", XDeepFM)
