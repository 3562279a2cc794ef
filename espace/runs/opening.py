"""The data of an experiment: files opened, rows divided, vocabularies learnt, reasons not to train found."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from espace.chain.scores import predictions
from espace.config import Config
from espace.contracts import Reader
from espace.data.auditing import audit
from espace.data.auditing.scan import Scan, Task, scan_other, scan_training
from espace.data.encoding.columns import Bag, column_of, columns_of
from espace.data.encoding.encode import Encoder
from espace.data.encoding.labels import Limits
from espace.data.encoding.table import Problems
from espace.data.reading.readers import apart
from espace.data.reading.split import Between, HeldOut, Part, Sampled
from espace.data.reading.times import Clock, overlaps
from espace.data.stream.plan import Plan
from espace.data.stream.stream import Scoring, Stream
from espace.errors import ConfigError, DataError, did_you_mean
from espace.registry.registry import Registry
from espace.registry.signature import accepts
from espace.runs.build import (
    build_objective,
    build_sampler,
    chain_of,
    features_of,
    labels_of,
    limits_of,
    sampling_of,
    scores_of,
)
from espace.runs.html import html_of
from espace.runs.inputs import build_encoder, extras_of, rows_at_once, text_of
from espace.runs.length import batch_size
from espace.runs.report import Report
from espace.runs.run import (
    Run,
    load,
)

PARTS = ("train", "validation", "test")


@dataclass
class Prepared:
    """Data that was looked at: parts by name, what the scans found, the encoder, what scores rows for the sampler, and
    the tables of the audit, which a notebook shows."""

    parts: Mapping[str, Part]
    scans: Mapping[str, Scan]
    encoder: Encoder
    scoring: Scoring | None = None
    tables: Sequence[Table] = ()

    def _repr_html_(self) -> str:
        rows = ", ".join(f"{name} {scan.tally.rows:,} rows" for name, scan in self.scans.items())
        return html_of(f"Nothing stands against training: {rows}", self.tables)

    @property
    def rows(self) -> int:
        """How many training rows there are."""
        return sum(self.scans["train"].counts)

    def plan(self, config: Config) -> Plan:
        """The order of the training rows."""
        data = config.data
        size = data.batch_size or batch_size(self.rows)
        return Plan(self.scans["train"].counts, size, config.seed, data.shuffle, data.shuffle_rows)

    def stream(self, config: Config, name: str) -> Stream:
        """The batches of a part in the order of the file, for evaluation."""
        plan = Plan(self.scans[name].counts, rows_at_once(config), 0, False, 0)
        data = config.data
        return Stream(self.parts[name], self.encoder_of(name), plan, workers=data.workers, keep=data.keep_encoded)

    def encoder_of(self, name: str) -> Encoder:
        """The encoder of a part, in which the share of known labels is that part's."""
        return self.encoder.counting(self.scans[name].tally.known.counts(self.encoder.chain))


def prepare(config: Config, registry: Registry, report: Report) -> Prepared:
    """Open the files, learn vocabularies, count labels. Raises DataError with every reason not to train."""
    parts = open_parts(config, registry)
    scorer = _scorer(config, registry)
    task = task_of(config, registry)
    scan, (tables, numbers) = scan_training(replace(task, extras={}), parts["train"], report.progress)
    encoder = build_encoder(config, tables, numbers, task.limits, scan.kinds)
    scoring = None if scorer is None else _scoring(*scorer, encoder)
    scans = {"train": scan}
    for name in parts:
        if name != "train":
            scans[name] = scan_other(task, parts[name], encoder, report.progress)
    shown = report.audit(config, build_objective(config, registry), scans)
    if line := sampling_of(config, registry):
        report.warn(line)
    _tell_scores(config, parts["train"], report)
    judge_scans(config, parts, scans, report, task.limits)
    return Prepared(parts, scans, encoder, scoring, shown)


