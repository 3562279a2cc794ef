"""The configuration: laws of reading, writing and overriding, and the catalogue of mistakes with what is said to each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from annotated_types import Ge, Gt, Interval, Lt
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, Field

from espace import config as configuration
from espace.config import Config, load, save
from espace.config.schema import DEFAULTS, PARTS
from espace.config.validate import describe, typed
from espace.config.yamlfile import dump, parse, parse_value
from espace.errors import ConfigError, EspaceError, PluginError
from espace.registry import registry as plugins
from espace.registry.registry import Entry, Registry
from espace.training.adam import adam


class Mlp:
    """Layers."""

    def __init__(
        self,
        spec: object,
        *,
        hidden_units: list[int] = [8, 4],  # noqa: B006, it is read only
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
        activation: Literal["relu", "tanh"] = "relu",
        sizes: tuple[int, ...] = (1, 2),
    ) -> None: ...


class Din:
    """Attention."""

    def __init__(self, spec: object, query: object, *, key: str, schema: str | None = None) -> None: ...


class Metric:
    """Something to measure."""

    def __init__(self, *, bins: Annotated[int, Gt(0)] = 10) -> None: ...


class Files:
    """Files."""

    def __init__(
        self, source: object, split: str, *, delimiter: str = ",", columns: list[str] | None = None
    ) -> None: ...


def nothing(*given: object) -> None:
    """No options."""


REGISTRY = Registry()
for _kind, _name, _factory in [
    ("towers", "mlp", Mlp),
    ("towers", "din", Din),
    ("readers", "files", Files),
    ("readers", "simulator", nothing),
    ("stages", "binary", nothing),
    *((kind, DEFAULTS[key], nothing) for key, kind in PARTS.items() if key != "tower"),
    ("loggers", "tensorboard", nothing),
    ("optimizers", "adam", adam),
    ("schedules", "constant", nothing),
    *(("metrics", name, Metric) for name in (*DEFAULTS["metrics"], "gauc")),
]:
    REGISTRY.add(Entry(_kind, _name, _factory, "tests"))

SMALL = """\
chain: impression -> click -> conversion
data: {train: a.parquet}
features: {user_id: id}
"""
FULL = """\
name: everything
chain:
  - impression -> click -> conversion
  - click -> like | hide else pass_by
labels:
  click: clk
  conversion: buy
stages:
  click: {weight: 2.0}
data:
  type: files
  train: [a.parquet, b.parquet]
  validation: c.parquet
  test: d.parquet
  weight: w
  batch_size: 64
  shuffle: false
  shuffle_rows: 1000
  violations: drop
  allow_leaks: [price]
  potential:
    conversion_given_click: bought_if_clicked
  workers: 1
  delimiter: ;
  columns: [x]
features:
  user_id:
    type: id
    column: user
    dim: 4
    min_count: 2
    max_size: 100
    unknown_rate: 0.1
  friend: {type: id, share: user_id}
  url: {type: hash, buckets: 10}
  price: {type: number, log1p: true, standardise: false, buckets: [0.5, 1.5]}
  history: {type: sequence, max_length: 5, keep: first, pool: sum, separator: ','}
  tags: {type: bag, weights: tag_weights, pool: sum}
  image: {type: vector, size: 3}
embedding:
  dim: 8
  shared: true
  std: 0.1
sharing: separate
link: none
tower:
  type: mlp
  hidden_units: [16, 8]
  dropout: 0.1
  activation: tanh
towers:
  conversion: {type: din, key: user_id, schema: s}
  click_to_like_or_hide: mlp
objective: entire_space
sampler: none
weighting: {type: fixed}
metrics:
  count: null
  mine: {type: gauc, bins: 5}
optimizer:
  lr: 1e-3
  betas: [0.8, 0.99]
  eps: 1e-7
  weight_decay: 0.1
trainer: {max_epochs: 3}
monitor: val/click/auc
mode: max
patience: 3
checkpoint_every: 100
seed: 7
plugins: []
"""
SHARE = FULL.replace("validation: c.parquet", "split: {share: 0.1}")
UNTIL = FULL.replace("validation: c.parquet", "split: {by: day, train_until: 2024-01-31, validation_until: 2024-02-29}")

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(text: str, name: str = "x.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode())
        return path

    return put


def read(path: Path, *overrides: str) -> Config:
    return load(path, overrides, REGISTRY)


def problems(path: Path, *overrides: str) -> list[str]:
    """What is wrong, with the file's folder left out."""
    with pytest.raises(ConfigError) as caught:
        read(path, *overrides)
    return [p.replace(f"{path.parent}/", "") for p in caught.value.problems]


def found(path: Path, expected: str, *overrides: str) -> bool:
    """Whether one of the problems matches, and say all of them if none does."""
    told = problems(path, *overrides)
    assert any(re.search(expected, p) for p in told), "\n".join(told)
    return True


# Reading and writing


def test_eleven_words_are_enough_and_every_default_is_written_out(write: Write) -> None:
    tree = read(write(SMALL)).to_dict()
    assert tree["chain"] == ["impression -> click -> conversion"]
    assert tree["tower"] == {
        "type": "mlp",
        "hidden_units": [8, 4],
        "dropout": 0.0,
        "activation": "relu",
        "sizes": [1, 2],
    }
    assert tree["data"]["delimiter"] == ","
    assert tree["features"]["user_id"]["min_count"] == 1
    assert tree["metrics"]["auc"] == {"type": "auc", "bins": 10}
    assert (tree["optimizer"]["lr"], tree["optimizer"]["betas"]) == (None, [0.9, 0.999])


@pytest.mark.parametrize("text", [SMALL, FULL, SHARE, UNTIL])
def test_a_configuration_survives_a_dict_json_and_a_file(text: str, write: Write, tmp_path: Path) -> None:
    config = read(write(text))
    assert Config.from_dict(config.to_dict(), REGISTRY) == config
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    (tmp_path / "run").mkdir()
    save(config, tmp_path / "run" / "config.yaml")
    assert read(tmp_path / "run" / "config.yaml") == config


