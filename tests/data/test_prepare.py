"""Raw releases become the Parquet that a plain parser, line by line, would make of them; and so does a killed run."""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from espace.cli import app
from espace.compare import compare
from espace.data.raw import convert
from espace.data.raw.ali_ccp import ALI_CCP, REST, USER
from espace.data.raw.ali_express import ALI_EXPRESS
from espace.data.raw.convert import MALFORMED, ORPHAN, REPEATED, VIOLATION, Conversion, Progress
from espace.data.raw.features import Field
from espace.data.raw.lines import Tally, blocks
from espace.data.raw.release import Published, Release
from espace.errors import DataError
from espace.runs.experiment import Experiment
from tests import paper
from tests.processes import _CONTEXT as FORKS
from tests.raw import AliCcp, AliExpress

HOME = Path(__file__).parents[2]
SPLITS = ("train", "test")
Row = dict[str, object]


# -- plain parsers


def _is_number(text: str, most: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= most


def _is_weight(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return set(text) <= set("-0123456789.eE") and text[-1].isdigit() and text.lstrip("-")[0].isdigit()


def _features(text: str) -> list[tuple[str, int, float]] | None:
    found = []
    for feature in text.split("\x01") if text else []:
        field, _, rest = feature.partition("\x02")
        id, separator, weight = rest.partition("\x03")
        if not (field and set(field) <= set("0123456789_") and separator and _is_number(id, 18) and _is_weight(weight)):
            return None
        found.append((field, int(id), float(np.float32(weight))))
    return found


def _columns(fields: tuple[Field, ...], features: list[tuple[str, int, float]]) -> Row:
    row: Row = {}
    for field in fields:
        mine = [(id, weight) for name, id, weight in features if name == field.name]
        name = f"f{field.name}"
        if field.kind == "many":
            row |= {name: [id for id, _ in mine], f"{name}_weights": [weight for _, weight in mine]}
        else:
            id, weight = mine[-1] if mine else (None, None)
            row |= {name: id} | ({f"{name}_weight": weight} if field.kind == "weighted" else {})
    return row


def _texts(path: Path) -> list[str]:
    return path.read_bytes().decode("latin-1").replace("\r\n", "\n").removesuffix("\n").split("\n")


class PlainAliCcp:
    """A split as lists of Python objects, and what is odd about its files."""

    def __init__(self, folder: Path, split: str) -> None:
        self.rows: list[Row] = []
        self.odd: Counter[str] = Counter()
        users: dict[str, Row] = {}
        for head, features in self._lines(folder / f"common_features_{split}.csv", 2, USER):
            self.odd[REPEATED] += head[0] in users
            users[head[0]] = _columns(USER, features)
        nothing = dict.fromkeys(_columns(USER, []))
        for head, features in self._lines(folder / f"sample_skeleton_{split}.csv", 5, REST):
            labels = dict(zip(("sample_id", "click", "conversion"), map(int, head[:3]), strict=True))
            self.odd[VIOLATION] += labels["conversion"] > labels["click"]
            self.odd[ORPHAN] += head[3] not in users
            self.rows.append(labels | users.get(head[3], nothing) | _columns(REST, features))

    def _lines(self, path: Path, columns: int, fields: tuple[Field, ...]):
        for line in _texts(path):
            *head, last = line.split(",", columns)
            features = _features(last)
            good = len(head) == columns and features is not None and _is_number(head[-1], 9) and head[-2] != ""
            if good and columns == 5:
                good = _is_number(head[0], 18) and {head[1], head[2]} <= {"0", "1"}
            self.odd[MALFORMED] += not good
            if good:
                self._note(int(head[-1]), features or [], fields)
                yield head, features

    def _note(self, stated: int, features: list[tuple[str, int, float]], fields: tuple[Field, ...]) -> None:
        self.odd["another number of features than stated"] += stated != len(features)
        kinds = {field.name: field.kind for field in fields}
        seen = Counter(name for name, _, _ in features)
        for name, count in seen.items():
            if name not in kinds:
                self.odd[f"field {name}, which is none of this file, left out"] += 1
            elif count > 1 and kinds[name] != "many":
                self.odd[f"field {name} more than once, the last is kept"] += 1
        for name in {n for n, _, weight in features if kinds.get(n) == "one" and weight != 1}:
            self.odd[f"field {name} with a weight other than 1, which is left out"] += 1


def plain_ali_express(folder: Path, split: str) -> list[Row]:
    """The columns as MTReclib has them: its lists of positions, counted from 1."""
    categories = [f"user_{i}" for i in (*range(2, 9), 32, 33)] + [f"item_{i}" for i in (19, 34, 35, 36, 40, 41, 42)]
    numbers = [f"user_{i}" for i in range(9, 32)]
    numbers += [name for name in (f"item_{i}" for i in range(2, 49)) if name not in categories]

    def values(file: str, width: int) -> list[dict[str, float | None]]:
        found = []
        for line in _texts(folder / f"nl_{file}_{split}.csv"):
            names = [f"{file}_{i}" for i in range(1, width + 1)]
            try:
                row = {n: float(t) if t else None for n, t in zip(names, line.split(","), strict=True)}
            except ValueError:
                continue
            label = row.get("item_49", 0)
            whole = all(row[n] is None or float(row[n] or 0).is_integer() for n in names if n in categories)
            if label in (0, 1, 2) and whole:
                found.append(row)
        return found

    users = {row["user_1"]: row for row in values("user", 33)}
    rows = []
    for item in values("item", 49):
        row = dict.fromkeys(f"user_{i}" for i in range(1, 34)) | users.get(item["item_1"], {}) | item
        label = item["item_49"] or 0
        found: Row = {"search_id": int(item["item_1"] or 0)}
        found |= {f"categorical_{n + 1}": row[name] for n, name in enumerate(categories)}
        found |= {
            f"numerical_{n + 1}": None if row[name] is None else float(np.float32(row[name]))
            for n, name in enumerate(numbers)
        }
        rows.append(found | {"click": int(label >= 1), "conversion": int(label == 2)})
    return rows


# -- helpers


def convert_all(release: Release, raw: Path, out: Path, part_bytes: int = convert.PART_BYTES) -> Conversion:
    conversion = Conversion(release, raw, out, part_bytes)
    for _ in conversion.run():
        pass
    return conversion


def rows_of(folder: Path) -> list[Row]:
    tables = [pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))]
    rows: list[Row] = pa.concat_tables(tables).to_pylist()
    return rows


