"""Embedding and model: look-ups, pooling, sharing of tables, the start at the base rates."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from espace.chain.chain import Chain
from espace.data.batch import Ragged
from espace.data.encoding.columns import Bag, Id, Number, Sequence, Vector
from espace.data.encoding.encode import Encoder
from espace.data.encoding.learn import Learner
from espace.data.encoding.table import Columns
from espace.model.embedding import Embedding, feature_spec
from espace.model.model import Model
from espace.parts.links.none import NoLink
from espace.parts.sharing.separate import Separate
from espace.parts.towers.mlp import MLP

CHAIN = Chain.parse(["impression -> click -> cart | wish"])
FEATURES = [
    Id("a"),
    Id("wide", dim=6),
    Sequence("history", share="a"),
    Sequence("unpooled", share="a", pool="none"),
    Bag("tags", pool="sum"),
    Bag("weighted", weights="w", pool="mean"),
    Number("x"),
    Vector("v", size=2),
]
DATA = {
    "a": [1, 2, 3],
    "wide": ["p", "q", None],
    "history": [[1, 2], [], [3]],
    "unpooled": [[1], [2, 3], None],
    "tags": [["u", "v"], None, ["u"]],
    "weighted": [["m", "n"], [], ["n"]],
    "w": [[1.0, 3.0], [], [0.0]],
    "x": [1.0, 2.0, 3.0],
    "v": [[1.0, 2.0], None, [3.0, 4.0]],
}


@pytest.fixture
def encoded():
    learner = Learner(FEATURES)
    learner.add(Columns(pa.table(DATA), "train"))
    encoder = Encoder(FEATURES, CHAIN, {}, dim=4, tables=learner.tables(), numbers=learner.numbers())
    return encoder, encoder.encode(pa.table(DATA), "train", labels=False)


def test_the_flat_vector_is_laid_out_as_the_spec_says_without_data(encoded):
    encoder, batch = encoded
    embedding = Embedding(FEATURES, encoder.layout, dim=4, std=0.1)
    features = embedding(batch)
    assert embedding.spec == feature_spec(FEATURES, 4)
    assert features.flat().shape == (3, embedding.spec.width) == (3, 4 + 6 + 4 + 0 + 4 + 4 + 2 + 2)
    assert torch.equal(features.field("v"), torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]))


def test_ids_histories_and_bags_are_looked_up_and_pooled_as_written_out_in_loops(encoded):
    encoder, batch = encoded
    embedding = Embedding(FEATURES, encoder.layout, dim=4, std=0.1)
    features = embedding(batch)
    table = embedding.tables["4"].weight.detach()
    rows = dict(zip(DATA["a"], batch.ids[:, 0].long().tolist(), strict=True))
    for i in range(3):
        assert torch.equal(features.field("a")[i], table[rows[DATA["a"][i]]])
        history = [table[rows[v]] for v in DATA["history"][i]]
        expected = torch.stack(history).mean(0) if history else torch.zeros(4)
        assert torch.allclose(features.field("history")[i], expected)
        tags = batch.lists["tags"].values[batch.lists["tags"].offsets[i] : batch.lists["tags"].offsets[i + 1]].long()
        assert torch.allclose(features.field("tags")[i], table[tags].sum(0))
    weighted = batch.lists["weighted"].values.long()
    assert torch.allclose(features.field("weighted")[0], (table[weighted[0]] + 3 * table[weighted[1]]) / 4)
    assert torch.equal(features.field("weighted")[1:], torch.zeros(2, 4)), "no values, or weights of 0 only, give zeros"


def test_a_history_is_padded_to_the_longest_of_the_batch_and_masked(encoded):
    encoder, batch = encoded
    values, mask = Embedding(FEATURES, encoder.layout, dim=4, std=0.1)(batch).sequence("unpooled")
    assert values.shape == (3, 2, 4)
    assert mask.tolist() == [[True, False], [True, True], [False, False]]
    assert not values[~mask].any()


def test_taking_rows_of_ragged_lists_equals_taking_them_in_python():
    random = np.random.default_rng(0)
    rows = [random.integers(0, 99, random.integers(0, 5)).tolist() for _ in range(50)]
    ragged = Ragged(
        torch.tensor([v for row in rows for v in row]), torch.tensor([0, *np.cumsum([len(r) for r in rows])])
    )
    order = torch.from_numpy(random.integers(0, 50, 80))
    taken = ragged.take(order)
    for i, row in enumerate(order.tolist()):
        assert taken.values[taken.offsets[i] : taken.offsets[i + 1]].tolist() == rows[row]


def test_tables_get_sparse_gradients_of_the_rows_looked_up_only(encoded):
    encoder, batch = encoded
    embedding = Embedding(FEATURES, encoder.layout, dim=4, std=0.1)
    embedding(batch).flat().sum().backward()
    gradient = embedding.tables["4"].weight.grad
    assert gradient.is_sparse
    assert set(gradient.coalesce().indices()[0].tolist()) <= set(range(encoder.layout.rows[4]))


def test_extra_numbers_are_looked_up_and_pooled_like_the_vectors_and_change_none_of_them(encoded):
    encoder, batch = encoded
    torch.manual_seed(0)
    plain = Embedding(FEATURES, encoder.layout, dim=4, std=0.1)
    torch.manual_seed(0)
    embedding = Embedding(FEATURES, encoder.layout, dim=4, std=0.1)
    one, two = embedding.spec.ask(1), embedding.spec.ask(2)
    embedding.widen()
    features = embedding(batch)
    assert torch.equal(features.flat(), plain(batch).flat())
    assert torch.equal(features.ragged("unpooled").values, plain(batch).ragged("unpooled").values)
    assert [f.name for f in embedding.spec.categorical] == ["a", "wide", "history", "tags", "weighted"]
    narrow, wide = (embedding.tables[w].weight.detach() for w in ("4", "6"))
    assert not narrow[narrow[:, :4].abs().sum(1) == 0].any(), "padding stays zero"
    rows = dict(zip(DATA["a"], batch.ids[:, 0].long().tolist(), strict=True))
    for i in range(3):
        assert torch.equal(features.extra(one)[i, 0], narrow[rows[DATA["a"][i]], 4:5])
        assert torch.equal(features.extra(two)[i, 1], wide[batch.ids[i, 1].long(), 7:9])
        history = [narrow[rows[v], 5:7] for v in DATA["history"][i]]
        expected = torch.stack(history).mean(0) if history else torch.zeros(2)
        assert torch.allclose(features.extra(two)[i, 2], expected)


def build(encoder, shared):
    names = [t.name for t in CHAIN.transitions]
    embed = {n: Embedding(FEATURES, encoder.layout, dim=4, std=0.1) for n in (["shared"] if shared else names)}
    spec = feature_spec(FEATURES, 4)
    towers = {n: MLP(spec, hidden_units=[5]) for n in names}
    return Model(CHAIN, embed, Separate(spec, names), towers, NoLink(CHAIN, dict.fromkeys(names, 5)))


@pytest.mark.parametrize("shared", [True, False])
def test_a_shared_embedding_learns_from_both_transitions_and_separate_ones_do_not(encoded, shared):
    encoder, batch = encoded
    model = build(encoder, shared)
    p = model(batch)
    (-p.log_prob("cart", given="click").sum()).backward()
    with_gradient = {n for n, e in model.embeddings.items() if e.tables["4"].weight.grad is not None}
    assert with_gradient == ({"shared"} if shared else {"click_to_cart_or_wish"})


def test_the_first_prediction_is_the_base_rate(encoded):
    encoder, batch = encoded
    model = build(encoder, True)
    model.start_at({"impression_to_click": [99, 899], "click_to_cart_or_wish": [19, 29, 49]})
    for head in model.heads.values():
        torch.nn.init.zeros_(head.weight)
    p = model(batch)
    assert torch.allclose(p.prob("click"), torch.tensor(0.1))
    assert torch.allclose(p.prob("cart", given="click"), torch.tensor(0.2))
    assert torch.allclose(p.prob("wish"), torch.tensor(0.1 * 0.3))


def test_towers_and_heads_share_no_parameter_not_even_a_bias(encoded):
    model = build(encoded[0], True)
    named = [p for module in (model.towers, model.heads) for p in module.parameters()]
    assert len({p.data_ptr() for p in named}) == len(named)
