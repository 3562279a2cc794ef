"""The merge that the audit offers is a chain, in which the stage has its old parents and one more."""

from __future__ import annotations

import pytest

from espace.chain.chain import Chain
from espace.chain.merges import merge_without
from tests.chains import CHAINS, chain_of

LITERATURE = {
    ("impression -> click -> conversion",): (
        "conversion",
        ["impression -> click else no_click", "no_click -> conversion"],
    ),
    ("impression -> click else pass", "click -> conversion"): ("conversion", ["pass -> conversion"]),
    ("impression -> click", "click -> cart | wish else browse", "cart -> buy", "wish -> buy", "browse -> buy"): (
        "buy",
        ["impression -> click else no_click", "no_click -> buy"],
    ),
    ("impression -> click", "click -> cart | wish", "cart -> buy", "wish -> buy"): (
        "buy",
        ["click -> cart | wish else neither", "neither -> buy"],
    ),
    ("impression -> click",): ("click", []),
}


@pytest.mark.parametrize("lines", LITERATURE)
def test_the_negation_of_the_parents_becomes_a_parent(lines):
    stage, expected = LITERATURE[lines]
    assert merge_without(Chain.parse(lines), stage) == expected


def test_what_is_offered_is_a_chain_and_adds_one_parent():
    offered = 0
    for seed in range(CHAINS):
        chain = Chain.parse([str(t) for t in chain_of(seed)])
        for stage in chain.labelled:
            lines = merge_without(chain, stage)
            if not lines:
                continue
            offered += 1
            changed = {line.partition(" else ")[0] for line in lines[:-1]}
            merged = Chain.parse([*(line for line in chain.lines() if line not in changed), *lines])
            assert set(merged.parents(stage)) > set(chain.parents(stage))
            assert len(merged.parents(stage)) == len(chain.parents(stage)) + 1
            assert {*merged.stages} - {*chain.stages} <= {*merged.otherwise}  # nothing that needs a label
    assert offered > 100