def small(folder: Path, **options: object) -> Path:
    for split in SPLITS:
        AliCcp(**{"rows": 120, "scale": 0.03, "run": 7, "faults": 0.3} | options).write(folder, split)  # type: ignore[arg-type]
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def prepare(*arguments: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["prepare", *map(str, arguments)])
    return found.exit_code, found.output


# -- what comes out


@pytest.mark.parametrize("seed", range(8))
def test_ali_ccp_becomes_what_a_plain_parser_reads(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr("espace.data.raw.lines.BLOCK", draw.choice([500, 5_000, 4 << 20]))
    monkeypatch.setattr(convert, "_VALUES", draw.choice([50, 2_000, 8_000_000]))
    raw = small(
        tmp_path / "raw",
        seed=seed,
        run=draw.choice([1, 7, 58]),
        faults=draw.choice([0.0, 0.4, 0.4]),
        end=draw.choice(["\n", "\r\n"]),
        shuffled=draw.random() < 0.5,
    )
    made = convert_all(ALI_CCP, raw, tmp_path / "out", draw.choice([4_000, 20_000, 64 << 20]))
    for split in SPLITS:
        plain = PlainAliCcp(raw, split)
        assert rows_of(tmp_path / "out" / split) == plain.rows
        told: Counter[str] = Counter()
        for tally in made.read(split).values():
            told.update({what: oddity.lines for what, oddity in tally.oddities.items()})
        assert told == plain.odd


@pytest.mark.parametrize("seed", range(6))
def test_ali_express_becomes_what_a_plain_parser_reads(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr("espace.data.raw.lines.BLOCK", draw.choice([900, 4 << 20]))
    for split in SPLITS:
        made = AliExpress(80, seed, faults=draw.choice([0.0, 0.4]), end=draw.choice(["\n", "\r\n"]))
        made.write(tmp_path / "raw" / "below", split)
    convert_all(ALI_EXPRESS, tmp_path / "raw", tmp_path / "out", draw.choice([3_000, 64 << 20]))
    for split in SPLITS:
        assert rows_of(tmp_path / "out" / split) == plain_ali_express(tmp_path / "raw" / "below", split)


def test_oddities_are_told_with_the_number_and_the_text_of_their_lines(tmp_path: Path) -> None:
    raw = small(tmp_path / "raw", faults=0.0)
    file = raw / "sample_skeleton_train.csv"
    lines = file.read_bytes().split(b"\n")
    lines[16], lines[99] = b"no line", b"17,0,1," + lines[99].split(b",", 3)[3]
    file.write_bytes(b"\n".join(lines))
    tally = convert_all(ALI_CCP, raw, tmp_path / "out", 4_000).read("train")[file]
    assert {what: oddity.first[0][0] for what, oddity in tally.oddities.items()} == {MALFORMED: 16, VIOLATION: 99}
    assert tally.oddities[MALFORMED].first == [(16, "no line")]
    code, said = prepare("ali-ccp", raw, tmp_path / "again")
    assert code == 0
    assert f"1 of 120 lines of {file.name}: {MALFORMED}\n    {file}:17: 'no line'" in said
    assert f"1 of 120 lines of {file.name}: {VIOLATION}\n    {file}:100: '17,0,1," in said


def test_ever_more_unknown_fields_are_told_as_one(tmp_path: Path) -> None:
    raw = small(tmp_path / "raw", faults=0.0)
    file = raw / "sample_skeleton_train.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(f"{line}\x01{9000 + i}\x021\x031" for i, line in enumerate(lines)) + "\n")
    odd = convert_all(ALI_CCP, raw, tmp_path / "out").read("train")[file].oddities
    counts = {what: oddity.lines for what, oddity in odd.items() if "none of this file" in what}
    assert counts.pop("more fields which are none of this file, left out") == 100
    assert counts == {f"field {9000 + i}, which is none of this file, left out": 1 for i in range(20)}


def test_progress_goes_through_every_file_and_counts_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espace.data.raw.lines.BLOCK", 1_500)
    conversion = Conversion(ALI_CCP, small(tmp_path / "raw", faults=0.0), tmp_path / "out", 4_000)
    steps: dict[str, list[Progress]] = {}
    for progress in conversion.run():
        steps.setdefault(progress.step, []).append(progress)
    for split in SPLITS:
        for kind, (path, tally) in zip(("rows", "shared"), conversion.read(split).items(), strict=True):
            told = steps[f"{split}/{kind}"]
            assert len(told) > 3
            assert all(p.start < p.done <= p.size == path.stat().st_size for p in told)
            assert all(a.start < b.start and a.done <= b.done for a, b in itertools.pairwise(told))
            assert told[-1].done == told[-1].size
            assert sum(p.rows for p in told) == tally.rows


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, out, run = small(tmp_path / "raw"), tmp_path / "out", Conversion.run

    def interrupted(conversion: Conversion) -> Iterator[Progress]:
        yield next(run(conversion))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Conversion, "run", interrupted)
        code, said = prepare("ali-ccp", raw, out)
    assert code == 130
    assert f"Stopped. What is written in {out} stays; the same command goes on from there." in said
    assert prepare("ali-ccp", raw, out)[0] == 0


# -- resuming


def test_stopped_after_any_block_it_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espace.data.raw.lines.BLOCK", 2_000)
    raw = small(tmp_path / "raw", rows=50)
    convert_all(ALI_CCP, raw, tmp_path / "whole", 6_000)
    blocks = len(list(Conversion(ALI_CCP, raw, tmp_path / "counted", 6_000).run()))
    assert blocks > 10
    for stop in range(1, blocks + 1):
        out = tmp_path / str(stop)
        run = Conversion(ALI_CCP, raw, out, 6_000).run()
        for _ in range(stop):
            next(run)
        run.close()  # type: ignore[attr-defined]
        convert_all(ALI_CCP, raw, out, 6_000)
        assert contents(out) == contents(tmp_path / "whole")


def _killed(raw: Path, out: Path, blocks: int) -> None:
    for number, _ in enumerate(Conversion(ALI_CCP, raw, out, 6_000).run(), 1):
        if number == blocks:
            os.kill(os.getpid(), signal.SIGKILL)


def test_killed_again_and_again_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    raw = small(tmp_path / "raw", rows=60)
    convert_all(ALI_CCP, raw, tmp_path / "whole", 6_000)
    codes = []
    while not codes or codes[-1] != 0:
        child = FORKS.Process(target=_killed, args=(raw, tmp_path / "out", 3))
        child.start()
        child.join(120)
        codes.append(child.exitcode)
        assert child.exitcode in (0, -signal.SIGKILL)
    assert len(codes) > 3
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_part_that_is_gone_is_made_again_and_nothing_else(tmp_path: Path) -> None:
    raw, out = small(tmp_path / "raw"), tmp_path / "out"
    convert_all(ALI_CCP, raw, out, 6_000)
    before = contents(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("part-*")}
    gone = out / "test" / "part-00001.parquet"
    gone.unlink()
    convert_all(ALI_CCP, raw, out, 6_000)
    assert contents(out) == before
    assert {path for path, time in times.items() if path.stat().st_mtime_ns != time} == {gone}


def test_a_part_that_was_not_noted_any_more_is_made_again(tmp_path: Path) -> None:
    raw, out = small(tmp_path / "raw"), tmp_path / "out"
    convert_all(ALI_CCP, raw, out, 6_000)
    before = contents(out)
    state = json.loads(before["prepared.json"])
    for step in ("train/rows", "test/rows"):
        state["steps"][step].popitem()
    (out / "prepared.json").write_text(json.dumps(state))
    (out / "test" / "part-00000.parquet").write_bytes(b"")  # noted, so it is left alone
    convert_all(ALI_CCP, raw, out, 6_000)
    assert contents(out) == before | {"test/part-00000.parquet": b""}


def test_what_is_complete_says_so_and_is_left_alone(tmp_path: Path) -> None:
    raw, out = small(tmp_path / "raw"), tmp_path / "out"
    first, second = prepare("ali-ccp", raw, out), prepare("ali-ccp", raw, out)
    assert (first[0], second[0]) == (0, 0)
    assert f"{out} is complete." not in first[1]
    assert second[1].startswith(f"{out} is complete.\ntrain: ")
    assert first[1].endswith(second[1].partition("\n")[2])
    assert prepare("ali-ccp", raw, tmp_path / "quiet", "--quiet") == (0, "")


# -- memory


def _peak(raw: Path, out: Path, answers: object) -> None:
    convert_all(ALI_CCP, raw, out, 8 << 20)
    answers.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)  # type: ignore[attr-defined]


