"""A checkpoint is the old one or the new one, never neither; damage is noticed; nothing in it is run."""

from __future__ import annotations

import itertools
import os
import pickle
import resource
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

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
    assert steps > 20
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


def test_a_file_whose_digest_was_lost_is_kept_until_the_next_is_whole(tmp_path):
    path = tmp_path / "last.ckpt"
    for step in range(steps_of_a_write(path)):
        write_checkpoint(content(1), path)
        (tmp_path / "last.ckpt.sha256").unlink()
        attempt(path, 2, step)
        assert number_in(path) in (1, 2)


def test_nothing_is_left_beside_a_checkpoint_but_its_digest_which_sha256sum_reads(tmp_path):
    for number in range(3):
        write_checkpoint(content(number), tmp_path / "last.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]
    said = subprocess.run(["sha256sum", "--check", "last.ckpt.sha256"], cwd=tmp_path, capture_output=True, text=True)
    assert said.stdout == "last.ckpt: OK\n"


def test_a_flipped_byte_is_noticed_wherever_it_is(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint(content(1), path)
    good = path.read_bytes()
    for at in range(0, len(good), 37):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(
            RunError, match=r"last\.ckpt: the file is damaged, its SHA-256 is not the one in last\.ckpt"
        ):
            read_checkpoint(path)


@pytest.mark.parametrize("size", [0, 1, 100, 1000])
def test_a_file_that_was_cut_short_is_refused_with_a_digest_and_without(tmp_path, size):
    path = tmp_path / "last.ckpt"
    write_checkpoint(content(1), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(RunError, match=r"last\.ckpt: the file is damaged"):
        read_checkpoint(path)
    (tmp_path / "last.ckpt.sha256").unlink()
    with pytest.raises(RunError, match=r"last\.ckpt: it cannot be read as a checkpoint"):
        read_checkpoint(path)


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
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]


def test_a_disk_that_fills_up_at_the_digest_leaves_the_old_one(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint(content(1), path)
    (tmp_path / "last.ckpt.sha256.partial").symlink_to("/dev/full")
    with pytest.raises(RunError, match="No space left on device"):
        write_checkpoint(content(2), path)
    assert number_in(path) == 1


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
    assert done == [file, file, "replace", folder, "replace", folder, file, "replace", folder]
