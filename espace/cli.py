"""The command line, a function for each command. Imports of torch wait until a command needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from espace.config import Config
    from espace.contracts import Reader
    from espace.registry.registry import Registry

app = typer.Typer(
    name="espace",
    help="Behaviour chains in YAML, trained over the entire space; every probability served by name.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

File = Annotated[Path, typer.Argument(help="The YAML file of the experiment.", show_default=False)]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045, typer evaluates it on Python 3.10
    typer.Argument(help="Overrides such as tower.dropout=0.1 or data.train=other.parquet.", show_default=False),
]
ReaderName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="How to read it: files (the default), parquet, csv, arrow, or a plugin's name.", show_default=False
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Plugins = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--plugin", help="Load this plugin, ./file.py or a module; again for more.", show_default=False),
]


@contextmanager
def _told(debug: bool = False) -> Iterator[None]:
    """The user's mistakes as one message without a traceback, with the right exit code."""
    from espace.errors import EspaceError

    try:
        yield
    except EspaceError as error:
        if debug:
            raise
        _complain(str(error))
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        _complain("interrupted")
        raise typer.Exit(130) from None


def _complain(text: str) -> None:
    """What went wrong, in red."""
    from espace.errors import visible

    typer.secho(f"espace: {visible(text)}", fg=typer.colors.RED, err=True)


def _say(text: str) -> None:
    """A result."""
    from espace.errors import visible

    typer.echo(visible(text))


@app.command()
def fit(
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="The YAML file of the experiment; not needed with --resume.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    run_dir: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--run-dir", help="The run folder; by default runs/<name>/<time>.", show_default=False),
    ] = None,
    resume: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--resume", help="Go on with this run folder from its last checkpoint.", show_default=False),
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train: audit the labels, fit, evaluate the best weights, leave a run folder.

    Example: espace fit examples/esmm.yaml tower.dropout=0.1 trainer.max_epochs=2
    """
    with _told(debug):
        from espace.errors import ConfigError
        from espace.runs.experiment import Experiment
        from espace.runs.report import Report
        from espace.runs.run import config_file
        from espace.runs.trust import check_listed

        more = list(overrides or [])
        if file is not None and "=" in str(file) and not file.exists():
            more, file = [str(file), *more], None
        if file is None and resume is None:
            raise ConfigError("fit: name a YAML file, as in espace fit examples/esmm.yaml, or --resume RUN.")
        source = file if file is not None else config_file(resume or Path())
        if file is None:
            check_listed(source, more)
        Experiment.from_yaml(source, more).fit(run_dir, resume=resume, report=Report(quiet))


@app.command()
def check(file: File, overrides: Overrides = None, debug: Debug = False) -> None:
    """Read the data once and audit it: labels, violations, leaks, unknown ids. Trains nothing.

    Example: espace check examples/esmm.yaml data.train=new.parquet
    """
    with _told(debug):
        from espace.runs.experiment import Experiment
        from espace.runs.report import Report

        Experiment.from_yaml(file, overrides or []).check(Report())
        _say("Nothing stands against training.")


@app.command()
def show(file: File, overrides: Overrides = None, debug: Debug = False) -> None:
    """Print the chain, its drawing and equations, the loss terms and the modules. Needs no data.

    Example: espace show examples/esmm.yaml tower.hidden_units=[64,32]
    """
    with _told(debug):
        from espace.runs.experiment import Experiment
        from espace.runs.show import describe

        _say(describe(Experiment.from_yaml(file, overrides or [])))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="Which of data.train, data.validation, data.test to judge.")] = "test",
    checkpoint: Annotated[str, typer.Option(help="best or last.")] = "best",
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Also write the metrics to this JSON file.", show_default=False),
    ] = None,
    plugin: Plugins = None,
    debug: Debug = False,
) -> None:
    """Judge a trained run on other data, every probability in its own space.

    Example: espace evaluate runs/esmm/20260101-120000 data.test=new.parquet
    """
    with _told(debug):
        from espace.config import load as load_config
        from espace.runs.evaluating import evaluate_run
        from espace.runs.report import Report
        from espace.runs.run import config_file, load, write_results

        source = config_file(run)
        trained = load(run, checkpoint, plugin or [])
        config = load_config(source, overrides or [], trained.registry)
        found = evaluate_run(trained, config, split, Report())
        if out is not None:
            write_results(out.parent, {f"{split}/{k}": v for k, v in found.metrics.items()}, out.name)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder or a checkpoint file.", show_default=False)],
    data: Annotated[str, typer.Option(help="The rows: a file, folder or glob.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The Parquet file to write.", show_default=False)],
    keep: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A column to pass through; again for more. All by default.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    reader: ReaderName = None,
    checkpoint: Annotated[str, typer.Option(help="best or last.")] = "best",
    plugin: Plugins = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Stream predictions to Parquet: p_<stage>, p_<stage>_given_<parent>, score_<name> beside the columns of the input.

    The options of the run's reader apply, and overrides such as data.delimiter=";", data.type=csv or
    scores.x="click * bid".

    Example: espace predict runs/esmm/20260101-120000 --data new.parquet --out predictions.parquet --keep user_id
    """
    with _told(debug):
        from espace.config import override
        from espace.runs.build import scores_of
        from espace.runs.passing import predict_to
        from espace.runs.report import Report
        from espace.runs.run import load

        trained = load(run, checkpoint, plugin or [])
        config = override(trained.config, overrides or [], trained.registry)
        trained.scores = scores_of(config)
        named = any(text.startswith("data.type=") for text in overrides or [])
        kind = reader or (config.data.type if named else "files")
        done, what = predict_to(trained, _reader(kind, data, config, trained.registry), out, keep, Report(quiet))
        if not quiet:
            _say(f"{done:,} rows with {what}: {out}")