def test_memory_does_not_grow_with_the_files(tmp_path: Path) -> None:
    AliCcp(rows=4_000, scale=0.5).write(tmp_path, "train")
    peaks = []
    for times in (10, 80):
        raw = tmp_path / str(times)
        raw.mkdir()
        for path in tmp_path.glob("*.csv"):
            text = path.read_bytes()
            with (raw / path.name).open("wb") as file:
                for _ in range(times):
                    file.write(text)
        answers = FORKS.SimpleQueue()
        child = FORKS.Process(target=_peak, args=(raw, tmp_path / f"out {times}", answers))
        child.start()
        child.join(300)
        assert child.exitcode == 0
        peaks.append(answers.get())
        shutil.rmtree(raw)
    assert peaks[1] < peaks[0] + 60, peaks  # MiB


@pytest.mark.parametrize("seed", range(20))
def test_blocks_are_the_whole_file_in_whole_lines(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    path = tmp_path / "text"
    lines = ["x" * draw.choice([0, 1, 2, 9, 30]) for _ in range(draw.randrange(30))]
    path.write_text("\n".join(lines) + draw.choice(["", "\n"]))
    text = path.read_bytes()
    monkeypatch.setattr("espace.data.raw.lines.BLOCK", draw.randrange(1, 20))
    for size in range(1, 50):
        found = [list(blocks(path, start, min(start + size, len(text)))) for start in range(0, len(text), size)]
        assert b"".join(block for part in found for block, _ in part) == text
        assert all(block.endswith(b"\n") or end == len(text) for part in found for block, end in part)
        for number, part in enumerate(found):
            begins = [end - len(block) for block, end in part]
            assert all(number * size <= begin < (number + 1) * size for begin in begins)


# -- what is published


def test_another_number_of_rows_or_another_rate_is_doubted() -> None:
    known = Published(1e9, 0.1, 0.05, rows_within=0.01)

    def doubts(rows: float, ctr: float, cvr: float) -> int:
        click, both = round(rows * ctr), round(rows * ctr * cvr)
        return len(list(known.doubts(Tally(rows=round(rows), labels={"click": click, "both": both}))))

    assert doubts(1e9, 0.1, 0.05) == doubts(1.009e9, 0.104, 0.054) == doubts(0.991e9, 0.096, 0.046) == 0
    assert doubts(1.011e9, 0.1, 0.05) == doubts(0.989e9, 0.1, 0.05) == 1
    assert (
        doubts(1e9, 0.106, 0.05) == doubts(1e9, 0.094, 0.05) == doubts(1e9, 0.1, 0.056) == doubts(1e9, 0.1, 0.044) == 1
    )
    assert doubts(2e9, 0.2, 0.1) == 3
    assert doubts(100, 0.13, 0.0) == 1  # so few rows say nothing of the rates
    assert doubts(0, 0.0, 0.0) == 1


def test_a_part_of_the_data_is_a_note_and_not_an_error(tmp_path: Path) -> None:
    code, said = prepare("ali-ccp", small(tmp_path / "raw", faults=0.0), tmp_path / "out")
    assert code == 0
    assert "Note: train: 120 rows, published are 42,300,000 (+-0.2%). Is this a part of the data?" in said
    assert "Note: test: 120 rows, published are 43,000,000 (+-0.2%)." in said


# -- mistakes


def test_mistakes_are_told_with_the_way_out(tmp_path: Path) -> None:
    raw, out = small(tmp_path / "raw"), tmp_path / "out"
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "sample_train.tar.gz").touch()
    wrong = {
        ("ali-cpp", raw, out): "prepare: there is no release 'ali-cpp'. Did you mean 'ali-ccp'?",
        ("ali-ccp", tmp_path / "no", out): f"{tmp_path / 'no'}: is not a folder. Give the one with the unpacked files.",
        ("ali-ccp", tmp_path / "packed", out): "Unpack sample_train.tar.gz first.",
        ("ali-express", raw, out): "has neither '*_item_train.csv' and '*_user_train.csv' nor those of test.",
        ("ali-ccp", raw, raw): f"{raw}: is not empty, and not of an earlier preparation. Give a new folder.",
    }
    for arguments, message in wrong.items():
        code, said = prepare(*arguments)
        assert code == 2
        assert message in said
    assert not out.exists()


