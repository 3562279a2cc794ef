"""Adam on rows of a table in torch's own calls, for every device and dtype: what the kernels do, without them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam

from espace.training.missed import Missed, Options
from espace.training.sparse import summed, summed_on_device

_FUSED_DEVICES = ("cpu", "cuda")
_BLOCK_FLOATS = 2**15  # of a table at a time on a CPU, so that they, their gradient and both moments stay in its cache


class Rows(Protocol):
    """Adam on rows of one table: `TorchRows`, or the `RowAdam` of a kind of device."""

    def step(self, grad: Tensor, step: Tensor, options: Options) -> None:
        """Step number `step`, (), on the rows of a sparse gradient."""
        ...

    def catch_up(self, rows: Tensor, missed: Missed, options: Options) -> None:
        """Bring `rows`, (n,), through all steps that they have missed."""
        ...


class TorchRows:
    """Adam on rows of one table, as `espace.training.kernels.RowAdam`, for every device and dtype."""

    def __init__(self, table: Tensor, state: Mapping[str, Tensor]) -> None:
        self._stored = {"param": table, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        self._seen = state.get("seen")

    def step(self, grad: Tensor, step: Tensor, options: Options) -> None:
        """Step number `step`, (), on the rows of a sparse gradient."""
        for rows, values in _blocks(summed(grad)) if grad.device.type == "cpu" else [summed_on_device(grad)]:
            block = self._read(rows) | {"step": step - 1}
            adam_step([block["param"]], [values], [block], options)
            self._write(rows, block)
            if self._seen is not None:
                self._seen.index_copy_(0, rows, step.int().expand(len(rows)))

    def catch_up(self, rows: Tensor, missed: Missed, options: Options) -> None:
        """Bring `rows`, (n,), through all steps that they have missed."""
        assert self._seen is not None, "kept where rows catch up"
        rows = rows.long()  # on a device some stand there twice, and are written twice alike
        rows = torch.unique(rows) if rows.device.type == "cpu" else rows
        last, block = self._seen[rows].long(), self._read(rows)
        self._write(rows, _brought(block, last, missed, options))
        self._seen.index_fill_(0, rows, missed.step)

    def _read(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: t.index_select(0, rows) for name, t in self._stored.items()}

    def _write(self, rows: Tensor, block: Mapping[str, Tensor]) -> None:
        for name, t in self._stored.items():
            t.index_copy_(0, rows, block[name])


def _brought(block: Mapping[str, Tensor], last: Tensor, missed: Missed, options: Options) -> dict[str, Tensor]:
    """Rows, (n, width) each, that were last at step `last`, (n,), through the steps that they have missed."""
    param, first, second = (block[name] for name in ("param", "exp_avg", "exp_avg_sq"))
    (beta1, beta2), root = options["betas"], second.sqrt()
    rules = torch.from_numpy(missed.rules).to(param.device)[last].to(param.dtype)
    a, x, b, y = rules[:, :, None].unbind(1)
    moved = first * a / (root * x + options["eps"]) + first * b / (root * y + options["eps"])
    if missed.unruled >= missed.settled:
        rows = ((last < missed.step) & (rules[:, 0] < 0)).nonzero()[:, 0]
        moved[rows] = _sum((first[rows], root[rows]), last[rows], missed, options)
    gap = (missed.step - last)[:, None].to(param.dtype)
    return {
        "param": torch.where(gap > 0, param - moved, param),
        "exp_avg": first * beta1**gap,
        "exp_avg_sq": second * beta2**gap,
    }


def _sum(moments: tuple[Tensor, Tensor], last: Tensor, missed: Missed, options: Options) -> Tensor:
    """The sum that `Missed` tells of, term by term; `moments` are m and sqrt(v), (n, width) each."""
    first, root = moments
    (beta1, beta2), moved = options["betas"], torch.zeros_like(root)
    sizes, roots = (torch.from_numpy(x).to(root.device, root.dtype) for x in (missed.sizes, missed.roots))
    longest = int((missed.step - last).max()) if len(last) else 0
    for k in range(1, min(longest, missed.window) + 1):
        at = (last + k).clamp(max=missed.step)[:, None]
        w, u = sizes[at] * beta1**k, beta2 ** (k / 2) / roots[at]
        moved += torch.where((last + k <= missed.step)[:, None], first * w / (root * u + options["eps"]), 0)
    return moved


def _blocks(grad: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows, (n,), and values, (n, width), of a summed gradient, in pieces."""
    rows, values = grad.indices()[0], grad.values()
    size = _BLOCK_FLOATS // values.shape[1] + 1
    return zip(torch.split(rows, size), torch.split(values, size), strict=True)


def adam_step(params: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]], options: Options) -> None:
    """One step of torch's Adam, in place; counts the step."""
    adam(
        _by_memory(params),
        _by_memory(grads),
        _by_memory(s["exp_avg"] for s in states),
        _by_memory(s["exp_avg_sq"] for s in states),
        [],
        [s["step"] for s in states],
        fused=all(p.device.type in _FUSED_DEVICES for p in params),
        amsgrad=False,
        beta1=options["betas"][0],
        beta2=options["betas"][1],
        lr=options["lr"],
        weight_decay=options["weight_decay"],
        eps=options["eps"],
        maximize=False,
    )


def _by_memory(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Matrices that lie by columns turned, so that torch's fused kernel does not copy them."""
    return [t.T if t.dim() == 2 and not t.is_contiguous() else t for t in tensors]


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """The same numbers with the strides of `like`, on which torch's fused kernels rely and which they do not check."""
    return x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x)
