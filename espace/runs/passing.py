"""Columns of the input that a prediction reads, and those that it passes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from espace.contracts import Reader
from espace.data.reading.convert import held
from espace.data.reading.readers import apart
from espace.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from espace.runs.report import Report
    from espace.runs.run import Run


def check_columns(
    where: str, wanted: Sequence[str], found: Sequence[str], why: str, apart: Mapping[str, str] | None = None
) -> None:
    """Raise DataError naming every column that is missing, with the nearest names, or with what `apart` says of it."""
    reasons = apart or {}
    missing = [c for c in dict.fromkeys(wanted) if c not in found]
    if missing:
        raise DataError(
            "\n".join(
                f"{where}: there is no column '{c}', {why}. {reasons[c]}"
                if c in reasons
                else f"{where}: there is no column '{c}', {why}.{did_you_mean(c, found)}"
                for c in missing
            )
        )


def passed_on(reader: Reader, keep: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The columns of the input that stand beside the predictions, and a note for each one that cannot.

    keep: their names; None for all that all files have and Parquet can hold. Raises DataError for a name in `keep` that
    is not among these.
    """
    unheld = {field.name: f"Parquet cannot hold its type, {field.type}" for field in reader.schema if not held(field)}
    if keep is None:
        left_out = {
            **unheld,
            **dict.fromkeys(apart(reader), "not all files have it, or not in one type that can be kept"),
        }
        notes = [f"the column '{name}' is not passed on: {why}." for name, why in left_out.items()]
        return [name for name in reader.schema.names if name not in unheld], notes
    where, wanted = reader.pieces[0].source, list(dict.fromkeys(keep))
    check_columns(where, wanted, reader.schema.names, "which --keep names", apart(reader))
    problems = [
        f"{where}: --keep names the column '{name}', but {unheld[name]}. Leave it out, or write it as another type."
        for name in wanted
        if name in unheld
    ]
    if problems:
        raise DataError("\n".join(problems))
    return wanted, []


def predict_to(run: Run, source: Reader, out: Path, keep: list[str] | None, report: Report) -> tuple[int, str]:
    """Predict all rows into a Parquet file, and show how far it is. Returns how many, and in words what they have
    now."""
    total, done = sum(p.rows for p in source.pieces), 0
    notes: list[str] = []
    run.strays.tell = notes.append
    try:
        for done in run.predict_file(source, out, keep):
            report.progress("rows", done, total)
        notes += passed_on(source, keep)[1]
    finally:
        report.done_reading()
        report.warn_all(notes)
    chain = run.model.chain
    kinds = {"probabilities": chain.addresses, "expectations": chain.expectations, "scores": run.scores}
    return done, ", ".join(f"{len(found)} {kind}" for kind, found in kinds.items() if found)