def test_half_a_split_and_two_of_one_file_are_refused(tmp_path: Path) -> None:
    raw = small(tmp_path / "raw")
    (raw / "below").mkdir()
    shutil.copy(raw / "common_features_test.csv", raw / "below")
    with pytest.raises(DataError, match=r"has '.*common_features_test.csv' and '.*'\. Give a folder with one of them"):
        Conversion(ALI_CCP, raw, tmp_path / "out")
    shutil.rmtree(raw / "below")
    (raw / "common_features_test.csv").unlink()
    with pytest.raises(DataError, match=r"but no 'common_features_test\.csv'\. Unpack both files there"):
        Conversion(ALI_CCP, raw, tmp_path / "out")
    (raw / "sample_skeleton_test.csv").unlink()
    assert list(Conversion(ALI_CCP, raw, tmp_path / "out").files) == ["train"]


def test_files_that_changed_or_a_broken_state_are_refused(tmp_path: Path) -> None:
    raw, out = small(tmp_path / "raw"), tmp_path / "out"
    convert_all(ALI_CCP, raw, out)
    with (raw / "common_features_train.csv").open("a") as file:
        file.write("\n")
    with pytest.raises(
        DataError, match=r"prepared\.json: was begun with other files: .*Give another folder, or remove"
    ):
        Conversion(ALI_CCP, raw, out)
    (out / "prepared.json").write_text("{")
    with pytest.raises(DataError, match=r"prepared\.json: cannot be read: .*Remove the folder, and start again"):
        Conversion(ALI_CCP, raw, out)


