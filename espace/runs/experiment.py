"""An experiment from its YAML: check the data, train, evaluate. The command line and Python use the same class."""

from __future__ import annotations

import gc
import logging
import os
import time
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import espace.config as configuration
from espace.runs.build import build_encoder, build_metrics, build_model, build_objective, build_sampler, build_weighting, chain_of, extras_of, features_of, labels_of, limits_of, metric_names, rows_at_once, sampling_of, scores_of, spaces_of
from espace.chain.probability import Probabilities
from espace.chain.scores import predictions
from espace.config import Config
from espace.config.validate import describe
from espace.config.yamlfile import show
from espace.data.auditing import audit
from espace.data.auditing.scan import Scan, Task, scan_other, scan_training
from espace.data.batch import Batch
from espace.data.encoding.columns import Bag, column_of
from espace.data.encoding.encode import Encoder
from espace.data.encoding.labels import Limits
from espace.data.encoding.table import Problems, release_memory
from espace.data.reading.readers import Reader
from espace.data.reading.split import Between, HeldOut, Part, Sampled
from espace.data.stream.stream import Plan, Scoring, Stream
from espace.errors import ConfigError, DataError, NonFiniteError, RunError, did_you_mean
from espace.model.model import Model
from espace.registry.registry import Registry
from espace.runs.report import Report
from espace.runs.run import Run, artefact_of, config_file, load, new_folder, removed_if_empty, write_results, write_start
from espace.training.checkpoint import read_checkpoint
from espace.training.judging import Judge, TermMeans
from espace.training.memory import keep_freed
from espace.training.optim import load_kernels
from espace.training.precision import default_precision

See = Callable[[Probabilities, Batch], object]
_PARTS = ("train", "validation", "test")
_MAY_CHANGE = (
    "name",
    "trainer",
    "compile",
    "cuda_graphs",
    "metrics",
    "scores",
    "monitor",
    "mode",
    "patience",
    "checkpoint_every",
)  # when a run goes on
_PLACE = ("limit_train_batches", "accumulate_grad_batches")  # of trainer: what a count of batches means hangs on them
_DATA_MAY_CHANGE = (
    *_PARTS,
    "potential",
    "allow_leaks",
    "workers",
    "keep_encoded",
)  # that the training rows are the same is checked


@dataclass
class Prepared:
    """Data that was looked at: parts by name, what the scans found, the encoder, what scores rows for the sampler."""

    parts: Mapping[str, Part]
    scans: Mapping[str, Scan]
    encoder: Encoder
    scoring: Scoring | None = None

    def plan(self, config: Config) -> Plan:
        """The order of the training rows."""
        data = config.data
        return Plan(self.scans["train"].counts, data.batch_size, config.seed, data.shuffle, data.shuffle_rows)

    def stream(self, config: Config, name: str) -> Stream:
        """The batches of a part in the order of the file, for evaluation."""
        plan = Plan(self.scans[name].counts, rows_at_once(config), 0, False, 0)
        return Stream(self.parts[name], self.encoder, plan, workers=config.data.workers, keep=config.data.keep_encoded)


@dataclass
class Evaluated:
    """Metrics by name without a prefix, and the calibration curve of each space."""

    metrics: dict[str, float]
    curves: dict[str, dict[str, list[float]]]


