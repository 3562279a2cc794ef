"""An experiment from its YAML: check the data, train, evaluate. The command line and Python use the same class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Thread

import torch

import espace.config as configuration
from espace.config import Config
from espace.errors import ConfigError
from espace.registry.blame import parts_told
from espace.registry.registry import Registry
from espace.runs.build import tables_of
from espace.runs.folder import clear_beginning, has_begun, new_folder, owned, refuse_taken, removed_if_empty
from espace.runs.html import in_notebook
from espace.runs.inputs import build_model_probe
from espace.runs.length import settled, told
from espace.runs.metrics import metric_names
from espace.runs.opening import Prepared, prepare
from espace.runs.report import Report
from espace.runs.resuming import check_same
from espace.runs.run import Run
from espace.runs.trust import remember
from espace.training.optim import load_kernels


class Experiment:
    """A checked configuration and the plugins it names.

    Raises ConfigError with every problem of the file at once.
    """

    def __init__(self, config: Config, registry: Registry, said: Sequence[str] = (), told: Sequence[str] = ()) -> None:
        self.config = config
        self._told = told  # what patterns of features became, a line each
        self._said = said  # overrides, of which one may change a rate when a run goes on
        self.registry = registry
        with parts_told(registry):
            _check_names(config, registry)
            build_model_probe(config, registry)

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
        """Read a YAML file, with `a.b=value` overrides. Raises ConfigError or PluginError."""
        config, registry, told = configuration.load_and_tell(Path(path), overrides)
        return cls(config, registry, overrides, told)

    def check(self, report: Report | None = None) -> Prepared:
        """Read the data once, audit it, and print what was found; without a report, nothing: in a notebook what is
        returned shows itself.

        Raises DataError with every reason not to train.
        """
        self._check_machine()
        report = report or Report(quiet=True)
        with parts_told(self.registry):
            for line in self._told:
                report.tell(line)
            prepared = prepare(self.config, self.registry, report)
            _settled(self.config, prepared, report)
            return prepared

    def _check_machine(self) -> None:
        """Raise ConfigError for what `trainer` asks of a machine that this one is not."""
        if self.config.trainer or torch.cuda.device_count() > 1:
            from espace.training.machine import check_machine  # here, since Lightning is slow to import

            check_machine(self.config.trainer)

    def fit(
        self,
        run_dir: str | Path | None = None,
        *,
        resume: str | Path | None = None,
        report: Report | None = None,
    ) -> Run | None:
        """Train, keep the best weights, evaluate them on validation and test, and leave a run folder behind.

        run_dir: the folder, new or empty; by default runs/<name>/<time>. resume: a run folder to go on with. report:
        what prints; without one, a notebook shows the audit, a bar and the results, and nothing is printed elsewhere.
        Returns the trained run; None on the other ranks of a distributed run. Raises EspaceError and its family, and
        SystemExit (130, 143) when a signal stopped it. Torch's random numbers on the CPU go on afterwards as if nothing
        had been drawn; those of accelerators are seeded anew at every step.
        """
        from espace.runs.fitting import Fitting, check_length  # here, since Lightning is slow to import
        from espace.training.machine import torch_as_it_was

        self._check_machine()
        report = (report or Report(quiet=not in_notebook())) if _is_first_rank() else Report(quiet=True)
        folder = _run_folder(self.config, run_dir, resume)
        mine = owned(folder) if _is_first_rank() else nullcontext()
        fresh = (parts_told(self.registry), torch.random.fork_rng(devices=[]), torch_as_it_was())
        with removed_if_empty(folder), mine, fresh[0], fresh[1], fresh[2]:
            goes_on, asked = self._enter(folder, resume is not None, report)
            for line in self._told:
                report.tell(line)
            wanted = tables_of(self.config, self.registry) != "dense" and not torch.cuda.is_available()
            kernels = Thread(target=load_kernels if wanted else None)  # beside reading, which leaves a core idle
            kernels.start()
            prepared = prepare(self.config, self.registry, report)
            config = _settled(asked, prepared, report)
            check_length(config, prepared)
            trained = Fitting(config, self.registry, prepared, folder, report)
            kernels.join()  # numba changes the filters of warnings while it compiles, and so does what follows
            if not trained.run(goes_on):
                return None
            return trained.finish()

    def _enter(self, folder: Path, resumes: bool, report: Report) -> tuple[bool, Config]:
        """Whether to go on from a checkpoint in the folder, and with which configuration.

        Raises RunError when this is not the run that began there, or a new one would write over something.
        """
        goes_on, config = resumes and has_begun(folder), self.config
        if goes_on:
            config, notes = check_same(config, self.registry, folder, self._said)
            report.warn_all(notes)
        elif resumes:
            report.warn(f"{folder}: the run was stopped before its first checkpoint, so it begins at the start.")
        if _is_first_rank():
            if not resumes:
                refuse_taken(folder)
            elif not goes_on:
                clear_beginning(folder)
            if goes_on and any(text.startswith("optimizer.") for text in self._said):
                configuration.save(config, folder / "config.yaml")  # so that the run goes on so next time too
            remember(folder, self.config.plugins)
        return goes_on, config


def _settled(config: Config, prepared: Prepared, report: Report) -> Config:
    """The configuration with the length of training that its rows ask for, which is told."""
    rows = prepared.rows
    found = settled(config, rows, "validation" in prepared.parts)
    if line := told(config, found, rows):
        report.tell(line)
    return found


def _check_names(config: Config, registry: Registry) -> None:
    """Raise ConfigError for what only the parts know: the names of metrics, the options of Lightning's trainer."""
    problems: list[str] = []
    try:
        configuration.check_monitor(config, metric_names(config, registry))
    except ConfigError as error:
        problems += error.problems
    if config.trainer:
        from espace.training.trainer import trainer_problems  # here, since Lightning is slow to import

        problems += trainer_problems(config.trainer)
    if config.callbacks:
        from espace.runs.around import build_callbacks

        build_callbacks(config, registry)
    if problems:
        raise ConfigError(problems)


def _run_folder(config: Config, asked: str | Path | None, resume: str | Path | None) -> Path:
    """The run's folder, into which only the first rank writes."""
    if resume is not None:
        has_begun(Path(resume))
        return Path(resume)
    if not _is_first_rank():
        return Path(asked or "runs")
    return new_folder(config, Path(asked) if asked else None)


def _is_first_rank() -> bool:
    """Whether this process writes and speaks; of a distributed run, whoever started its ranks numbered them."""
    return next((os.environ[n] for n in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if n in os.environ), "0") == "0"