def _reader(kind: str, data: str, config: Config, registry: Registry) -> Reader:
    """A reader of rows to predict, with the options of the configuration if they are of its kind."""
    from espace.runs.opening import open_reader

    options = config.data.options if config.data.type == kind else {}
    return open_reader(config, registry, data, "predict", kind, options)


@app.command(name="list")
def list_(
    kind: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(
            help="towers, sharing, links, objectives, samplers, weightings, stages, pieces, metrics, readers,"
            " callbacks, loggers, optimizers, schedules or features."
        ),
    ] = None,
    plugin: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Also load this plugin, ./file.py or a module.", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """List what a YAML can name: options with defaults, one line of doc, and which package brought it.

    Example: espace list towers
    """
    with _told(debug):
        from espace.runs.show import catalogue

        _say(catalogue(kind, plugin or []))


@app.command()
def schema(
    plugin: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Also load this plugin.", show_default=False),
    ] = None,
) -> None:
    """Print the JSON schema of the YAML, for editors.

    Example: espace schema > espace.schema.json
    """
    with _told():
        import json

        from espace.config import json_schema
        from espace.registry.registry import load as load_plugins

        _say(json.dumps(json_schema(load_plugins(plugin or [])), indent=2))


@app.command()
def compare(
    file: Annotated[Path, typer.Argument(help="The YAML file of the comparison.", show_default=False)],
    overrides: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Overrides of the base of all variants, such as data.batch_size=4096.", show_default=False),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The folder; by default compare/<name>. What is done there is not done again."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time, each with its part of the threads.")] = 1,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train variants of an experiment over seeds and shares of the data, and say which differences are real.

    Killed or stopped, the same command goes on from where it was.

    Example: espace compare examples/compare.yaml --workers 2
    """
    with _told(debug):
        from espace.compare import compare as run_comparison
        from espace.runs.report import Report

        failed = run_comparison(file, overrides or [], out, workers, Report(quiet)).failed
        for planned, why in failed.items():
            _complain(f"{planned} failed: {why}")
        if failed:
            raise typer.Exit(1)


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="What to make: tower or experiment.", show_default=False)],
    name: Annotated[str, typer.Argument(help="Name of the tower; rows of the experiment.", show_default=False)],
    folder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--folder", help="Tower: where to; by default espace-NAME.", show_default=False),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Experiment: the YAML to write; by default experiment.yaml.", show_default=False),
    ] = None,
    chain: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Experiment: its chain, where it is not to be guessed.", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a folder with a new tower that trains as it is, or a YAML guessed from a file of rows.

    Example: espace new tower cross_net, or espace new experiment train.parquet
    """
    with _told(debug):
        from espace.runs.drafting import create

        _say(create(kind, name, folder, out, chain))


@app.command()
def prepare(
    release: Annotated[str, typer.Argument(help="What it is: ali-ccp or ali-express.", show_default=False)],
    raw: Annotated[Path, typer.Argument(help="The folder with the unpacked raw files.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The folder to write; new, or begun earlier.", show_default=False)],
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a raw public data set as Parquet. Killed or stopped, the same command goes on from where it was.

    Example: espace prepare ali-ccp downloads/ali-ccp ali-ccp
    """
    with _told(debug):
        from espace.data.raw.prepare import prepare as prepare_release

        prepare_release(release, raw, out, quiet)


def main() -> None:
    """The `espace` command."""
    app()