class Experiment:
    """A checked configuration and the plugins it names.

    Raises ConfigError with every problem of the file at once.
    """

    def __init__(self, config: Config, registry: Registry) -> None:
        self.config = config
        self.registry = registry
        _check_names(config, registry)
        build_model_probe(config, registry)

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
        """Read a YAML file, with `a.b=value` overrides. Raises ConfigError or PluginError."""
        config, registry = configuration.load_with_plugins(Path(path), overrides)
        return cls(config, registry)

    def check(self, report: Report | None = None) -> Prepared:
        """Read the data once, audit it, and print what was found. Raises DataError with every reason not to train."""
        return prepare(self.config, self.registry, report or Report(quiet=True))

    def fit(
        self,
        run_dir: str | Path | None = None,
        *,
        resume: str | Path | None = None,
        report: Report | None = None,
    ) -> Run | None:
        """Train, keep the best weights, evaluate them on validation and test, and leave a run folder behind.

        run_dir: the folder, new or empty; by default runs/<name>/<time>. resume: a run folder to go on with.
        Returns the trained run; None on the other ranks of a distributed run. Raises EspaceError and its family, and
        SystemExit (130, 143) when a signal stopped it. Torch's random numbers on the CPU go on afterwards as if nothing had
        been drawn; those of accelerators are seeded anew at every step.
        """
        report = report if report and _is_first_rank() else Report(quiet=True)
        folder = _run_folder(self.config, run_dir, resume)
        if resume is not None:
            _check_same(self.config, self.registry, folder)
        with removed_if_empty(folder), torch.random.fork_rng(devices=[]):
            wanted = self.config.optimizer.tables != "dense" and not torch.cuda.is_available()
            kernels = Thread(target=load_kernels if wanted else None)  # beside reading, which leaves a core idle
            kernels.start()
            prepared = prepare(self.config, self.registry, report)
            _check_length(self.config, prepared)
            trained = _Training(self.config, self.registry, prepared, folder, report)
            kernels.join()  # numba changes the filters of warnings while it compiles, and so does what follows
            if not trained.run(resume is not None):
                return None
            return trained.finish()


def _check_names(config: Config, registry: Registry) -> None:
    """Raise ConfigError for what only the parts know: the names of metrics, the options of Lightning's trainer."""
    problems: list[str] = []
    try:
        configuration.check_monitor(config, metric_names(config, registry))
    except ConfigError as error:
        problems += error.problems
    if config.trainer:
        from espace.training.lightning import trainer_problems  # here, since Lightning is slow to import

        problems += [*trainer_problems(config.trainer), *_mistyped(config.trainer)]
    if problems:
        raise ConfigError(problems)


def _mistyped(options: Mapping[str, Any]) -> list[str]:
    """Values of no plain type that the signature of Lightning's trainer names: it would find out late, or never."""
    import pytorch_lightning as pl

    found = []
    for name, hint in typing.get_type_hints(pl.Trainer.__init__).items():
        kinds = typing.get_args(hint) if typing.get_origin(hint) is typing.Union else (hint,)
        plain = tuple(k for k in kinds if typing.get_origin(k) or k in (int, float, str, bool, type(None)))
        if name in options and plain and not any(_fits(options[name], kind) for kind in plain):
            found.append(f"trainer.{name}: {show(options[name])} is not {describe(typing.Union[plain])}.")  # noqa: UP007
    return found


def _fits(value: object, kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    kind = typing.get_origin(kind) or kind
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _check_same(config: Config, registry: Registry, run: Path) -> None:
    """Raise RunError when the run was begun with options that cannot change on the way."""
    now, then = (c.to_dict() for c in (config, configuration.load(config_file(run), (), registry)))
    changed = [key for key in then if key not in (*_MAY_CHANGE, "data") and now[key] != then[key]]
    for key in {**then["data"], **now["data"]}:
        if key not in _DATA_MAY_CHANGE and now["data"].get(key) != then["data"].get(key):
            changed.append(f"data.{key}")
    for key in _PLACE:
        if now["trainer"].get(key) != then["trainer"].get(key):
            changed.append(f"trainer.{key}")
    if changed:
        raise RunError(
            f"{run}: it was begun with another {', '.join(changed)}. What may change when a run goes on:"
            f" {', '.join(_MAY_CHANGE)}. Start a new run with another --run-dir."
        )


def _check_length(config: Config, prepared: Prepared) -> None:
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
            f"trainer.val_check_interval: {interval:,} is more than the {batches:,} batches of an epoch. Set it lower, or"
            " check_val_every_n_epoch: null to count over epochs."
        )
    if problems:
        raise ConfigError(problems)


def build_model_probe(config: Config, registry: Registry) -> Model:
    """The model on the "meta" device: every shape and parameter count, no memory. Raises what building raises."""
    from espace.runs.build import layout_without_data

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_model(config, registry, layout_without_data(config))