def is_plain(value: object) -> bool:
    if type(value) is dict:
        return all(type(k) is str and is_plain(v) for k, v in value.items())
    return all(map(is_plain, value)) if type(value) is list else type(value) in (str, int, float, bool, type(None))


def test_only_plain_values_leave_it(write: Write) -> None:
    text = FULL.replace("lr: 1e-3", "lr: ${optimizer.eps}").replace("key: user_id", "key: '${data.weight}'")
    text = text.replace("click_to_like_or_hide: mlp", "click_to_like_or_hide: ${tower}")
    config = read(write(text))
    assert is_plain(config.to_dict())
    assert is_plain(config.towers["click_to_like_or_hide"].options)
    assert config.tower == config.towers["click_to_like_or_hide"]


def test_values_that_are_not_plain_are_refused() -> None:
    with pytest.raises(ConfigError, match="plain values only"):
        Config.from_dict({"data": {"train": Path("a")}}, REGISTRY)
    with pytest.raises(ConfigError, match="plain values only"):
        Config.from_dict({"name": "\ud800"}, REGISTRY)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "on",
        "No",
        "y",
        "00123",
        "1e-3",
        "123E456",
        "12:30",
        "2024-01-31",
        "~",
        "null",
        "TRUE",
        "0x1f",
        "1_000",
        ".inf",
        "<<",
        "=",
    ]
)
NUMBERS = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False)
PLAIN = st.recursive(
    TEXT | NUMBERS | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(TEXT, PLAIN, max_size=3))
def test_what_is_written_is_read_the_same_here_and_by_readers_of_yaml_1_1(tree: dict[str, Any]) -> None:
    text = dump(tree)
    source = parse(text, "x.yaml")
    assert source.tree == tree
    assert not source.problems
    assert yaml.safe_load(text) == tree


@settings(max_examples=40, deadline=None)
@given(
    name=TEXT.filter(lambda t: t != "???"),
    feature=TEXT.filter(lambda t: t not in ("click", "conversion")),
    tail=st.lists(st.sampled_from(["$", "{", "}", "\\", "a", "'", '"', "${", "\\${"]), max_size=6),
    trainer=st.dictionaries(TEXT, TEXT.filter(lambda t: t != "???"), max_size=2),
    rate=st.floats(1e-300, 1e300),
)
def test_any_text_survives_a_file(
    tmp_path_factory: pytest.TempPathFactory, name: str, feature: str, tail: list[str], trainer: Any, rate: float
) -> None:
    tree = {
        **yaml.safe_load(SMALL),
        "data": {"train": name + "".join(tail)},
        "features": {"f": {"type": "id", "column": feature}},
        "trainer": trainer,
        "optimizer": {"lr": rate},
    }
    config = Config.from_dict(tree, REGISTRY)
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    save(config, path)
    assert read(path) == config


def test_a_metric_that_was_removed_stays_removed(write: Write) -> None:
    config = read(write(SMALL + "metrics: {auc: null, mine: gauc}\n"))
    assert list(config.metrics) == ["log_loss", "calibration", "count", "value", "mine"]
    assert Config.from_dict(config.to_dict(), REGISTRY) == config


def test_files_of_plugins_are_found_from_wherever_the_run_is_repeated(write: Write, tmp_path: Path) -> None:
    plugin = "import espace\n\n@espace.hookimpl\ndef register_towers(register):\n    register('mine', dict)\n"
    write(plugin, "my_towers.py")
    path = write(SMALL + "plugins: [./my_towers.py]\n")
    config = read(path)
    assert config.plugins == [str(tmp_path / "my_towers.py")]
    (tmp_path / "run").mkdir()
    save(config, tmp_path / "run" / "config.yaml")
    assert read(tmp_path / "run" / "config.yaml").plugins == config.plugins


def test_a_plugin_that_the_file_asks_for_has_to_be_there(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "BUILTIN", ())
    with pytest.raises(PluginError, match=r"there is no file .*absent\.py"):
        load(write(SMALL + "plugins: [./absent.py]\n"))


def test_a_configuration_does_not_change(write: Write) -> None:
    with pytest.raises(ValueError, match="frozen"):
        read(write(SMALL)).seed = 3  # type: ignore[misc]


def test_options_come_in_the_types_of_the_signature(write: Write) -> None:
    tower = read(write(SMALL)).tower
    assert tower.options["sizes"] == [1, 2]
    assert typed(REGISTRY.get("towers", "mlp"), tower.options)["sizes"] == (1, 2)


# Scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("no", "no"),
        ("", None),
        ("~", None),
        ("null", None),
        ("12", 12),
        ("-3", -3),
        ("1_000", 1000),
        ("00123", "00123"),
        ("0x1f", "0x1f"),
        ("12:30", "12:30"),
        ("2024-01-31", "2024-01-31"),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("123E456", "123E456"),
        ("impression -> click", "impression -> click"),
    ],
)
def test_a_scalar_is_the_same_in_a_file_and_in_an_override(text: str, value: object) -> None:
    in_file = parse(f"x: {text}", "x.yaml").tree["x"]
    assert (in_file, type(in_file)) == (value, type(value))
    assert (parse_value(text), type(parse_value(text))) == (value, type(value))


@pytest.mark.parametrize("text", ["*.parquet", "a: b", "a #b", "@x", "s3://b/c?d=e", "%a", "&a", "!a"])
def test_an_override_is_text_just_as_it_stands(text: str) -> None:
    assert parse_value(text) == text


# Overrides


