"""LazyAdam is Adam of the rows looked up, or Adam itself where they catch up.

clip_grad_norm is torch's on the same gradients made dense.
"""

from __future__ import annotations

import copy
import importlib
import io
import itertools
import math
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from espace.errors import EspaceError
from espace.training import optim
from espace.training import rows as by_torch
from espace.training.optim import LazyAdam
from espace.training.sparse import clip_grad_norm

ROWS, WIDTH = 12, 3
COUNTS = [0, 7, 5_000, 40_000]  # look-ups: few and many are sorted in different ways


class DictionaryAdam:
    """Algorithm 1 of Kingma and Ba, number by number, on rows kept in a dictionary."""

    def __init__(self, table, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        self.table = {(r, c): float(x) for r, row in enumerate(table.tolist()) for c, x in enumerate(row)}
        self.m, self.v, self.t = {}, {}, 0
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay

    def step(self, rows, values):
        self.t += 1
        grads = {}
        for row, value in zip(rows.tolist(), values.tolist(), strict=True):
            for column, x in enumerate(value):
                grads[row, column] = grads.get((row, column), 0.0) + x
        for cell, gradient in grads.items():
            self._move(cell, gradient + self.weight_decay * self.table[cell])

    def _move(self, cell, g):
        first, second = self.betas
        self.m[cell] = first * self.m.get(cell, 0.0) + (1 - first) * g
        self.v[cell] = second * self.v.get(cell, 0.0) + (1 - second) * g * g
        m_hat, v_hat = self.m[cell] / (1 - first**self.t), self.v[cell] / (1 - second**self.t)
        self.table[cell] -= self.lr * m_hat / (math.sqrt(v_hat) + self.eps)

    def values(self):
        return torch.tensor([[self.table[r, c] for c in range(WIDTH)] for r in range(ROWS)], dtype=torch.float64)


def table_of(rows=ROWS, width=WIDTH, dtype=torch.float64, seed=0):
    return nn.Parameter(torch.randn(rows, width, dtype=dtype, generator=torch.Generator().manual_seed(seed)))


def look_ups(steps, count, rows=ROWS, width=WIDTH, dtype=torch.float64, seed=1):
    """`[(rows, values)]`: the first rows are looked up far more often than the last."""
    g = torch.Generator().manual_seed(seed)
    return [
        (
            (rows * torch.rand(count, dtype=torch.float64, generator=g) ** 3).long(),
            torch.randn(count, width, dtype=dtype, generator=g),
        )
        for _ in range(steps)
    ]


def sparse(parameter, rows, values):
    return torch.sparse_coo_tensor(rows[None], values, parameter.shape, check_invariants=True)


def run(optimizer, parameter, steps):
    for rows, values in steps:
        parameter.grad = sparse(parameter, rows, values)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def bits(tensor):
    return tensor.detach().contiguous().view(torch.uint8)


def two_towers():
    """A table with sparse gradients under a small dense network, float32."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(ROWS, WIDTH, sparse=True), nn.Linear(WIDTH, 4), nn.Tanh(), nn.Linear(4, 1))


def train(model, optimizer, steps, seed=0):
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randint(0, ROWS, (9,), generator=g)).square().mean().backward()
        optimizer.step()


# --- tables


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("options", [{}, {"lr": 0.1, "betas": (0.5, 0.7), "eps": 1e-3}, {"weight_decay": 0.2}])
def test_rows_move_as_in_a_dictionary_of_rows(seed, options):
    table = table_of(seed=seed)
    reference = DictionaryAdam(table, **options)
    optimizer = LazyAdam([table], **options)
    for rows, values in look_ups(20, 15, seed=seed):
        run(optimizer, table, [(rows, values)])
        reference.step(rows, values)
        torch.testing.assert_close(table.detach(), reference.values(), rtol=1e-12, atol=1e-12)


@pytest.fixture(params=["numba", "torch", "triton"])
def rows_moved_by(request, monkeypatch):
    """All ways to update rows of float32 tables; Triton's kernels run on a CPU in its interpreter."""
    kernels = None
    if request.param != "torch":
        pytest.importorskip(request.param)
        kernels = importlib.import_module(
            {"numba": "espace.training.kernels", "triton": "espace.training.triton_kernels"}[request.param]
        )
        if request.param == "triton" and torch.cuda.is_available():
            pytest.skip("there its kernels are compiled for the GPU: tests/training/test_gpu.py")
        if request.param == "triton":  # so slow is the interpreter that sizes are such that few look-ups are many
            for size, small in {"_LOOK_UPS": 8, "_CUT": 4, "_CHECKED": 8, "_PROGRAMS": 5, "_STEPS": 4}.items():
                monkeypatch.setattr(kernels, size, small)
    monkeypatch.setattr(optim, "_kernels", lambda device: kernels)
    return request.param


@pytest.fixture(params=COUNTS)
def count(request, rows_moved_by):
    """Look-ups of a step; Triton's interpreter is slow."""
    return min(request.param, 200) if rows_moved_by == "triton" else request.param


@pytest.mark.parametrize("options", [{}, {"lr": 0.1, "betas": (0.5, 0.7), "eps": 1e-3}, {"weight_decay": 0.2}])
def test_float32_rows_move_as_in_a_dictionary_to_float32_rounding(rows_moved_by, options, count):
    table = table_of(dtype=torch.float32)
    reference = DictionaryAdam(table, **options)
    optimizer = LazyAdam([table], **options)
    for step in look_ups(4, count, dtype=torch.float32):
        run(optimizer, table, [step])
        reference.step(*step)
    torch.testing.assert_close(table.detach().double(), reference.values(), rtol=1e-4, atol=1e-5)


def test_the_number_of_threads_changes_no_bit(rows_moved_by, count):
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            table = table_of(700, 5, torch.float32)
            optimizer = LazyAdam([table], exact=True)
            for rows, values in look_ups(4, count, 700, 5, torch.float32):
                optimizer.catch_up(table, rows)
                run(optimizer, table, [(rows, values)])
            results.append(bits(table))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], r) for r in results)


