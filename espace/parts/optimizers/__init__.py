"""Optimisers besides Adam, which stands in training/adam.py: torch's own, each with a gradient of whole tables."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from annotated_types import Ge, Gt, Lt

Groups: TypeAlias = list[dict[str, Any]]
Positive: TypeAlias = Annotated[float, Gt(0)]
NotNegative: TypeAlias = Annotated[float, Ge(0)]
Share: TypeAlias = Annotated[float, Ge(0), Lt(1)]