@pytest.mark.parametrize(
    ("override", "edit"),
    [
        ("seed=3", ("seed: 7", "seed: 3")),
        ("name=00123", ("name: everything", "name: '00123'")),
        ("name=on", ("name: everything", "name: 'on'")),
        ("name=", ("name: everything", "name: null")),
        ("optimizer.lr=2e-4", ("lr: 1e-3", "lr: 0.0002")),
        ("tower.hidden_units=[3, 2]", ("hidden_units: [16, 8]", "hidden_units: [3, 2]")),
        ("tower.dropout=0.5", ("dropout: 0.1", "dropout: 0.5")),
        ("towers.click_to_like_or_hide.dropout=0.5", ("hide: mlp", "hide: {type: mlp, dropout: 0.5}")),
        ("towers.conversion=mlp", ("conversion: {type: din, key: user_id, schema: s}", "conversion: mlp")),
        ("features.url=id", ("url: {type: hash, buckets: 10}", "url: id")),
        ("features.new=id", ("  image:", "  new: id\n  image:")),
        ("data.train=s3://x/*.parquet", ("[a.parquet, b.parquet]", "s3://x/*.parquet")),
        ("data.train.1=z.parquet", ("b.parquet", "z.parquet")),
        ("chain.1=click -> like | hide", (" else pass_by", "")),
        ("features.url=null", ("  url: {type: hash, buckets: 10}\n", "")),
        ("labels.click=null", ("  click: clk\n", "")),
        ("data.potential=null", ("  potential:\n    conversion_given_click: bought_if_clicked\n", "")),
        ("data.potential.conversion_given_click=null", ("\n    conversion_given_click: bought_if_clicked", " {}")),
        ("data.allow_leaks=null", ("  allow_leaks: [price]\n", "")),
        ("towers.conversion=", ("  conversion: {type: din, key: user_id, schema: s}\n", "")),
        ("metrics.log_loss=null", ("  mine:", "  log_loss: null\n  mine:")),
        ("metrics.mine=null", ("  mine: {type: gauc, bins: 5}\n", "")),
        ("metrics.count=count", ("count: null", "count: count")),
        ("metrics.auc.bins=3", ("  mine:", "  auc: {type: auc, bins: 3}\n  mine:")),
        ("data.delimiter='\t'", ("delimiter: ;", 'delimiter: "\\t"')),
        ("trainer.logger.name=x", ("{max_epochs: 3}", "{max_epochs: 3, logger: {name: x}}")),
        ("optimizer.lr=${embedding.std}", ("lr: 1e-3", "lr: 0.1")),
    ],
)
def test_an_override_does_what_an_edit_of_the_file_does(override: str, edit: tuple[str, str], write: Write) -> None:
    assert edit[0] in FULL
    assert read(write(FULL), override) == read(write(FULL.replace(*edit), "edited.yaml"))


def test_an_option_of_a_part_that_is_only_named_can_be_set(write: Write) -> None:
    config = read(write(SMALL), "features.user_id.dim=8", "tower.dropout=0.1", "metrics.auc.bins=3")
    assert config.features["user_id"].options["dim"] == 8
    assert (config.tower.type, config.tower.options["dropout"]) == ("mlp", 0.1)
    assert config.metrics["auc"].options == {"bins": 3}


def test_replacing_a_part_drops_its_options_and_the_order_counts(write: Write) -> None:
    path = write(FULL)
    assert read(path, "tower=din", "tower.key=k").tower.options == {"key": "k", "schema": None}
    assert read(path, "seed=1", "seed=2").seed == 2
    assert found(path, r"^override 'tower=din': tower: din needs the option 'key', text", "tower.key=k", "tower=din")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sead=3", r"^override 'sead=3': sead: there is no such key\. Did you mean 'seed'\?"),
        ("optimizer.lrr=3", r"^override 'optimizer.lrr=3': optimizer.lrr: there is no such key\. Did you mean 'lr'\?"),
        (
            "tower.drop_out=3",
            r"^override 'tower.drop_out=3': tower: mlp has no option 'drop_out'\. Did you mean 'dropout'\?",
        ),
        ("towr.dropout=3", r"^override 'towr.dropout=3': towr: there is no such key\. Did you mean 'tower'\?"),
        ("feature.a=id", r"^override 'feature.a=id': feature: there is no such key\. Did you mean 'features'\?"),
        (
            "tower.dropout=2",
            r"^override 'tower.dropout=2': tower.dropout: 2 is not a number of at least 0 and below 1\.",
        ),
        ("tower=dinn", r"^override 'tower=dinn': tower: there is no tower 'dinn'\. Did you mean 'din'\?"),
        ("data.potential.x=null", r"^override 'data.potential.x=null': there is no 'x' to remove\."),
        ("data.train=null", r"data.train: null is not"),
        ("features.ulr=null", r"^override 'features.ulr=null': there is no 'ulr' to remove\. Did you mean 'url'\?"),
        ("name=\udcff", r"^override 'name=\\udcff': it is not UTF-8"),
        ("seed", r"^override 'seed': it is not of the form a\.b=value"),
        ("=3", r"^override '=3': it is not of the form a\.b=value"),
        ("a..b=3", r"^override 'a\.\.b=3': it is not of the form a\.b=value"),
        ("seed.x=3", r"^override 'seed.x=3': seed is 7 and has no 'x'\. Set seed itself\."),
        ("data.train.2=x", r"^override 'data.train.2=x': data.train is a list of 2, counted from 0, and has no '2'"),
        ("seed=[1", r"^override 'seed=\[1': this is not YAML.*Close what was opened"),
        ("seed=00123", r"^override 'seed=00123': seed: '00123' is not a whole number of at least 0 "),
        (
            "data.shuffle=yes",
            r"^override 'data.shuffle=yes': data.shuffle: 'yes' is not true or false\. Only true and false",
        ),
        ("name=5", r"^override 'name=5': name: 5 is not text or null\. Put it in quotes: '5'\."),
        ("name={on: 1}", r"^override 'name=\{on: 1\}': .*YAML does not take the key on for text"),
        ("name=${nope}", r"^override 'name=\$\{nope\}': name: '\$\{nope\}' leads nowhere"),
    ],
)
def test_a_wrong_override_is_told_with_its_own_text(override: str, expected: str, write: Write) -> None:
    assert found(write(FULL), expected, override)


# Every key


