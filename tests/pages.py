"""The pages of the documentation as data: their blocks, sections and links. And how to run a page from top to bottom.

A page runs in a folder of its own that has `examples/` and a small shop as Parquet (`tests.shop`), all its blocks in
their order:

python      in one namespace for the page; a `text` block that follows at once is what it prints, to the letter
yaml        has to build; a fragment is merged over BASE first
sh          `espace` and `pytest` run; the simulator draws ROWS rows; a comment `# exit code 2` promises another one than 0.
            What installs is not run
text        elsewhere: lines that the commands above it have printed, whatever the numbers in them
toml        is only looked at
first line  `# name.py`, `# name.yaml`: the block is that file, for the blocks below it, and Python of a file is not run
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from espace.cli import app
from espace.compare.comparison import Comparison
from espace.runs.experiment import Experiment
from tests.shop import Shop, rows

HOME = Path(__file__).parent.parent
PAGES = [HOME / "README.md", *sorted((HOME / "docs").glob("*.md"))]
LANGUAGES = ("python", "yaml", "sh", "toml", "text")
ROWS = 2_000
BASE = {
    "chain": ["impression -> click -> conversion"],
    "data": {"train": "train.parquet"},
    "features": {"user_id": "id", "item_id": "id"},
}
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_FILE = re.compile(r"# (?:\./)?([\w.-]+\.(?:py|ya?ml))\n")
_SETUP = re.compile(
    r"python3 -m venv |\.venv/bin/pip install |\.ci/run|cd |git clone |\.venv/bin/python -m pytest -n |tensorboard "
)


@dataclass(frozen=True)
class Block:
    """A fenced block. `line` is that of its first line; `printed` is the text block right below it, if there is one."""

    language: str
    text: str
    line: int
    printed: str | None = None

    @property
    def file(self) -> str | None:
        """The file that the block is, by its first line."""
        found = _FILE.match(self.text)
        return found[1] if found else None

    @property
    def is_experiment(self) -> bool:
        """Whether a YAML block is a whole experiment."""
        return {"chain", "data"} <= set(yaml.safe_load(self.text))

    @property
    def is_comparison(self) -> bool:
        """Whether a YAML block compares variants of an experiment."""
        return {"base", "variants"} <= set(yaml.safe_load(self.text))

    def commands(self) -> Iterator[tuple[list[str], int]]:
        """The words of every command of a shell block, and the exit code that a comment `# exit code 2` promises."""
        for line in self.text.replace("\\\n", " ").splitlines():
            promised = re.search(r"# exit code (\d+)$", line)
            for command in line.split(" && "):
                if words := shlex.split(command, comments=True):
                    yield words, int(promised[1]) if promised else 0


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose_of(page: Path) -> str:
    """A page without its blocks."""
    return _BLOCK.sub("", text_of(page))


def blocks_of(page: Path) -> list[Block]:
    text, found = text_of(page), []
    matches = list(_BLOCK.finditer(text))
    for match, after in zip(matches, [*matches[1:], None], strict=False):
        adjacent = after is not None and after[1] == "text" and not text[match.end() : after.start()].strip()
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(match[1], match[2], line, after[2] if after and adjacent else None))
    return found


def sections_of(page: Path) -> dict[str, str]:
    """{heading: the text below it, down to the next heading of its level or a higher one}."""
    text = text_of(page)
    masked = _BLOCK.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)  # a comment in a block is no heading
    headings = list(re.finditer(r"^(#+) (.+)$", masked, re.M))
    found = {}
    for number, heading in enumerate(headings):
        ends = (h.start() for h in headings[number + 1 :] if len(h[1]) <= len(heading[1]))
        found[heading[2].strip().strip("`")] = text[heading.end() : next(ends, len(text))]
    return found


def anchors_of(page: Path) -> set[str]:
    """The fragments that a link may name."""
    return {re.sub(r"[^\w\- ]", "", name.lower()).strip().replace(" ", "-") for name in sections_of(page)}


def links_of(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose_of(page))


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over`, mappings merged."""
    found = dict(base)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(name), dict)
        found[name] = merged(base[name], value) if both else value
    return found


