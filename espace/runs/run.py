"""A run folder: what training left behind, and what can be done with it: predict, evaluate."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

import espace.config as configuration
from espace.chain.probability import Probabilities
from espace.chain.scores import Numbers, predictions
from espace.config import Config
from espace.contracts import Reader
from espace.data.batch import Batch
from espace.data.encoding.encode import Encoder
from espace.data.encoding.strays import Strays
from espace.data.encoding.table import Columns
from espace.data.encoding.vocabulary import Vocabulary
from espace.data.reading.decoded import as_table, to_parquet
from espace.data.reading.naming import file_name
from espace.data.reading.readers import Piece, apart
from espace.data.reading.schemas import refuse_repeats
from espace.errors import ConfigError, NonFiniteError, RunError, did_you_mean
from espace.model.model import Model
from espace.registry.blame import parts_told
from espace.registry.registry import Registry
from espace.registry.registry import load as load_plugins
from espace.runs.artefact import Artefact, check_complete, opened, understood
from espace.runs.build import build_model, build_objective, build_weighting, scores_of
from espace.runs.html import html_of_run, results_in
from espace.runs.inputs import build_encoder, rows_at_once
from espace.runs.passing import check_columns, passed_on
from espace.runs.trust import chosen
from espace.training.checkpoint import read_checkpoint
from espace.training.optim import settle
from espace.training.precision import autocast, default_precision

PACKAGES = [
    "espace",
    "torch",
    "pytorch-lightning",
    "torchmetrics",
    "omegaconf",
    "pluggy",
    "pyarrow",
    "numpy",
    "pydantic",
]


class Run:
    """A trained model with its encoder: from a run folder, or from a checkpoint file alone.

    Attributes: config, registry, encoder, model (in eval mode), weighting (of the loss terms), folder (None for a lone
    checkpoint), scores (by name), strays (which tells of odd numbers).
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        encoder: Encoder,
        model: Model,
        weighting: nn.Module,
        folder: Path | None,
    ) -> None:
        self.config = config
        self.registry = registry
        self.encoder = encoder
        self.model = model
        self.weighting = weighting
        self.folder = folder
        self.scores = scores_of(config)
        self.strays = Strays(encoder)

    @property
    def results(self) -> dict[str, float | None]:
        """results.json: `{"test/click/auc": 0.72}`, None where undefined; nothing before a run is finished."""
        return results_in(self.folder)

    def evaluate(self, split: str = "test", overrides: Sequence[str] = ()) -> dict[str, float]:
        """`{"click/auc": 0.72}`, as `espace evaluate` finds. Raises ConfigError, DataError and NonFiniteError."""
        from espace.runs.evaluating import evaluate_run  # here, since it needs this module

        return evaluate_run(self, configuration.override(self.config, overrides, self.registry), split).metrics

    def _repr_html_(self) -> str:
        return html_of_run(self.config, self.folder)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Probabilities:
        """Every probability of a batch, on its device, in the precision of training."""
        precision = self.config.trainer.get("precision") or default_precision(batch.ids.device.type)
        with autocast(precision, batch.ids.device):
            probabilities: Probabilities = self.model(batch)
        return probabilities

    def predict(self, table: pa.Table | object) -> pa.Table:
        """Every probability of every row, and every score, float64, rows in the order of `table`.

        The columns are `p_<stage>`, `p_<stage>_given_<parent>` and `score_<name>`. A score is null where a column that
        decides it is missing.

        A number far from all that training saw is told once per column, as a Python warning.

        `table` is a pyarrow Table, or anything with columns that pyarrow takes (a pandas DataFrame, a dict of lists).
        Raises DataError for a missing column or a value that cannot be read, NonFiniteError for a score that is
        undefined.
        """
        read = as_table(table)
        self._check_input("the table", read.column_names)
        with parts_told(self.registry):
            return self._predict(read, "the table")

    def _check_input(self, where: str, found: Sequence[str], apart: Mapping[str, str] | None = None) -> None:
        """Raise DataError naming every column that the model or a score reads and the input lacks, or has twice."""
        check_columns(where, self.encoder.columns(labels=False), found, "which the model reads", apart)
        for name, score in self.scores.items():
            check_columns(where, score.columns, found, f"which scores.{name} reads", apart)
        wanted = set(self._input_columns())
        refuse_repeats([name for name in found if name in wanted], where, "Leave in the one that is meant.")

    def _input_columns(self) -> list[str]:
        return [*self.encoder.columns(labels=False), *(c for score in self.scores.values() for c in score.columns)]

    def _predict(self, table: pa.Table, where: str) -> pa.Table:
        """Some rows at a time, so that memory is bounded.

        Room for all results is made at the start, since small arrays that stay would break up the memory between large
        ones that go.
        """
        size, found = rows_at_once(self.config), dict[str, Numbers]()
        for at in range(0, max(table.num_rows, 1), size):
            for name, values in self._predict_part(table.slice(at, size), where, at).items():
                found.setdefault(name, np.empty(table.num_rows))[at : at + size] = values
        scores = {f"score_{name}" for name in self.scores}
        return pa.table({n: pa.array(v, mask=np.isnan(v)) if n in scores else v for n, v in found.items()})

    def _predict_part(self, table: pa.Table, where: str, first: int) -> dict[str, Numbers]:
        """`{column: its values, (rows,) float64}`, a score NaN where it is not known."""
        p = self.forward(self.encoder.encode(table, where, labels=False, first=first))
        self.strays.add(Columns(table, where, np.arange(first, first + table.num_rows)))
        addresses = self.model.chain.addresses
        columns = {f"p_{n}": p.log_prob(*address).double().exp().numpy() for n, address in addresses.items()}
        expectations = self.model.chain.expectations
        columns |= {f"e_{n}": p.value(*address).double().numpy() for n, address in expectations.items()}
        for name, values in columns.items():
            if not np.isfinite(values).all():
                row = first + int(np.isfinite(values).argmin())
                raise NonFiniteError(
                    f"{where}, row {row}: {name} is not finite. Look for huge numbers among its features."
                )
        return columns | self._scored(columns, table, where, first)

    def _scored(self, predicted: Mapping[str, Numbers], table: pa.Table, where: str, first: int) -> dict[str, Numbers]:
        """`{score_<name>: its values, (rows,) float64}`, NaN where a column that decides one is missing."""
        get, mend = Columns(table, where, np.arange(first, first + table.num_rows)), "Mend the column, or the score."
        names, wanted = predictions(self.model.chain), {read for score in self.scores.values() for read in score.reads}
        given = {r: get.numbers(r.name, mend) if r.column else predicted[names[r.name]] for r in wanted}
        scores = self.scores.items()
        return {f"score_{n}": s.values(given, table.num_rows, f"score_{n}", where, first) for n, s in scores}

    def predict_file(self, reader: Reader, out: Path, keep: Sequence[str] | None = None) -> Iterator[int]:
        """Stream predictions of all rows of `reader` to a Parquet file, in their order, beside the columns in `keep`.

        None keeps all that can be. Yields the rows done so far. The file appears under its name when it is complete.

        Raises DataError naming file and row group for what cannot be read, RunError when `out` cannot be written.
        """
        names, sources = reader.schema.names, {Path(piece.source).resolve() for piece in reader.pieces}
        self._check_input(reader.pieces[0].source, names, apart(reader))
        keep, _ = passed_on(reader, keep)
        if out.is_dir() or out.resolve() in sources:
            what = "a folder" if out.is_dir() else "a file that is read"
            raise RunError(f"{out}: it is {what}, and predictions go to a file of their own. Choose another --out.")
        with writing(out, "--out"):
            out.parent.mkdir(parents=True, exist_ok=True)
            with parts_told(self.registry):
                yield from self._write_predictions(reader, out, keep)

    def _write_predictions(self, reader: Reader, out: Path, keep: Sequence[str]) -> Iterator[int]:
        partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
        writer, done = None, 0
        try:
            for piece in reader.pieces:
                part = self._predict_piece(reader, piece, keep)
                with to_parquet(str(piece)):
                    writer = writer or pq.ParquetWriter(partial, part.schema)
                    writer.write_table(part)
                done += part.num_rows
                yield done
            assert writer is not None, "a reader has at least one piece"
            writer.close()
            partial.replace(out)
        finally:
            if writer is not None:
                writer.close()
            partial.unlink(missing_ok=True)

    def _predict_piece(self, reader: Reader, piece: Piece, keep: Sequence[str]) -> pa.Table:
        """The kept columns of a piece, those of `--keep` in its order, and its predictions, which replace old ones."""
        table = reader.read(piece, list(dict.fromkeys([*keep, *self._input_columns()])))
        predicted = self._predict(table, str(piece))
        kept = table.select([c for c in keep if c not in predicted.column_names])
        for name in predicted.column_names:
            kept = kept.append_column(name, predicted[name])
        return kept