def misspellings(text: str) -> list[Any]:
    """Every key that espace knows the names of, with its last letter doubled where it stands."""
    free = {"features", "metrics", "trainer"}  # the names below these are the user's
    places = {k: p for k, p in parse(text, "x.yaml").places.items() if k and isinstance(k[-1], str)}
    keys = [k for k in places if not (k[0] == "trainer" and len(k) > 1) and not (k[0] in free and len(k) == 2)]
    return [pytest.param(text, k[-1], places[k].line, places[k].column, id=".".join(map(str, k))) for k in keys]


@pytest.mark.parametrize(
    ("text", "name", "line", "column"), misspellings(FULL) + misspellings(SHARE) + misspellings(UNTIL)
)
def test_every_misspelt_key_has_its_place_and_the_right_name(
    text: str, name: str, line: int, column: int, write: Write
) -> None:
    lines = text.splitlines()
    row = lines[line - 1]
    lines[line - 1] = row[: column - 1 + len(name)] + name[-1] + row[column - 1 + len(name) :]
    assert found(write("\n".join(lines)), rf"^x\.yaml:{line}:{column}: .*Did you mean '{name}'\?$")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("batch_size: 64", "batch_size: abc", r"^x.yaml:16:3: data.batch_size: 'abc' is not a whole number above 0 or null\.$"),
        ("batch_size: 64", "batch_size: '64'", r"'64' is not a whole number above 0 or null\. Remove its quotes"),
        ("batch_size: 64", "batch_size: 64.0", r"data.batch_size: 64.0 is not a whole number above 0"),
        ("batch_size: 64", "batch_size: true", r"data.batch_size: true is not a whole number above 0"),
        ("batch_size: 64", "batch_size: 0", r"data.batch_size: 0 is not a whole number above 0"),
        ("shuffle: false", "shuffle: 1", r"data.shuffle: 1 is not true or false"),
        ("shuffle: false", "shuffle: off", r"data.shuffle: 'off' is not true or false\. Only true and false are"),
        ("name: everything", "name: 2024", r"^x.yaml:1:1: name: 2024 is not text or null\. Put it in quotes: '2024'"),
        ("name: everything", "name: false", r"name: false is not text or null\. Put it in quotes: 'false'"),
        ("violations: drop", "violations: prmote", r"'prmote' is not one of 'error', .*\. Did you mean 'promote'\?"),
        ("[a.parquet, b.parquet]", "{a: b}", r'data.train: \{"a": "b"\} is not text, a whole number or a list of texts'),
        ("[a.parquet, b.parquet]", "[1]", r"data.train: \[1\] is not text, a whole number or a list of texts"),
        ("betas: [0.8, 0.99]", "betas: [0.8]", r"optimizer.betas: \[0.8\] is not a list of 2: a number, a number"),
        ("betas: [0.8, 0.99]", "betas: [0.8, x]", r"optimizer.betas\[1\]: 'x' is not a number"),
        ("hidden_units: [16, 8]", "hidden_units: [16, x]", r"^x.yaml:48:22: tower.hidden_units\[1\]: 'x' is not a"),
        ("hidden_units: [16, 8]", "hidden_units: 16", r"^x.yaml:48:3: tower.hidden_units: 16 is not a list of whole"),
        ("dropout: 0.1", "dropout: 1.0", r"tower.dropout: 1.0 is not a number of at least 0 and below 1"),
        ("activation: tanh", "activation: tan", r"'tan' is not one of 'relu', 'tanh'\. Did you mean 'tanh'\?"),
        ("buckets: [0.5, 1.5]", "buckets: x", r"'x' is not a whole number above 0, a list of numbers or null"),
        ("{type: hash, buckets: 10}", "hash", r"^x.yaml:35:3: features.url: hash needs the option 'buckets', a"),
        ("{type: hash, buckets: 10}", "hush", r"^x.yaml:35:3: features.url: there is no kind of feature 'hush'\."),
        ("{type: hash, buckets: 10}", "", r"features.url: null is neither the name of a feature nor a mapping with"),
        ("{type: hash, buckets: 10}", "{buckets: 10}", r"features.url.type: this is missing\. It has to be the name"),
        ("sharing: separate", "sharing: [separate]", r"sharing: \[\"separate\"\] is neither the name of a sharing"),
        ("objective: entire_space", "objective: entire", r"there is no objective 'entire'\. Did you mean"),
        ("type: files", "type: file", r"^x.yaml:11:3: data.type: there is no reader 'file'\. Did you mean 'files'"),
        ("type: files", "type: 3", r"data.type: 3 is not text"),
        ("delimiter: ;", "delimiter: 5", r"data.delimiter: 5 is not text\. Put it in quotes: '5'"),
        ("weight: 2.0", "weight: -1", r"stages.click.weight: -1 is not a number of at least 0"),
        ("key: user_id", "query: user_id", r"towers.conversion: din has no option 'query'\. Its author has to put"),
        ("max_epochs: 3}", "max_epochs: 3", r"this is not YAML"),
        ("trainer: {max_epochs: 3}", "trainer: 3", r"trainer: 3 is not a mapping"),
        ("seed: 7", "seed: 7\nlabels: {click: x}", r"labels: this key stands here twice, first in line 5"),
        ("  click: clk", "  click: 5", r"^x.yaml:6:3: labels.click: 5 is not text\. Put it in quotes: '5'"),
        ("  count: null", "  cuont: null", r"metrics.cuont: there is none of this name to remove\. Did you mean"),
        ("metrics:\n", "metrics: [auc]\nx:\n", r"metrics: \[\"auc\"\] is not a mapping\. Write each under a name of"),
        ("  - impression", "  - 5\n  - impression", r"^x.yaml:3:5: chain\[0\]: 5 is not text"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_in_words_with_its_place(old: str, new: str, expected: str, write: Write) -> None:
    assert FULL.count(old) == 1
    assert found(write(FULL.replace(old, new)), expected)


def test_all_problems_come_at_once_in_the_order_of_the_file(write: Write) -> None:
    text = (
        FULL.replace("click: clk", "clik: clk").replace("batch_size: 64", "batch_size: x").replace("dim: 8", "dims: 8")
    )
    text = (
        text.replace("dropout: 0.1", "droput: 0.1").replace("share: user_id", "share: user").replace("seed: 7", "no: 7")
    )
    told = problems(write(text), "patience=x", "tower.sizes=[a]")
    assert [re.match(r"x\.yaml:\d+|override", p)[0] for p in told] == [  # type: ignore[index]
        "x.yaml:6",
        "x.yaml:16",
        "x.yaml:34",
        "x.yaml:41",
        "x.yaml:49",
        "x.yaml:70",
        "override",
        "override",
    ]


def test_without_a_file_the_key_alone_is_the_place() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict({"chain": ["a -> b"], "data": {"train": "x"}, "features": {"u": "idd"}, "sed": 1}, REGISTRY)
    assert caught.value.problems == [
        "features.u: there is no kind of feature 'idd'. Did you mean 'id'?",
        "sed: there is no such key. Did you mean 'seed'?",
    ]


@pytest.mark.parametrize("key", ["chain", "data", "features"])
def test_what_has_no_default_is_asked_for(key: str, write: Write) -> None:
    text = "\n".join(line for line in SMALL.splitlines() if not line.startswith(key))
    assert problems(write(text))[0].startswith(f"x.yaml:1:1: {key}: this is missing. It has to be ")


def test_an_empty_key_at_the_top_has_its_default(write: Write) -> None:
    assert read(write(SMALL + "tower:\ntowers:\nmetrics:\noptimizer:\n")) == read(write(SMALL))


# What types cannot say


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  - click -> like | hide else pass_by", "  - click ->", r"^x.yaml:4:5: chain\[1\]: '' in 'click ->' is"),
        ("  - click -> like | hide else pass_by", "  - conversion -> impression", r"^x.yaml:2:1: chain: .* is a cycle"),
        ("  conversion: buy", "  impression: i", r"^x.yaml:7:3: labels.impression: every row is one 'impression'"),
        ("  conversion: buy", "  pass_by: i", r"^x.yaml:7:3: labels.pass_by: the label of 'pass_by' follows"),
        ("  conversion: buy", "  convertion: buy", r"labels.convertion: the chain has no such stage\. Did you mean"),
        ("  conversion: buy", "  conversion: clk", r"labels.conversion: 'click' and 'conversion' have one label"),
        ("  conversion: buy", "  conversion: like", r"labels.conversion: .*'like'"),
        ("  click: {weight", "  clicks: {weight", r"stages.clicks: the chain has no such stage\. Did you mean 'click'"),
        ("  conversion: {type: din", "  convert: {type: din", r"towers.convert: this is neither a stage that .*\."),
        ("  conversion: {type: din", "  impression: {type: din", r"towers.impression: this is neither a stage that"),
        ("  click_to_like_or_hide: mlp", "  like: mlp\n  pass_by: mlp", r"towers.pass_by: 'like' and 'pass_by' are"),
        ("conversion_given_click:", "conversion_given_clck:", r"no such probability\. Did you mean"),
        ("column: user", "column: clk", r"^x.yaml:27:3: features.user_id: the column 'clk' is the label of 'click'"),
        ("column: user", "column: w", r"features.user_id: the column 'w' is the row weight"),
        ("column: user", "column: bought_if_clicked", r"is the potential outcome of 'conversion_given_click'"),
        ("  image:", "  like:", r"features.like: the column 'like' is the label of 'like'"),
        ("share: user_id", "share: user", r"^x.yaml:34:22: features.friend.share: there is no other feature"),
        ("share: user_id", "share: friend", r"features.friend.share: there is no other feature 'friend'"),
        ("column: user", "share: friend", r"features.user_id.share: 'friend' itself shares the table of 'user_id'"),
        ("column: user", "column: user\n    part: age", r"features.user_id.part: an age is counted at a day"),
        ("column: user", "column: user\n    at: 2024-01-31", r"features.user_id.at: only an age is counted at something"),
        ("allow_leaks: [price]", "allow_leaks: [prise]", r"data.allow_leaks\[0\]: no feature 'prise'\. Did you mean"),
        ("test: d.parquet", "split: {share: 0.1}", r"data.split: split and validation both say"),
        ("validation: c.parquet", "split: {share: 0.1, by: d}", r"data.split: share draws rows at random, by takes"),
        ("validation: c.parquet", "split: {by: d}", r"data.split: it is not complete"),
        ("validation: c.parquet", "split: {}", r"data.split: it is not complete"),
    ],
)  # fmt: skip
def test_a_contradiction_is_told_at_its_place(old: str, new: str, expected: str, write: Write) -> None:
    assert FULL.count(old) == 1
    assert found(write(FULL.replace(old, new)), expected)