class Reader:
    """Reads one page as a user would who types in all of it; stands in the folder in which it runs."""

    def __init__(self, page: Path, folder: Path) -> None:
        self.page, self.folder = page, folder
        self.namespace: dict[str, Any] = {"__name__": "page"}
        self.printed: set[str] = set()  # by the commands so far, numbers taken out
        shutil.copytree(HOME / "examples", folder / "examples")
        shop = Shop(folder).fill(600)
        shop.write(rows(50, seed=3).drop_columns(["click", "conversion"]), "new.parquet")

    def read(self) -> None:
        """Run every block."""
        exact = False  # whether the block is what the one before it prints, and was compared with it
        for block in blocks_of(self.page):
            try:
                if not exact:
                    self._read(block)
                exact = block.language == "python" and block.printed is not None
            except Exception as error:
                where = f"{self.page.name}, the {block.language} block at line {block.line}"
                raise AssertionError(f"{where}: {error}") from error

    def _read(self, block: Block) -> None:
        if block.file:
            (self.folder / block.file).write_text(block.text)
        if block.language == "python" and not block.file:
            self._python(block)
        elif block.language == "yaml":
            self._yaml(block)
        elif block.language == "sh":
            for words, code in block.commands():
                self._command(words, code)

        elif block.language == "text":
            unknown = _shapes(block.text) - self.printed
            assert not unknown, f"no command above printed {sorted(unknown)}"

    def _python(self, block: Block) -> None:
        code = compile("\n" * (block.line - 1) + block.text, str(self.page), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, self.namespace)
        if block.printed is not None:
            assert out.getvalue().rstrip() == block.printed.rstrip()

    def _yaml(self, block: Block) -> None:
        name = block.file or f"line_{block.line}.yaml"
        if not block.file:
            whole = block.is_experiment
            text = block.text if whole else yaml.safe_dump(merged(BASE, yaml.safe_load(block.text)))
            (self.folder / name).write_text(text)
        (Comparison if block.is_comparison else Experiment.from_yaml)(self.folder / name)

    def _command(self, words: list[str], promised: int) -> None:
        if words[0].removeprefix(".venv/bin/") == "espace":
            self._espace(words[1:], promised)
        elif words[0] == "pytest":
            done = subprocess.run(
                [sys.executable, "-m", *words, "-p", "no:cacheprovider"], capture_output=True, text=True
            )
            assert done.returncode == promised, done.stdout + done.stderr
        else:
            assert _SETUP.match(" ".join(words)), f"no page runs {' '.join(words)}"

    def _espace(self, words: list[str], promised: int) -> None:
        words, target = (words[:-2], words[-1]) if ">" in words else (words, None)
        found = CliRunner().invoke(app, [*words, *_cut(words)])
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        assert found.exit_code == promised, f"espace {' '.join(words)}: {found.output}"
        self.printed |= _shapes(found.output)
        if target:
            Path(target).write_text(found.stdout)


def _shapes(text: str) -> set[str]:
    """The lines of a text, each number as #, without rules and the widths of columns."""
    lines = (re.sub(r"(?<!\w)[\d.,]*\d%?(?!\w)", "#", line) for line in text.splitlines())
    return {" ".join(line.replace("─", "").split()) for line in lines}


def _cut(words: list[str]) -> list[str]:
    """Overrides that make the parts of an experiment small when the simulator draws them."""
    file = next((w for w in words[1:] if w.endswith((".yaml", ".yml"))), None)
    if words[0] not in ("fit", "check", "compare") or file is None or not Path(file).exists():
        return []
    tree = yaml.safe_load(Path(file).read_text())
    data = (yaml.safe_load((Path(file).parent / tree["base"]).read_text()) if "base" in tree else tree)["data"]
    parts = [p for p in ("train", "validation", "test") if p in data]
    return [f"data.{p}={ROWS}" for p in parts] if data.get("type") == "simulator" else []