def load(path: str | Path, checkpoint: str = "best", plugins: Sequence[str] = ()) -> Run:
    """Load a run folder (its `checkpoints/best.ckpt`, or the one named) or a checkpoint file alone; no YAML is needed.

    plugins: files or modules to load. Those that the run lists are only loaded when they are among these, or when this
    user has trained it in this folder on this machine, since loading them runs their code.

    Raises RunError when there is none, it is damaged, was written by something else, or lists other plugins.
    """
    place = Path(path)
    if not place.exists() or place.is_dir():
        config_file(place)
    file = place / "checkpoints" / f"{checkpoint}.ckpt" if place.is_dir() else place
    found = opened(read_checkpoint(file), file)
    with understood(file):
        config, registry = _configured(found, place, plugins)
        encoder = build_encoder(config, found.tables, found.numbers, kinds=found.kinds)
        check_complete(encoder)
        model = build_model(config, registry, encoder.layout, drawn=False)
        weighting = build_weighting(config, registry, build_objective(config, registry))
        _fill(file, found, model, weighting)
    return Run(config, registry, encoder, model.eval(), weighting, place if place.is_dir() else None)


def _configured(found: Artefact, place: Path, plugins: Sequence[str]) -> tuple[Config, Registry]:
    """The configuration in a checkpoint, with the plugins that may be loaded."""
    listed = [plugin for plugin in found.config.get("plugins", []) if isinstance(plugin, str)]
    taken, left = chosen(place, listed, plugins)
    registry = load_plugins(taken)
    try:
        return Config.from_dict(found.config, registry), registry
    except ConfigError as error:
        why = f" Left out, since nobody named them: {', '.join(left)}." if left else ""
        raise RunError(f"{place}: the configuration in it does not hold here: {error}{why}") from error


