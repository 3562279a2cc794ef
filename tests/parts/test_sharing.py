"""Sharing and links from the YAML to the gradient: every combination learns, what makes no sense is refused, gates are told."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from espace.config import Config, json_schema, load_with_plugins
from espace.data.batch import Batch, Ragged
from espace.data.encoding.columns import is_categorical, is_list, table_of
from espace.data.encoding.encode import Layout, ordered_ids
from espace.errors import ConfigError, PluginError
from espace.model.blocks import Gate
from espace.model.model import Model
from espace.registry.registry import Registry, load
from espace.runs.build import build_model, build_objective, chain_of, features_of
from espace.runs.experiment import Experiment
from espace.runs.inputs import build_encoder
from espace.runs.show import catalogue
from espace.testing import random_labels
from espace.training.judging import Terms, Utilisation
from tests.papers.loops import linear, softmax
from tests.shop import CONFIG, Shop, Trained

ESMM = Path(__file__).parents[2] / "examples" / "esmm.yaml"
CHAINS = {
    "esmm": [],
    "esm2": [
        "chain=[impression -> click, click -> cart | wish else browse, cart -> buy, wish -> buy, browse -> buy]",
        "data.potential={}",
    ],
}
SMALL = ["embedding.dim=4", "tower={type: mlp, hidden_units: [8]}"]
SMALLER = {
    "xdeepfm": ["sharing.expert.cin_units=[8]", "sharing.expert.hidden_units=[8]"],
    "finalmlp": ["sharing.expert.heads=2", "sharing.expert.hidden_units1=[8]", "sharing.expert.hidden_units2=[8]"],
    "bst": ["sharing.expert.hidden_units=[8]"],
}
ROWS, KNOWN = 64, 12


def built(*overrides: str) -> tuple[Config, Registry, Layout, Model]:
    """examples/esmm.yaml changed as on a command line; every table has rows for a few ids."""
    torch.manual_seed(0)
    config, registry = load_with_plugins(ESMM, [*SMALL, *overrides])
    sizes = {f.name: KNOWN for f in features_of(config) if is_categorical(f) and table_of(f) == f.name}
    layout = build_encoder(config, sizes, {}).layout
    return config, registry, layout, build_model(config, registry, layout)


def batch_of(config: Config, layout: Layout) -> Batch:
    """Random ids, histories of 0 to 3 events, and labels that follow the chain."""
    features, chain = features_of(config), chain_of(config)

    def drawn(table: str, count: int) -> torch.Tensor:
        slot = layout.slots[table]
        return torch.randint(slot.offset + 1, slot.offset + slot.rows, (count,)).int()

    ids = [drawn(table_of(f), ROWS) for f in ordered_ids(features, config.embedding.dim)]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (torch.arange(ROWS) % 4).cumsum(0)])
    lists = {f.name: Ragged(drawn(table_of(f), int(offsets[-1])), offsets) for f in features if is_list(f)}
    labels = random_labels(chain, ROWS).values
    return Batch(torch.stack(ids, dim=1), lists, torch.empty(ROWS, 0), labels, torch.ones(ROWS), {})


def step(*overrides: str) -> tuple[Config, Model, Batch]:
    """One step forward and backward."""
    config, registry, layout, model = built(*overrides)
    batch = batch_of(config, layout)
    terms = Terms.of(build_objective(config, registry), model(batch), batch)
    loss = torch.stack([*terms.means().values()]).sum()
    added = model.auxiliary_loss()
    torch.autograd.backward(loss if added is None else loss + added)
    return config, model, batch


def assert_everything_learns(model: Model, batch: Batch) -> None:
    """Every parameter has a gradient that is not zero; tables in every row that was looked up."""
    looked_up = set(batch.ids.unique().tolist())
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        assert gradient.isfinite().all() if not gradient.is_sparse else gradient.coalesce().values().isfinite().all()
        if ".tables." not in name:
            assert gradient.any(), name
        else:
            rows = gradient.to_dense().any(dim=1).nonzero()[:, 0]
            assert looked_up <= set(rows.tolist()), name


# -- every combination learns


def combinations() -> Iterator[list[str]]:
    for tower in ("mlp", "deepfm", "din"):
        for sharing in ("separate", "mmoe", "ple"):
            for link in ("none", "aitm"):
                found = [f"sharing={sharing}", f"link={link}"]
                if sharing == "separate":
                    found.append(f"tower={tower}")
                else:
                    found.append(f"sharing.expert={tower}")
                    found += ["sharing.levels=1"] if (sharing, tower) == ("ple", "din") else []
                    found += ["tower=deepfm"] if tower == "deepfm" else []  # for din an mlp, as SMALL says
                yield found


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("overrides", list(combinations()), ids=" ".join)
def test_every_parameter_of_every_combination_learns(chain: str, overrides: list[str]) -> None:
    config, model, batch = step(*CHAINS[chain], *overrides)
    assert_everything_learns(model, batch)
    assert f"sharing={config.sharing.type}" in overrides
    assert len(model.towers) == len(chain_of(config).transitions)


@pytest.mark.parametrize("tower", [entry.name for entry in load().entries("towers")])
def test_every_tower_can_be_an_expert(tower: str) -> None:
    config, model, batch = step("sharing=cgc", f"sharing.expert.type={tower}", *SMALLER.get(tower, []), "link=relation")
    assert config.sharing.expert is not None
    assert config.sharing.expert.type == tower
    assert_everything_learns(model, batch)


@pytest.mark.parametrize("link", ["none", "aitm", "relation"])
@pytest.mark.parametrize("sharing", ["separate", "shared_bottom", "mmoe", "cgc", "ple"])
def test_every_sharing_goes_with_every_link_under_a_chain_of_choices_and_merges(sharing: str, link: str) -> None:
    chain = [
        "chain=[a -> b | c else d, b -> e else f, c -> e else f, e -> g, f -> g, a -> h]",
        "data.potential={}",
    ]
    _, model, batch = step(*chain, f"sharing={sharing}", f"link={link}")
    assert_everything_learns(model, batch)


# -- the configuration


def config_of(*overrides: str) -> Config:
    return load_with_plugins(ESMM, [*SMALL, *overrides])[0]


def test_the_expert_is_a_tower_of_its_own_whatever_tower_is() -> None:
    experts = list(built("sharing=mmoe", "sharing.experts=2", "sharing.expert.type=din")[3].sharing.experts)
    assert [type(e).__name__ for e in experts] == ["DIN", "DIN"]
    config = config_of("sharing=mmoe", "tower.dropout=0.5")
    assert config.sharing.expert == config_of("sharing=mmoe", "sharing.expert=mlp").sharing.expert
    assert config.sharing.expert != config.tower


@pytest.mark.parametrize(
    "overrides",
    [
        ["sharing=mmoe", "sharing.expert.type=din", "sharing.expert.dropout=0.1"],
        ["sharing=mmoe", "sharing.expert=din", "sharing.expert.dropout=0.1"],
        ["sharing={type: mmoe, expert: {type: din, dropout: 0.1}}"],
        ["sharing.type=mmoe", "sharing.expert={type: din}", "sharing.expert.dropout=0.1"],
    ],
)
def test_overrides_reach_the_expert_however_it_is_written(overrides: list[str]) -> None:
    sharing = config_of(*overrides).sharing
    assert sharing.expert is not None
    assert (sharing.type, sharing.expert.type, sharing.expert.options["dropout"]) == ("mmoe", "din", 0.1)
    assert sharing.expert.options["hidden_units"] == [200, 80], "defaults are written out"


def test_an_expert_that_is_not_named_is_an_mlp_whose_options_can_be_set() -> None:
    expert = config_of("sharing=cgc", "sharing.expert.hidden_units=[7]").sharing.expert
    assert expert is not None
    assert (expert.type, expert.options["hidden_units"]) == ("mlp", [7])


def test_a_configuration_with_an_expert_is_written_and_read_as_it_was() -> None:
    config = config_of("sharing=ple", "sharing.expert=deepfm", "link=aitm")
    assert config.to_dict()["sharing"]["expert"]["type"] == "deepfm"
    assert Config.from_dict(config.to_dict(), load()) == config
    assert "expert" not in config_of("sharing=separate").to_dict()["sharing"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["sharing=mmoe", "embedding.shared=false"], r"no common input\. Set embedding.shared: true, or sharing: sep"),
        (["sharing=mmoe", "tower=din"], r"tower of impression_to_click: din cannot be built behind .*sharing.expert to din"),
        (["sharing=cgc", "towers.conversion=dien"], r"tower of click_to_conversion: dien cannot .* Set it to mlp, and"),
        (["sharing=shared_bottom", "tower=bst"], r"bst cannot be built behind experts.* Set it to mlp, and sharing.expert"),
        (["sharing=ple", "sharing.expert=din"], r"sharing.expert: din cannot .*cgc, or ple with levels: 1\."),
        (["sharing=ple", "sharing.expert=dien"], r"sharing.expert: dien cannot be built behind experts.*such as mlp"),
        (["sharing=ple", "sharing.expert=bst"], r"sharing.expert: bst cannot be built behind experts.*such as mlp"),
        (["sharing=cgc", "sharing.own=0", "sharing.shared=0"], r"sharing: cgc cannot be built: own and shared are both 0"),
        (["sharing=mmoe", "sharing.experts=0"], r"sharing.experts: 0 is not a whole number above 0"),
        (["sharing=ple", "sharing.own=-1"], r"sharing.own: -1 is not a whole number of at least 0"),
        (["sharing=separate", "sharing.expert=din"], r"separate has no option 'expert'\. It has no experts\. Remove the"),
        (["sharing=mmoe", "sharing.expert=dinn"], r"sharing.expert: there is no tower 'dinn'\. Did you mean 'din'\?"),
        (["sharing=mmoe", "sharing.expert.hiden_units=[3]"], r"sharing.expert: mlp has no option 'hiden_units'\. Did"),
        (["sharing=ple", "sharing.expret=din"], r"sharing: ple has no option 'expret'\. Did you mean 'expert'\?"),
        (["sharing=mmoe", "sharing.expert=null"], r"sharing.expert: null is neither the name of a tower nor"),
        (["link=aitm", "link.dropout=1"], r"link.dropout: 1 is not a number of at least 0 and below 1"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_the_way_out(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Experiment.from_yaml(ESMM, overrides)


SHARING = """import espace
from torch import nn


