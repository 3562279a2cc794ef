"""The documentation: every block runs, nothing public is left out, every link leads somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

import espace
from espace import errors
from espace.cli import app
from espace.config.schema import DATA_KEYS, DEFAULTS, Data, Embedding, Fields, Optimizer, Split, Stage
from espace.contracts import CONTRACTS
from espace.data.encoding.columns import FEATURE_TYPES
from espace.registry import hookspecs
from espace.registry.registry import KINDS, Entry, load
from espace.registry.signature import given_of, options_of
from tests import pages

DOCS = pages.HOME / "docs"
EVERYTHING = "\n".join(pages.text_of(page) for page in pages.PAGES)
ENTRIES = [entry for kind in KINDS for entry in load().entries(kind) if entry.package == "espace"]
COMMANDS = typer.main.get_command(app).commands
SETUP = ("-m venv", "pip install", "-m pytest")


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    pages.Reader(page, tmp_path).read()


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_every_block_says_its_language(page: Path) -> None:
    assert {block.language for block in pages.blocks_of(page)} <= set(pages.LANGUAGES)
    assert pages.text_of(page).count("```") == 2 * len(pages.blocks_of(page))


def test_python_blocks_are_formatted(tmp_path: Path) -> None:
    for page in pages.PAGES[1:]:  # the README has a compact one
        for block in pages.blocks_of(page):
            if block.language == "python":
                (tmp_path / f"{page.stem}_{block.line}.py").write_text(block.text)
    ruff = [sys.executable, "-m", "ruff", "format", "--check", "--line-length", "120", str(tmp_path)]
    done = subprocess.run(ruff, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# -- links


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_every_link_within_the_documentation_resolves(page: Path) -> None:
    for link in pages.links_of(page):
        if "://" in link:
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not fragment or fragment in pages.anchors_of(target), f"{page.name} links to {link}"


def test_the_site_has_every_page_once() -> None:
    def files(node: object) -> list[str]:
        items = node if isinstance(node, list) else node.values() if isinstance(node, dict) else []
        return [node] if isinstance(node, str) else [file for item in items for file in files(item)]

    nav = files(yaml.safe_load((pages.HOME / "mkdocs.yml").read_text())["nav"])
    assert sorted(nav) == sorted(page.name for page in DOCS.glob("*.md"))


# -- what espace promises


def _promised() -> list[tuple[str, str]]:
    """(file, name) of every test that the page of promises names."""
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", pages.text_of(DOCS / "promises.md"))


def test_every_promise_names_a_test_that_is_there() -> None:
    text = pages.text_of(DOCS / "promises.md")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| fault |")]
    assert [row for row in rows if row.count(" | ") != 5 or not re.search(r"`tests/[\w/]+\.py::\w+` \|$", row)] == []
    there = {file: (pages.HOME / file).read_text() for file, _ in _promised()}
    assert [f"{file}::{name}" for file, name in _promised() if f"def {name}(" not in there[file]] == []


def test_every_fuzzed_door_is_promised() -> None:
    doors = {f"tests/fuzz/{p.name}" for p in (pages.HOME / "tests" / "fuzz").glob("test_*.py")}
    assert doors == {file for file, _ in _promised() if file.startswith("tests/fuzz/")}


# -- the two commands


def _setup(text: str) -> set[str]:
    """The lines that install or test, without options that only make them quieter."""
    steps = (step.strip() for line in text.splitlines() for step in line.split(" && "))
    quiet = re.compile(r" --quiet| --disable-pip-version-check")
    return {quiet.sub("", step) for step in steps if any(word in step for word in SETUP)}


def test_the_readme_installs_and_tests_as_ci_does() -> None:
    blocks = [block.text for block in pages.blocks_of(pages.HOME / "README.md") if block.language == "sh"]
    train, test = blocks[:2]
    assert _setup(test) <= _setup((pages.HOME / ".ci" / "run").read_text())
    assert len(_setup(test)) == 3
    assert _setup(train) == {step.replace(' -e ".[dev]"', "") for step in _setup(test) if "pytest" not in step}
    assert train.rstrip().endswith(".venv/bin/espace fit examples/esmm.yaml")


# -- nothing public is left out


def _names(text: str) -> set[str]:
    """Names in code: between backticks, or in a block."""
    code = [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)]
    return {name for part in code for name in re.findall(r"[\w-]+", part)}


def _missing(wanted: object, text: str) -> set[str]:
    return set(wanted) - _names(text)  # type: ignore[call-overload]


@pytest.mark.parametrize("hook", [f"register_{kind}" for kind in KINDS])
def test_every_hook_has_a_section_with_its_arguments(hook: str) -> None:
    section = pages.sections_of(DOCS / "plugins.md")[hook]
    arguments = hookspecs.__dict__[hook].__code__.co_varnames[:1]
    assert f"`{hook}({', '.join(arguments)})`" in section
    for entry in load().entries(hook.removeprefix("register_")):
        factory = f"factory({', '.join([*given_of(entry.factory), '*, options'])})"
        assert factory in section, f"{hook}: {entry.name} is built as {factory}"


@pytest.mark.parametrize("kind", KINDS)
def test_the_section_of_a_hook_names_the_contract_and_all_that_it_asks_for(kind: str) -> None:
    section = pages.sections_of(DOCS / "plugins.md")[f"register_{kind}"]
    for contract in CONTRACTS[kind]:
        asked = [name for name in vars(contract) if not name.startswith("_")]
        assert f"`espace.{contract.__name__}`" in section
        assert f"`espace.{contract.__name__}`" in pages.text_of(DOCS / "api.md")
        assert kind == "pieces" or not _missing(asked, section), f"{contract.__name__}: {_missing(asked, section)}"


def test_no_hook_is_unknown_to_this_test() -> None:
    assert {name for name in vars(hookspecs) if name.startswith("register_")} == {f"register_{kind}" for kind in KINDS}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_every_part_is_named_with_its_options(entry: Entry) -> None:
    home = {
        "objectives": "objectives",
        "metrics": "metrics",
        "readers": "data",
        "loggers": "training",
        "optimizers": "training",
        "schedules": "training",
    }.get(entry.kind, "model")
    page = DOCS / f"{'simulator' if entry.name == 'simulator' else home}.md"
    where = pages.sections_of(page)[entry.name] if home in ("objectives", "metrics") else pages.text_of(page)
    assert not _missing([entry.name], pages.text_of(page))
    assert not _missing([option.name for option in entry.options], where)


def test_every_tower_is_on_its_page_with_its_package_and_in_the_readme_of_that() -> None:
    page = pages.text_of(DOCS / "towers.md")
    for entry in load().entries("towers"):
        package = entry.package.split()[0]
        assert re.search(rf"^\| `{entry.name}` \|.*\| (`{package}`|built in) \|$", page, re.M), entry.name
        readme = pages.HOME / "plugins" / package / "README.md"
        assert package == "espace" or entry.name in _names(pages.text_of(readme)), (
            f"{readme} does not name {entry.name}"
        )


@pytest.mark.parametrize("kind", FEATURE_TYPES)
def test_every_kind_of_feature_has_a_section_with_its_options(kind: str) -> None:
    section = pages.sections_of(DOCS / "data.md")[kind]
    assert f"type: {kind}" in section
    assert not _missing([option.name for option in options_of(FEATURE_TYPES[kind], kind)], section)


def test_every_key_of_the_yaml_is_on_its_page() -> None:
    keys = [key for section in (Stage, Split, Embedding, Optimizer) for key in section.model_fields if key != "options"]
    rows = re.findall(r"^\| (`.*?) \|", pages.text_of(DOCS / "yaml.md"), re.M)
    assert not _missing([*Fields.model_fields, *DATA_KEYS], "\n".join(rows))
    assert not _missing(keys, pages.text_of(DOCS / "yaml.md"))


def test_the_defaults_of_the_yaml_are_those_of_the_code() -> None:
    cells = re.findall(r"^\| `(\w+)` \| `?(\w[\w/,.]*)`? \|", pages.text_of(DOCS / "yaml.md"), re.M)
    told = {name: value.replace(",", "") for name, value in cells}
    plain = {**Fields.model_fields, **Data.model_fields}
    code = {n: plain[n].default for n in told if isinstance(plain[n].default, str | int | bool | None)} | DEFAULTS
    known = {n: v for n, v in told.items() if isinstance(code.get(n, ...), str | int | bool | None)}
    assert known == {n: yaml.safe_dump(code[n]).split()[0] for n in known}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_section_with_its_options(name: str) -> None:
    section = pages.sections_of(DOCS / "cli.md")[name]
    options = [
        flag for p in COMMANDS[name].params if p.param_type_name == "option" for flag in p.opts if p.name != "help"
    ]
    assert not [flag for flag in options if f"`{flag}`" not in section]
    assert f"`espace {name}" in section
    assert f"\nespace {name}" in section, "an example that runs"


def test_every_public_name_is_documented() -> None:
    page = pages.text_of(DOCS / "python.md")
    assert not _missing(espace.__all__, page)


def test_every_error_is_documented_with_its_exit_code() -> None:
    family = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.EspaceError)]
    assert not _missing([e.__name__ for e in family], pages.sections_of(DOCS / "python.md")["Errors"])
    exits = pages.sections_of(DOCS / "training.md")["Interrupts and exit codes"]
    assert all(f"| {error.exit_code} |" in exits for error in family)


def test_every_law_that_plugins_inherit_is_documented() -> None:
    laws = [name for name in vars(espace.testing) if name.endswith("Tests")]
    assert not _missing(laws, pages.text_of(DOCS / "plugins.md"))


def test_every_variable_of_the_environment_is_documented() -> None:
    code = "".join(file.read_text() for file in (pages.HOME / "espace").rglob("*.py"))
    used = set(re.findall(r"environ(?:\.get\(|\[)\"(ESPACE_\w+)\"", code)) - {"ESPACE_RUN_DIR"}
    assert used
    assert not [name for name in used if name not in EVERYTHING]