def _fill(file: Path, found: Artefact, model: Model, weighting: nn.Module) -> None:
    """Put the weights in their places. Raises RunError when they do not fit."""
    try:
        for prefix, module in (("model", model), ("weighting", weighting)):
            module.load_state_dict(found.weights_of(prefix))
        settle([*model.parameters()], found.optimizer)
    except RuntimeError as error:
        raise RunError(
            f"{file}: its weights do not fit the model that is built now: {' '.join(str(error).split())}. Use the"
            " plugins as they were when it was trained; versions.json has the packages."
        ) from error


def config_file(run: Path) -> Path:
    """The configuration in a run folder. Raises RunError where there is none."""
    path = run / "config.yaml"
    if path.exists():
        return path
    if not run.exists():
        raise RunError(f"{run}: there is no such run folder or checkpoint.{_runs_nearby(run)}")
    raise RunError(f"{run}: it is no run folder, there is no config.yaml in it.{_runs_inside(run)}")


def _runs_inside(folder: Path) -> str:
    runs = sorted(str(p.parent) for p in folder.glob("*/config.yaml"))
    return f" Below it are {', '.join(runs[-3:])}." if runs else " Train one with espace fit."


def _runs_nearby(place: Path) -> str:
    runs = [p.parent.name for p in place.parent.glob("*/config.yaml")] if place.parent.is_dir() else []
    return did_you_mean(place.name, runs) or " Train one with espace fit."


@contextmanager
def writing(path: Path, option: str) -> Iterator[None]:
    """Turns what the file system says into a RunError; `option` is where the user chose the path."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path}: it cannot be written: {error.strerror or error}. Choose another {option}, or make room for it."
        ) from error


def write_start(folder: Path, config: Config, encoder: Encoder) -> None:
    """Write what is known before training: config.yaml, versions.json, vocabularies. Raises RunError when it cannot."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    with writing(folder, "--run-dir"):
        configuration.save(config, folder / "config.yaml")
        text = json.dumps({"python": platform.python_version(), **versions}, indent=2)
        (folder / "versions.json").write_text(f"{text}\n")
        for name, table in encoder.tables.items():
            if isinstance(table, Vocabulary):
                table.save(folder / "vocabulary" / f"{file_name(name)}.parquet")


def write_results(folder: Path, results: Mapping[str, float], name: str = "results.json") -> None:
    """Write final metrics by name; what is undefined is null. Raises RunError when it cannot."""
    values = {k: (v if np.isfinite(v) else None) for k, v in results.items()}
    with writing(folder / name, "--out"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")
