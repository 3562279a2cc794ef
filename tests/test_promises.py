"""What stood when version 1 of the contracts began still stands: public names, keys of the YAML, parts, options of commands.

More may come. A default or a description may change, a name may not: whoever has to remove one raises `espace.API_VERSION`,
as docs/api.md says.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import espace
from tests.promised import promised

KEPT = json.loads((Path(__file__).parent / "api_1.json").read_text())
NOW = json.loads(json.dumps(promised(), default=str))
FREE = {"default", "description", "title"}


def lacking(kept: object, now: object, where: str = "") -> list[str]:
    """The places at which `now` lacks what `kept` has. Lists are sets of choices, to which some may be added, and what
    was the only choice may have become one of several."""
    if isinstance(kept, dict) and isinstance(now, dict) and "anyOf" in now and not {"anyOf", *now} & {*kept} - FREE:
        plain = {key: value for key, value in kept.items() if key not in FREE}
        return min((lacking(plain, choice, where) for choice in now["anyOf"]), key=len)
    if isinstance(kept, dict) and isinstance(now, dict):
        found = [f"{where}/{key}" for key in kept if key not in now]
        both = [key for key in kept if key in now and key not in FREE]
        return found + [place for key in both for place in lacking(kept[key], now[key], f"{where}/{key}")]
    if isinstance(kept, list) and isinstance(now, list):
        return [f"{where}: {item}" for item in kept if item not in now and all(lacking(item, other) for other in now)]
    return [] if kept == now else [f"{where}: {kept} became {now}"]


@pytest.mark.parametrize("what", KEPT)
def test_what_version_1_had_is_there(what: str) -> None:
    assert lacking(KEPT[what], NOW[what]) == []


def test_a_name_a_key_and_a_choice_that_are_gone_are_found() -> None:
    kept = {"a": {"x": 1, "default": 2}, "b": ["one", {"y": [1]}]}
    assert lacking(kept, {"a": {"x": 1, "default": 3}, "b": [{"y": [1, 2]}, "two", "one"]}) == []
    now = {"a": {"anyOf": [{"x": 1}, {"x": 3}]}, "b": ["one", {"y": [1]}]}
    assert lacking(kept, now) == []
    assert lacking(kept, {**now, "a": {"anyOf": [{"x": 3}]}}) == ["/a/x: 1 became 3"]
    assert lacking(kept, {"b": ["one", {"y": []}]}) == ["/a", "/b: {'y': [1]}"]
    assert lacking(kept, {"a": {"x": 2}, "b": ["one", {"y": [1]}]}) == ["/a/default", "/a/x: 1 became 2"]


def test_the_version_of_the_contracts_is_told_on_its_page() -> None:
    assert espace.API_VERSION == 1
    assert "`espace.API_VERSION` is 1" in (Path(__file__).parents[1] / "docs" / "api.md").read_text()
