"""python -m tests.fuzz --examples 100000 [--door chain] [--minutes 8]: the big run, and what it found at each door."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import pytest

DOORS = ("chain", "yaml", "scores", "predict", "cache", "checkpoint")


def main() -> int:
    asked = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    asked.add_argument("--examples", type=int, default=100_000, help="at most, for each door")
    asked.add_argument("--minutes", type=int, default=60, help="at most, for each door")
    asked.add_argument("--door", choices=DOORS, action="append", help="this one only; again for more")
    options = asked.parse_args()
    os.environ["ESPACE_FUZZ"] = f"{options.examples} {options.minutes}"
    codes: list[int] = []
    for door in options.door or DOORS:
        start = time.monotonic()
        codes.append(pytest.main(["-q", "-p", "no:cacheprovider", str(Path(__file__).with_name(f"test_{door}.py"))]))
        from tests.fuzz.doors import COUNTS, FINDINGS  # pytest wants to be the first that imports hypothesis

        counts = ", ".join(f"{number:,} {what}" for what, number in COUNTS[door].items())
        print(f"{door}: {counts}, {len(FINDINGS[door])} findings, {time.monotonic() - start:.0f} s", flush=True)
        for finding in dict.fromkeys(FINDINGS[door]):
            print(f"    {finding}", flush=True)
        codes.append(bool(FINDINGS[door]))
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
