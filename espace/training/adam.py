"""The default optimiser as a part: Adam that is lazy, exact or dense on tables."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from espace.registry.hookspecs import hookimpl


def adam(
    groups: list[dict[str, Any]],
    tables: Literal["exact", "lazy", "dense"],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: Annotated[float, Gt(0)] = 1e-8,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
) -> Any:
    """Adam (Kingma and Ba, ICLR 2015); `optimizer.tables` says what it does with rows that are not looked up."""
    from espace.training.optim import LazyAdam

    options: Any = {"betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
    return LazyAdam(groups, **options, exact=tables == "exact")


@hookimpl
def register_optimizers(register: Any) -> None:
    """Bring `adam`, the default."""
    register("adam", adam)
