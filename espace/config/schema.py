"""The keys of the YAML, with their types and defaults."""
# ruff: noqa: RUF012, pydantic gives every instance a default of its own

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import SerializerFunctionWrapHandler, model_serializer

from espace.config.validate import Section

Rows: TypeAlias = str | int | list[str]  # a path, a number of rows to simulate, several paths
Moment: TypeAlias = str | int | float
Count: TypeAlias = Annotated[int, Gt(0)]
Positive: TypeAlias = Annotated[float, Gt(0)]
Seed: TypeAlias = Annotated[int, Ge(0), Le(2**32 - 1)]  # what every generator of random numbers takes
NotNegative: TypeAlias = Annotated[float, Ge(0)]

PARTS = {  # key: kind
    "sharing": "sharing",
    "link": "links",
    "tower": "towers",
    "objective": "objectives",
    "sampler": "samplers",
    "weighting": "weightings",
}
NAMED_PARTS = {  # key: kind, one part for each name
    "features": "features",
    "towers": "towers",
    "metrics": "metrics",
    "callbacks": "callbacks",
    "loggers": "loggers",
}
DEFAULTS: dict[str, Any] = {
    "sharing": "separate",
    "link": "none",
    "tower": "mlp",
    "objective": "entire_space",
    "sampler": "none",
    "weighting": "fixed",
    "metrics": {name: name for name in ("auc", "log_loss", "calibration", "count", "value")},
    "loggers": {"tensorboard": "tensorboard"},
    "optimizer": {"schedule": "constant"},
}
PRESETS: dict[str, dict[str, Any]] = {  # what stands where the YAML says nothing; settings of a paper, for comparisons
    "paper": {  # Ma et al., SIGIR 2018, section 3.1, and one pass over the rows
        "data": {"batch_size": 1024},
        "embedding": {"dim": 18},
        "tower": {"type": "mlp", "hidden_units": [360, 200, 80]},
        "optimizer": {"lr": 1e-3, "average": 0.0},
        "trainer": {"max_epochs": 1},
    }
}
EXPERT = "mlp"  # the default of sharing.expert
VALUE = "lognormal"  # the default kind of a value


class Component(Section):
    """One part: the name it is registered by, and every option, as plain values. `validate.typed` gives their types."""

    type: str
    options: dict[str, Any] = {}

    @model_serializer
    def _inline(self) -> dict[str, Any]:
        return {"type": self.type, **self.options}


class Sharing(Component):
    """A component with the tower that its experts are, if it has experts."""

    expert: Component | None = None

    @model_serializer
    def _inline(self) -> dict[str, Any]:
        return {"type": self.type, **self.options, **({} if self.expert is None else {"expert": self.expert})}


class Metric(Component):
    """A component with what it judges, if that is not everything: names of probabilities, or of expectations."""

    of: Annotated[list[str], MinLen(1)] | None = None

    @property
    def reads(self) -> dict[str, str]:
        """`{option: the column that it names}`: `by` has group keys, `column` has probabilities."""
        return {option: c for option in ("by", "column") if isinstance(c := self.options.get(option), str)}

    @model_serializer
    def _inline(self) -> dict[str, Any]:
        return {"type": self.type, **self.options, **({} if self.of is None else {"of": self.of})}


class Stage(Section):
    """What is said about one stage."""

    weight: NotNegative = 1.0
    kind: Component = Component(type="binary")
    head: Literal["conditional", "joint"] = "conditional"


class Split(Section):
    """Validation and test rows taken out of the training rows: a random share of them, or those that come later."""

    share: Annotated[float, Gt(0), Lt(1)] | None = None
    by: str | None = None
    format: str | None = None
    train_until: Moment | None = None
    validation_until: Moment | None = None
    test_until: Moment | None = None


class Data(Section):
    """Where rows come from. `options` are those of the reader, which the YAML has beside the other keys."""

    type: str = "files"
    train: Rows
    validation: Rows | None = None
    test: Rows | None = None
    split: Split | None = None
    share: Annotated[float, Gt(0), Le(1)] = 1.0
    weight: str | None = None
    known_by: str | None = None
    batch_size: Count | None = None  # by the number of training rows
    shuffle: bool = True
    shuffle_rows: Count = 262_144
    violations: Literal["error", "drop", "zero", "promote"] = "error"
    allow_leaks: list[str] = []
    potential: dict[str, str] = {}
    workers: Annotated[int, Ge(0)] = 0
    keep_encoded: bool = True
    options: dict[str, Any] = {}

    @model_serializer(mode="wrap")
    def _inline(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree = handler(self)
        options: dict[str, Any] = tree.pop("options")
        return {**tree, **options}


DATA_KEYS = tuple(name for name in Data.model_fields if name != "options")
EMPTY = tuple(name for name in DATA_KEYS if Data.model_fields[name].default in ({}, []))  # where null takes all away


class Embedding(Section):
    """The tables of id features."""

    dim: Count = 18
    shared: bool = True
    std: Positive = 0.01


class Optimizer(Section):
    """How weights change. `options` are those of the optimiser, which the YAML has beside the other keys.

    `tables` says how adam treats rows that a batch does not look up: exact by default, lazy with weight decay.
    """

    type: str = "adam"
    lr: Positive | None = None  # by the size of a batch
    tables: Literal["exact", "lazy", "dense"] | None = None
    tables_lr: Positive | None = None
    average: Annotated[float, Ge(0), Lt(1)] | None = None  # 0.99
    schedule: Component = Component(type="constant")
    options: dict[str, Any] = {}

    @model_serializer(mode="wrap")
    def _inline(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree = handler(self)
        options: dict[str, Any] = tree.pop("options")
        return {**tree, **options}


OPTIMIZER_KEYS = tuple(name for name in Optimizer.model_fields if name != "options")


class Fields(Section):
    """The whole of it, part for part."""

    name: str | None = None
    preset: Literal["paper"] | None = None
    chain: list[str]
    pieces: list[Component] = []
    labels: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    data: Data
    features: dict[str, Component]
    embedding: Embedding = Embedding()
    sharing: Sharing
    link: Component
    tower: Component
    towers: dict[str, Component] = {}
    objective: Component
    sampler: Component
    weighting: Component
    metrics: dict[str, Metric]
    scores: dict[str, str] = {}
    optimizer: Optimizer = Optimizer()
    trainer: dict[str, Any] = {}
    callbacks: dict[str, Component] = {}
    loggers: dict[str, Component]
    compile: bool = False
    cuda_graphs: bool = True
    monitor: str = "val/loss"
    mode: Literal["min", "max"] | None = None
    patience: Count | None = None
    checkpoint_every: Count | None = None
    seed: Seed = 0
    plugins: list[str] = []
