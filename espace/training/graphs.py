"""The forward and backward pass of a training step as one CUDA graph, which the host launches at once.

A graph repeats what it recorded, with the memory it recorded it in. So it is used for batches of one size without
lists, and a part that keeps something from step to step has to keep it in one and the same tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from espace.data.batch import Batch
from espace.errors import EspaceError
from espace.model.embedding import Table

_WARM_UP = 3  # steps before: libraries choose their kernels, towers are compiled

Recorder = Callable[[Callable[[], None]], Callable[[], None]]
LookUp = Callable[[Tensor, Tensor], None]  # of rows of a table


class Losses(Protocol):
    """What a forward pass gives: `loss`, (), and more."""

    loss: Tensor


Found = TypeVar("Found", bound=Losses)


class Graphed(Generic[Found]):
    """`passes` and the gradients of its loss, recorded in the fourth step and replayed from then on.

    Args:
        passes: from a batch to its losses.
        module: whose parameters get gradients.
        tell: called with one line when that cannot be recorded; nothing is from then on.
        record: from work, done once with static memory, to what does it again.
    """

    def __init__(
        self,
        passes: Callable[[Batch], Found],
        module: nn.Module,
        tell: Callable[[str], None],
        record: Recorder | None = None,
    ) -> None:
        self._passes, self._module, self._tell = passes, module, tell
        self._record = record or _cuda_graph
        self._seen = 0
        self._most = 0  # rows of a batch until now
        self._places: list[int] = []
        self._recorded: _Recorded[Found] | None = None

    def __call__(self, batch: Batch) -> Found | None:
        """The losses, in memory that the next call overwrites; None for a batch that has to go the ordinary way."""
        if self._seen < 0 or batch.lists:
            return None
        if self._recorded is None:
            self._seen += 1
            self._most = max(self._most, len(batch))
            places, self._places = self._places, [b.data_ptr() for b in self._module.buffers()]
            if self._seen <= _WARM_UP or len(batch) < self._most:  # the last one of an epoch may be short
                return None
            try:
                self._recorded = _Recorded(batch, self._passes, self._module, self._record, places == self._places)
            except Exception as error:  # of many kinds; if it is the step's own, the ordinary way raises it
                self._seen = -1
                why = next(iter(str(error).splitlines()), type(error).__name__)
                self._tell(f"cuda_graphs: every kernel is launched by itself: {why}")
                return None
        return self._recorded(batch)

    def give_gradients(self) -> None:
        """Give every parameter the gradient of the last call."""
        assert self._recorded is not None, "after a call that gave losses"
        for parameter, gradient in self._recorded.gradients:
            parameter.grad = gradient


class _Recorded(Generic[Found]):
    def __init__(
        self, batch: Batch, passes: Callable[[Batch], Found], module: nn.Module, record: Recorder, steady: bool
    ) -> None:
        if not steady:
            raise EspaceError("a part puts new tensors in place of its buffers. Let it change them in place.")
        self._batch = batch.mapped(torch.clone)
        self._inputs = self._batch.tensors()
        self._found: list[Found] = []
        self._look_ups: list[tuple[LookUp, Tensor, Tensor]] = []
        parameters = [p for p in module.parameters() if p.requires_grad]
        before = [p.grad for p in parameters]

        def work() -> None:
            for p in parameters:
                p.grad = None
            self._found[:] = [passes(self._batch)]
            loss = self._found[0].loss
            with torch.autocast(loss.device.type, enabled=False):  # else heads would go backward in bfloat16
                torch.autograd.backward(loss)

        tables = [m for m in module.modules() if isinstance(m, Table)]
        hooks = [(table, hook) for table in tables if (hook := table.before_look_up) is not None]
        try:
            for table, hook in hooks:
                table.before_look_up = self._note(hook)
            self._replay = record(work)
            self.gradients = [(p, p.grad) for p in parameters if p.grad is not None]
        finally:
            for table, hook in hooks:
                table.before_look_up = hook
            for p, grad in zip(parameters, before, strict=True):
                p.grad = grad

    def _note(self, hook: LookUp) -> LookUp:
        """Rows that a table looks up, which have to be there before: the graph itself calls no function."""
        static = {t.untyped_storage().data_ptr() for t in self._inputs}

        def note(table: Tensor, rows: Tensor) -> None:
            if rows.untyped_storage().data_ptr() not in static:
                raise EspaceError("rows are looked up that do not stand in the batch.")
            self._look_ups.append((hook, table, rows))

        return note

    def __call__(self, batch: Batch) -> Found | None:
        given = batch.tensors()
        if [t.shape for t in given] != [t.shape for t in self._inputs]:
            return None
        for mine, theirs in zip(self._inputs, given, strict=True):
            mine.copy_(theirs)
        for hook, table, rows in self._look_ups:
            hook(table, rows)
        self._replay()
        return self._found[0]


def _cuda_graph(work: Callable[[], None]) -> Callable[[], None]:
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    generator = torch.cuda.default_generators[stream.device_index]
    state = generator.clone_state()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another thread reads the next rows
            work()
    except Exception:  # torch stays on the stream of the capture, and random numbers wait for its end
        torch.cuda.set_stream(stream)
        generator.graphsafe_set_state(state)
        raise
    return graph.replay