def prepare(config: Config, registry: Registry, report: Report) -> Prepared:
    """Open the files, learn vocabularies, count labels. Raises DataError with every reason not to train."""
    parts = open_parts(config, registry)
    scorer = _scorer(config, registry)
    task = _task(config, registry)
    scan, (tables, numbers) = scan_training(task, parts["train"], report.progress)
    encoder = build_encoder(config, tables, numbers, task.limits)
    scoring = None if scorer is None else _scoring(*scorer, encoder)
    scans = {"train": scan}
    for name in parts:
        if name != "train":
            scans[name] = scan_other(task, parts[name], encoder, report.progress)
    report.audit(config, build_objective(config, registry), scans)
    if line := sampling_of(config, registry):
        report.warn(line)
    _tell_scores(config, parts["train"], report)
    _judge_scans(config, parts, scans, report, task.limits)
    return Prepared(parts, scans, encoder, scoring)


def _scorer(config: Config, registry: Registry) -> tuple[Run, str] | None:
    """The run, and its stage, by whose probability the sampler goes. Raises RunError or ConfigError when there is none."""
    scored_by: tuple[str, str] | None = getattr(build_sampler(config, registry), "scored_by", None)
    if scored_by is None:
        return None
    folder, stage = scored_by
    run = load(folder)
    if stage not in run.model.chain.stages:
        raise ConfigError(f"sampler: the chain of {folder} has no stage '{stage}'. Train a run that predicts it.")
    return run, stage


def _scoring(run: Run, stage: str, encoder: Encoder) -> Scoring:
    """P(stage) of rows as `encoder` makes them. Raises ConfigError when those that the run reads are others."""
    if run.encoder.inputs != encoder.inputs:
        raise ConfigError(
            f"sampler: {run.folder or 'the run'} reads other features than this experiment, or learnt them from other rows, so"
            " it cannot score its batches. Train it with the same features and the same data.train."
        )
    return lambda batch: run.forward(batch).prob(stage).double().numpy()


def _tell_scores(config: Config, train: Part, report: Report) -> None:
    """Columns of scores that the training data lacks: it does without them, a prediction does not."""
    found = [*train.reader.schema.names, *predictions(chain_of(config))]
    for name, score in scores_of(config).items():
        for column in score.columns:
            if column not in found:
                what = f"scores.{name}: the training data has no column '{column}', which a prediction needs."
                report.warn(f"{what}{did_you_mean(column, found)}")


def _task(config: Config, registry: Registry) -> Task:
    data = config.data
    chain, limits = chain_of(config), limits_of(config, registry)
    return Task(features_of(config), chain, labels_of(config), data.violations, data.weight, extras_of(config), limits)


def _judge_scans(
    config: Config, parts: Mapping[str, Part], scans: Mapping[str, Scan], report: Report, limits: Mapping[str, Limits]
) -> None:
    chain, data, labels = chain_of(config), config.data, labels_of(config)
    problems = [
        problem
        for name, scan in scans.items()
        for problem in audit.errors(parts[name], scan, chain, labels, data.violations, data.allow_leaks, limits)
    ]
    for name, scan in scans.items():
        for line in audit.warnings(parts[name], scan, chain):
            report.warn(line)
    if problems:
        raise DataError("\n".join(problems))
    _tell_rest(config, parts, scans, report)


def _tell_rest(config: Config, parts: Mapping[str, Part], scans: Mapping[str, Scan], report: Report) -> None:
    """What data.share leaves of the training rows, and rows that a split by time gives to no part."""
    split, share = config.data.split, config.data.share
    if share < 1 and "train" in scans:
        of = "" if split is None else ", validation rows not counted"
        report.warn(f"data.share: training sees {scans['train'].tally.rows:,} rows, a share of {share:g}{of}.")
        return
    if split is None or split.by is None or not {"train", "validation"} <= {*scans}:
        return
    rows = sum(p.rows for p in parts["train"].reader.pieces)
    rest = rows - scans["train"].tally.rows - scans["validation"].tally.rows
    if rest:
        late = "" if split.validation_until is None else f" or not before {split.validation_until}"
        report.warn(
            f"data.split: {rest:,} of {rows:,} rows are in neither part, since their '{split.by}' is missing{late}."
        )


