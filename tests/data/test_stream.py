"""The plan of batches: every row once, the same on every rank, in every worker, and after every restart."""

import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

import espace.data.stream.stream as stream_module
from espace.chain.chain import Chain
from espace.data.batch import Batch
from espace.data.encoding.columns import Id, Number, Sequence
from espace.data.encoding.encode import Encoder, NumberStats
from espace.data.encoding.vocabulary import Vocabulary
from espace.data.reading import cache
from espace.data.reading.split import Between, HeldOut, Part
from espace.data.stream.plan import Plan
from espace.data.stream.stream import Stream
from espace.errors import DataError
from tests.data.tables import Tables

CHAIN = Chain.parse(["impression -> click -> conversion"])
ROWS = 1000
COUNTS = (300, 1, 0, 99, 350, 250)
CPU = torch.device("cpu")
DEVICES = [CPU, torch.device("cuda", 0)] if torch.cuda.is_available() else [CPU]


def table(rows=ROWS):
    numbers = np.arange(rows)
    return pa.table(
        {
            "row": numbers,
            "item": numbers % 97,
            "history": pa.array([list(range(n % 5)) for n in range(rows)], pa.list_(pa.int64())),
            "click": (numbers % 2).astype(np.int8),
            "conversion": (numbers % 4 == 1).astype(np.int8),
        }
    )


def stream(batch_size=64, seed=3, training=True, counts=COUNTS, shuffle_rows=360, lists=True, **options):
    reader = Tables.cut(table(), *counts)
    values = Vocabulary(pa.array(np.arange(97)), pa.array([1] * 97))
    encoder = Encoder(
        [Id("item"), *[Sequence("history", share="item")] * lists, Number("row", standardise=False)],
        CHAIN,
        {"click": "click", "conversion": "conversion"},
        dim=4,
        tables={"item": values},
        numbers={"row": NumberStats()},
    )
    plan = Plan(counts, batch_size, seed, training, shuffle_rows)
    return Stream(Part("train", reader), encoder, plan, training=training, **options)


def readers(but=frozenset()):
    """Threads that read ahead, without those in `but`."""
    return {thread for thread in threading.enumerate() if thread.name == "prefetch"} - but


def rows_in(batches):
    return [int(r) for batch in batches for r in batch.numbers[:, 0]]


def same(one, other):
    """Whether two batches agree in every tensor."""
    found = [[], []]
    for batch, tensors in zip((one, other), found, strict=True):
        batch.mapped(lambda t, tensors=tensors: tensors.append(t) or t)
    return one.lists.keys() == other.lists.keys() and all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("batch_size", [1, 7, 64, 299, 300, 1000, 5000])
