"""Plugins: every part comes in by the hooks, and a fault in one is told in one line and harms no other."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest
from annotated_types import Gt

from espace.errors import PluginError
from espace.registry import hookspecs
from espace.registry import registry as plugins
from espace.registry.registry import KINDS, Entry, Registry

TOWER = """
    import espace

    class {name}:
        def __init__(self, spec, *, layers: int = 2):
            self.layers = layers

    @espace.hookimpl
    def register_towers(register):
        register("{name}", {name})
    """
Install = Callable[..., None]


@pytest.fixture(autouse=True)
def _no_builtins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Parts of espace would cost the start of torch, and what a test imports is forgotten after it."""
    monkeypatch.setattr(plugins, "BUILTIN", ())
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if name.startswith(("made_", "espace_plugin_")):
            del sys.modules[name]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution with one entry point, as pip would."""

    def put(name: str, code: str, version: str = "1.2", target: str = "", entry: str = "main") -> None:
        folder = tmp_path / "site" / name
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        module = f"made_{name.replace('-', '_')}"
        (folder / f"{module}.py").write_text(textwrap.dedent(code))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[espace]\n{entry} = {target or module}\n")
        monkeypatch.syspath_prepend(str(folder))

    return put


def write(path: Path, code: str) -> Path:
    path.write_text(textwrap.dedent(code))
    return path


def failure(registry: Registry, package: str) -> str:
    """The one line about a package."""
    (line,) = [f for f in registry.failures if f.startswith(package)]
    assert "\n" not in line
    return line


# What there is


def test_every_kind_has_one_hook_that_one_sentence_describes() -> None:
    for kind in KINDS:
        doc = getattr(hookspecs, f"register_{kind}").__doc__
        assert doc.endswith(".")
        assert doc.count(". ") == 0


def test_an_installed_plugin_is_found_with_its_package(install: Install, tmp_path: Path) -> None:
    install("espace-cross", TOWER.format(name="Cross"), version="0.3")
    entry = plugins.load(base=tmp_path).get("towers", "Cross")
    assert entry.package == "espace-cross 0.3"
    assert [(o.name, o.annotation, o.default, o.required) for o in entry.options] == [("layers", int, 2, False)]


def test_a_file_beside_the_yaml_is_found_relative_to_it(tmp_path: Path) -> None:
    write(tmp_path / "my_towers.py", TOWER.format(name="Mine"))
    registry = plugins.load(["./my_towers.py"], tmp_path)
    assert registry.entries("towers")[-1].name == "Mine"
    assert registry.get("towers", "Mine").package == "./my_towers.py"


def test_a_module_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "made_module.py", TOWER.format(name="Mine"))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert plugins.load(["made_module"], tmp_path).get("towers", "Mine").package == "made_module"


def test_the_registry_is_built_once(tmp_path: Path) -> None:
    write(tmp_path / "mine.py", TOWER.format(name="Mine"))
    assert plugins.load(["./mine.py"], tmp_path) is plugins.load(["./mine.py"], tmp_path)


def test_an_object_may_be_a_plugin(install: Install, tmp_path: Path) -> None:
    code = """
        import espace

        class Plugin:
            @espace.hookimpl
            def register_links(self, register):
                register("bridge", Plugin)

        plugin = Plugin()
        """
    install("espace-object", code, target="made_espace_object:plugin")
    assert plugins.load(base=tmp_path).get("links", "bridge").package == "espace-object 1.2"


def test_espace_plugins_0_leaves_out_what_is_installed(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("espace-broken", "import nothing_of_this_name")
    monkeypatch.setenv("ESPACE_PLUGINS", "0")
    registry = plugins.load(base=tmp_path)
    assert registry.failures == []
    assert registry.entries("towers") == []


def test_the_nearest_name_is_suggested() -> None:
    registry = Registry()
    registry.add(Entry("towers", "deepfm", dict, "espace"))
    with pytest.raises(PluginError, match=r"there is no tower 'deepfn'\. Did you mean 'deepfm'\?$"):
        registry.get("towers", "deepfn")


def test_the_built_in_parts_have_every_default() -> None:
    code = """
        from espace.registry import registry as plugins
        from espace.config.schema import DEFAULTS, PARTS
        registry = plugins.load()
        for key, kind in PARTS.items():
            print(registry.get(kind, DEFAULTS[key]).package)
        for name in DEFAULTS["metrics"]:
            print(registry.get("metrics", name).package)
        """
    found = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert set(found.stdout.split()) == {"espace"}


# P1. One broken plugin harms no other


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import nothing_of_this_name", r"made_\w+\.py:1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("x = 1\ny = x / 0", r"made_\w+\.py:2: ZeroDivisionError: division by zero"),
        ("def f(:", r"made_\w+\.py:1: SyntaxError: "),
        ("import sys\nsys.exit('bye')", r"made_\w+\.py:2: SystemExit: bye"),
        ("raise ValueError('first\\nsecond')", r"made_\w+\.py:1: ValueError: first second"),
    ],
)
def test_a_plugin_that_fails_to_import_is_one_line_and_the_others_work(
    install: Install, tmp_path: Path, code: str, why: str
) -> None:
    install("espace-broken", code, version="0.9")
    install("espace-cross", TOWER.format(name="Cross"))
    registry = plugins.load(base=tmp_path)
    assert registry.get("towers", "Cross")
    with pytest.raises(AssertionError, match=f"^espace-broken 0\\.9, main: .*{why}"):
        raise AssertionError(failure(registry, "espace-broken"))


def test_a_plugin_whose_module_is_gone_is_one_line(install: Install, tmp_path: Path) -> None:
    install("espace-gone", "", target="made_gone.module")
    assert "No module named 'made_gone'" in failure(plugins.load(base=tmp_path), "espace-gone 1.2, main")


def test_a_name_that_is_missing_for_a_broken_plugin_names_that_plugin(install: Install, tmp_path: Path) -> None:
    install("espace-broken", "import nothing_of_this_name")
    with pytest.raises(
        PluginError, match=r"no tower 'broken'.*Not loaded: .*espace-broken 1\.2, main: .*nothing_of_this"
    ):
        plugins.load(base=tmp_path).get("towers", "broken")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("x = 1\nimport nothing_of_this_name", r"mine\.py:2: ModuleNotFoundError"),
        (
            "import espace\n\n@espace.hookimpl\ndef register_towers(register):\n    1 / 0",
            r"mine\.py:5: ZeroDivisionError",
        ),
        ("import json\njson.loads('{')", r"mine\.py:2: JSONDecodeError"),
        ("def f(:", r"mine\.py:1: SyntaxError"),
        ("x = 1", r"it contributes nothing\. Give it a function such as register_towers with @espace\.hookimpl"),
    ],
)
def test_a_plugin_that_the_yaml_asks_for_has_to_work(tmp_path: Path, code: str, why: str) -> None:
    write(tmp_path / "mine.py", code)
    with pytest.raises(PluginError, match=f"^plugins: \\./mine\\.py: .*{why}"):
        plugins.load(["./mine.py"], tmp_path)


def test_a_file_that_was_mended_loads_at_the_second_try(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", "import nothing_of_this_name")
    with pytest.raises(PluginError, match="nothing_of_this_name"):
        plugins.load(["./mine.py"], tmp_path)
    path.write_text(textwrap.dedent(TOWER.format(name="MendedTower")))
    assert plugins.load(["./mine.py"], tmp_path).get("towers", "MendedTower")


def test_a_file_that_is_not_there_has_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "my_towers.py", "")
    with pytest.raises(PluginError, match=r"there is no file .*my_tower\.py\. Did you mean '\./my_towers\.py'\?"):
        plugins.load(["./my_tower.py"], tmp_path)


def test_a_module_that_is_not_there_says_how_to_name_a_file(tmp_path: Path) -> None:
    with pytest.raises(
        PluginError, match=r"made_absent: .*No module named 'made_absent'\. Install it, or write \./name\.py"
    ):
        plugins.load(["made_absent"], tmp_path)


# P2. Two plugins of one name


def test_two_distributions_with_one_entry_point_name_both_load(install: Install, tmp_path: Path) -> None:
    install("espace-a", TOWER.format(name="TowerA"), entry="towers")
    install("espace-b", TOWER.format(name="TowerB"), entry="towers")
    registry = plugins.load(base=tmp_path)
    assert {registry.get("towers", n).package for n in ("TowerA", "TowerB")} == {"espace-a 1.2", "espace-b 1.2"}


def test_two_towers_of_one_name_are_refused_and_both_packages_named(install: Install, tmp_path: Path) -> None:
    install("espace-a", TOWER.format(name="Same"))
    install("espace-b", TOWER.format(name="Same"), version="2.0")
    with pytest.raises(PluginError, match=r"tower 'Same' comes from espace-a 1\.2 and from espace-b 2\.0\. Rename one"):
        plugins.load(base=tmp_path)


def test_a_file_cannot_replace_an_installed_tower_in_silence(install: Install, tmp_path: Path) -> None:
    install("espace-a", TOWER.format(name="Same"))
    write(tmp_path / "mine.py", TOWER.format(name="Same"))
    with pytest.raises(PluginError, match=r"tower 'Same' comes from espace-a 1\.2 and from \./mine\.py"):
        plugins.load(["./mine.py"], tmp_path)


def test_one_object_under_one_name_is_no_clash(install: Install, tmp_path: Path) -> None:
    install("espace-a", TOWER.format(name="Same"))
    registry = plugins.load(["made_espace_a"], tmp_path)
    assert [e.package for e in registry.entries("towers") if e.name == "Same"] == ["espace-a 1.2"]


def test_one_name_may_stand_in_two_kinds() -> None:
    registry = Registry()
    registry.add(Entry("towers", "none", dict, "espace"))
    registry.add(Entry("links", "none", list, "espace"))
    assert registry.get("links", "none").factory is list


# P3. Order


def test_parts_come_in_an_order_that_does_not_depend_on_the_search_path(install: Install, tmp_path: Path) -> None:
    for name in ("espace-c", "espace-a", "espace-b"):
        install(name, TOWER.format(name=f"Tower_{name[-1]}"))
    names = [e.name for e in plugins.load(base=tmp_path).entries("towers")]
    assert [n for n in names if n.startswith("Tower_")] == ["Tower_a", "Tower_b", "Tower_c"]


# P4. Hooks that nobody calls


MISSPELT = "import espace\n\n@espace.hookimpl\ndef register_tower(register):\n    register('x', dict)"
OPTIONAL = MISSPELT.replace("hookimpl", "hookimpl(optionalhook=True)")
UNMARKED = "def register_towers(register):\n    register('x', dict)"
PARTLY = TOWER.format(name="Mine") + "\n    def register_links(register):\n        pass\n"
WRONG = MISSPELT.replace("register_tower(register)", "register_towers(registry)")
FAULTS = [
    (MISSPELT, r"made_faulty\.py:3: there is no hook 'register_tower'\. Did you mean 'register_towers'\?"),
    (OPTIONAL, r"made_faulty\.py:3: there is no hook 'register_tower'\. Did you mean 'register_towers'\?"),
    (UNMARKED, r"made_faulty\.py:1: 'register_towers' is not marked as a hook\. Put @espace\.hookimpl above it\."),
    (PARTLY, r"made_faulty\.py:\d+: 'register_links' is not marked as a hook"),
    (WRONG, r"Argument\(s\) \{'registry'\} are declared in the hookimpl but can not be found in the hookspec"),
    ("x = 1", r"it contributes nothing"),
    (
        MISSPELT.replace("tower(", "towers(").replace("dict", "3"),
        r"was given 'x' and 3\. Give it a name and what builds",
    ),
]


@pytest.mark.parametrize(("code", "why"), FAULTS)
def test_a_hook_that_would_not_be_called_is_told(install: Install, tmp_path: Path, code: str, why: str) -> None:
    install("espace-faulty", code, target="made_faulty")
    write(tmp_path / "site" / "espace-faulty" / "made_faulty.py", code)
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(failure(plugins.load(base=tmp_path), "espace-faulty"))


@pytest.mark.parametrize(("code", "why"), FAULTS)
def test_it_is_an_error_where_the_yaml_asks_for_it(tmp_path: Path, code: str, why: str) -> None:
    write(tmp_path / "made_faulty.py", code)
    with pytest.raises(PluginError, match=why):
        plugins.load(["./made_faulty.py"], tmp_path)


# P5. The signature is the schema


def test_constraints_and_types_under_future_annotations_are_resolved(tmp_path: Path) -> None:
    code = """
        from __future__ import annotations
        from typing import TYPE_CHECKING, Annotated, Literal
        from dataclasses import KW_ONLY, dataclass, field
        import espace
        from annotated_types import Gt

        if TYPE_CHECKING:
            from espace import FeatureSpec

        class Cross:
            "Cross network."
            def __init__(self, spec: FeatureSpec, *, rank: Annotated[int, Gt(0)], mode: Literal["a", "b"] = "a"): ...

        @dataclass
        class Data:
            spec: object
            _: KW_ONLY
            sizes: list[int] = field(default_factory=lambda: [1, 2])

        @espace.hookimpl
        def register_towers(register):
            register("cross", Cross)
            register("data", Data)
        """
    write(tmp_path / "mine.py", code)
    registry = plugins.load(["./mine.py"], tmp_path)
    rank, mode = registry.get("towers", "cross").options
    assert (rank.annotation, rank.required) == (Annotated[int, Gt(0)], True)
    assert (mode.default, mode.required) == ("a", False)
    assert registry.get("towers", "cross").summary == "Cross network."
    (sizes,) = registry.get("towers", "data").options
    assert (sizes.annotation, sizes.default, sizes.required) == (list[int], [1, 2], False)


def build(spec: object, *, width: int, depth: int = 1) -> None:
    """Build it.

    And more.
    """


class Callable_:  # noqa: N801, it stands for any object with __call__
    def __call__(self, spec: object, *, width: int) -> None: ...

    @classmethod
    def make(cls, spec: object, *, width: int) -> None: ...


@pytest.mark.parametrize(
    "factory", [build, partial(build, depth=2), Callable_(), Callable_.make], ids=["def", "partial", "object", "method"]
)
def test_whatever_can_be_called_may_be_a_factory(factory: Any) -> None:
    options = {o.name: o for o in Entry("towers", "x", factory, "espace").options}
    assert options["width"].annotation is int
    assert options["width"].required


def test_the_summary_is_the_first_line_of_the_documentation_or_the_modules() -> None:
    class Bare: ...

    assert Entry("towers", "x", build, "espace").summary == "Build it."
    assert Entry("towers", "x", Bare, "espace").summary == (__doc__ or "").splitlines()[0]


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("width=3", r"mine\.py:5: tower 'x': the option 'width' has no type\. Write width: int"),
        (
            "width: 'Nowhere' = 3",
            r"mine\.py:5: tower 'x': the type of the option 'width', .*cannot be resolved .*Nowhere",
        ),
        ("type: str = 'a'", r"mine\.py:5: tower 'x': an option cannot be called 'type'"),
    ],
)
def test_an_option_without_a_usable_type_is_refused_by_name(tmp_path: Path, option: str, why: str) -> None:
    code = f"""
        import espace

        class X:
            def __init__(self, spec, *, {option}): ...

        @espace.hookimpl
        def register_towers(register):
            register("x", X)
        """
    write(tmp_path / "mine.py", code)
    with pytest.raises(PluginError, match=why):
        plugins.load(["./mine.py"], tmp_path)


def test_a_factory_without_a_signature_is_refused() -> None:
    with pytest.raises(PluginError, match=r"tower 'x': its signature cannot be read\. Wrap it in a function\."):
        assert Entry("towers", "x", dict, "espace").options


def test_a_plugin_that_breaks_half_way_adds_nothing(install: Install, tmp_path: Path) -> None:
    code = TOWER.format(name="Half") + "    register('other', 3)\n"
    install("espace-half", code.replace("    register('other'", "        register('other'"))
    registry = plugins.load(base=tmp_path)
    assert failure(registry, "espace-half")
    assert "Half" not in {e.name for e in registry.entries("towers")}


# P6. Start-up


@pytest.mark.parametrize("module", ["registry.hookspecs", "registry.registry", "config"])
def test_importing_it_starts_neither_torch_nor_lightning(module: str) -> None:
    code = f"import sys, espace.{module}; print([m for m in ('torch', 'pytorch_lightning') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
