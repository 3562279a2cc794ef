"""The plan of batches: every row once, the same on every rank, in every worker, and after every restart."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from espace.chain import Chain
from espace.data.columns import Id, Number, Sequence
from espace.data.encode import Encoder, NumberStats
from espace.data.split import Between, HeldOut, Part
from espace.data.stream import Plan, Stream
from espace.data.vocabulary import Vocabulary
from tests.data.tables import Tables

CHAIN = Chain.parse(["impression -> click -> conversion"])
ROWS = 1000


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


def stream(batch_size=64, seed=3, training=True, **options):
    reader = Tables.cut(table(), 300, 1, 0, 99, 350, 250)
    values = Vocabulary(pa.array(np.arange(97)), pa.array([1] * 97))
    encoder = Encoder(
        [Id("item"), Sequence("history", share="item"), Number("row", standardise=False)],
        CHAIN,
        {"click": "click", "conversion": "conversion"},
        dim=4,
        tables={"item": values},
        numbers={"row": NumberStats()},
    )
    plan = Plan([300, 1, 0, 99, 350, 250], batch_size, seed, training, 360)
    return Stream(Part("train", reader), encoder, plan, training=training, **options)


def rows_in(batches):
    return [int(r) for batch in batches for r in batch.numbers[:, 0]]


def same(one, other):
    return (
        torch.equal(one.ids, other.ids)
        and torch.equal(one.numbers, other.numbers)
        and torch.equal(one.labels, other.labels)
        and torch.equal(one.lists["history"].values, other.lists["history"].values)
        and torch.equal(one.lists["history"].offsets, other.lists["history"].offsets)
    )


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


def test_unknown_ids_are_trained_at_the_asked_rate_and_never_in_evaluation():
    def share(training):
        ids = torch.cat([b.ids for b in stream(training=training)])
        return float((ids == 1).float().mean())

    forgetful = stream()
    forgetful.encoder.features[0] = Id("item", unknown_rate=0.2)
    ids = torch.cat([b.ids for b in forgetful])
    assert 0.1 < float((ids == 1).float().mean()) < 0.25
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
