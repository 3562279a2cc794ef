"""A step recorded once and replayed trains as one done anew: the same losses, the same weights, the same rows brought up to date.

No graph is needed to say so: a recorder stands in for CUDA's. What it records has no effect, and what it replays reads and
writes the memory of the first time and calls no hook of a table.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from espace.data.batch import Batch, Ragged
from espace.model.embedding import Table
from espace.runs.experiment import Experiment
from espace.runs.fitting import Fitting
from espace.runs.opening import prepare
from espace.runs.report import Report
from espace.training.checkpoint import read_checkpoint
from espace.training.graphs import Graphed
from espace.training.lightning import Training
from tests.shop import CONFIG

WARM_UP = 3
FEATURES: dict[str, Any] = {
    "user_id": {"type": "id", "unknown_rate": 0.05},
    "item_id": "id",
    "place": {"type": "hash", "buckets": 20},
    "price": {"type": "number", "log1p": True},
    "text": {"type": "vector", "size": 3},
}
SECTIONS: dict[str, Any] = {
    "data": {**CONFIG["data"], "test": None, "batch_size": 64},  # 600 rows: 10 batches an epoch, the last one short
    "features": FEATURES,
}
TRAINER = {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 3}
RECORDED = 9 - WARM_UP + 9  # steps of two epochs that can be
AUXILIARY = "self.auxiliary_loss = 0.1 * features.flat().square().mean()"
PLUGINS: dict[str, dict[str, str]] = {
    "auxiliary": {"build": "type(self).auxiliary_loss = 0.0", "step": AUXILIARY},
    "in_place": {
        "top": "import torch",
        "build": "self.register_buffer('mean', torch.zeros(()))",
        "step": "self.mean.lerp_(features.flat().detach().float().mean(), 0.1)",
    },
    "rebound": {
        "top": "import torch",
        "build": "self.register_buffer('mean', torch.zeros(()))",
        "step": "self.mean = self.mean.lerp(features.flat().detach().float().mean(), 0.1)",
    },
    "first_order": {
        "build": "self.first = espace.FirstOrder(spec)",
        "step": "return self.layer(features.flat()) + self.first(features)",
    },
}
KINDS: dict[str, dict[str, Any]] = {
    "exact tables": {"optimizer": {"lr": 0.01, "tables": "exact"}},
    "lazy tables": {"optimizer": {"lr": 0.01, "tables": "lazy"}},
    "dense tables": {"optimizer": {"lr": 0.01, "tables": "dense"}},
    "weight decay": {"optimizer": {"lr": 0.01, "weight_decay": 0.1}},
    "several widths": {"features": {**FEATURES, "item_id": {"type": "id", "dim": 6}}},
    "embeddings of each tower": {"embedding": {"dim": 4, "shared": False}},
    "numbers besides the vectors": {"tower": "first_order"},
    "gates": {"sharing": {"type": "mmoe", "experts": 3}},
    "gates of several levels": {"sharing": {"type": "ple", "expert": {"type": "mlp", "hidden_units": [4]}}},
    "dropout": {"tower": {"type": "mlp", "hidden_units": [8], "dropout": 0.3}},
    "batch norm": {"tower": {"type": "mlp", "hidden_units": [8], "norm": "batch"}},
    "an auxiliary loss": {"tower": "auxiliary"},
    "state in place": {"tower": "in_place"},
    "a link and a penalty": {"link": "aitm", "objective": "ordered"},
    "clipped gradients": {"trainer": {"gradient_clip_val": 0.05}},
    "a line for every step": {"trainer": {"log_every_n_steps": 1}},
    "no line in an epoch": {"trainer": {"log_every_n_steps": 13}},
    "products in bfloat16": {"trainer": {"precision": "bf16-mixed"}, "tower": {"type": "mlp", "norm": "batch"}},
    "whole epochs between validations": {"trainer": {"val_check_interval": 1.0}},
}


class Recorder:
    """Stands in for a CUDA graph of what `passes` and its backward pass compute."""

    def __init__(self, passes: Callable[[Batch], Any], module: nn.Module, tell: Callable[[str], None]) -> None:
        self.passes, self.module, self.replays = passes, module, 0
        self.lines: list[str] = []  # instead of `tell`
        self.graphed: Graphed[Any] = Graphed(self.noted, module, self.lines.append, self.record)

    def noted(self, batch: Batch) -> Any:
        self.found = self.passes(batch)
        return self.found

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        with without_effect(self.module):
            work()
        found, gradients = self.found, [p.grad for p in self.module.parameters()]

        def replay() -> None:
            self.replays += 1
            before = [p.grad for p in self.module.parameters()]
            with without_hooks(self.module):
                work()
            overwrite(memory(found, gradients), memory(self.found, [p.grad for p in self.module.parameters()]))
            vars(self.found).update(vars(found))
            for p, grad in zip(self.module.parameters(), before, strict=True):
                p.grad = grad

        return replay


class Failing(Recorder):
    """A CUDA graph that cannot be recorded to the end; what was computed until then never was."""

    error: Exception = RuntimeError("operation not permitted\nwhen stream is capturing")

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        with without_effect(self.module), garbage(self.module):
            work()
        raise self.error


@contextmanager
def without_effect(module: nn.Module) -> Iterator[None]:
    """What stands in buffers, and the random state, are what they were."""
    buffers, state = [(b, b.clone()) for b in module.buffers()], torch.get_rng_state()
    yield
    torch.set_rng_state(state)
    for buffer, value in buffers:
        buffer.copy_(value)


@contextmanager
def garbage(module: nn.Module) -> Iterator[None]:
    """Whatever is computed from parameters is not a number."""
    values = [(p, p.detach().clone()) for p in module.parameters()]
    for p, _ in values:
        p.data.fill_(torch.nan)
    yield
    for p, value in values:
        p.data.copy_(value)


@contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    hooks = [(m, m.before_look_up) for m in module.modules() if isinstance(m, Table)]
    for table, _ in hooks:
        table.before_look_up = None
    yield
    for table, hook in hooks:
        table.before_look_up = hook


def memory(found: Any, gradients: list[Tensor | None]) -> list[Tensor]:
    """Every tensor that a pass gives."""
    total = [found.total.sums, found.total.rows] if hasattr(found, "total") else []
    given = [found.loss, *total, *[x for x in (getattr(found, "auxiliary", None),) if x is not None]]
    for grad in (g for g in gradients if g is not None):
        given += [grad._indices(), grad._values()] if grad.is_sparse else [grad]
    return [t.detach() for t in given]


def overwrite(old: list[Tensor], new: list[Tensor]) -> None:
    for mine, theirs in zip(old, new, strict=True):
        assert mine.shape == theirs.shape
        mine.copy_(theirs)


@dataclass
class Trained:
    """What a run left: its weights, its metrics.csv, the rows that were looked up at each step, and the recorder, if any."""

    weights: dict[str, Tensor]
    metrics: str
    looked_up: list[tuple[int, Tensor]]
    recorder: Recorder | None

    def same_as(self, other: Trained) -> None:
        assert self.metrics == other.metrics
        assert self.weights.keys() == other.weights.keys()
        assert [n for n, w in self.weights.items() if not torch.equal(w, other.weights[n])] == []
        assert [step for step, _ in self.looked_up] == [step for step, _ in other.looked_up]
        assert all(torch.equal(a[1], b[1]) for a, b in zip(self.looked_up, other.looked_up, strict=True))


class Lab:
    """Trains with steps that are recorded, though there is no CUDA device, and without."""

    def __init__(self, shop: Any, patch: pytest.MonkeyPatch) -> None:
        self.shop, self.patch = shop, patch
        self.plugins = [shop.tower(name, **lines) for name, lines in PLUGINS.items()]

    def train(self, name: str, kind: type[Recorder] | None, *, resume: bool = False, **sections: Any) -> Trained:
        trainer = {**TRAINER, **sections.pop("trainer", {})}
        tree = {**SECTIONS, **sections, "trainer": trainer, "plugins": self.plugins}
        experiment, report = Experiment.from_yaml(self.shop.yaml(**tree)), Report(quiet=True)
        folder = self.shop.folder / name
        folder.mkdir(exist_ok=resume)
        prepared = prepare(experiment.config, experiment.registry, report)
        with self.patch.context() as patch:
            made: list[Recorder] = []
            looked_up = self._start_as_on_a_gpu(patch, kind, made)
            Fitting(experiment.config, experiment.registry, prepared, folder, report).run(resume)
        weights = read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
        return Trained(weights, (folder / "metrics.csv").read_text(), looked_up, made[0] if made else None)

    def _start_as_on_a_gpu(self, patch: Any, kind: type[Recorder] | None, made: list[Recorder]) -> Any:
        start, looked_up = Training.on_train_start, []

        def on_train_start(training: Training) -> None:
            for table in (m for m in training.modules() if isinstance(m, Table) and m.before_look_up):
                table.before_look_up = noting(training, table.before_look_up, looked_up)
            if kind is not None:
                with patch.context() as for_now:
                    for_now.setattr(Training, "device", torch.device("cuda"))
                    start(training)

        def graphed(*arguments: Any) -> Graphed[Any]:
            made.append(kind(*arguments))
            return made[-1].graphed

        patch.setattr("espace.training.lightning.Graphed", graphed)
        patch.setattr(Training, "on_train_start", on_train_start)
        return looked_up


def noting(training: Training, hook: Any, looked_up: list[tuple[int, Tensor]]) -> Callable[[Tensor, Tensor], None]:
    def note(table: Tensor, rows: Tensor) -> None:
        looked_up.append((training.global_step, rows.clone()))
        hook(table, rows)

    return note


@pytest.fixture
def lab(shop, monkeypatch):
    return Lab(shop, monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_train_as_steps_do(lab, kind):
    plain, recorded = (lab.train(name, how, **KINDS[kind]) for name, how in (("plain", None), ("recorded", Recorder)))
    recorded.same_as(plain)
    assert (recorded.recorder.replays, recorded.recorder.lines) == (RECORDED, [])


def test_what_gates_used_is_told_of_recorded_steps_too(lab):
    recorded = lab.train("recorded", Recorder, **KINDS["gates"])
    told = [float(r["value"]) for r in csv.DictReader(recorded.metrics.splitlines()) if "/gate/" in r["name"]]
    assert len(told) == 2 * 3 * 6  # transitions, experts, lines
    assert sum(told) == pytest.approx(2 * 6)


def test_exact_tables_bring_the_rows_of_every_batch_up_to_date_once(lab):
    recorded = lab.train("recorded", Recorder)
    assert [step for step, _ in recorded.looked_up] == list(range(20))  # one table
    assert {len(rows) for _, rows in recorded.looked_up} == {64, 24}


@pytest.mark.parametrize(
    ("size", "of_an_epoch", "replays"), [(160, 4, 3 * 4), (210, 3, 2 * 4), (300, 2, 2 * 4 - 1), (400, 2, 3)]
)
def test_batches_of_the_full_size_are_recorded_wherever_the_short_ones_stand(lab, size, of_an_epoch, replays):
    sections = {
        "data": {**SECTIONS["data"], "batch_size": size},
        "trainer": {"max_epochs": 5, "val_check_interval": 1.0},
    }
    plain, recorded = (lab.train(name, how, **sections) for name, how in (("plain", None), ("recorded", Recorder)))
    recorded.same_as(plain)
    assert len(recorded.looked_up) == 5 * of_an_epoch
    assert recorded.recorder.replays == replays


def test_batches_with_lists_go_the_ordinary_way(lab):
    features = {**FEATURES, "history": {"type": "sequence", "share": "item_id"}}
    plain, recorded = (lab.train(n, how, features=features) for n, how in (("plain", None), ("recorded", Recorder)))
    recorded.same_as(plain)
    assert (recorded.recorder.replays, recorded.recorder.lines) == (0, [])


def test_a_part_that_puts_new_tensors_in_place_of_its_buffers_goes_the_ordinary_way(lab):
    plain, refused = (lab.train(n, how, tower="rebound") for n, how in (("plain", None), ("refused", Recorder)))
    refused.same_as(plain)
    assert refused.recorder.replays == 0
    (line,) = refused.recorder.lines
    assert "a part puts new tensors in place of its buffers" in line


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_that_cannot_be_recorded_goes_the_ordinary_way(lab, precision):
    sections = {"tower": {"type": "mlp", "dropout": 0.2, "norm": "batch"}, "trainer": {"precision": precision}}
    plain, failed = (lab.train(name, how, **sections) for name, how in (("plain", None), ("failed", Failing)))
    failed.same_as(plain)
    assert failed.recorder.lines == ["cuda_graphs: every kernel is launched by itself: operation not permitted"]


def test_accumulated_gradients_are_not_recorded(lab):
    assert lab.train("accumulated", Recorder, trainer={"accumulate_grad_batches": 2}).recorder is None


def test_nothing_is_recorded_where_the_yaml_says_so(lab):
    assert lab.train("off", Recorder, cuda_graphs=False).recorder is None


def test_a_resumed_run_records_anew_and_ends_as_one_that_was_never_stopped(lab):
    often = {"val_check_interval": 5}
    whole = lab.train("whole", None, trainer=often)
    lab.train("resumed", Recorder, trainer={**often, "max_epochs": 1})
    resumed = lab.train("resumed", Recorder, resume=True, trainer=often)
    resumed.looked_up = whole.looked_up[:10] + resumed.looked_up
    resumed.same_as(whole)
    assert resumed.recorder.replays == 9 - WARM_UP


@dataclass
class Loss:
    """What a small pass gives."""

    loss: Tensor


class Small(nn.Module):
    """The mean square of a linear layer on the vectors of two ids, and a parameter that has no part in it."""

    def __init__(self, sparse: bool = True, shift: int | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = Table(torch.randn(30, 3, generator=generator), sparse)
        self.layer, self.idle, self.shift = nn.Linear(6, 1), nn.Parameter(torch.ones(2)), shift
        self.looked_up: list[Tensor] = []
        self.table.before_look_up = lambda table, rows: self.looked_up.append(rows.clone())

    def passes(self, batch: Batch) -> Loss:
        rows = batch.ids if self.shift is None else (batch.ids + self.shift) % 30
        return Loss((self.layer(self.table(rows).flatten(1)).square()[:, 0] * batch.weights).mean())


def batch_of(seed: int, count: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids, none = torch.randint(0, 30, (count, 2), generator=generator, dtype=torch.int32), torch.empty(count, 0)
    return Batch(ids, {}, none, none.to(torch.int8), torch.rand(count, generator=generator), {})


def warm(small: Small, kind: type[Recorder] = Recorder) -> Recorder:
    recorder = kind(small.passes, small, print)
    assert [recorder.graphed(batch_of(n)) for n in range(WARM_UP)] == [None] * WARM_UP
    return recorder


@pytest.mark.parametrize("sparse", [False, True])
def test_a_recorded_pass_gives_the_loss_and_the_gradients_of_its_batch(sparse):
    small = Small(sparse)
    recorder = warm(small)
    for seed in range(10, 20):
        batch = batch_of(seed)
        found = float(recorder.graphed(batch).loss.detach())
        recorder.graphed.give_gradients()
        given = [None if p.grad is None else p.grad.to_dense().clone() for p in small.parameters()]
        small.zero_grad()
        loss = small.passes(batch).loss
        loss.backward()
        assert found == float(loss.detach())
        for grad, p in zip(given, small.parameters(), strict=True):
            assert (grad is None) == (p.grad is None)
            assert grad is None or torch.equal(grad, p.grad.to_dense())


@pytest.mark.parametrize("kind", [Recorder, Failing])
def test_recording_leaves_the_gradients_and_the_hooks_as_they_were(kind):
    small = Small()
    recorder = warm(small, kind)
    before, hook = [torch.randn_like(p) for p in small.parameters()], small.table.before_look_up
    for p, grad in zip(small.parameters(), before, strict=True):
        p.grad = grad
    for seed in (5, 6):
        recorder.graphed(batch_of(seed))
        assert all(p.grad is grad for p, grad in zip(small.parameters(), before, strict=True))
        assert small.table.before_look_up is hook


def test_a_pass_leaves_the_batch_as_it_is():
    recorder = warm(Small())
    batches = [batch_of(n) for n in (5, 6)]
    for batch in batches:
        recorder.graphed(batch)
    for batch, same in zip(batches, [batch_of(n) for n in (5, 6)], strict=True):
        assert torch.equal(batch.ids, same.ids)
        assert torch.equal(batch.weights, same.weights)


def test_another_size_and_lists_go_the_ordinary_way_in_between():
    small = Small()
    recorder = warm(small)
    odd = batch_of(6)
    odd.lists = {"history": Ragged(torch.zeros(3, dtype=torch.int32), torch.tensor([0] * 8 + [3]))}
    found = [recorder.graphed(b) is not None for b in (batch_of(5), batch_of(6, 7), odd, batch_of(6, 9), batch_of(7))]
    assert found == [True, False, False, False, True]
    assert [rows.tolist() for rows in small.looked_up] == [batch_of(n).ids.tolist() for n in (5, 7)]


def test_rows_that_do_not_stand_in_the_batch_are_refused():
    small = Small(shift=7)
    recorder = warm(small)
    assert [recorder.graphed(batch_of(n)) for n in range(5, 10)] == [None] * 5
    assert recorder.lines == [
        "cuda_graphs: every kernel is launched by itself: rows are looked up that do not stand in the batch."
    ]
    assert small.looked_up == []


def test_an_error_without_a_text_is_named():
    class Silent(Failing):
        error = AssertionError()

    recorder = warm(Small(), Silent)
    assert recorder.graphed(batch_of(5)) is None
    assert recorder.lines == ["cuda_graphs: every kernel is launched by itself: AssertionError"]