def _scorer(config: Config, registry: Registry) -> tuple[Run, str] | None:
    """The run, and its stage, by whose probability the sampler goes.

    Raises RunError or ConfigError when there is none.
    """
    scored_by: tuple[str, str] | None = getattr(build_sampler(config, registry), "scored_by", None)
    if scored_by is None:
        return None
    folder, stage = scored_by
    run = load(folder, plugins=config.plugins)
    if stage not in run.model.chain.stages:
        raise ConfigError(f"sampler: the chain of {folder} has no stage '{stage}'. Train a run that predicts it.")
    return run, stage


def _scoring(run: Run, stage: str, encoder: Encoder) -> Scoring:
    """P(stage) of rows as `encoder` makes them. Raises ConfigError when those that the run reads are others."""
    if run.encoder.inputs != encoder.inputs:
        raise ConfigError(
            f"sampler: {run.folder or 'the run'} reads other features than this experiment, or learnt them from"
            " other rows, so it cannot score its batches. Train it with the same features and the same data.train."
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


def judge_scans(
    config: Config, parts: Mapping[str, Part], scans: Mapping[str, Scan], report: Report, limits: Mapping[str, Limits]
) -> None:
    """Print what the scans found that a person should know. Raises DataError with every reason not to train."""
    chain, data, labels = chain_of(config), config.data, labels_of(config)
    problems = [
        problem
        for name, scan in scans.items()
        for problem in audit.errors(parts[name], scan, chain, labels, data.violations, data.allow_leaks, limits)
    ]
    for name, scan in scans.items():
        order = audit.in_order(scan, data.shuffle) if name == "train" else []
        report.warn_all([*audit.warnings(parts[name], scan, chain), *order])
    spans = {name: scan.span for name, scan in scans.items() if scan.span}
    report.warn_all(overlaps(config.data.split.by or "", spans) if config.data.split else ())
    if problems:
        raise DataError("\n".join(problems))
    _tell_rest(config, parts, scans, report)


def task_of(config: Config, registry: Registry) -> Task:
    """What a pass over the data looks for."""
    data = config.data
    chain, limits = chain_of(config), limits_of(config, registry)
    columns = (features_of(config), chain, labels_of(config), data.violations, data.weight, extras_of(config))
    return Task(*columns, limits, data.known_by, clock_of(config))


def clock_of(config: Config) -> Clock | None:
    """What reads the times of the rows, where the YAML names their column."""
    split = config.data.split
    return None if split is None or split.by is None else Clock(split.by, split.format, _by_numbers(config))


def _by_numbers(config: Config) -> bool:
    """Whether rows are split at numbers, by a column that is kept as text since it is a category too."""
    split = config.data.split
    if split is None or split.format is not None or split.by not in text_of(config):
        return False
    bounds = (split.train_until, split.validation_until, split.test_until)
    return all(isinstance(bound, int | float) for bound in bounds if bound is not None)


def open_parts(
    config: Config, registry: Registry, names: Sequence[str] = PARTS, judged: Sequence[str] = PARTS[1:]
) -> dict[str, Part]:
    """The readers of the parts that the YAML names, with their row filters; those `judged` need the columns of metrics.

    Raises DataError for what is not there.
    """
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
        parts |= _split(config, parts["train"])
        parts = {name: parts[name] for name in PARTS if name in parts}
    if config.data.share < 1 and "train" in parts:
        train = parts["train"]
        parts["train"] = replace(train, keep=Sampled(config.data.share, config.seed, train.keep))
    _check_columns(config, parts, judged)
    return parts


def open_reader(
    config: Config,
    registry: Registry,
    source: object,
    split: str,
    kind: str | None = None,
    options: Mapping[str, object] | None = None,
) -> Reader:
    """A reader of the kind that the YAML names, with its options, unless others are given.

    One with a third parameter is told which columns hold categories or lists.
    """
    factory = registry.get("readers", kind or config.data.type).factory
    given = (source, split, text_of(config)) if accepts(factory, 3) else (source, split)
    reader: Reader = factory(*given, **(config.data.options if options is None else options))
    return reader


def _split(config: Config, train: Part) -> dict[str, Part]:
    """The parts that `data.split` makes of the training rows."""
    split = config.data.split
    assert split is not None, "called with a split only"
    if split.share is not None:
        outside, inside = (HeldOut(split.share, config.seed, held) for held in (False, True))
        return {"train": Part("train", train.reader, outside), "validation": Part("validation", train.reader, inside)}
    if split.by is None or split.train_until is None:
        return {"train": train}
    bounds = [None, split.train_until, split.validation_until]
    bounds += [] if split.test_until is None else [split.test_until]
    spans = zip(PARTS, itertools.pairwise(bounds), strict=False)
    return {n: Part(n, train.reader, Between(split.by, *span, split.format, _by_numbers(config))) for n, span in spans}


def _check_columns(config: Config, parts: Mapping[str, Part], judged: Sequence[str]) -> None:
    """Raise DataError with every column that a part lacks."""
    missing: dict[tuple[str, str], dict[str, list[str]]] = {}  # {(place in the YAML, column): {source: its columns}}
    problems: dict[str, None] = {}
    for part in parts.values():
        found, source, reasons = part.reader.schema.names, part.reader.pieces[0].source, apart(part.reader)
        for place, column in _wanted_columns(config, part, part.name in judged).items():
            if column in reasons:
                problems[f"{place}: {reasons[column]}"] = None
            elif column not in found:
                missing.setdefault((place, column), {})[source] = found
    problems |= dict.fromkeys(
        f"{place}: {' and '.join(lacking)} {'have' if len(lacking) > 1 else 'has'} no column '{column}'."
        f"{did_you_mean(column, next(iter(lacking.values())))}"
        for (place, column), lacking in missing.items()
    )
    if problems:
        raise DataError("\n".join(problems))


def _wanted_columns(config: Config, part: Part, judged: bool) -> dict[str, str]:
    """{place in the YAML: the column it names}."""
    features = features_of(config)
    wanted = {f"features.{f.name}": column_of(f) for f in features}
    for f in features:
        option = "weights" if isinstance(f, Bag) else "at"
        wanted |= {f"features.{f.name}.{option}": column for column in columns_of(f)[1:]}
    wanted |= {f"labels.{stage}": column for stage, column in labels_of(config).items()}
    if judged:
        wanted |= {f"data.potential.{n}": c for n, c in config.data.potential.items()}
        wanted |= {f"metrics.{n}.{option}": c for n, m in config.metrics.items() for option, c in m.reads.items()}
    if (
        config.data.split is not None
        and config.data.split.by is not None
        and (part.keep.columns or part.name == "train")
    ):
        wanted["data.split.by"] = config.data.split.by
    for key, column in (("weight", config.data.weight), ("known_by", config.data.known_by)):
        wanted |= {f"data.{key}": column} if column else {}
    return wanted


def _tell_rest(config: Config, parts: Mapping[str, Part], scans: Mapping[str, Scan], report: Report) -> None:
    """What data.share leaves of the training rows, and rows that a split by time gives to no part."""
    split, share = config.data.split, config.data.share
    if share < 1 and "train" in scans:
        of = "" if split is None else ", validation rows not counted"
        report.warn(f"data.share: training sees {scans['train'].tally.rows:,} rows, a share of {share:g}{of}.")
        return
    if split is None or split.by is None or split.train_until is None or not {"train", "validation"} <= {*scans}:
        return
    made = [scans[name].tally.rows for name, part in parts.items() if part.reader is parts["train"].reader]
    rows = sum(p.rows for p in parts["train"].reader.pieces)
    if rest := rows - sum(made):
        last = split.test_until or split.validation_until
        late = "" if last is None else f" or not before {last}"
        report.warn(f"data.split: {rest:,} of {rows:,} rows are in no part, since their '{split.by}' is missing{late}.")
