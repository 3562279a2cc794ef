"""The tree is the data flow: imports go one way, outside libraries have one home, built-ins use the public door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "espace"
LAYERS = [  # a module imports only what stands above it
    "errors chain hookspecs precision pieces memory",
    "batch features probability blocks scores spaces",
    "data.readers data.cache data.schemas data.convert data.files data.formats",
    "data data.raw",
    "missed compiling",
    "kernels triton_kernels",
    "embedding model optim graphs",
    "towers sharing links objectives samplers weightings stages metrics",
    "signature plugins",
    "config",
    "build evaluation checkpoint",
    "lightning callbacks runs report narrator",
    "experiment show new prepare",
    "compare",
    "cli testing",
    "__main__",
]
LEAVES = ("towers", "sharing", "links", "objectives", "samplers", "weightings", "stages", "metrics")
HOMES = {
    "pytorch_lightning": {"lightning", "callbacks", "data.module", "cli", "narrator"},
    "lightning_fabric": {"lightning"},
    "omegaconf": {"config"},
    "pyarrow": {"data", "runs"},
    "pluggy": {"hookspecs", "plugins"},
    "typer": {"cli"},
    "matplotlib": {"report"},
}


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path, *, inner=True):
    """Modules that a file imports; with `inner`, also those imported inside functions."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if inner else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [n for n in names if (ROOT.parent / f"{n.replace('.', '/')}.py").exists()] or [node.module]


def files():
    return [p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py"]


def layer(module):
    names = [module[: module.rfind(".")] if n else module for n in range(module.count(".") + 1)]
    for name in [module, *names]:
        for number, line in enumerate(LAYERS):
            if name in line.split():
                return number
    return None


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_every_module_has_a_layer_and_imports_only_downwards(path):
    own = layer(module_of(path))
    assert own is not None, f"give {module_of(path)} a place in LAYERS"
    for name in imports(path, inner=False):
        if name.startswith("espace.") and (other := layer(name.removeprefix("espace."))) is not None:
            assert other <= own, f"{module_of(path)} imports {name}, which stands below it"


def test_there_is_no_import_cycle():
    known = {module_of(p): p for p in files()}
    graph = {
        m: {n.removeprefix("espace.") for n in imports(p, inner=False) if n.removeprefix("espace.") in known}
        for m, p in known.items()
    }
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
    for name in imports(path):
        homes = HOMES.get(name.split(".")[0])
        at_home = homes is None or any(module == h or module.startswith(f"{h}.") for h in homes)
        assert at_home or _only_inside_functions(path, name), f"{module} imports {name}; its home is {homes}"


def _only_inside_functions(path, name):
    return name not in set(imports(path, inner=False)) and module_of(path) in ("experiment",)


@pytest.mark.parametrize("path", [p for p in files() if module_of(p).split(".")[0] in LEAVES], ids=module_of)
def test_leaves_import_public_names_only_and_never_each_other(path):
    package = module_of(path).split(".")[0]
    public = {"espace", "espace.errors", f"espace.{package}"}
    for name in imports(path):
        if name.split(".")[0] == "espace":
            assert any(name == p or name.startswith(f"{p}.") for p in public - {"espace"}) or name == "espace", name


def test_functions_stay_short():
    lengths = {
        f"{module_of(path)}.{node.name}": node.end_lineno - node.lineno + 1
        for path in files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert max(lengths.values()) <= 45, max(lengths, key=lengths.get)
    assert sorted(lengths.values())[len(lengths) // 2] <= 8