def test_what_steps_run_is_there_once_it_was_loaded(monkeypatch):
    """On another thread, as it is while the data is read; few look-ups and many, of tables that catch up and that do not."""
    kernels = pytest.importorskip("espace.training.kernels")
    thread = threading.Thread(target=optim.load_kernels)
    thread.start()
    thread.join()
    loaded = kernels._step, kernels._step_in_threads, kernels._catch_up, kernels._catch_up_in_threads
    known = [list(kernel.signatures) for kernel in loaded]
    assert all(known)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for exact, count in itertools.product((True, False), (5, 20_000)):
        table = table_of(dtype=torch.float32)
        optimizer = LazyAdam([table], exact=exact)
        for rows, values in look_ups(3, count, dtype=torch.float32):
            optimizer.catch_up(table, rows)
            table.grad = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=False)
            optimizer.step()
    assert [list(kernel.signatures) for kernel in loaded] == known


def test_kernels_run_where_no_folder_can_keep_them(monkeypatch):
    """As in a container whose files are all read-only."""
    kernels = pytest.importorskip("espace.training.kernels")

    def refuse(self: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr("numba.core.dispatcher.Dispatcher.enable_caching", refuse)
    double = kernels._compiled()(lambda x: 2 * x)
    assert double(21) == 42
    assert double.signatures


@pytest.mark.parametrize("threads", [1, 2, 4, 16])
def test_every_look_up_belongs_to_one_thread_and_neighbours_to_the_same(threads):
    kernels = pytest.importorskip("espace.training.kernels")
    rows, owner = np.random.default_rng(0).integers(0, 5_000, 3_000), np.full(3_000, -1)
    for thread in range(threads):
        found = np.empty(len(rows), np.int64)
        own = found[: kernels._own(rows, thread, threads, found)]
        assert (np.diff(own) > 0).all(), "in the order in which they were made"
        assert (owner[own] == -1).all()
        owner[own] = thread
    assert set(owner) == set(range(threads))
    assert all(len(set(owner[rows // 64 == block])) == 1 for block in set(rows // 64))


@pytest.mark.parametrize("count", [0, 1, 30, 5_000])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_way_of_a_gpu_which_never_asks_how_many_rows_there_are_moves_them_alike(monkeypatch, count, weight_decay):
    """On the CPU, the function that a GPU without Triton uses."""
    ours, theirs = table_of(), table_of()
    steps = look_ups(5, count)
    run(LazyAdam([theirs], weight_decay=weight_decay), theirs, steps)
    monkeypatch.setattr(by_torch, "summed", by_torch.summed_on_device)
    monkeypatch.setattr(by_torch, "_blocks", lambda pair: [pair])
    run(LazyAdam([ours], weight_decay=weight_decay), ours, steps)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# --- exact: the rows catch up


def changing(step):
    """A learning rate that is zero at first, then changes in every step."""
    return 0.01 * min(1.0, step / 60) * (0.6 + 0.4 * math.cos(step / 50))


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-9])  # of gradients: eps counts for nothing, for something, for all
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.99), (0.9, 0.5), (0.0, 0.9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_is_dense_adam_however_long_a_row_was_left_alone(rows_moved_by, dtype, betas, size):
    exact, dense = table_of(dtype=dtype), table_of(dtype=dtype).double().detach().requires_grad_()
    start = dense.detach().clone()
    one = LazyAdam([exact], betas=betas, exact=True)
    other = torch.optim.Adam([dense], betas=betas)
    length = 130 if rows_moved_by == "triton" else 260  # its interpreter is slow
    steps = look_ups(length, 2)
    alone = slice(length // 5, length - 40)
    steps[alone] = [(torch.zeros_like(rows), values) for rows, values in steps[alone]]
    for number, (rows, values) in enumerate(steps):
        one.param_groups[0]["lr"] = other.param_groups[0]["lr"] = changing(number)
        one.catch_up(exact, rows)
        close(exact[rows], dense[rows], start[rows], dtype)
        exact.grad = sparse(exact, rows, (size * values).to(dtype))
        dense.grad = sparse(dense, rows, size * values).to_dense()
        one.step()
        other.step()
    one.settle()
    close(exact, dense, start, dtype)
    for name in ("exp_avg", "exp_avg_sq"):
        moment = other.state[dense][name]
        torch.testing.assert_close(
            one.state[exact][name].double(), moment, rtol=1e-4, atol=1e-6 * float(moment.abs().max())
        )


def close(found, wanted, start, dtype):
    """To 2e-5 of the farthest move, and float32's rounding of the numbers themselves."""
    rounding = 2e-6 if dtype == torch.float32 else 1e-12
    atol = 2e-5 * float((wanted - start).detach().abs().max()) + rounding
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("group", [{}, {"weight_decay": 0.1}])
def test_rows_cannot_catch_up_with_weight_decay(group):
    options = {} if group else {"weight_decay": 0.1}
    with pytest.raises(EspaceError, match=r"weight_decay 0\.1"):
        LazyAdam([{"params": [table_of()], **group}], exact=True, **options)


def test_a_changing_learning_rate_needs_no_pass_over_the_table(monkeypatch):
    monkeypatch.setattr(LazyAdam, "settle", lambda self: pytest.fail("whole tables were read"))
    table = table_of(500)
    optimizer = LazyAdam([table], exact=True)
    for number, step in enumerate(look_ups(5, 20, 500)):
        optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
        run_exact(optimizer, table, [step])


@pytest.mark.parametrize("change", [{"betas": (0.5, 0.9)}, {"eps": 1e-3}])
def test_other_options_hold_from_the_step_in_which_they_are_set(rows_moved_by, change):
    exact, dense = table_of(), table_of()
    one, other = LazyAdam([exact], exact=True), torch.optim.Adam([dense])
    for number, (rows, values) in enumerate(look_ups(120, 2)):
        if number == 60:
            one.param_groups[0].update(change)
            other.param_groups[0].update(change)
        run_exact(one, exact, [(rows, values)])
        dense.grad = sparse(dense, rows, values).to_dense()
        other.step()
    one.settle()
    torch.testing.assert_close(exact, dense, rtol=0, atol=2e-5 * float((dense - table_of()).detach().abs().max()))


@pytest.mark.parametrize("steps", [3, 30, 120])
def test_exact_goes_on_from_a_saved_state_with_the_same_bits(rows_moved_by, steps):
    tables = [table_of(dtype=torch.float32) for _ in range(2)]
    straight = LazyAdam([tables[0]], exact=True)
    made = look_ups(2 * steps, 2, dtype=torch.float32)
    run_exact(straight, tables[0], made[:steps])
    tables[1].data.copy_(tables[0])
    resumed = LazyAdam([tables[1]], lr=0.5, exact=True)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    for optimizer, table in zip((straight, resumed), tables, strict=True):
        run_exact(optimizer, table, made[steps:])
        optimizer.settle()
    assert torch.equal(bits(tables[0]), bits(tables[1]))


@pytest.mark.parametrize("at_once", [1, 5, ROWS, ROWS + 1])
def test_a_table_settles_in_pieces_of_any_size_to_the_same_bits(monkeypatch, at_once):
    found = []
    for size in (optim._SETTLED, at_once):
        monkeypatch.setattr(optim, "_SETTLED", size)
        table = table_of(dtype=torch.float32)
        optimizer = LazyAdam([table], exact=True)
        for rows, values in look_ups(9, 4, dtype=torch.float32):
            optimizer.catch_up(table, rows)
            run(optimizer, table, [(rows, values)])
        optimizer.settle()
        found.append(bits(table))
    assert torch.equal(*found)


def test_tables_of_a_saved_state_are_settled_as_the_optimiser_would():
    model, file = two_towers(), io.BytesIO()
    optimizer = LazyAdam([*model.parameters(), table_of()], lr=0.01, exact=True)
    model[0].register_forward_pre_hook(lambda module, given: optimizer.catch_up(module.weight, given[0]))
    train(model, optimizer, 40)
    run_exact(optimizer, model[0].weight, [(torch.tensor([0]), torch.ones(1, WIDTH))] * 5)
    torch.save(optimizer.state_dict(), file)
    loaded = copy.deepcopy(model)
    file.seek(0)
    optim.settle([*loaded.parameters()], torch.load(file, weights_only=True))
    before = bits(model[0].weight).clone()
    optimizer.settle()
    assert not torch.equal(bits(model[0].weight), before)
    assert torch.equal(bits(loaded[0].weight), bits(model[0].weight))


def run_exact(optimizer, table, steps):
    for rows, values in steps:
        optimizer.catch_up(table, rows)
        run(optimizer, table, [(rows, values)])


def test_lazy_tables_have_nothing_to_catch_up():
    table = table_of()
    optimizer = LazyAdam([table])
    run(optimizer, table, look_ups(3, 4))
    before = bits(table).clone()
    optimizer.catch_up(table, torch.arange(ROWS))
    optimizer.settle()
    assert torch.equal(bits(table), before)


# --- many look-ups


@pytest.mark.parametrize("count", COUNTS)
def test_many_look_ups_of_few_rows_move_them_as_in_a_dictionary(count):
    table = table_of()
    reference = DictionaryAdam(table)
    steps = look_ups(2, count)
    run(LazyAdam([table]), table, steps)
    for step in steps:
        reference.step(*step)
    torch.testing.assert_close(table.detach(), reference.values(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", COUNTS)
def test_a_large_table_moves_as_under_torchs_sparse_adam(count):
    ours, theirs = (table_of(200_000, 7) for _ in range(2))
    steps = look_ups(3, count, 200_000, 7)
    run(LazyAdam([ours], eps=1e-16), ours, steps)
    run(torch.optim.SparseAdam([theirs], eps=1e-16), theirs, steps)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_results_when_every_row_is_looked_up_in_every_step(weight_decay):
    lazy, dense = table_of(), table_of()
    one = LazyAdam([lazy], weight_decay=weight_decay)
    other = torch.optim.Adam([dense], weight_decay=weight_decay)
    for rows, values in look_ups(15, 20):
        every_row = torch.cat([rows, torch.arange(ROWS)])
        values = torch.cat([values, torch.ones(ROWS, WIDTH, dtype=torch.float64)])
        lazy.grad = sparse(lazy, every_row, values)
        dense.grad = lazy.grad.to_dense()
        one.step()
        other.step()
    torch.testing.assert_close(lazy, dense, rtol=1e-12, atol=1e-12)


def test_rows_not_looked_up_keep_every_bit_and_so_do_their_moments():
    table = table_of(dtype=torch.float32)
    optimizer = LazyAdam([table], weight_decay=0.5)
    run(optimizer, table, look_ups(3, 30, dtype=torch.float32))
    kept = [table, *(optimizer.state[table][name] for name in ("exp_avg", "exp_avg_sq"))]
    before = [bits(t)[4:].clone() for t in kept]
    run(optimizer, table, [(torch.tensor([0, 3, 3]), torch.ones(3, WIDTH))])
    for tensor, old in zip(kept, before, strict=True):
        assert torch.equal(bits(tensor)[4:], old)


def test_two_look_ups_into_one_table_add_up():
    model = nn.Embedding(ROWS, WIDTH, sparse=True, dtype=torch.float64)
    reference = DictionaryAdam(model.weight)
    first, second = torch.tensor([1, 1, 4]), torch.tensor([4, 9])
    (model(first).sum() + 2 * model(second).sum()).backward()
    LazyAdam(model.parameters()).step()
    reference.step(
        torch.cat([first, second]), torch.tensor([[1.0] * WIDTH] * 3 + [[2.0] * WIDTH] * 2, dtype=torch.float64)
    )
    torch.testing.assert_close(model.weight.detach(), reference.values(), rtol=1e-12, atol=1e-12)


def test_a_table_may_get_a_dense_gradient_after_sparse_ones():
    table = table_of()
    reference = DictionaryAdam(table)
    optimizer = LazyAdam([table])
    first, second, third = look_ups(3, 10)
    run(optimizer, table, [first])
    table.grad = sparse(table, *second).to_dense()
    optimizer.step()
    run(optimizer, table, [third])
    every_row = torch.arange(ROWS)
    reference.step(*first)
    reference.step(every_row, sparse(table, *second).to_dense())
    reference.step(*third)
    torch.testing.assert_close(table.detach(), reference.values(), rtol=1e-12, atol=1e-12)


def test_a_step_without_any_look_up_moves_nothing_and_is_counted():
    model = nn.Embedding(ROWS, WIDTH, sparse=True)
    before = model.weight.detach().clone()
    optimizer = LazyAdam(model.parameters())
    model(torch.zeros(0, dtype=torch.long)).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight, before)
    assert optimizer.state[model.weight]["step"] == 1


def test_a_parameter_without_a_gradient_is_left_alone():
    table = table_of()
    optimizer = LazyAdam([table])
    optimizer.step()
    assert torch.equal(table, table_of())
    assert not optimizer.state


def test_padding_row_never_moves():
    model = nn.Embedding(ROWS, WIDTH, sparse=True, padding_idx=0)
    model(torch.tensor([0, 0, 5])).sum().backward()
    LazyAdam(model.parameters(), weight_decay=0.1).step()
    assert (model.weight[0] == 0).all()


class _WholeTable(TorchDispatchMode):
    """Collects the operations that are handed a tensor of `shape`."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.found = shape, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [a for a in args if isinstance(a, torch.Tensor) and a.layout == torch.strided]
        if any(a.shape == self.shape for a in tensors):
            self.found.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def test_a_step_only_picks_rows_of_a_table_and_puts_rows_back():
    table = table_of(500)
    optimizer = LazyAdam([table], weight_decay=0.1)
    steps = look_ups(2, 50, 500)
    run(optimizer, table, steps[:1])
    table.grad = sparse(table, *steps[1])
    with _WholeTable(table.shape) as seen:
        clip_grad_norm([table], 1.0)
        optimizer.step()
    assert seen.found == {"index_select", "index_copy_"}


# --- the same input gives the same bits


@pytest.mark.parametrize("count", COUNTS)
def test_the_same_look_ups_give_the_same_bits_on_two_threads(count):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        results = []
        for _ in range(5):
            table = table_of(700, 5, torch.float32)
            run(LazyAdam([table]), table, look_ups(3, count, 700, 5, torch.float32))
            results.append(bits(table))
        assert all(torch.equal(results[0], r) for r in results)
    finally:
        torch.set_num_threads(threads)


def test_look_ups_of_a_row_are_added_in_the_order_they_were_made():
    table = nn.Parameter(torch.zeros(2, 1))
    table.grad = sparse(table, torch.tensor([1, 0, 1, 1]), torch.tensor([[1e8], [7.0], [1.0], [-1e8]]))
    clip_grad_norm([table], math.inf)
    assert table.grad.values().flatten().tolist() == [7.0, 0.0]  # (1e8 + 1) - 1e8 in float32


def test_resuming_from_a_saved_state_gives_the_same_bits():
    straight = two_towers()
    optimizer = LazyAdam(straight.parameters(), lr=0.01, weight_decay=0.01)
    train(straight, optimizer, 5)
    file = io.BytesIO()
    torch.save({"model": straight.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = two_towers()
    resumed.load_state_dict(saved["model"])
    again = LazyAdam(resumed.parameters())
    again.load_state_dict(saved["optimizer"])
    train(straight, optimizer, 5, seed=1)
    train(resumed, again, 5, seed=1)
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(bits(one), bits(other))
    for one, other in zip(optimizer.state.values(), again.state.values(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_a_deep_copy_goes_on_like_the_original():
    model = two_towers()
    pair = (model, LazyAdam(model.parameters()))
    train(*pair, 3)
    twin = copy.deepcopy(pair)
    train(*pair, 3)
    train(*twin, 3)
    for one, other in zip(pair[0].parameters(), twin[0].parameters(), strict=True):
        assert torch.equal(bits(one), bits(other))


# --- dense gradients, groups, and what a training loop does


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_dense_parameters_move_as_under_torchs_adam(dtype, weight_decay):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(5, 33), nn.ReLU(), nn.Linear(33, 1)).to(dtype)
    theirs = copy.deepcopy(ours)
    one = LazyAdam(ours.parameters(), weight_decay=weight_decay)
    other = torch.optim.Adam(theirs.parameters(), weight_decay=weight_decay, fused=True)
    for _ in range(20):
        x = torch.randn(8, 5, dtype=dtype)
        for model, optimizer in ((ours, one), (theirs, other)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("of_param", [False, True])
@pytest.mark.parametrize("of_grad", [False, True])
@pytest.mark.parametrize("of_state", [False, True])
def test_how_numbers_lie_in_memory_changes_nothing_but_rounding(of_param, of_grad, of_state):
    """By columns or by rows: torch's fused kernel goes through memory whatever the strides."""

    def laid(x, by_columns):
        return x.T.contiguous().T if by_columns else x

    def train(of_param, of_grad, of_state):
        p = nn.Parameter(laid(table_of(dtype=torch.float32).detach(), of_param))
        optimizer = LazyAdam([p], lr=0.1)
        grads = torch.randn(6, ROWS, WIDTH, generator=torch.Generator().manual_seed(5))
        for step, grad in enumerate(grads):
            if step == 3:
                saved = copy.deepcopy(optimizer.state_dict())
                moments = saved["state"][0]
                saved["state"][0] = {n: laid(x, of_state) if x.dim() == 2 else x for n, x in moments.items()}
                optimizer = LazyAdam([p], lr=0.1)
                optimizer.load_state_dict(saved)
            p.grad = laid(grad, of_grad)
            optimizer.step()
        return p.detach()

    torch.testing.assert_close(train(of_param, of_grad, of_state), train(False, False, False), rtol=1e-5, atol=1e-6)


def test_dense_and_sparse_parameters_share_a_group():
    model = two_towers().double()
    table, *dense = model.parameters()
    reference = copy.deepcopy(model)
    sparse_part = torch.optim.SparseAdam([reference[0].weight], eps=1e-16)
    dense_part = torch.optim.Adam(list(reference.parameters())[1:], eps=1e-16)
    train(model, LazyAdam([table, *dense], eps=1e-16), 10)
    g = torch.Generator().manual_seed(0)
    for _ in range(10):
        reference.zero_grad()
        reference(torch.randint(0, ROWS, (9,), generator=g)).square().mean().backward()
        sparse_part.step()
        dense_part.step()
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_every_group_has_its_own_options():
    fast, slow = table_of(), table_of()
    optimizer = LazyAdam([{"params": [fast], "lr": 0.5}, {"params": [slow], "weight_decay": 0.3}])
    references = DictionaryAdam(fast, lr=0.5), DictionaryAdam(slow, weight_decay=0.3)
    for rows, values in look_ups(5, 8):
        fast.grad, slow.grad = sparse(fast, rows, values), sparse(slow, rows, values)
        optimizer.step()
        for reference in references:
            reference.step(rows, values)
    torch.testing.assert_close(fast.detach(), references[0].values(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slow.detach(), references[1].values(), rtol=1e-12, atol=1e-12)


def test_a_scheduler_sets_the_learning_rate_of_tables_too():
    table = table_of()
    reference = DictionaryAdam(table, lr=0.1)
    optimizer = LazyAdam([table], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    for rows, values in look_ups(4, 8):
        run(optimizer, table, [(rows, values)])
        scheduler.step()
        reference.step(rows, values)
        reference.lr *= 0.5
    torch.testing.assert_close(table.detach(), reference.values(), rtol=1e-12, atol=1e-12)


def test_a_closure_is_run_with_gradients_and_its_loss_returned():
    model = two_towers()
    before = copy.deepcopy(model)
    optimizer = LazyAdam(model.parameters())

    def closure():
        optimizer.zero_grad()
        loss = model(torch.tensor([1, 2, 2])).square().mean()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    torch.testing.assert_close(loss, before(torch.tensor([1, 2, 2])).square().mean())
    assert not torch.equal(model[0].weight, before[0].weight)


def test_training_under_bfloat16_autocast_keeps_parameters_and_moments_in_float32():
    model = two_towers()
    optimizer = LazyAdam(model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.tensor([1, 2, 2])).float().square().mean()
    loss.backward()
    clip_grad_norm(model.parameters(), 1.0)
    optimizer.step()
    for p in model.parameters():
        assert p.dtype == torch.float32
        assert p.isfinite().all()
        assert optimizer.state[p]["exp_avg"].dtype == torch.float32


def test_a_sparse_gradient_that_is_not_rows_of_a_table_is_refused():
    table = table_of()
    table.grad = torch.ones(ROWS, WIDTH, dtype=torch.float64).to_sparse()
    with pytest.raises(EspaceError, match=r"shape \(12, 3\) has 2 sparse dimensions.* nn.Embedding"):
        LazyAdam([table]).step()
    with pytest.raises(EspaceError, match="2 sparse dimensions"):
        clip_grad_norm([table], 1.0)


@pytest.mark.parametrize(
    "options", [{"lr": -1.0}, {"eps": -1.0}, {"betas": (0.9, 1.0)}, {"betas": (-0.1, 0.9)}, {"weight_decay": -1.0}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(EspaceError, match="out of range"):
        LazyAdam([table_of()], **options)


# --- clipping


@pytest.mark.parametrize("max_norm", [0.1, 3.0, 1e6, math.inf])
@pytest.mark.parametrize("count", [0, 1, 30, 20_000])
def test_clipping_equals_torchs_on_the_gradients_made_dense(max_norm, count):
    ours, theirs = [table_of(), table_of(4, 2)], [table_of(), table_of(4, 2)]
    ours[0].grad = sparse(ours[0], *look_ups(1, count)[0])
    ours[1].grad = torch.ones_like(ours[1])
    for a, b in zip(ours, theirs, strict=True):
        b.grad = a.grad.to_dense().clone()
    norm = clip_grad_norm(ours, max_norm)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, max_norm), rtol=1e-12, atol=1e-12)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad.to_dense(), b.grad, rtol=1e-12, atol=1e-12)


def test_a_clipped_gradient_moves_the_rows_as_the_same_gradient_made_dense():
    table, reference_table = table_of(), table_of()
    reference = DictionaryAdam(reference_table)
    optimizer = LazyAdam([table])
    for rows, values in look_ups(6, 10):
        table.grad, reference_table.grad = sparse(table, rows, values), sparse(table, rows, values).to_dense()
        clip_grad_norm([table], 0.5)
        torch.nn.utils.clip_grad_norm_([reference_table], 0.5)
        optimizer.step()
        found = rows.unique()
        reference.step(found, reference_table.grad[found])
    torch.testing.assert_close(table.detach(), reference.values(), rtol=1e-12, atol=1e-12)


def test_clipping_nothing_gives_a_norm_of_zero():
    assert clip_grad_norm([table_of()], 1.0) == 0
