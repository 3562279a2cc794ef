"""Which histories the three towers read, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from espace_din import BST, DIEN, DIN

import espace
from espace.data.batch import Ragged
from espace.errors import DataError
from espace.testing import example_features, example_spec

TOWERS = pytest.mark.parametrize("tower", [DIN, DIEN, BST])


@TOWERS
def test_by_default_every_sequence_that_shares_a_table_is_compared_with_the_field_that_has_it(tower):
    found = tower(example_spec()).histories
    assert [(h.name, h.target, h.side, h.width, h.event_width) for h in found] == [
        ("history", "item", (), 4, 4),
        ("carts", "item", (), 4, 4),
    ]


def test_a_sequence_that_stands_beside_another_is_not_read_by_itself():
    found = DIN(example_spec(), side={"history": ["carts", "history_time"]}).histories
    assert [(h.name, h.side, h.event_width) for h in found] == [("history", ("carts", "history_time"), 10)]


def test_a_sequence_that_shares_the_table_of_another_one_is_read_only_when_named():
    fields = (
        espace.Field("clicks", "sequence", 4),
        espace.Field("carts", "sequence", 0),
        espace.Field("item", "id", 4),
    )
    spec = espace.FeatureSpec(fields, {"clicks": 4, "carts": 4}, {"clicks": "item", "carts": "clicks"})
    assert [h.name for h in DIN(spec).histories] == ["clicks"]
    assert [h.target for h in DIN(spec, history=["carts"], target="item").histories] == ["item"]


REFUSED = {
    r"no sequence '?histroy'?\. Did you mean 'history'": {"history": ["histroy"]},
    r"no sequence 'history_tme'\. Did you mean 'history_time'": {"side": {"history": ["history_tme"]}},
    r"no sequence 'histori'\. Did you mean 'history'": {"side": {"histori": ["history_time"]}},
    r"side: 'history' is not one of the histories. Known: carts": {"history": ["carts"], "side": {"history": []}},
    r"target: there is no field 'itme'\. Did you mean 'item'": {"target": "itme"},
    r"'history_time' shares no table.* Set target, or share of 'history_time'": {"history": ["history_time"]},
    r"'history' are 4 wide, but .* 'city', is 6 wide\. Set share: city in 'history'": {"target": "city"},
    r"no sequence shares .* name one of history, history_time, carts under history": {"history": []},
}


@TOWERS
@pytest.mark.parametrize(("message", "options"), REFUSED.items())
def test_what_does_not_fit_is_refused_with_the_way_out(tower, message, options):
    with pytest.raises(ValueError, match=message):
        tower(example_spec(), **options)


@TOWERS
def test_behind_experts_there_is_no_history_and_the_refusal_says_what_to_do(tower):
    with pytest.raises(ValueError, match=r"history: \{type: sequence, .*pool: none\}\. .*use tower: mlp"):
        tower(espace.FeatureSpec.of_vector(5))


@TOWERS
def test_sequences_that_do_not_go_event_by_event_are_an_error_that_names_the_row(tower):
    spec = example_spec()
    features = example_features(spec)
    short = Ragged(torch.zeros(6, 2, dtype=torch.float64), torch.tensor([0, 0, 1, 2, 5, 5, 6]))  # one less in row 2
    histories = {n: lambda n=n: short if n == "history_time" else features.ragged(n) for n in spec.sequences}
    broken = espace.Features(spec, features.flat(), histories)
    message = r"'history_time' .* in row 2 .* 'history' has 2 events and 'history_time' has 1"
    with pytest.raises(DataError, match=message):
        tower(spec, side={"history": ["history_time"]}).double()(broken)
