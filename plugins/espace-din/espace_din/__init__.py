"""Towers that look at a history with the target in view: DIN, DIEN, BST."""

import espace
from espace_din.bst import BST
from espace_din.dien import DIEN
from espace_din.din import DIN


@espace.hookimpl
def register_towers(register: espace.Register[espace.Tower]) -> None:
    """Bring `din`, `dien` and `bst`."""
    register("din", DIN)
    register("dien", DIEN)
    register("bst", BST)