class {name}(nn.Module):
    def __init__(self, spec, transitions{more}):
        super().__init__()
        self.specs = dict.fromkeys(transitions, spec)

    def forward(self, features):
        return dict.fromkeys(self.specs, features)


@espace.hookimpl
def register_sharing(register):
    register("{name}", {name})
"""


def plugin(folder: Path, more: str) -> list[str]:
    (folder / "mine.py").write_text(SHARING.format(name="mine", more=more))
    return ["sharing=mine", f"plugins=[{folder / 'mine.py'}]"]


def test_a_plugin_has_an_expert_if_it_takes_a_third_argument(tmp_path: Path) -> None:
    assert config_of(*plugin(tmp_path, ", make, *, width: int = 3"), "sharing.expert=deepfm").sharing.expert
    two = tmp_path / "two"
    two.mkdir()
    assert config_of(*plugin(two, ", *, expert: int = 3"), "sharing.expert=5").sharing.options == {"expert": 5}


def test_expert_is_no_name_for_an_option_where_there_are_experts(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"mine.py:.*sharing 'mine': an option cannot be called 'expert'\. Rename it"):
        config_of(*plugin(tmp_path, ", make, *, expert: int = 3"))


WITH_EXPERTS = {"shared_bottom", "mmoe", "cgc", "ple"}


def test_the_list_and_the_schema_have_the_expert_where_there_is_one() -> None:
    blocks = re.split(r"^  (?=\w)", catalogue("sharing", []), flags=re.M)[1:]
    listed = {block.split()[0]: "expert: a tower; default 'mlp'" in block for block in blocks}
    parts = json_schema(load())["$defs"]["sharing"]["oneOf"][1:]  # after the bare names
    known = {part["properties"]["type"]["const"]: part["properties"].get("expert") for part in parts}
    assert {name for name, has in listed.items() if has} == WITH_EXPERTS
    assert {name for name, expert in known.items() if expert == {"$ref": "#/$defs/towers"}} == WITH_EXPERTS
    assert {*listed} == {*known} == {"separate", *WITH_EXPERTS}


# -- what the gates use


def rows_of(batches: list[torch.Tensor], weights: list[torch.Tensor]) -> Iterator[tuple[list[float], float]]:
    for x, w in zip(batches, weights, strict=True):
        yield from zip(x.tolist(), w.tolist(), strict=True)


def test_mean_weights_are_those_of_the_formula_over_all_batches_since_they_were_last_told() -> None:
    torch.manual_seed(0)
    gates = [Gate(3, ["a/x", "a/y"]).train(), Gate(3, ["b/x", "b/y", "b/z"]).train()]
    utilisation = Utilisation(gates)
    for _ in range(2):  # the second time nothing of the first is left
        batches = [torch.randn(rows, 3) for rows in (5, 1, 0, 8)]
        weights = [torch.randint(3, (len(x),)).float() for x in batches]  # of the rows, some of which do not count
        for x, w in zip(batches, weights, strict=True):
            for gate in gates:
                gate(x, [torch.randn(len(x), 2)] * len(gate.names))
            utilisation.add(w)
        expected: dict[str, float] = {}
        total = sum(float(w.sum()) for w in weights)
        for gate in gates:
            for i, name in enumerate(gate.names):
                shares = [softmax(linear(gate.layer, x))[i] * w for x, w in rows_of(batches, weights)]
                expected[name] = sum(shares) / total
        assert utilisation.take() == pytest.approx(expected, rel=1e-5)


def test_weights_of_evaluation_do_not_count_and_keep_no_graph() -> None:
    gate = Gate(3, ["x", "y"])
    gate.eval()(torch.randn(4, 3), [torch.randn(4, 2)] * 2)
    assert not hasattr(gate, "weights")
    gate.train()(torch.randn(4, 3), [torch.randn(4, 2)] * 2)
    assert not gate.weights.requires_grad
    assert gate.weights.sum(1).tolist() == pytest.approx([1.0] * 4)


def test_half_precision_of_the_step_does_not_reach_the_sums() -> None:
    gate = Gate(3, ["x", "y"])
    utilisation = Utilisation([gate])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gate(torch.randn(1001, 3), [torch.randn(1001, 2)] * 2)
        utilisation.add(torch.ones(1001))
    assert gate.weights.dtype == utilisation.used.dtype == torch.float32
    assert utilisation.used.sum().item() == pytest.approx(1001, rel=1e-6)


def test_a_model_without_anything_to_weigh_tells_nothing_and_saves_nothing() -> None:
    for overrides in (["sharing=separate"], ["sharing=shared_bottom"], ["sharing=mmoe", "sharing.experts=1"]):
        utilisation = Utilisation(built(*overrides)[3].gates)
        utilisation.add(torch.ones(ROWS))
        assert utilisation.take() == {}
        assert not utilisation.state_dict()


def lines_of(run: Path) -> dict[tuple[int, str], float]:
    with (run / "metrics.csv").open() as file:
        return {(int(line["step"]), line["name"]): float(line["value"]) for line in csv.DictReader(file)}


def gates_of(run: Path) -> dict[tuple[int, str], float]:
    return {key: value for key, value in lines_of(run).items() if "/gate/" in key[1]}


def test_training_tells_mean_weights_at_every_line_and_so_does_a_run_that_was_stopped_between_two(shop: Shop) -> None:
    """It stops after step 7, between the lines of steps 5 and 10."""
    mmoe = {"type": "mmoe", "experts": 2, "expert": {"type": "mlp", "hidden_units": [4]}}
    shop.yaml(data={**CONFIG["data"], "batch_size": 64}, sharing=mmoe, link="aitm")
    for command in ("--run-dir whole", "--run-dir parts trainer.max_steps=7", "--resume parts"):
        said = shop.espace("fit", "shop.yaml", *command.split())
        assert said.code == 0, said
    whole, parts = shop.folder / "whole", shop.folder / "parts"
    assert gates_of(parts) == pytest.approx(gates_of(whole), rel=1e-6)  # rows caught up where it stopped, too
    assert (whole / "figures" / "gates.png").stat().st_size > 5_000
    steps = sorted(step for step, name in lines_of(whole) if name == "train/loss")
    assert steps == [5, 10, 15, 20]
    for transition in ("impression_to_click", "click_to_conversion"):
        shares = [[gates_of(whole)[step, f"train/gate/{transition}/expert_{i}"] for i in (1, 2)] for step in steps]
        assert [sum(pair) for pair in shares] == pytest.approx([1.0] * 4)
        assert len({first for first, _ in shares}) == 4, "they move"


def test_without_gates_nothing_is_told_or_drawn(trained: Trained) -> None:
    assert not gates_of(trained.run)
    assert {path.name for path in (trained.run / "figures").iterdir()} >= {"learning_curves.png"}
    assert not (trained.run / "figures" / "gates.png").exists()
