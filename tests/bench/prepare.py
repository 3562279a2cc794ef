"""Speed and peak memory of `espace prepare ali-ccp` on a made-up raw split with lists as long as the real ones.

python -m tests.bench.prepare [--rows 2000000] [--scale 1.0] [--shuffled]
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.raw import AliCcp


def child(raw: Path, out: Path) -> None:
    """Convert in this process, with one thread, and print what each step cost."""
    import pyarrow as pa

    from espace.data.raw.ali_ccp import ALI_CCP
    from espace.data.raw.convert import Conversion

    pa.set_cpu_count(1)
    steps: dict[str, list[float]] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    for progress in Conversion(ALI_CCP, raw, out).run():
        cost = steps.setdefault(progress.step, [0.0, 0.0, 0.0, 0.0])
        now = time.perf_counter(), time.process_time()
        for place, more in enumerate((progress.rows, progress.done - progress.start, now[0] - wall, now[1] - cpu)):
            cost[place] += more
        wall, cpu = now
    for name, (rows, size, wall, cpu) in steps.items():
        speed = f"{rows / wall:,.0f} rows/s ({rows / cpu:,.0f} per second of CPU)"
        print(f"{name}: {rows:,.0f} lines, {size / 1e6:,.0f} MB in {wall:.1f} s, {speed}")
    written = sum(path.stat().st_size for path in out.rglob("*.parquet"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{written / 1e6:,.0f} MB of Parquet; peak {peak:,.0f} MiB")


def main() -> None:
    """Make the split, unless it is there, and measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--scale", type=float, default=1.0, help="of the lists of users")
    parser.add_argument("--shuffled", action="store_true", help="impressions in no order of users")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "espace-bench")
    parser.add_argument("--child", type=Path)
    options = parser.parse_args()
    raw = options.folder / f"raw-{options.rows}-{options.scale}{'-shuffled' * options.shuffled}"
    out = options.folder / "prepared"
    if options.child:
        child(options.child, out)
        return
    if not (raw / "sample_skeleton_train.csv").exists():
        AliCcp(options.rows, scale=options.scale, shuffled=options.shuffled).write(raw, "train")
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "tests.bench.prepare", "--folder", str(options.folder), "--child", str(raw)]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