def test_promote_needs_one_parent(write: Write) -> None:
    chain = "chain: [impression -> cart | wish, cart -> buy, wish -> buy]\n"
    text = chain + "features: {u: id}\ndata: {train: x, violations: promote}\n"
    assert found(
        write(text), r"^x.yaml:3:18: data.violations: 'promote' says .* 'buy' has several, 'cart' and 'wish'\. Choose"
    )


def test_features_have_to_be_there(write: Write) -> None:
    assert found(write(SMALL.replace("{user_id: id}", "{}")), r"^x.yaml:3:1: features: there is none")


def test_one_mistake_makes_one_problem(write: Write) -> None:
    assert len(problems(write(FULL.replace("lr: 1e-3", "lr: x")))) == 1
    assert len(problems(write(FULL.replace("click: clk", "clck: clk")))) == 1
    assert len(problems(write(FULL.replace("impression -> click", "impression => click")))) == 1
    assert len(problems(write(FULL.replace("{type: id, share: user_id}", "{type: id, shre: user_id}")))) == 1


def test_a_monitor_has_to_be_measured(write: Write) -> None:
    config = read(write(SMALL + "monitor: val/clik/auc\n"))
    with pytest.raises(ConfigError, match=r"^monitor: 'val/clik/auc' is not measured\. Did you mean 'val/click/auc'\?"):
        configuration.check_monitor(config, ["val/loss", "val/click/auc"])
    configuration.check_monitor(config, ["val/clik/auc"])


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [("val/loss", "min"), ("val/click/auc", "max"), ("val/click/gauc", "max"), ("val/click/log_loss", "min")],
)
def test_auc_is_better_when_it_is_higher(monitor: str, mode: str, write: Write) -> None:
    assert configuration.monitor_mode(read(write(SMALL + f"monitor: {monitor}\n"))) == mode
    assert configuration.monitor_mode(read(write(SMALL + f"monitor: {monitor}\nmode: min\n"))) == "min"


