"""A checkpoint is the old one or the new one, never neither; damage is noticed; nothing in it is run."""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import resource
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from espace.data.reading.cache import content_digest
from espace.errors import RunError
from espace.training import checkpoint
from espace.training.checkpoint import read_checkpoint, write_checkpoint
from espace.training.trainer import SafeCheckpointIO


class Killed(BaseException):
    """What SIGKILL is to a process: nothing runs after it, no clean-up either."""


def content(number: int) -> dict:
    return {"number": number, "weights": torch.full((50,), float(number))}


def number_in(path: Path) -> int:
    found = read_checkpoint(path)
    assert torch.equal(found["weights"], torch.full((50,), float(found["number"])))
    return int(found["number"])


@contextmanager
def killed_at(step: int):
    """Kills before the given file operation; of the writing of the content, in the middle."""
    steps = itertools.count()

    def watched(operation):
        def run(*args, **options):
            if next(steps) >= step:
                if operation is torch.save:
                    args[1].write(b"half a checkpoint")
                raise Killed
            return operation(*args, **options)

        return run

    operations = [(Path, n) for n in ("open", "replace", "unlink", "mkdir", "stat", "read_text")]
    operations += [(os, n) for n in ("open", "fsync", "close")] + [(torch, "save")]
    with pytest.MonkeyPatch.context() as patch:
        for place, name in operations:
            patch.setattr(place, name, watched(getattr(place, name)))
        yield


def attempt(path: Path, number: int, step: int) -> bool:
    """Write, killed at some step; whether it was finished before."""
    try:
        with killed_at(step):
            write_checkpoint(content(number), path)
    except Killed:
        return False
    return True


def steps_of_a_write(path: Path) -> int:
    return next(step for step in itertools.count() if attempt(path, 1, step))


def test_a_write_that_is_killed_anywhere_leaves_the_old_or_the_new_one(tmp_path):
    steps = steps_of_a_write(tmp_path / "last.ckpt")
    assert steps > 8
    for step in range(steps):
        path = tmp_path / f"{step}" / "last.ckpt"
        write_checkpoint(content(1), path)
        assert not attempt(path, 2, step)
        assert number_in(path) in (1, 2)
        write_checkpoint(content(3), path)
        assert number_in(path) == 3


def test_a_write_that_is_killed_again_leaves_one_of_the_three(tmp_path):
    steps = steps_of_a_write(tmp_path / "last.ckpt")
    for first, second in itertools.product(range(0, steps, 3), range(1, steps, 4)):
        path = tmp_path / f"{first} {second}" / "last.ckpt"
        write_checkpoint(content(1), path)
        attempt(path, 2, first)
        before = number_in(path)
        attempt(path, 3, second)
        assert number_in(path) in (before, 3)


def test_the_first_write_that_is_killed_leaves_nothing_or_all(tmp_path):
    for step in range(steps_of_a_write(tmp_path / "last.ckpt")):
        path = tmp_path / f"{step}" / "last.ckpt"
        attempt(path, 1, step)
        assert not path.exists() or number_in(path) == 1


def in_the_old_way(path: Path, number: int) -> None:
    """As espace 0.1.0 wrote it: the digest in a file beside it."""
    torch.save(content(number), path)
    Path(f"{path}.sha256").write_text(f"{content_digest(path)}  {path.name}\n")


def test_a_checkpoint_of_the_old_way_is_checked_by_the_file_beside_it_and_replaced_by_one_of_the_new(tmp_path):
    path = tmp_path / "last.ckpt"
    for step in range(steps_of_a_write(tmp_path / "other" / "last.ckpt")):
        in_the_old_way(path, 1)
        attempt(path, 2, step)
        assert number_in(path) in (1, 2)
    in_the_old_way(path, 1)
    path.write_bytes(path.read_bytes().replace(b"number", b"numbre"))
    with pytest.raises(
        RunError, match=r"last\.ckpt: the file is damaged, its SHA-256 is not the one in last\.ckpt\.sha256"
    ):
        read_checkpoint(path)