def open_parts(config: Config, registry: Registry, names: Sequence[str] = _PARTS) -> dict[str, Part]:
    """The readers of the parts that the YAML names, with their row filters. Raises DataError for what is not there."""
    sources = {name: getattr(config.data, name) for name in names}
    if "train" in sources and sources["train"] is None:
        raise ConfigError("data.train: nothing to train on. Name a file, a folder or a glob.")
    readers, problems = {}, Problems()
    for name, source in sources.items():
        with problems.noted():
            if source is not None:
                readers[name] = open_reader(config, registry, source, name)
    problems.refuse()
    parts = {name: Part(name, reader) for name, reader in readers.items()}
    split = config.data.split
    if split is not None and "train" in parts:
        parts = {**_split(config, parts["train"]), **{n: p for n, p in parts.items() if n == "test"}}
    if config.data.share < 1 and "train" in parts:
        train = parts["train"]
        parts["train"] = replace(train, keep=Sampled(config.data.share, config.seed, train.keep))
    _check_columns(config, parts)
    return parts


def open_reader(config: Config, registry: Registry, source: Any, split: str) -> Reader:
    """A reader of the kind that the YAML names."""
    reader: Reader = registry.get("readers", config.data.type).factory(source, split, **config.data.options)
    return reader


def _split(config: Config, train: Part) -> dict[str, Part]:
    split = config.data.split
    assert split is not None, "called with a split only"
    if split.share is not None:
        outside, inside = (HeldOut(split.share, config.seed, held) for held in (False, True))
        return {"train": Part("train", train.reader, outside), "validation": Part("validation", train.reader, inside)}
    assert split.by is not None, "the schema asks for share or by"
    early = Between(split.by, None, split.train_until)
    late = Between(split.by, split.train_until, split.validation_until)
    return {"train": Part("train", train.reader, early), "validation": Part("validation", train.reader, late)}


def _check_columns(config: Config, parts: Mapping[str, Part]) -> None:
    """Raise DataError with every column that a part lacks."""
    missing: dict[tuple[str, str], dict[str, list[str]]] = {}  # {(place in the YAML, column): {source: its columns}}
    for part in parts.values():
        found, source = part.reader.schema.names, part.reader.pieces[0].source
        for place, column in _wanted_columns(config, part).items():
            if column not in found:
                missing.setdefault((place, column), {})[source] = found
    problems = [
        f"{place}: {' and '.join(lacking)} {'have' if len(lacking) > 1 else 'has'} no column '{column}'."
        f"{did_you_mean(column, next(iter(lacking.values())))}"
        for (place, column), lacking in missing.items()
    ]
    if problems:
        raise DataError("\n".join(problems))


def _wanted_columns(config: Config, part: Part) -> dict[str, str]:
    """{place in the YAML: the column it names}."""
    features = features_of(config)
    wanted = {f"features.{f.name}": column_of(f) for f in features}
    wanted |= {f"features.{f.name}.weights": f.weights for f in features if isinstance(f, Bag) and f.weights}
    wanted |= {f"labels.{stage}": column for stage, column in labels_of(config).items()}
    wanted |= {f"data.potential.{n}": c for n, c in config.data.potential.items()}
    wanted |= {f"metrics.{n}.{option}": c for n, m in config.metrics.items() for option, c in m.reads.items()}
    if part.keep.columns:
        wanted["data.split.by"] = part.keep.columns[0]
    if config.data.weight:
        wanted["data.weight"] = config.data.weight
    return wanted


def _run_folder(config: Config, asked: str | Path | None, resume: str | Path | None) -> Path:
    """The run's folder, into which only the first rank writes."""
    if resume is not None:
        if not (Path(resume) / "checkpoints" / "last.ckpt").exists():
            raise RunError(
                f"{resume}: there is no checkpoints/last.ckpt to go on from. Start again with another --run-dir."
            )
        return Path(resume)
    if not _is_first_rank():
        return Path(asked or "runs")
    return new_folder(config, Path(asked) if asked else None, time.strftime("%Y%m%d-%H%M%S"))