# Files that are not what they should be


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{c}: &{c} [{', '.join([f'*{b}'] * 10)}]\n" for b, c in zip("abcdef", "bcdefg", strict=True)
)
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{c}: &{c} {{<<: [{', '.join([f'*{b}'] * 10)}]}}\n" for b, c in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", r"^x.yaml:1:1: the file is empty"),
        ("# only this\n", r"^x.yaml:1:1: the file is empty"),
        ("- a\n- b\n", r"^x.yaml:1:1: the file has to be a mapping"),
        ("just text", r"^x.yaml:1:1: the file has to be a mapping"),
        ("data:\n\ttrain: x\n", r"^x.yaml:2:1: a tab stands where YAML wants spaces"),
        ("a: 1\n---\nb: 2\n", r"^x.yaml:2:1: a second document begins here"),
        ("a: b: c\n", r"^x.yaml:1:5: a colon cannot stand here"),
        ("a: [1, 2\n", r"^x.yaml:2:1: this is not YAML"),
        ("a: 1\nb\n", r"^x.yaml:3:1: a colon and a value are missing"),
        ("a: *b\n", r"^x.yaml:1:4: this is not YAML: found undefined alias 'b'"),
        ("a: !!python/object:os.system x\n", r"^x.yaml:1:4: this is not YAML: the tag .* is not taken"),
        ("a: !!int x\n", r"the tag tag:yaml.org,2002:int is not taken"),
        ("a: 1\nb: x\0y\n", r"^x.yaml:2:5: the character 0x0000 cannot stand in YAML"),
        ("a: " + "[" * 3000, r"^x.yaml:1:\d+: this is not YAML: it is nested deeper than 50"),
        ("a: &a [*a]\n", r"aliases and lists make more than 50,000 values|nested"),
        (BOMB, r"aliases and lists make more than 50,000 values"),
        (MERGE_BOMB, r"aliases and lists make more than 50,000 values"),
        ("a: 1\n<<: 3\n", r"<< takes a mapping or a list of them"),
        (SMALL + "on: 1\n", r"^x.yaml:4:1: on: YAML does not take the key on for text\. Put it in quotes: 'on'\."),
        (SMALL + "labels: {No: x}\n", r"^x.yaml:4:10: labels.No: YAML does not take the key No for text"),
        (SMALL + "labels: {1: x}\n", r"^x.yaml:4:10: labels.1: YAML does not take the key 1 for text"),
        (SMALL + "labels: {~: x}\n", r"^x.yaml:4:10: labels.~: YAML does not take the key ~ for text"),
        (SMALL + "labels: {[a]: x}\n", r"^x.yaml:4:1: labels: a list or a mapping cannot be a key"),
        (
            SMALL + "seed: 1\nseed: 2\n",
            r"^x.yaml:5:1: seed: this key stands here twice, first in line 4\. Remove one\.",
        ),
        (SMALL + 'name: "\\ud800"\n', r"^x.yaml:4:1: name: it holds half a surrogate pair"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_line_and_column(text: str, expected: str, write: Write) -> None:
    assert found(write(text), expected)


def test_a_key_of_numbers_does_not_hide_the_other_problems(write: Write) -> None:
    assert len(problems(write(SMALL + "labels: {on: x, off: y}\nsead: 1\n"))) == 3


def test_quoted_old_booleans_are_ordinary_names(write: Write) -> None:
    text = "chain: impression -> on\nlabels: {'on': x}\ndata: {train: a}\nfeatures: {'no': id, 'null': id}\n"
    config = read(write(text))
    assert list(config.features) == ["no", "null"]
    assert Config.from_dict(config.to_dict(), REGISTRY) == config


def test_bytes_that_are_not_utf_8_are_told_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"name: a\nmonitor: \xff\xfe\n")
    assert problems(path) == ["x.yaml:2:10: this is not UTF-8. Save the file as UTF-8."]


def test_a_byte_order_mark_and_windows_lines_are_fine(write: Write) -> None:
    assert read(write("\ufeff" + SMALL.replace("\n", "\r\n"))) == read(write(SMALL))


def test_a_file_that_is_too_large_is_not_read(write: Write) -> None:
    assert found(write("#" * 1_000_001), r"^x.yaml: it has 1,000,001 bytes, more than 1,000,000")


def test_a_file_that_is_not_there_has_the_nearest_name(write: Write, tmp_path: Path) -> None:
    write(SMALL, "esmm.yaml")
    assert found(tmp_path / "esm.yaml", r"^esm.yaml: there is no such file\. Did you mean 'esmm.yaml'\?")


def test_anchors_and_merges_work(write: Write) -> None:
    text = SMALL + "tower: &t {type: mlp, dropout: 0.1}\ntowers: {click: {<<: *t, dropout: 0.2}, conversion: *t}\n"
    config = read(write(text))
    assert config.towers["conversion"] == config.tower
    assert (config.towers["click"].type, config.towers["click"].options["dropout"]) == ("mlp", 0.2)


# References


