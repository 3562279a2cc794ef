"""Modules under the names that a user chose, whatever they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from torch import nn

if TYPE_CHECKING:
    from collections.abc import ItemsView, KeysView

MARK = ":"  # no attribute of any class begins with it


class NamedModules(nn.ModuleDict):
    """An `nn.ModuleDict` that takes every name: `apply`, `train` or `a.b` too, which torch refuses as attributes.

    A transition, stage, metric or group of experts may be called like any method of a module. In the state dict a
    module stands under `:` and its name, percent-encoded; everywhere else under its name.
    """

    def __init__(self, modules: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.update(modules or {})

    def __getitem__(self, key: str) -> nn.Module:
        return super().__getitem__(_encoded(key))

    def __setitem__(self, key: str, module: nn.Module) -> None:
        super().__setitem__(_encoded(key), module)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(_encoded(key))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and _encoded(key) in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> KeysView[str]:
        """The names as they were given."""
        return self._named().keys()

    def items(self) -> ItemsView[str, nn.Module]:
        """The names as they were given, with their modules."""
        return self._named().items()

    def pop(self, key: str) -> nn.Module:
        """Take a module out. Raises KeyError where there is none of that name."""
        module = self[key]
        del self[key]
        return module

    def _named(self) -> dict[str, nn.Module]:
        return {unquote(key[len(MARK) :]): m for key, m in self._modules.items() if m is not None}


def _encoded(name: str) -> str:
    """A key that torch takes: no attribute's name, and without a dot, which parts the names of a state dict."""
    return MARK + quote(name, safe=" ").replace(".", "%2E")