def test_nothing_is_left_beside_a_checkpoint(tmp_path):
    in_the_old_way(tmp_path / "last.ckpt", 7)
    for number in range(3):
        write_checkpoint(content(number), tmp_path / "last.ckpt")
        assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_moved_away_alone_is_checked_and_is_an_archive_whose_comment_is_its_digest(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint(content(1), path)
    whole = path.read_bytes()
    with ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment == b"espace sha256 " + hashlib.sha256(whole[:-78]).hexdigest().encode()


def test_a_flipped_byte_is_noticed_wherever_it_is(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint(content(1), path)
    good = path.read_bytes()
    for at in [*range(0, len(good) - 120, 37), *range(len(good) - 120, len(good))]:
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(RunError, match=r"last\.ckpt: the file is damaged, "):
            read_checkpoint(path)


def test_a_file_that_was_cut_short_anywhere_is_refused(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint(content(1), path)
    good = path.read_bytes()
    for size in [*range(0, len(good) - 120, 50), *range(len(good) - 120, len(good))]:
        path.write_bytes(good[:size])
        with pytest.raises(
            RunError, match=r"last\.ckpt: (the file is damaged, it was cut off|it cannot be read as a c)"
        ):
            read_checkpoint(path)


def test_a_file_without_a_digest_is_read_if_it_is_whole_and_nothing_goes_on_from_it(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save(content(1), path)
    assert number_in(path) == 1
    with pytest.raises(RunError, match="it has no digest at its end"):
        read_checkpoint(path, only_whole=True)
    good = path.read_bytes()
    at = good.index(torch.full((3,), 1.0).numpy().tobytes())
    path.write_bytes(good[:at] + b"\1" + good[at + 1 :])
    with pytest.raises(RunError, match=r"the file is damaged, .* in it is not as it was written"):
        read_checkpoint(path)


def test_a_file_that_holds_something_else_is_refused(tmp_path):
    write_checkpoint([1, 2], tmp_path / "last.ckpt")
    with pytest.raises(RunError, match="it holds a list, so it is no checkpoint of espace"):
        read_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize("odd", [torch.eye(3).to_sparse(), torch.empty(3, device="meta"), torch.tensor(1j)])
def test_a_tensor_that_is_no_array_of_numbers_is_refused_wherever_it_stands(tmp_path, odd):
    write_checkpoint({"a": [{"b": (1, odd)}]}, tmp_path / "last.ckpt")
    with pytest.raises(RunError, match=r"last\.ckpt: it cannot be read as .* a tensor in it is .* no array of numbers"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_a_missing_checkpoint_is_told_from_a_damaged_one(tmp_path):
    with pytest.raises(RunError, match=r"best\.ckpt: there is no such checkpoint"):
        read_checkpoint(tmp_path / "best.ckpt")


def test_a_full_disk_leaves_the_old_one_and_names_the_path_and_the_space(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint(content(1), path)
    (tmp_path / "last.ckpt.partial").symlink_to("/dev/full")
    with pytest.raises(
        RunError, match=r"last\.ckpt: the checkpoint could not be written: .*[\d,]+ MiB were free there"
    ):
        write_checkpoint(content(2), path)
    assert number_in(path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("size", [0, 500, 1500])
def test_a_file_that_may_not_grow_leaves_the_old_one(tmp_path, size):
    path = tmp_path / "last.ckpt"
    write_checkpoint(content(1), path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(RunError, match=r"last\.ckpt: the checkpoint could not be written"):
            write_checkpoint(content(2), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert number_in(path) == 1


def test_a_place_that_is_no_folder_is_a_run_error(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(RunError, match="could not be written"):
        write_checkpoint(content(1), tmp_path / "checkpoints" / "last.ckpt")


class Malice:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, save):
    path, mark = tmp_path / "last.ckpt", tmp_path / "was run"
    save({"state_dict": Malice(mark)}, path)
    for read in (read_checkpoint, lambda p: SafeCheckpointIO().load_checkpoint(p, weights_only=False)):
        with pytest.raises(RunError, match=r"last\.ckpt: it cannot be read as a checkpoint"):
            read(path)
    assert not mark.exists()


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    for place, name in ((os, "fsync"), (Path, "replace")):
        operation = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *a, op=operation, n=name: done.append(n) or op(*a))
    checkpoint.write_checkpoint(content(1), tmp_path / "last.ckpt")
    file, folder = "fsync", "fsync"
    assert done == [file, "replace", folder]