def _is_first_rank() -> bool:
    """Whether this process writes and speaks; of a distributed run, whoever started its ranks numbered them."""
    return next((os.environ[n] for n in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if n in os.environ), "0") == "0"


def evaluate(
    config: Config, run: Run, stream: Stream, device: str | torch.device = "cpu", see: See | None = None
) -> Evaluated:
    """Judge a run on a stream, by the metrics of `config`; `see` is shown every batch with its probabilities.

    Raises NonFiniteError for a prediction that is not finite.
    """
    objective = build_objective(config, run.registry)
    judge = build_judge(config, run.registry, objective, run.weighting.to(device)).to(device)
    run.model.to(device).eval()
    for batch in stream:
        batch = batch.to(device)
        p = run.forward(batch)
        judge.update(p, batch, objective)
        if see is not None:
            see(p, batch)
    return Evaluated(judge.compute(), judge.curves())


def build_judge(config: Config, registry: Registry, objective: Any, weighting: nn.Module) -> Judge:
    """All metrics of all spaces. `weighting` stays the module of whoever trains it."""
    terms = TermMeans(list(objective.terms), weighting.forward)
    return Judge(chain_of(config), spaces_of(config), build_metrics(config, registry), terms)


def evaluate_run(run: Run, config: Config, name: str, report: Report, see: See | None = None) -> Evaluated:
    """Evaluate a trained run on the part `name` of `config`'s data, `see` as in `evaluate`.

    Raises ConfigError when the model would be another.
    """
    for section in ("chain", "features", "embedding", "sharing", "link", "tower", "towers", "stages"):
        if getattr(config, section) != getattr(run.config, section):
            raise ConfigError(f"{section}: the run was trained with another one. Override data.* and metrics.* only.")
    parts = {name: _open_part(config, run.registry, name)}
    tables, numbers = run.encoder.tables, run.encoder.numbers
    task = _task(config, run.registry)
    encoder = build_encoder(config, tables, numbers, task.limits)
    scans = {name: scan_other(task, parts[name], encoder, report.progress)}
    _judge_scans(config, parts, scans, report, task.limits)
    found = evaluate(config, run, Prepared(parts, scans, encoder).stream(config, name), see=see)
    report.results(config, name, found.metrics)
    return found


def _open_part(config: Config, registry: Registry, name: str) -> Part:
    if name not in _PARTS:
        raise ConfigError(f"split: there is no part '{name}' of the data.{did_you_mean(name, _PARTS)}")
    inside = config.data.split is not None and name == "validation"
    parts = open_parts(config, registry, ["train" if inside else name])
    if name not in parts:
        raise ConfigError(f"data.{name}: no file is named there. Add data.{name}=FILE.")
    return parts[name]


