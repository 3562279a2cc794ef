"""Memory that a step frees is there for the next one."""

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, torch
from espace.training.memory import keep_freed
kept = {call}
def step():
    arrays = [torch.zeros(10 * 2**20) for _ in range(5)]  # of 40 MiB
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 3 * 5 * 40 * 2**20 // 4096


def run(call, **environment):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", STEPS.format(call=call)]
    done = subprocess.run(command, env=env | environment, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_the_system_clears_no_page_twice():
    kept, faults = run("keep_freed()")
    assert kept
    assert faults < PAGES / 20
    assert run("None")[1] > PAGES / 2  # without it: pages of 4 KiB, all of them each time


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_who_tunes_malloc_already_is_not_overruled(name):
    value = "glibc.malloc.trim_threshold=1000000" if name == "GLIBC_TUNABLES" else "1000000"
    assert run("keep_freed()", **{name: value})[0] is False


def test_a_c_library_without_mallopt_is_left_alone():
    assert run("(setattr(__import__('ctypes'), 'CDLL', lambda name: object()), keep_freed())[1]")[0] is False
