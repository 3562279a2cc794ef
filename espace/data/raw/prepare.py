"""`espace prepare`: raw releases of public data sets to Parquet, told as it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bars

from espace.data.console import SafeConsole
from espace.data.raw.ali_ccp import ALI_CCP
from espace.data.raw.ali_express import ALI_EXPRESS
from espace.data.raw.convert import Conversion, Progress
from espace.data.raw.lines import Tally
from espace.errors import DataError, did_you_mean

RELEASES = {release.name: release for release in (ALI_CCP, ALI_EXPRESS)}
_EVERY = 30.0  # seconds between lines of output that goes to a file or a pipe
_Tell = Callable[[Progress], None]


def prepare(release: str, raw: Path, out: Path, quiet: bool = False) -> None:
    """Write the raw files of a release in `raw` as `out/<split>/part-*.parquet`, and say what was found in them.

    Stopped or killed, the same call goes on with the part it was in; when all is there, it only says so. Raises
    DataError for an unknown release, missing raw files, files that are something else, and a folder with other things
    in it.
    """
    if release not in RELEASES:
        raise DataError(f"prepare: there is no release '{release}'.{did_you_mean(release, RELEASES)}")
    console = SafeConsole(quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True)
    try:
        conversion = Conversion(RELEASES[release], raw, out)
        if conversion.done:
            console.print(f"{out} is complete.")
        else:
            _run(conversion, console, out)
    except OSError as error:
        where = error.filename or out
        raise DataError(
            f"{where}: {error.strerror or error}. Mend that; the same command goes on from here."
        ) from error
    for line in summary(conversion):
        console.print(line)


def _run(conversion: Conversion, console: Console, out: Path) -> None:
    try:
        with (_bars if console.is_terminal else _log)(console) as tell:
            for progress in conversion.run():
                tell(progress)
    except KeyboardInterrupt:
        console.print(f"Stopped. What is written in {out} stays; the same command goes on from there.")
        raise


def summary(conversion: Conversion) -> Iterator[str]:
    """Lines about every split: rows and rates, what differs from what is published, what is odd and where."""
    for split, files in conversion.files.items():
        read = conversion.read(split)
        tally = read[files.rows]
        click, both = tally.labels["click"], tally.labels["both"]
        rates = f"{click:,} clicks ({click / tally.rows:.4f} of rows)"
        rates += f", {both:,} conversions after a click ({both / max(click, 1):.4f} of clicks)"
        yield f"{split}: {tally.rows:,} rows, {rates}"
        for doubt in conversion.release.doubts(files.rows, split, tally):
            yield f"Note: {split}: {doubt}"
        for path, found in read.items():
            yield from _oddities(path, found)


def _oddities(path: Path, tally: Tally) -> Iterator[str]:
    for what, oddity in tally.oddities.items():
        yield f"Note: {oddity.lines:,} of {tally.lines:,} lines of {path.name}: {what}"
        for number, text in oddity.first:
            yield f"    {path}:{number + 1}: {text!r}"


class _Pace:
    """How fast the step goes, counted from where it began in this run."""

    def __init__(self) -> None:
        self._step, self._last = "", time.monotonic()
        self._since, self._start, self._rows = self._last, 0, 0

    def told(self, progress: Progress) -> str:
        """`12,345 rows/s, 0:01:23 left`."""
        if progress.step != self._step:
            self._step, self._since, self._start, self._rows = progress.step, self._last, progress.start, 0
        self._rows += progress.rows
        self._last = time.monotonic()
        seconds = max(self._last - self._since, 1e-9)
        left = (progress.size - progress.done) * seconds / max(progress.done - self._start, 1)
        return f"{self._rows / seconds:,.0f} rows/s, {timedelta(seconds=round(left))} left"


@contextmanager
def _bars(console: Console) -> Iterator[_Tell]:
    """A bar for every step."""
    pace, tasks = _Pace(), {}
    columns = (TextColumn("{task.fields[step]}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    with Bars(*columns, console=console) as bars:

        def tell(progress: Progress) -> None:
            if progress.step not in tasks:
                tasks[progress.step] = bars.add_task("", step=progress.step, total=progress.size)
            bars.update(tasks[progress.step], completed=progress.done, description=pace.told(progress))

        yield tell


@contextmanager
def _log(console: Console) -> Iterator[_Tell]:
    """A line now and then."""
    pace, last = _Pace(), time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal last
        line = f"{progress.step}: {progress.done / progress.size:.1%} of {progress.size:,} bytes, {pace.told(progress)}"
        if time.monotonic() - last >= _EVERY or progress.done == progress.size:
            last = time.monotonic()
            console.print(line)

    yield tell
