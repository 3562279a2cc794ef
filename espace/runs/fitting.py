"""One training run: the modules are built, Lightning's trainer runs, and what the run leaves behind is written."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

import espace.config as configuration
from espace.config import Config
from espace.data.encoding.table import release_memory
from espace.data.stream.module import DataModule, gpu_of
from espace.data.stream.stream import Stream
from espace.errors import ConfigError, NonFiniteError, RunError
from espace.registry.registry import Registry
from espace.runs.around import build_callbacks, build_loggers
from espace.runs.artefact import artefact_of, place_in, told_in
from espace.runs.build import build_model, build_objective, build_sampler, build_weighting
from espace.runs.diverging import base_terms, may_have_diverged, refuse_diverged
from espace.runs.evaluating import build_judge, evaluate
from espace.runs.failing import deaths_told, explained
from espace.runs.opening import Prepared
from espace.runs.optimising import build_rates
from espace.runs.report import Report
from espace.runs.run import (
    Run,
    load,
    write_results,
    write_start,
    writing,
)
from espace.training.callbacks import Checkpoints, Interrupted, Interrupts, Quarters
from espace.training.checkpoint import read_checkpoint
from espace.training.lightning import Training
from espace.training.memory import keep_freed
from espace.training.precision import default_precision
from espace.training.trainer import lightning_quiet, make_trainer

_STILL = 2e-3  # a gain of the last validation that says that training was too short


class _Trainer(Protocol):
    """What is used here of Lightning's trainer."""

    @property
    def is_global_zero(self) -> bool: ...

    @property
    def global_step(self) -> int: ...

    def fit(self, model: Training, *, datamodule: DataModule, ckpt_path: Path | None) -> None: ...


class Fitting:
    """One training run: builds the modules, runs Lightning's trainer, writes what the run leaves behind."""

    def __init__(self, config: Config, registry: Registry, prepared: Prepared, folder: Path, report: Report) -> None:
        self.config, self.registry, self.prepared = config, registry, prepared
        self.folder, self.report = folder, report
        self.gpu: torch.device | None = None
        torch.manual_seed(config.seed)
        self.objective = build_objective(config, registry)
        self.model = build_model(config, registry, prepared.encoder.layout)
        if config.compile:
            self.model.compile_towers(report.warn)
        tally = prepared.scans["train"].tally
        amounts = {name: found.moments for name, found in tally.amounts.items()}
        self.model.start_at(tally.starts(self.model.chain, self.model.joint), amounts)
        self.starts = self.model.starts()

    def run(self, resume: bool) -> bool:
        """Train. True on the rank that has to finish the run."""
        config, monitored = self.config, "validation" in self.prepared.parts
        resumed_at = self._resumed_at() if resume else None
        mode, folder = configuration.monitor_mode(config), self.folder / "checkpoints"
        checkpoints = Checkpoints(folder, config.monitor, mode, config.checkpoint_every, config.patience)
        interrupts = Interrupts(checkpoints)
        callbacks = [
            self.report.narrator(),
            *build_callbacks(config, self.registry),
            checkpoints,
            interrupts,
        ]  # a place is saved when all else has seen the step
        with lightning_quiet():
            options = _trainer_options(config, monitored)
            callbacks += [] if _says_when(config) else [Quarters()]
            loggers = build_loggers(config, self.registry, self.folder, resumed_at)
            trainer = make_trainer(options, callbacks, self.folder, loggers)
        self.gpu = gpu_of(trainer)
        if trainer.is_global_zero and not resume:
            write_start(self.folder, config, self.prepared.encoder)
            for logger in loggers:
                logger.log_hyperparams(config.to_dict())
        release_memory()  # training reads less at a time than what came before
        keep_freed()
        self.report.start(config, self.model, self.folder, trainer.precision)
        start = folder / "last.ckpt" if resume else None
        told = explained(self.folder, start, lambda: checkpoints.began, trainer.world_size)
        with told, lightning_quiet(), deaths_told(self.folder), _alone_again(), interrupts:
            self._fit(trainer, monitored, start)
        if checkpoints.gain > _STILL:
            self.report.warn(
                f"{trainer.global_step:,} steps; {config.monitor} was still getting better at the end, by"
                f" {checkpoints.gain:.1%} since the validation before. Train longer: trainer.max_epochs, or max_steps."
            )
        return bool(trainer.is_global_zero)

    def _fit(self, trainer: _Trainer, monitored: bool, start: Path | None) -> None:
        """Let Lightning train. When all ranks stop together, the first one tells why and has the exit code."""
        try:
            trainer.fit(self._module(), datamodule=self._data(monitored), ckpt_path=start)
        except (Interrupted, NonFiniteError) as stop:
            if not trainer.is_global_zero:
                raise SystemExit(0) from None
            if isinstance(stop, NonFiniteError):
                raise
            self.report.stopped(self.folder, trainer.global_step)
            raise SystemExit(stop.exit_code) from None
        except RuntimeError as error:
            if "deterministic implementation" not in str(error):
                raise
            what = f"trainer.deterministic: torch cannot do a step so: {str(error).partition('. ')[0]}"
            raise ConfigError(f"{what}. Set warn, or false; on one CPU a run gives the same bits anyway.") from error

    def _module(self) -> Training:
        weighting = build_weighting(self.config, self.registry, self.objective)
        return Training(
            self.model,
            self.objective,
            weighting,
            build_judge(self.config, self.registry, self.objective, weighting),
            build_rates(self.config, self.registry, len(self.prepared.plan(self.config))),
            self.config.seed,
            {**artefact_of(self.config, self.prepared.encoder), "data": self._identity()},
            self.report.warn if self.config.cuda_graphs else None,
            self.config.optimizer.average or 0.0,
        )

    def _identity(self) -> str:
        return self.prepared.parts["train"].identity

    def _data(self, monitored: bool) -> DataModule:
        data = self.config.data
        plan = self.prepared.plan(self.config)
        sampler = build_sampler(self.config, self.registry)
        part, encoder = self.prepared.parts["train"], self.prepared.encoder_of("train").without_extras()
        train = Stream(part, encoder, plan, training=True, workers=data.workers, keep=data.keep_encoded)
        train = replace(train, sampling=sampler, scoring=self.prepared.scoring)
        return DataModule(train, self.prepared.stream(self.config, "validation") if monitored else None)

    def _resumed_at(self) -> int:
        """The step from which the run goes on.

        Raises RunError when its checkpoint is damaged, or the data is not the same.
        """
        file = self.folder / "checkpoints" / "last.ckpt"
        content = read_checkpoint(file, only_whole=True)
        if told_in(content, file).get("data") != self._identity():
            raise RunError(f"{self.folder}: the training data is not what it was when the run began. Start a new run.")
        return place_in(content, file)

    def finish(self) -> Run:
        """Evaluate the best weights where the run trained, write results and pictures, print the tables.

        Raises DivergedError when all that is done and they are far worse than base rates.
        """
        del self.model  # and, with the trainer, the state of the optimiser: it is large
        gc.collect()
        run = load(self.folder, plugins=self.config.plugins)
        results: dict[str, float] = {}
        curves = {}
        for name, prefix in (("validation", "val"), ("test", "test")):
            if name in self.prepared.parts:
                stream = replace(self.prepared.stream(self.config, name), device=self.gpu)
                found = evaluate(self.config, run, stream, self.gpu or "cpu")
                results |= {f"{prefix}/{k}": v for k, v in found.metrics.items()}
                curves[name] = found.curves
                self.report.results(self.config, name, found.metrics)
        for module in (run.model, run.weighting):
            module.cpu()  # where predictions are made
        with writing(self.folder, "--run-dir"):
            write_results(self.folder, results)
            self.report.figures(self.folder, curves)
        self._refuse_diverged(run, results)
        self.report.finished(self.folder)
        return run

    def _refuse_diverged(self, run: Run, results: Mapping[str, float]) -> None:
        """Judge the best weights by the rows that chose them, else by the test rows, against what training began at."""
        for name, prefix in (("validation", "val/"), ("test", "test/")):
            found = {n.removeprefix(prefix): v for n, v in results.items() if n.startswith(prefix)}
            if found and may_have_diverged(found, run.model):
                objective = build_objective(self.config, self.registry)
                base = base_terms(run.model, self.starts, objective, self.prepared.stream(self.config, name))
                refuse_diverged(found, base, name, self.folder)
            if found:
                return