class _Training:
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

    def run(self, resume: bool) -> bool:
        """Train. True on the rank that has to finish the run."""
        from espace.data.stream.module import gpu_of
        from espace.training.callbacks import Checkpoints, Interrupts
        from espace.training.lightning import make_trainer

        config, monitored = self.config, "validation" in self.prepared.parts
        start = self._start() if resume else {}
        mode, folder = configuration.monitor_mode(config), self.folder / "checkpoints"
        checkpoints = Checkpoints(folder, config.monitor, mode, config.checkpoint_every, config.patience)
        interrupts = Interrupts(checkpoints)
        callbacks = [
            self.report.narrator(),
            checkpoints,
            interrupts,
        ]  # a place is saved when all else has seen the step
        with _lightning_quiet():
            options = _trainer_options(config, monitored, len(self.prepared.plan(config)))
            trainer = make_trainer(options, callbacks, self.folder, start.get("global_step"))
        self.gpu = gpu_of(trainer)
        if trainer.is_global_zero and not resume:
            write_start(self.folder, config, self.prepared.encoder)
        release_memory()  # training reads less at a time than what came before
        keep_freed()
        self.report.start(config, self.model, self.folder, trainer.precision)
        with _lightning_quiet(), _alone_again(), interrupts:
            self._fit(trainer, monitored, folder / "last.ckpt" if resume else None)
        return bool(trainer.is_global_zero)

    def _fit(self, trainer: Any, monitored: bool, start: Path | None) -> None:
        """Let Lightning train. When all ranks stop together, the first one tells why and has the exit code."""
        from espace.training.callbacks import Interrupted

        try:
            trainer.fit(self._module(), datamodule=self._data(monitored), ckpt_path=start)
        except (Interrupted, NonFiniteError) as stop:
            if not trainer.is_global_zero:
                raise SystemExit(0) from None
            if isinstance(stop, NonFiniteError):
                raise
            self.report.stopped(self.folder, trainer.global_step)
            raise SystemExit(stop.exit_code) from None

    def _module(self) -> Any:
        from espace.training.lightning import Training

        weighting = build_weighting(self.config, self.registry, self.objective)
        return Training(
            self.model,
            self.objective,
            weighting,
            build_judge(self.config, self.registry, self.objective, weighting),
            self.config.optimizer.model_dump(),
            self.config.seed,
            {**artefact_of(self.config, self.prepared.encoder), "data": self._identity()},
            self.report.warn if self.config.cuda_graphs else None,
        )

    def _identity(self) -> str:
        return self.prepared.parts["train"].identity

    def _data(self, monitored: bool) -> Any:
        from espace.data.stream.module import DataModule

        data = self.config.data
        plan = self.prepared.plan(self.config)
        sampler = build_sampler(self.config, self.registry)
        part, encoder = self.prepared.parts["train"], self.prepared.encoder
        train = Stream(part, encoder, plan, training=True, workers=data.workers, keep=data.keep_encoded)
        train = replace(train, sampling=sampler, scoring=self.prepared.scoring)
        return DataModule(train, self.prepared.stream(self.config, "validation") if monitored else None)

    def _start(self) -> dict[str, Any]:
        """The checkpoint from which the run goes on. Raises RunError when it is damaged, or the data is not the same."""
        content = read_checkpoint(self.folder / "checkpoints" / "last.ckpt")
        if content["espace"]["data"] != self._identity():
            raise RunError(f"{self.folder}: the training data is not what it was when the run began. Start a new run.")
        return content

    def finish(self) -> Run:
        """Evaluate the best weights where the run trained, write results and pictures, print the tables."""
        del self.model  # and, with the trainer, the state of the optimiser: it is large
        gc.collect()
        run = load(self.folder)
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
        write_results(self.folder, results)
        self.report.figures(self.folder, curves)
        self.report.finished(self.folder)
        return run


def _trainer_options(config: Config, monitored: bool, batches: int) -> dict[str, Any]:
    """The user's options over espace's defaults: one epoch unless steps or time are given, four validations in each of
    `batches`."""
    options = {"precision": default_precision(config.trainer.get("accelerator", "auto")), **config.trainer}
    if "max_epochs" not in options:
        options["max_epochs"] = -1 if options.get("max_steps", -1) > 0 or options.get("max_time") else 1
    if "check_val_every_n_epoch" not in options:
        options.setdefault("val_check_interval", 0.25 if "limit_train_batches" in options else -(-batches // 4))
    return options if monitored else {**options, "limit_val_batches": 0}


@contextmanager
def _alone_again() -> Iterator[None]:
    """What a distributed run leaves in this process is taken away, so that what follows is a process of its own."""
    before, joined = set(os.environ), dist.is_available() and dist.is_initialized()
    try:
        yield
    finally:
        for name in set(os.environ) - before:
            del os.environ[name]
        if not joined and dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _lightning_quiet() -> Iterator[None]:
    """Lightning's tips, and its guesses about loaders that we do not use, stay out of the user's sight.

    Raises ConfigError for what Lightning calls a misconfiguration: all it knows of one is the user's options.
    """
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|lightning_utilities")
        warnings.filterwarnings("ignore", message=".*(GPU|TPU|num_workers|litlogger|pynvml).*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        except MisconfigurationException as error:
            raise ConfigError(f"trainer: Lightning refuses these options: {error}") from error
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
