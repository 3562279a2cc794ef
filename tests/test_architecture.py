"""The tree is the data flow: imports go one way, outside libraries have one home, built-ins use the public door."""

import ast
import re
from pathlib import Path

import pytest

import espace
from espace.contracts import CONTRACTS
from espace.registry.registry import KINDS

ROOT = Path(__file__).parents[1] / "espace"
ROOMS = [  # a room imports only from rooms above it
    "errors",
    "chain",
    "registry",
    "data",
    "model",
    "contracts",
    "config",
    "training",
    "runs",
    "compare",
    "parts",
    "testing",
    "cli",
    "__main__",
]
CHAMBERS = [
    "console",
    "batch",
    "reading",
    "encoding",
    "auditing",
    "stream",
    "simulator",
    "raw",
    "guessing",
]  # of data/, likewise
HOMES = {
    "pytorch_lightning": ("training", "data.stream", "cli", "parts.loggers", "testing", "runs.around"),
    "lightning_fabric": ("training",),
    "omegaconf": ("config",),
    "pyarrow": ("data", "contracts", "runs"),
    "pluggy": ("registry",),
    "typer": ("cli",),
    "matplotlib": ("runs.figures",),
}
LINES = {"file": 350, "function": 40, "median": 6, "nine in ten": 16}  # at most
PUBLIC = {*ROOMS, "py.typed", "__init__"}


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def files():
    return [p for p in sorted(ROOT.rglob("*.py")) if p != ROOT / "__init__.py"]


def imports(path, *, inner=False):
    """Modules that a file imports when it is imported; with `inner`, also inside functions and for types only."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if inner else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [n for n in names if (ROOT.parent / f"{n.replace('.', '/')}.py").exists()] or [node.module]


def inside(path):
    """The modules of espace that a file imports when it is imported."""
    return [name.removeprefix("espace.") for name in imports(path) if name.startswith("espace.")]


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_a_room_imports_only_from_rooms_above_it(path):
    own = ROOMS.index(module_of(path).split(".")[0])
    for name in inside(path):
        assert ROOMS.index(name.split(".")[0]) <= own, f"{module_of(path)} imports {name}, which stands below it"


@pytest.mark.parametrize("path", [p for p in files() if module_of(p).startswith("data.")], ids=module_of)
def test_a_chamber_of_data_imports_only_from_chambers_above_it(path):
    own = CHAMBERS.index(module_of(path).split(".")[1])
    for name in (n for n in inside(path) if n.startswith("data.")):
        assert CHAMBERS.index(name.split(".")[1]) <= own, f"{module_of(path)} imports {name}, which stands below it"


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_of_the_rooms_below_it_a_room_names_only_contracts_as_types(path):
    own = ROOMS.index(module_of(path).split(".")[0])
    for block in (n for n in ast.parse(path.read_text()).body if ast.unparse(n).startswith("if TYPE_CHECKING:")):
        for node in (n for n in ast.walk(block) if isinstance(n, ast.ImportFrom)):
            room = (node.module or "").removeprefix("espace.").split(".")[0]
            assert room not in ROOMS or room == "contracts" or ROOMS.index(room) <= own, f"{path}: {node.module}"


def test_nothing_stands_at_the_root_that_is_no_room():
    found = {p.name.removesuffix(".py") for p in ROOT.iterdir() if p.name != "__pycache__"}
    assert found == PUBLIC, f"a new capability is a room: name {found ^ PUBLIC} in ROOMS and in CONTRIBUTING.md"


def test_every_room_and_chamber_says_what_it_is_for_and_contributing_names_it():
    told = (ROOT.parent / "CONTRIBUTING.md").read_text()
    for room in ROOMS[:-1]:
        assert re.search(rf"^\| `{room}(/|\.py)` \|", told, re.M), room
    for folder in (p for p in ROOT.rglob("*") if p.is_dir() and (any(p.glob("*.py")))):
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_there_is_no_import_cycle():
    known = {module_of(p): p for p in files()}
    graph = {m: {n for n in inside(p) if n in known} for m, p in known.items()}
    done, path = set(), []

    def visit(module):
        assert module not in path, f"cycle: {' -> '.join([*path[path.index(module) :], module])}"
        if module in done:
            return
        path.append(module)
        for other in sorted(graph[module] - {module}):
            visit(other)
        done.add(path.pop())

    for module in sorted(graph):
        visit(module)


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_outside_libraries_stay_in_their_homes(path):
    module = module_of(path)
    for name in imports(path, inner=True):
        homes = HOMES.get(name.split(".")[0])
        assert homes is None or any(module == h or module.startswith(f"{h}.") for h in homes), f"{module}: {name}"


@pytest.mark.parametrize("path", [p for p in files() if module_of(p).startswith("parts.")], ids=module_of)
def test_parts_import_public_names_only_and_never_those_of_another_kind(path):
    kind = ".".join(module_of(path).split(".")[:2])
    for name in (n for n in imports(path, inner=True) if n.split(".")[0] == "espace"):
        assert name in ("espace", "espace.errors") or f"{name}.".startswith(f"espace.{kind}."), name


def test_every_kind_of_part_has_a_contract_that_is_a_public_name():
    assert list(CONTRACTS) == list(KINDS)
    for contract in (c for found in CONTRACTS.values() for c in found):
        assert getattr(espace, contract.__name__) is contract
        for name, member in vars(contract).items():
            assert name.startswith("_") or getattr(member, "__doc__", None), f"{contract.__name__}.{name}"


def test_files_and_functions_stay_short():
    lengths = {
        f"{module_of(path)}.{node.name}": node.end_lineno - node.lineno + 1
        for path in files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    ordered = sorted(lengths.values())
    assert ordered[-1] <= LINES["function"], max(lengths, key=lengths.get)
    assert ordered[len(ordered) // 2] <= LINES["median"]
    assert ordered[len(ordered) * 9 // 10] <= LINES["nine in ten"]
    longest = max(files(), key=lambda path: len(path.read_text().splitlines()))
    assert len(longest.read_text().splitlines()) <= LINES["file"], longest


def test_no_line_is_longer_than_120_characters_but_for_addresses():
    for path in files():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert len(line) <= 120 or "https://" in line, f"{path}:{number}"