def test_references_lead_to_other_values_and_the_environment(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPACE_TEST_FOLDER", "/there")
    text = SMALL.replace("a.parquet", "'${oc.env:ESPACE_TEST_FOLDER}/${name}.parquet'") + "name: x\n"
    text += "embedding: {dim: '${oc.decode:${oc.env:ESPACE_TEST_NONE,8}}'}\nseed: ${embedding.dim}\nmonitor: a\\${b}\n"
    config = read(write(text), "name=y")
    assert (config.data.train, config.embedding.dim, config.seed) == ("/there/y.parquet", 8, 8)
    assert config.monitor == "a${b}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("${nope}", r"^x.yaml:4:1: name: '\$\{nope\}' leads nowhere: interpolation key 'nope' not found\. Mend it"),
        ("${oc.env:ESPACE_TEST_NONE}", r"the environment has no ESPACE_TEST_NONE\. Set it, or write"),
        ("${name}", r"name: .* leads nowhere: recursive interpolation"),
        ("${open", r"name: '\$\{open' leads nowhere"),
        ("${nobody:1}", r"name: .* leads nowhere: unsupported interpolation type nobody"),
        ("???", r"^x.yaml:4:1: name: it has to be given\. Write it in the file, or add the override name=VALUE\.$"),
    ],
)  # fmt: skip
def test_a_reference_that_leads_nowhere_is_told_with_the_rest(value: str, expected: str, write: Write) -> None:
    path = write(SMALL + f"name: {value}\nsead: 1\n")
    assert found(path, expected)
    assert found(path, r"sead: there is no such key")


def test_a_mapping_that_refers_to_itself_is_told(write: Write) -> None:
    assert found(write(SMALL + "trainer: {a: {b: '${trainer}'}}\n"), r"trainer.a.b: .* leads nowhere")


def test_references_cannot_grow_without_bound(write: Write) -> None:
    lists = {c: [f"${{trainer.{b}}}"] * 10 for b, c in zip("abcdef", "bcdefg", strict=True)}
    text = SMALL + dump({"trainer": {"a": ["x"], **lists}})
    assert found(write(text), r"trainer.e\[0\]: .* it is too much: resolved it has more than 10,000 characters")


# For editors


def test_the_json_schema_knows_every_key_part_and_option() -> None:
    schema = configuration.json_schema(REGISTRY)
    text = json.dumps(schema)
    assert schema["required"] == ["chain", "data", "features"]
    assert set(schema["properties"]) == set(Config.model_fields)
    assert {m[1] for m in re.finditer(r'"#/\$defs/(\w+)"', text)} <= set(schema["$defs"])
    bare, mlp, din = schema["$defs"]["towers"]["oneOf"]
    assert bare["enum"] == ["mlp"]
    assert set(mlp["properties"]) == {"type", "hidden_units", "dropout", "activation", "sizes"}
    assert (din["required"], din["description"], din["additionalProperties"]) == (["type", "key"], "Attention.", False)
    files, simulator = schema["$defs"]["Data"]["oneOf"]
    assert "delimiter" in files["properties"]
    assert (files["required"], simulator["required"]) == (["train"], ["train", "type"])


def allows_null(node: Any, shared: dict[str, Any]) -> bool:
    """Whether a JSON schema takes null."""
    if "$ref" in node:
        return allows_null(shared[node["$ref"].removeprefix("#/$defs/")], shared)
    if choices := node.get("anyOf") or node.get("oneOf"):
        return any(allows_null(choice, shared) for choice in choices)
    return bool(node.get("type", "null") == "null" and "const" not in node and "enum" not in node)


def places_of_null() -> list[tuple[str, ...]]:
    """Every key of the top level, of data, of every section and of every default part."""
    fields = configuration.schema.Fields.model_fields
    tree = Config.from_dict(yaml.safe_load(SMALL), REGISTRY).to_dict()
    sections = {
        key: value for key, value in tree.items() if key not in ("chain", "trainer", *PARTS) and isinstance(value, dict)
    }
    split = configuration.schema.Split.model_fields
    stage = configuration.schema.Stage.model_fields
    inner = [(key, name) for key, value in sections.items() for name in value]
    return (
        [(key,) for key in fields]
        + inner
        + [("data", "split", n) for n in split]
        + [("stages", "click", n) for n in stage]
    )


@pytest.mark.parametrize("place", places_of_null(), ids=".".join)
def test_the_json_schema_takes_null_wherever_a_yaml_does(place: tuple[str, ...]) -> None:
    tree = yaml.safe_load(SMALL)
    inside = tree
    for key in place[:-1]:
        old = inside.get(key)
        inside[key] = {"type": old} if isinstance(old, str) else dict(old or {})
        inside = inside[key]
    inside[place[-1]] = None
    try:
        Config.from_dict(tree, REGISTRY)
        taken = True
    except ConfigError as error:
        taken = ".".join(place) not in str(error)
    schema = configuration.json_schema(REGISTRY)
    assert node_of(schema, place, tree) == taken


def node_of(schema: dict[str, Any], place: tuple[str, ...], tree: Any) -> bool:
    """Whether the schema takes null at a place of a tree."""
    shared, nodes = schema["$defs"], [schema]
    for key in place:
        found = []
        for node in nodes:
            found += [] if (child := child_of(node, key, tree)) is None else [child]
        nodes = [choice for node in found for choice in choices_of(node, shared)]
        tree = tree.get(key) if isinstance(tree, dict) else None
    return any(allows_null(node, shared) for node in nodes)


