"""The command line: quick to start, every command explains itself, every table says where its lines come from."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer

from espace.cli import app
from espace.config import json_schema
from espace.registry.registry import KINDS, load
from tests.shop import CONFIG, SPLITS, Said, Shop, rows

COMMANDS = ["fit", "check", "show", "evaluate", "predict", "list", "schema", "new"]
TREE = ["impression -> click", "click -> cart | wish else browse", "cart -> buy", "wish -> buy", "browse -> buy"]


def shell(*arguments, code=None):
    """Run Python in a process of its own."""
    command = [sys.executable, "-X", "importtime", *(("-c", code) if code else ("-m", "espace")), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = {
        line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")
    }
    return result.stdout, {name.partition(".")[0] for name in modules}


class TestStart:
    @pytest.mark.parametrize("arguments", [(), ("--help",), ("fit", "--help"), ("predict", "--help")], ids=" ".join)
    def test_help_imports_nothing_slow(self, arguments):
        if not arguments:
            _, modules = shell(code="import espace; espace.__version__")
        else:
            out, modules = shell(*arguments)
            assert "Usage" in out
        assert not modules & {"torch", "pytorch_lightning", "torchmetrics", "pyarrow", "omegaconf", "numpy"}

    def test_the_command_line_names_every_command(self):
        out, _ = shell("--help")
        assert all(f" {command} " in out for command in COMMANDS)

    def test_without_a_command_it_shows_the_help(self, shop):
        assert "Usage" in "".join((said := shop.espace()).out + said.error)


@pytest.mark.parametrize("command", COMMANDS)
class TestHelp:
    def test_every_command_says_what_it_does_with_an_example(self, shop, command):
        text = " ".join(shop.espace(command, "--help").out.split())
        assert f"Example: espace {command} " in text

    def test_every_option_and_argument_is_explained(self, command):
        parameters = typer.main.get_command(app).commands[command].params
        assert all(p.help for p in parameters), [p.name for p in parameters if not p.help]

    def test_an_option_that_does_not_exist_is_refused(self, shop, command):
        assert shop.espace(command, "--no-such-option").code == 2


class TestFit:
    def test_it_tells_labels_terms_progress_results_and_what_to_do_next(self, trained):
        out = trained.said.out
        assert "Which rows feed which loss term (entire_space)" in out
        assert "all impressions, click known" in out
        assert "validation loss" in out
        assert "Results on validation" in out
        assert "Results on test" in out
        assert f"Predict with: espace predict {trained.run} --data FILE --out predictions.parquet" in out
        assert trained.said.error == ""

    def test_quiet_says_nothing(self, shop):
        yaml = shop.yaml(trainer={"accelerator": "cpu", "max_steps": 1})
        assert shop.espace("fit", yaml, "--run-dir", "run", "--quiet") == Said(0, "", "")

    def test_debug_shows_where_an_error_comes_from(self, shop):
        with pytest.raises(AssertionError, match="a traceback"):
            shop.espace("fit", shop.yaml(), "data.train=no.parquet", "--debug")

    def test_names_with_brackets_are_shown_as_they_are(self, shop):
        for split, seed in SPLITS.items():
            table = rows(600, seed)
            shop.write(table.rename_columns({"click": "[b]click"}), f"{split}.parquet")
        options = {"labels": {"click": "[b]click"}, "trainer": {"accelerator": "cpu", "max_steps": 1}}
        out = shop.espace("fit", shop.yaml(name="[red]shop[/]", **options), "--run-dir", "run[bold]").out
        assert "  [b]click  " in out
        assert "[red]shop[/]: " in out
        assert "espace predict run[bold] --data" in out

    def test_an_override_may_stand_where_the_file_would_when_a_run_goes_on(self, shop):
        yaml = shop.yaml(trainer={"accelerator": "cpu", "max_epochs": 1})
        assert shop.espace("fit", yaml, "--run-dir", "run").code == 0
        said = shop.espace("fit", "trainer.max_epochs=2", "--resume", "run")
        assert said.code == 0, said
        steps = {int(line.split(",")[0]) for line in (shop.folder / "run/metrics.csv").read_text().split()[1:]}
        assert max(steps) == 6, "two epochs of three batches"


class TestCheck:
    def test_it_audits_every_part_and_trains_nothing(self, shop):
        yaml, before = shop.yaml(), set(shop.folder.iterdir())
        said = shop.espace("check", yaml)
        assert said.code == 0
        assert all(part in said.out for part in ("train", "validation", "test"))
        assert said.out.endswith("Nothing stands against training.\n")
        assert set(shop.folder.iterdir()) <= before | {shop.folder / "shop.yaml"}


class TestShow:
    @pytest.fixture
    def text(self, shop):
        """ESM2 without any data."""
        for split in ("train", "validation", "test"):
            (shop.folder / f"{split}.parquet").unlink()
        said = shop.espace(
            "show", shop.yaml(chain=TREE, towers={"buy": {"type": "mlp", "hidden_units": [4]}}, metrics=None)
        )
        assert said.code == 0, said
        return said.out

    def test_it_prints_the_equation_of_every_probability(self, text):
        for equation in (
            "P(click) = sigmoid(z[impression_to_click])",
            "P(cart given click) = softmax(z[click_to_cart_or_wish], 0)[cart]",
            "P(browse given click) = softmax(z[click_to_cart_or_wish], 0)[browse]",
            "P(buy) = P(cart) P(buy given cart) + P(wish) P(buy given wish) + P(browse) P(buy given browse)",
            "P(buy given wish) = sigmoid(z[wish_to_buy])",
        ):
            assert f"    {equation}\n" in text

    def test_it_prints_the_rows_and_the_labels_that_every_probability_needs(self, text):
        for name, needs in (
            ("P(click)", "all rows; label click"),
            ("P(cart given click)", "rows with click = 1; labels click, cart"),
            ("P(browse)", "all rows; labels click, cart, wish"),
            ("P(buy)", "all rows; label buy"),
            ("P(buy given browse)", "rows with browse = 1; labels click, cart, wish, buy"),
        ):
            lines = text.splitlines()
            place = next(n for n, line in enumerate(lines) if line.startswith(f"    {name} = "))
            assert lines[place + 1] == f"        {needs}"

    def test_it_prints_every_loss_term_with_its_rows_and_divisor(self, text):
        for stage in ("click", "cart", "wish", "buy"):
            loss = f"{stage}: mean of -y log P({stage}) - (1 - y) log P(not {stage})"
            assert f"    {loss}; on all impressions, {stage} known; divided by the same rows\n" in text
        assert "    browse: mean of" not in text, "an else stage has no label"

    def test_it_prints_every_module_with_width_and_parameters(self, text):
        width = 7 * 4 + 2 + 3 - 4  # six tables of 4, price and its flag, a vector of 3
        assert f"flat vector: {width} columns" in text
        linear = (width + 1) * 8
        assert (
            f"impression_to_click: tower mlp ({linear:,} parameters) -> 8 -> head (9 parameters) -> 1 logit\n" in text
        )
        assert (
            f"click_to_cart_or_wish: tower mlp ({linear:,} parameters) -> 8 -> head (18 parameters) -> 2 logits\n"
            in text
        )
        assert (
            f"cart_to_buy: tower mlp ({(width + 1) * 4:,} parameters) -> 4 -> head (5 parameters) -> 1 logit\n" in text
        )

    def test_it_draws_the_chain(self, text):
        assert "Drawing\n    impression\n    └─ click\n       └─ one of\n          ├─ cart\n" in text
        drawing = text.partition("Drawing (mermaid)\n")[2]
        assert "flowchart LR" in drawing
        assert 'click -->|"cart or wish"| wish' in drawing
        assert "click -.->|else| browse" in drawing

    def test_overrides_apply(self, shop):
        text = shop.espace("show", shop.yaml(), "objective=parent_space", "tower.hidden_units=[16]").out
        assert "on rows with click = 1, conversion known" in text
        assert "-> 16 -> head (17 parameters)" in text


class TestList:
    def test_a_tower_has_its_options_with_defaults_a_line_of_doc_and_its_package(self, shop):
        out = shop.espace("list", "towers").out
        assert out.startswith("towers:\n  mlp  (espace)  Linear, norm, activation, dropout")
        assert "hidden_units: a list of whole numbers above 0; default [360, 200, 80]\n" in out
        assert "activation: one of 'relu', 'prelu', 'gelu', 'silu', 'tanh'; default 'relu'\n" in out

    def test_an_option_without_default_is_required(self, shop):
        assert "by: text; required\n" in shop.espace("list", "metrics").out
        assert "buckets: a whole number above 0; required\n" in shop.espace("list", "features").out

    def test_all_kinds_are_listed_with_every_name(self, shop):
        out = shop.espace("list").out
        for kind in (*KINDS, "features"):
            assert f"{kind}:" in out
        for kind in KINDS:
            for entry in load().entries(kind):
                assert f"\n  {entry.name}  ({entry.package})  " in out
                assert entry.summary, f"{kind} {entry.name} has no line of doc"

    def test_a_plugin_can_be_listed_before_it_is_used(self, shop):
        plugin = shop.tower("flat")
        out = shop.espace("list", "towers", "--plugin", plugin).out
        assert "  flat  (./flat.py)" in out
        assert "      width: a whole number; default 4\n" in out


class TestSchema:
    def test_it_is_json_that_knows_every_key_and_part(self, shop):
        schema = json.loads(shop.espace("schema").out)
        assert schema["$schema"].startswith("https://json-schema.org/")
        assert set(schema["properties"]) >= {*CONFIG, "labels", "stages", "towers", "monitor", "plugins", "seed"}
        text = json.dumps(schema)
        for name in ("mlp", "entire_space", "parent_space", "gauc", "simulator", "hidden_units", "min_count"):
            assert f'"{name}"' in text

    def test_it_has_the_options_of_a_plugin(self, shop):
        found = json.loads(shop.espace("schema", "--plugin", shop.tower("flat")).out)
        assert '"flat"' in json.dumps(found)
        assert '"flat"' not in json.dumps(json_schema(load()))


def test_a_shop_needs_no_more_than_a_folder(tmp_path):
    assert Shop(tmp_path).fill(10).folder == tmp_path