@pytest.mark.parametrize("training", [True, False])
def test_every_row_comes_once_in_batches_of_the_asked_size(batch_size, training):
    batches = list(stream(batch_size, training=training))
    assert sorted(rows_in(batches)) == list(range(ROWS))
    assert [len(b) for b in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert len(batches) == len(stream(batch_size))


def test_evaluation_keeps_the_order_of_the_file():
    assert rows_in(stream(training=False)) == list(range(ROWS))


def test_a_row_keeps_its_columns_together():
    for batch in stream():
        rows = batch.numbers[:, 0].long()
        assert torch.equal(batch.labels[:, 0].long(), rows % 2)
        assert torch.equal(batch.lists["history"].lengths, rows % 5)
        known = batch.ids[:, 0] >= 3
        assert torch.equal(batch.ids[:, 0].long()[known] - 3, (rows % 97)[known])


@pytest.mark.parametrize("batch_size", [7, 64, 300])
def test_a_window_is_gone_when_the_next_one_is_read(monkeypatch, batch_size):
    read, earlier = stream_module._Windows.__getitem__, []

    def noted(windows, number):
        assert all(window() is None for window in earlier)
        batch = read(windows, number)
        earlier.append(weakref.ref(batch))
        return batch

    monkeypatch.setattr(stream_module._Windows, "__getitem__", noted)
    assert sorted(rows_in(stream(batch_size))) == list(range(ROWS))
    assert len(earlier) > 1


def rows_of_windows(plan, epoch=0):
    """The rows of each window by their number in the part."""
    starts = np.cumsum([0, *plan.counts])
    return [
        np.concatenate([starts[p] + (np.arange(plan.counts[p]) if r is None else r) for p, r in plan.shares(window)])
        for window in plan.windows(epoch)
    ]


@pytest.mark.parametrize("seed", range(40))
def test_windows_have_every_row_once_and_about_as_many_as_asked(seed):
    random = np.random.default_rng(seed)
    counts = random.integers(0, random.choice([3, 50, 400]), random.integers(1, 150)).tolist()
    wanted = int(random.integers(1, 2000))
    plan = Plan([*counts, 1], 7, seed, True, wanted)
    found = rows_of_windows(plan, epoch=seed)
    assert sorted(np.concatenate(found)) == list(range(sum(plan.counts)))
    assert [len(rows) for rows in found] == [plan.rows(window) for window in plan.windows(seed)]
    assert max(map(len, found)) <= 2 * max(wanted, max(plan.counts)) + len(plan.counts)


@pytest.mark.parametrize("counts", [[1000] * 31, [5000] * 6, [100] * 300, [1000] * 200, [20_000, 500, 9500]])
@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_a_file_sorted_by_its_label_gives_windows_with_the_rate_of_the_whole(counts, rate):
    label = np.arange(sum(counts)) >= sum(counts) * (1 - rate)
    found = rows_of_windows(Plan(counts, 64, 0, True, 4000))
    assert len(found) > 2
    assert [label[rows].mean() for rows in found] == pytest.approx(
        [rate] * len(found), abs=0.04
    )  # a piece more or less, of 32


def test_a_window_has_rows_from_all_over_a_file_sorted_by_time():
    for rows in rows_of_windows(Plan([500] * 400, 64, 1, True, 10_000)):
        tenths, _ = np.histogram(rows, bins=10, range=(0, 200_000))
        assert tenths.min() > 0.05 * len(rows)


@pytest.mark.parametrize("keep", [True, False])
def test_a_piece_of_several_windows_is_decoded_once_an_epoch_and_leaves_no_file(monkeypatch, keep):
    read, decoded = Tables.read, []
    monkeypatch.setattr(
        Tables, "read", lambda tables, piece, columns: decoded.append(piece) or read(tables, piece, columns)
    )
    one = stream(shuffle_rows=100, keep=keep)
    assert len(one.plan.windows(0)) == 5
    for epoch in range(2):
        assert sorted(rows_in(replace(one, place=lambda e=epoch: e * len(one)))) == list(range(ROWS))
    assert len(decoded) == 5 * (1 if keep else 2)
    assert not list(cache.folder().rglob("*.tmp"))


def test_epochs_and_seeds_differ_and_the_same_ones_agree():
    def epoch(number, seed=3):
        one = stream(seed=seed)
        return rows_in(replace(one, place=lambda: number * len(one)))

    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)
    assert epoch(0) != epoch(0, seed=4)
    assert sorted(epoch(1)) == list(range(ROWS))


@pytest.mark.parametrize("batch_size", [7, 64, 300])
def test_going_on_from_any_place_gives_the_same_bits(batch_size):
    whole = stream(batch_size)
    length = len(whole)
    epochs = [list(replace(whole, place=lambda e=e: e * length)) for e in range(2)]
    for place in range(2 * length):
        epoch, start = divmod(place, length)
        rest = list(replace(whole, place=lambda p=place: p))
        assert len(rest) == length - start
        assert all(same(a, b) for a, b in zip(rest, epochs[epoch][start:], strict=True))


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_slices_of_the_ranks_make_up_the_batches_of_one(ranks):
    whole = list(stream())
    slices = [list(stream(rank=r, ranks=ranks)) for r in range(ranks)]
    assert {len(s) for s in slices} == {len(whole)}
    for number, batch in enumerate(whole):
        assert rows_in([s[number] for s in slices]) == rows_in([batch])


def test_a_rank_without_a_row_takes_one_of_weight_0():
    last = [list(stream(batch_size=333, rank=r, ranks=3))[-1] for r in range(3)]  # one row is left for three ranks
    assert [len(b) for b in last] == [1, 1, 1]
    assert sum(float(b.weights.sum()) for b in last) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_no_bit(workers):
    assert all(same(a, b) for a, b in zip(stream(workers=workers), stream(), strict=True))