def test_a_file_of_another_kind_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = small(tmp_path / "raw", faults=0.0)
    whole = {path: path.read_bytes() for path in raw.iterdir()}
    for name in ("common_features_train.csv", "sample_skeleton_train.csv"):
        for text in (b"", b"id,label\n" * 5, b"PAR1\x00\x01" * 700_000):
            (raw / name).write_bytes(text)
            with pytest.raises(DataError, match=rf"{name}: none of .* lines is as the release has them"):
                convert_all(ALI_CCP, raw, tmp_path / f"{name} {len(text)}")
        (raw / name).write_bytes(whole[raw / name])
    monkeypatch.setattr("espace.data.raw.lines._LONGEST", 1000)
    (raw / "common_features_test.csv").write_bytes(b"x" * 6_000_000)
    with pytest.raises(DataError, match=r"common_features_test.csv, byte .*: a line is longer than"):
        convert_all(ALI_CCP, raw, tmp_path / "long")


# -- what is made of it


def test_the_example_of_the_paper_trains_on_what_was_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw = small(tmp_path / "raw", rows=3_000, faults=0.05, run=20, ctr=0.3, cvr=0.2)
    assert prepare("ali-ccp", raw, tmp_path / "ali-ccp")[0] == 0
    example = HOME / "examples" / "aliccp.yaml"
    lines = example.read_text().splitlines()
    assert "#     espace fit examples/aliccp.yaml" in lines
    more = ["trainer.accelerator=cpu", "trainer.limit_train_batches=3", "data.split.share=0.3", "data.batch_size=500"]
    run = Experiment.from_yaml(example, more).fit(tmp_path / "run")
    assert run is not None
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = len(rows_of(tmp_path / "ali-ccp" / "test"))
    violations = PlainAliCcp(raw, "test").odd[VIOLATION]
    assert results["test/click/rows"] == rows - violations


def test_one_command_gives_the_seven_rows_of_the_table_of_the_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = small(tmp_path / "raw", rows=3_000, faults=0.05, run=20, ctr=0.3, cvr=0.2)
    assert prepare("ali-ccp", raw, tmp_path / "ali-ccp")[0] == 0
    few = ["trainer.accelerator=cpu", "trainer.max_steps=2", "data.split.share=0.3", "data.batch_size=500"]
    outcome = compare(paper.shrunk("aliccp", tmp_path), few, tmp_path / "out")
    paper.check(outcome, tmp_path / "out")