def choices_of(node: dict[str, Any], shared: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return choices_of(shared[node["$ref"].removeprefix("#/$defs/")], shared)
    choices = node.get("anyOf") or node.get("oneOf")
    return [node] if not choices else [found for choice in choices for found in choices_of(choice, shared)]


def child_of(node: dict[str, Any], key: str, tree: Any) -> Any:
    """The schema of a key in a choice for mappings that is for this tree."""
    kind = node.get("properties", {}).get("type", {}).get("const")
    if kind is not None and isinstance(tree, dict) and tree.get("type", "files") != kind:
        return None
    beside = node.get("additionalProperties")
    return node.get("properties", {}).get(key, beside if isinstance(beside, dict) else None)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (Annotated[float, Gt(0), Lt(1)], "a number above 0 and below 1"),
        (list[str] | None, "a list of texts or null"),
        (tuple[int, ...], "a list of whole numbers"),
        (tuple[int, str], "a list of 2: a whole number, text"),
        (dict[str, int], "a mapping"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (bool | str | int, "true or false, text or a whole number"),
        (Annotated[int, Interval(ge=1, lt=5)], "a whole number of at least 1 and below 5"),
        (Annotated[int, Field(gt=0)], "a whole number above 0"),
        (list[dict[str, int]], "a list"),
        (Path, "Path"),
        (Any, "a value"),
    ],
)
def test_a_type_is_told_in_words(annotation: Any, words: str) -> None:
    assert describe(annotation) == words


def even(number: int) -> int:
    if number % 2:
        raise ValueError("it has to be even")
    return number


class Odd: ...


def make_odd(spec: object, *, odd: Odd) -> None: ...


def make_default(spec: object, *, number: int = Odd()) -> None: ...  # type: ignore[assignment]


def make_even(spec: object, *, number: Annotated[int, AfterValidator(even)] = 2) -> None: ...


def read_split(source: object, split: str, *, batch_size: int = 1) -> None: ...


@pytest.mark.parametrize(
    ("kind", "factory", "override", "expected"),
    [
        ("towers", make_odd, "tower=new", r"tower 'new' has an option that YAML cannot hold"),
        ("towers", make_default, "tower=new", r"tower 'new' has a default that YAML cannot hold"),
        ("towers", make_even, "tower={type: new, number: 3}", r"tower\.number: 3 is refused: it has to be even\."),
        ("readers", read_split, "data.type=new", r"reader 'new' has an option 'batch_size', a key of data"),
    ],
)
def test_what_an_author_did_wrong_is_told(kind: str, factory: Any, override: str, expected: str, write: Write) -> None:
    registry = Registry(_entries={kind: dict(entries) for kind, entries in REGISTRY._entries.items()})
    registry.add(Entry(kind, "new", factory, "tests"))
    with pytest.raises(EspaceError, match=expected):
        load(write(SMALL), [override], registry)


def test_the_registry_comes_with_the_configuration(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plugins, "BUILTIN", ())
    hooks = "\n\n".join(
        f"@espace.hookimpl\ndef register_{kind}(register):\n"
        + "".join(f"    register({n!r}, nothing)\n" for n in names)
        for kind, names in {
            **{PARTS[key]: [DEFAULTS[key]] for key in PARTS},
            "metrics": list(DEFAULTS["metrics"]),
            "readers": ["files"],
            "loggers": list(DEFAULTS["loggers"]),
            "optimizers": ["adam"],
            "schedules": ["constant"],
        }.items()
    )
    write(f"import espace\n\n\ndef nothing(*given): ...\n\n\n{hooks}", "parts.py")
    config, registry = configuration.load_with_plugins(write(SMALL + "plugins: [./parts.py]\n"))
    assert registry.get("towers", config.tower.type).package == str(tmp_path / "parts.py")
    assert Config.from_dict(config.to_dict()) == load(write(SMALL + "plugins: [./parts.py]\n")) == config


# Anything else


NOISE = [
    "",
    " ",
    "\n",
    "\t",
    ":",
    "- ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "'",
    '"',
    "#",
    "&a ",
    "*a",
    "<<: ",
    "${",
    "???",
    "on: ",
    "null",
]


@settings(max_examples=80, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 1900), st.integers(0, 8), st.sampled_from(NOISE)), min_size=1, max_size=3),
    overrides=st.lists(
        st.sampled_from(["data=1", "tower.type=[]", "chain.0=x", "features.a.b=null", "metrics={}"]), max_size=2
    ),
)
def test_whatever_is_typed_is_read_or_refused_with_places(
    edits: list[tuple[int, int, str]], overrides: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = FULL
    for start, length, new in edits:
        text = text[:start] + new + text[start + length :]
    path = tmp_path_factory.getbasetemp() / "noise.yaml"
    path.write_text(text)
    try:
        config = read(path, *overrides)
    except ConfigError as error:
        assert all(p.startswith((f"{path}:", "override '")) for p in error.problems)  # noqa: PT017
    else:
        assert Config.from_dict(config.to_dict(), REGISTRY) == config


# Presets


def test_a_preset_stands_where_nothing_is_written(write: Write) -> None:
    config = read(write(SMALL + "preset: paper\n"))
    assert (config.data.batch_size, config.optimizer.lr, config.optimizer.average) == (1024, 0.001, 0.0)
    assert (config.embedding.dim, config.trainer) == (18, {"max_epochs": 1})
    assert config.tower.options["hidden_units"] == [360, 200, 80]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.batch_size=64", 64),
        ("optimizer.lr=0.5", 0.5),
        ("embedding.dim=4", 4),
        ("trainer.max_epochs=7", 7),
        ("tower.hidden_units=[3]", [3]),
    ],
)
def test_what_is_written_goes_before_a_preset(write: Write, override: str, expected: Any) -> None:
    place = override.partition("=")[0].split(".")
    found: Any = read(write(SMALL + "preset: paper\n"), override).to_dict()
    for key in place:
        found = found[key]
    assert found == expected


def test_a_preset_adds_no_epochs_to_a_length_in_steps_and_no_options_to_another_tower(write: Write) -> None:
    config = read(write(SMALL + "preset: paper\n"), "trainer.max_steps=5", "tower={type: mlp}")
    assert config.trainer == {"max_steps": 5}
    assert read(write(SMALL + "preset: paper\ntower: {type: din, key: h}\n")).tower.type == "din"


def test_an_unknown_preset_is_refused(write: Write) -> None:
    assert found(write(SMALL + "preset: papers\n"), r"preset: 'papers' is not 'paper' or null|Did you mean 'paper'")