def odd_clicks(labels, weights, random):
    """A sampler: clicks, and as many other rows, some twice; sometimes none at all."""
    clicks = np.flatnonzero(labels[:, 0] == 1)
    rows = (
        np.concatenate([clicks, random.integers(0, len(labels), len(clicks))]) if random.random() < 0.9 else clicks[:0]
    )
    return rows, 2 * weights[rows], labels[rows]


def random_stream(seed, **options):
    """Any pieces, windows, size of batches, place, limit and slice of a rank, with or without lists and a sampler."""
    random = np.random.default_rng(seed)
    counts = np.diff([0, *np.sort(random.integers(0, ROWS + 1, random.integers(0, 8))), ROWS]).tolist()
    ranks = int(random.choice([1, 1, 2, 3]))
    one = stream(
        int(random.choice([1, 7, 64, 300, 1500])),
        seed,
        training=bool(random.random() < 0.7),
        counts=counts,
        shuffle_rows=int(random.integers(0, 600)),
        lists=bool(random.random() < 0.5),
        sampling=odd_clicks if random.random() < 0.3 else None,
        limit=int(random.integers(0, 12)) if random.random() < 0.5 else None,
        rank=int(random.integers(ranks)),
        ranks=ranks,
        **options,
    )
    one.encoder.features[0] = Id("item", unknown_rate=0.3)
    place = int(random.integers(0, 2 * len(one) + 1))
    return replace(one, place=lambda: place)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_batches_that_are_sent_ahead_are_those_that_are_not(seed, device):
    plain, sent = list(random_stream(seed)), list(random_stream(seed, device=device))
    assert all(batch.weights.device == device for batch in sent)
    assert len(plain) == len(sent)
    assert all(same(a, b.to(CPU)) for a, b in zip(plain, sent, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("lists", [True, False])
def test_the_host_never_waits_for_the_gpu(lists):
    one = stream(lists=lists, device=DEVICES[-1])
    next(iter(one))
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(one)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(batches) == len(one)


def test_random_streams_are_cut_on_both_sides_and_come_to_their_limit():
    streams = [random_stream(seed) for seed in range(60)]
    assert 10 < sum(s._is_cut_there() for s in streams) < 50
    assert sum(bool(list(s)) for s in streams) > 20


def test_worker_processes_may_read_for_the_thread():
    assert all(same(a, b) for a, b in zip(stream(workers=1, device=CPU), stream(), strict=True))


@pytest.mark.parametrize("lists", [True, False])
def test_only_a_stream_with_a_device_starts_a_thread_and_leaves_none(lists):
    options = {"lists": lists, "shuffle_rows": 1}  # more windows than are read ahead, or the thread ends by itself
    before, plain, sent = readers(), iter(stream(**options)), iter(stream(**options, device=CPU))
    next(plain)
    assert not readers(before)
    next(sent)
    assert len(readers(before)) == 1
    sent.close()
    end = time.monotonic() + 20
    while readers(before) and time.monotonic() < end:
        time.sleep(0.001)
    assert not readers(before)


@pytest.mark.parametrize("lists", [True, False])
def test_the_place_is_asked_for_by_the_caller_and_anew_in_every_epoch(lists):
    asked = []

    def place():
        asked.append(threading.current_thread())
        return (len(asked) - 1) * len(one)

    one = stream(lists=lists, device=CPU, place=place)
    epochs = [rows_in(one), rows_in(one)]
    assert asked == [threading.current_thread()] * 2
    assert epochs == [rows_in(stream(lists=lists, place=lambda e=e: e * len(one))) for e in range(2)]


@pytest.mark.parametrize("lists", [True, False])
def test_what_cannot_be_read_is_said_where_it_stands(lists):
    class Broken(Part):
        def read(self, number, columns):
            if number == 4:
                raise DataError("piece 4: it is damaged")
            return super().read(number, columns)

    def until_the_error(device):
        one = stream(training=False, shuffle_rows=0, lists=lists, device=device)
        found, batches = [], iter(replace(one, part=Broken("train", one.part.reader)))
        with pytest.raises(DataError, match="piece 4: it is damaged"):
            found.extend(iter(lambda: next(batches), None))
        return found

    assert rows_in(until_the_error(CPU)) == rows_in(until_the_error(None)) == list(range(400 // 64 * 64))


@pytest.mark.parametrize("rate", [0.01, 0.4, 1.0])
@pytest.mark.parametrize("rows", [1, 50, 2000])
def test_ids_are_forgotten_as_a_loop_over_the_drawn_places_would(rate, rows):
    values = Vocabulary(pa.array(np.arange(97)), pa.array([1] * 97))
    features = [Id("a", unknown_rate=rate), Id("b", unknown_rate=0.0), Id("c", unknown_rate=rate / 2)]
    encoder = Encoder(features, CHAIN, {"click": "click"}, dim=4, tables=dict.fromkeys("abc", values), numbers={})
    offsets = [encoder.layout.slots[n].offset for n in "abc"]
    ids = (
        torch.randint(0, 100, (rows, 3), generator=torch.Generator().manual_seed(rows)).int()
        + torch.tensor(offsets).int()
    )
    batch = Batch(ids.clone(), {}, torch.empty(rows, 0), torch.zeros(rows, 2, dtype=torch.int8), torch.ones(rows), {})
    encoder.forget(batch, np.random.default_rng(5))
    random = np.random.default_rng(5)
    for row in range(rows):
        for column in (0, 2):
            if random.random() < features[column].unknown_rate and ids[row, column] >= offsets[column] + 3:
                ids[row, column] = offsets[column] + 1
    assert torch.equal(batch.ids, ids)
    assert batch.ids.dtype == torch.int32


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_of_known_ids_the_asked_share_is_forgotten(rate):
    values = Vocabulary(pa.array(np.arange(9)), pa.array([1] * 9))
    features = [Id("a", unknown_rate=rate), Id("b")]
    encoder = Encoder(features, CHAIN, {"click": "click"}, dim=4, tables=dict.fromkeys("ab", values), numbers={})
    ids = torch.tensor([3, encoder.layout.slots["b"].offset + 3], dtype=torch.int32).repeat(20_000, 1)
    batch = Batch(ids, {}, torch.empty(20_000, 0), torch.zeros(20_000, 2), torch.ones(20_000), {})
    encoder.forget(batch, np.random.default_rng(0))
    assert float((batch.ids[:, 0] == 1).float().mean()) == pytest.approx(
        rate, abs=4 * np.sqrt(rate * (1 - rate) / 20_000)
    )


def test_unknown_ids_are_trained_at_the_asked_rate_and_never_in_evaluation():
    def share(training):
        ids = torch.cat([b.ids for b in stream(training=training)])
        return float((ids == 1).float().mean())

    forgetful = stream()
    forgetful.encoder.features[0] = Id("item", unknown_rate=0.2)
    ids = torch.cat([b.ids for b in forgetful])
    assert 0.15 < float((ids == 1).float().mean()) < 0.25
    assert 0 < share(True) < 0.05
    assert share(False) == 0


def test_a_limit_shortens_every_epoch():
    short = stream(limit=5)
    assert len(list(short)) == 5
    second = list(replace(short, place=lambda: 7))  # two batches into the second epoch
    assert len(second) == 3
    full_second = list(replace(stream(), place=lambda: len(stream())))
    assert same(second[0], full_second[2])


def test_held_out_rows_and_the_others_make_up_the_whole():
    reader = Tables.cut(table(), 400, 600)
    parts = [Part("train", reader, HeldOut(0.3, 1, inside)) for inside in (False, True)]
    found = [sorted(r for i in (0, 1) for r in p.read(i, ["row"])[0]["row"].to_pylist()) for p in parts]
    assert sorted(found[0] + found[1]) == list(range(ROWS))
    assert 0.2 < len(found[1]) / ROWS < 0.4


def test_a_time_split_leaves_no_later_row_in_training():
    early, late = Between("row", None, 600), Between("row", 600, 800)
    reader = Tables.cut(table(), 400, 600)
    rows = [r for i in (0, 1) for r in Part("train", reader, early).read(i, ["row"])[0]["row"].to_pylist()]
    assert rows == list(range(600))
    assert sum(Part("validation", reader, late).read(i, ["row"])[0].num_rows for i in (0, 1)) == 200


@pytest.mark.parametrize("bound", ["2023-05-24", "2023-05-24 00:00:00", "2023-05-24T00:00:00"])
def test_a_time_may_be_written_as_a_date_or_with_the_hour(bound):
    times = pa.array([0, 86_400_000_000 * 19500, 86_400_000_000 * 19501, None], pa.timestamp("us"))
    mask = Between("t", None, bound).mask(pa.table({"t": times}), 0, "f")
    assert mask.tolist() == [True, True, False, False]
