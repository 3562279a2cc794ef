"""Towers with crosses of features beside or below a deep network: DCN V2, and Wide & Deep, whose crosses the user makes."""

import espace
from espace_dcn.dcn import DCN
from espace_dcn.wide_deep import WideDeep


@espace.hookimpl
def register_towers(register: espace.Register[espace.Tower]) -> None:
    """Bring `dcn` and `wide_deep`."""
    register("dcn", DCN)
    register("wide_deep", WideDeep)