def _trainer_options(config: Config, monitored: bool) -> dict[str, object]:
    """The user's options over espace's defaults: one epoch unless steps or time are given."""
    options = {"precision": default_precision(config.trainer.get("accelerator", "auto")), **config.trainer}
    if "max_epochs" not in options:
        options["max_epochs"] = -1 if options.get("max_steps", -1) > 0 or options.get("max_time") else 1
    return options if monitored else {**options, "limit_val_batches": 0}


def _says_when(config: Config) -> bool:
    """Whether the user says when validation comes."""
    return not {"val_check_interval", "check_val_every_n_epoch"}.isdisjoint(config.trainer)


@contextmanager
def _alone_again() -> Iterator[None]:
    """The group of processes of a distributed run is left, so that what follows is a process of its own."""
    before, joined = set(os.environ), dist.is_available() and dist.is_initialized()
    try:
        yield
    finally:
        for name in set(os.environ) - before:
            del os.environ[name]
        if not joined and dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def check_length(config: Config, prepared: Prepared) -> None:
    """Raise ConfigError when training would not begin, or never come to a validation."""
    batches = len(prepared.plan(config))
    interval = config.trainer.get("val_check_interval")
    over_epochs = config.trainer.get("check_val_every_n_epoch", 1) is None
    problems = [
        f"trainer.{name}: with 0 nothing is trained. Set it higher, or leave it out."
        for name in ("max_epochs", "max_steps", "limit_train_batches")
        if config.trainer.get(name) == 0
    ]
    if type(interval) is int and interval > batches and not over_epochs:
        problems.append(
            f"trainer.val_check_interval: {interval:,} is more than the {batches:,} batches of an epoch. Set it lower,"
            " or check_val_every_n_epoch: null to count over epochs."
        )
    if problems:
        raise ConfigError(problems)
