"""The laws that plugins inherit: each has a faulty part that breaks it, and says so; sound parts break none.

A fault is a line: what is wrong, with which sound part, the law, a piece of the sentence that says so, the laws that may
break with it, and what the part does instead: `init` is what its constructor does at the end, the rest are its methods.
"""

from __future__ import annotations

import inspect
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from pytorch_lightning.loggers import Logger
from torch import nn
from torch.nn import functional as F

import espace
from espace import Chain, testing
from espace.data.reading.readers import Piece
from espace.errors import DataError
from espace.testing import (
    CallbackTests,
    LinkTests,
    LoggerTests,
    MetricTests,
    ObjectiveTests,
    OptimizerTests,
    PieceTests,
    ReaderTests,
    SamplerTests,
    ScheduleTests,
    SharingTests,
    StageTests,
    TowerTests,
    ValueTests,
    WeightingTests,
)
from espace.testing.modules import ModuleLaws
from tests import pages

BASES = [value for name, value in vars(testing).items() if name.endswith("Tests")]


@dataclass(frozen=True)
class Fault:
    """A faulty part, as its author would test it, the law that it breaks, what that says, and what else may break."""

    name: str
    tests: type
    law: str
    says: str
    also: tuple[str, ...]


FAULTS: list[Fault] = []
SOUND: dict[type, type] = {}  # part: its tests


def sound(base: type, **more: Any) -> Callable[[type], type]:
    """Mark a sound part, and write its test."""

    def note(part: type) -> type:
        SOUND[part] = type(f"Test{part.__name__}", (base,), {kind_of(base): part, **more})
        return part

    return note


def fault(
    name: str, part: type, law: str, says: str, *also: str, init: Callable[[Any], object] | None = None, **methods: Any
) -> None:
    """Note what a sound part becomes with other methods."""

    def construct(self, *given):
        part.__init__(self, *given)
        init(self)

    title = f"{part.__name__}{len(FAULTS)}"
    made = {**methods, **({"__init__": construct} if init else {}), "__module__": __name__}
    globals()[title] = faulty = type(title, (part,), made)  # where pickle looks for it
    tests = type(f"Test{title}", (SOUND[part],), {kind_of(SOUND[part]): faulty})
    FAULTS.append(Fault(name, tests, law, says, also))


def kind_of(tests: type) -> str:
    """`tower` for a class that inherits TowerTests: what its part stands under."""
    base = next(base for base in tests.__mro__ if base in BASES)
    return "stage" if base is ValueTests else base.__name__.removesuffix("Tests").lower()


def laws_of(tests: type) -> list[str]:
    return [name.removeprefix("test_") for name in dir(tests) if name.startswith("test_")]


def broken_by(tests: type, folder: Path) -> dict[str, Exception]:
    """Every law that the part breaks, run as pytest runs it, and what the failure says."""
    found = {}
    for law in laws_of(tests):
        instance: Any = tests()
        getattr(instance, "setup_method", lambda: None)()
        run, own = getattr(instance, f"test_{law}"), folder / law
        own.mkdir()
        try:
            run(**dict.fromkeys(inspect.signature(run).parameters, own))
        except Exception as error:
            found[law] = error
    return found


# -- what towers, sharing and links have in common, as each of them


class Core(nn.Module):
    """(batch, width) to the same, as a tower, as sharing and as a link."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.prepare(width)

    def prepare(self, width):
        pass

    def forward(self, x):
        return self.layer(x)


@sound(TowerTests)
class CoreTower(nn.Module):
    core = Core

    def __init__(self, spec):
        super().__init__()
        self.only, self.out_features = self.core(spec.width), spec.width

    def forward(self, features):
        return self.only(features.flat())


@sound(SharingTests)
class CoreSharing(nn.Module):
    core = Core

    def __init__(self, spec, transitions, expert):
        super().__init__()
        self.cores = nn.ModuleDict({name: self.core(spec.width) for name in transitions})
        self.specs = dict.fromkeys(transitions, espace.FeatureSpec.of_vector(spec.width))

    def forward(self, features):
        return {name: espace.Features.of_vector(core(features.flat())) for name, core in self.cores.items()}


@sound(LinkTests)
class CoreLink(nn.Module):
    core = Core

    def __init__(self, chain, widths):
        super().__init__()
        self.cores = nn.ModuleDict({name: self.core(width) for name, width in widths.items()})
        self.widths = dict(widths)

    def forward(self, vectors):
        return {name: core(vectors[name]) for name, core in self.cores.items()}


def fault_of_all(name: str, law: str, says: str, *also: str, **methods: Any) -> None:
    core = type("Faulty", (Core,), methods)
    for part in (CoreTower, CoreSharing, CoreLink):
        fault(name, part, law, says, *also, core=core)


LEARNS, ROWS, SAME = "every_parameter_learns", "rows_do_not_see_each_other", "is_deterministic_in_eval_mode"
SAVES, OWN, LEAVES = "saves_and_loads_to_the_same_bits", "two_share_no_parameter", "leaves_what_it_is_given_as_it_is"
HALF, WIDTH, LOGITS = "half_precision_changes_little", "gives_one_vector_per_row", "gives_vectors_and_not_probabilities"
PADDING, EVENTS = "what_stands_in_the_padding_is_invisible", "a_batch_without_any_event_works"
BESIDE, EXPERT, ADDS = "towers_beside_it_change_nothing", "works_as_an_expert", "what_it_adds_to_the_loss_is_one_number"
ONE = "trains_on_one_row"
COMMON: dict[int, nn.Module] = {}


def at_random(width):
    return nn.Linear(width, int(torch.randint(5, 50, ())))


# fmt: off
fault_of_all(
    "a layer that is not used", LEARNS, r"gets a gradient; these do not: .*unused\.weight", EVENTS, EXPERT,
    prepare=lambda self, width: self.add_module("unused", nn.Linear(width, 1)),
)
fault_of_all(
    "centred by the batch", ROWS, "what comes out for a row depends on that row only", PADDING,
    forward=lambda self, x: self.layer(x - x.mean(0)),
)
fault_of_all(
    "three rows at least", ROWS, "any rows will do, however many; it raised IndexError", PADDING, ONE,
    forward=lambda self, x: self.layer(x) + 0 * x[2],
)
fault_of_all(
    "the variance of one row", ONE, "the last batch of an epoch may have one row; it raised ValueError",
    prepare=lambda self, width: self.add_module("norm", nn.BatchNorm1d(width)),
    forward=lambda self, x: self.layer(self.norm(x)),
)
fault_of_all(
    "dropout that never ends", SAME, "the same input gives the same bits", ROWS, SAVES, HALF, PADDING, BESIDE,
    forward=lambda self, x: self.layer(F.dropout(x, 0.5, training=True)),
)
fault_of_all(
    "a tensor that is not saved", SAVES, "all that an output depends on is a parameter or a buffer",
    prepare=lambda self, width: setattr(self, "scale", torch.randn(width)),
    forward=lambda self, x: self.layer(x) * self.scale,
)
fault_of_all(
    "a size drawn by chance", SAVES, "what one saves another one of the same options loads; it raised RuntimeError",
    prepare=lambda self, width: self.add_module("more", at_random(width)),
    forward=lambda self, x: self.layer(x) + self.more(x).sum(1, keepdim=True),
)
fault_of_all(
    "one layer for all", OWN, "two of one class share no parameter",
    prepare=lambda self, width: setattr(self, "layer", COMMON.setdefault(width, self.layer)),
)
fault_of_all(
    "features halved in place", LEAVES, "its input is not changed in place", SAME, HALF, BESIDE,
    forward=lambda self, x: self.layer(x.data.mul_(0.5)),
)
fault_of_all(
    "float64 throughout", HALF, "it runs under bf16 autocast; it raised RuntimeError",
    forward=lambda self, x: self.layer(x.double()),
)
fault_of_all(
    "digits that cancel", HALF, "stays within 5 % of what it is in float32",
    forward=lambda self, x: self.layer(x) + 1000 - 1000,
)
# fmt: on


# -- towers


@sound(TowerTests)
class Tower(nn.Module):
    """The flat vector, a sum over the events of a history, and a number of each id."""

    def __init__(self, spec):
        super().__init__()
        self.spec, self.table = spec, spec.ask(1)
        self.layer = nn.Linear(spec.width, 3)
        self.attend = nn.Linear(4, 3, bias=False)
        self.out_features = 3

    def forward(self, features):
        return self.out(self.layer(features.flat()) + self.events(*features.sequence("history")) + self.first(features))

    def first(self, features):
        return features.extra(self.table).sum(1)

    def events(self, values, mask):
        return (self.attend(values) * mask[..., None]).sum(1)

    def out(self, x):
        return x


def once(self, features):
    if not hasattr(features, "work"):
        features.work = Tower.forward(self, features)
    return features.work


def softmax_of(self, values, mask):
    return self.attend(values).masked_fill(~mask[..., None], -torch.inf).softmax(1)


def carts(self, features):
    return Tower.first(self, features) + (self.attend(features.sequence("carts")[0]) + 1).sum(1)


def all_tables(self, features):
    return self.wide(features.extra(espace.ExtraTable(0, self.spec.extra_width))).sum(1)


def adds(self, x):
    self.auxiliary_loss = x.square().mean(self.over)
    return x


# fmt: off
fault("no width", Tower, WIDTH, r"set self\.out_features", init=lambda self: delattr(self, "out_features"))
fault("another width", Tower, WIDTH, r"= \(6, 5\), not \(6, 3\)", init=lambda self: setattr(self, "out_features", 5))
fault("infinities", Tower, WIDTH, "a tower gives finite numbers", EVENTS, HALF, ONE, out=lambda self, x: x / 0)
fault(
    "softmax of nothing", Tower, WIDTH, "finite numbers, also for a row without any event", SAME, SAVES, BESIDE, HALF,
    events=lambda self, values, mask: (softmax_of(self, values, mask) * self.attend(values)).sum(1),
)
fault("more logits than columns", Tower, WIDTH, "`logits` is a number of columns of the output", logits=4)
fault("softmax", Tower, LOGITS, "not a probability", out=lambda self, x: x.softmax(1))
fault(
    "sigmoid", Tower, LOGITS, "not a probability",
    init=lambda self: setattr(self, "out_features", 1), out=lambda self, x: x.sum(1, keepdim=True).sigmoid(),
)
fault(
    "attention to padding", Tower, PADDING, "padding changes no output: leave it out with the mask",
    events=lambda self, values, mask: (self.attend(values).softmax(1) * self.attend(values)).sum(1),
)
fault("padding that counts, in carts", Tower, PADDING, "padding changes no output", first=carts)
fault(
    "a maximum over no event", Tower, EVENTS, "an empty history is allowed, in every row; it raised IndexError",
    events=lambda self, values, mask: (self.attend(values) - 10 * ~mask[..., None]).amax(1),
)
fault(
    "a mean over no event", Tower, EVENTS, "an empty history gives finite numbers", WIDTH, SAME, SAVES, BESIDE, HALF,
    events=lambda self, values, mask: Tower.events(self, values, mask) / mask.sum(1, keepdim=True),
)
fault(
    "a mask by `if`", Tower, EVENTS, r"gets a gradient in every batch, .* these do not: attend\.weight",
    events=lambda self, values, mask: Tower.events(self, values, mask) if mask.any() else 0.0,
)
fault(
    "the first table, whose ever it is", Tower, BESIDE, "it reads the extra tables that it asked for, whatever other",
    first=lambda self, features: features.extra(espace.ExtraTable(0, 1)).sum(1),
)
fault(
    "all tables", Tower, BESIDE, "it reads the extra tables that it asked for, .* it raised RuntimeError", EXPERT,
    init=lambda self: self.add_module("wide", nn.Linear(self.spec.extra_width, 3, bias=False)), first=all_tables,
)
fault("its work left in the features", Tower, EXPERT, r"of several experts .* these do not: 1\.layer\.weight", forward=once)
fault("a secret addition to the loss", Tower, ADDS, "auxiliary_loss is an attribute of the class", out=adds, over=(0, 1))
fault(
    "an addition per row", Tower, ADDS, r"one finite number, a tensor of shape \(\)", LEARNS, EVENTS, ONE,
    auxiliary_loss=torch.zeros(()), out=adds, over=1,
)
# fmt: on


# -- sharing and links


@sound(SharingTests)
class Sharing(nn.Module):
    """The same features for all."""

    def __init__(self, spec, transitions, expert):
        super().__init__()
        self.names, self.expert = list(transitions), expert(spec)
        self.specs = dict.fromkeys(transitions, espace.FeatureSpec.of_vector(3))

    def forward(self, features):
        return dict.fromkeys(self.names, espace.Features.of_vector(self.expert(features)))


@sound(LinkTests)
class Link(nn.Module):
    """The vectors as they are."""

    def __init__(self, chain, widths):
        super().__init__()
        self.names, self.widths = [t.name for t in chain.heads], dict(widths)

    def forward(self, vectors):
        return vectors


LAYOUT = "every_transition_gets_features_of_the_promised_layout"
VECTORS = "every_transition_gets_a_vector_of_the_promised_width"
# fmt: off
fault("one for all", Sharing, LAYOUT, "there are features and a layout for every transition", init=lambda self: self.names.pop())
fault("no layout", Sharing, LAYOUT, "there are features and a layout for every", init=lambda self: self.specs.clear())
fault(
    "features of another width", Sharing, LAYOUT, r"the features are as wide as specs says, not \(6, 3\)",
    init=lambda self: self.specs.update(dict.fromkeys(self.specs, espace.FeatureSpec.of_vector(4))),
)
fault(
    "for two transitions", Sharing, LAYOUT, "any number of transitions can share; it raised IndexError",
    init=lambda self: self.names[1],
)
fault("no widths", Link, VECTORS, "there is a vector and a width for every", init=lambda self: self.widths.clear())
fault(
    "wider vectors", Link, VECTORS, r"the vectors are as wide as widths says, not \(4, 10\)",
    forward=lambda self, vectors: {name: vector.repeat(1, 2) for name, vector in vectors.items()},
)
fault("for three steps", Link, VECTORS, "a link works under any chain; it raised IndexError", init=lambda self: self.names[2])
# fmt: on


# -- objectives


@sound(ObjectiveTests)
class Objective:
    """The entire-space objective."""

    def __init__(self, chain):
        self.chain = chain
        self.values = espace.ValueTerms(chain)
        self.terms = {stage: espace.Term((stage,), None, "", "", "") for stage in chain.labelled} | self.values.terms

    def __call__(self, p, labels):
        return {stage: self.term(stage, p, labels) for stage in self.chain.labelled} | self.values(p, labels)

    def term(self, stage, p, labels):
        return self.loss(stage, p, labels) * labels.known(stage), self.rows(stage, p, labels)

    def loss(self, stage, p, labels):
        return -p.log_prob(stage).where(labels.of(stage) == 1, p.log_not_prob(stage))

    def rows(self, stage, p, labels):
        return labels.known(stage)


TERMS, FINITE = "terms_are_described_and_given_per_row", "losses_are_finite_whatever_is_predicted"
AGREES, UNKNOWN = "what_agrees_with_the_labels_loses_less", "unknown_labels_are_left_out_where_they_are_needed"
GRADIENT = "every_logit_gets_a_finite_gradient_even_without_clicks"
loss, rows = Objective.loss, Objective.rows


def only_if_clicked(self, stage, p, labels):
    clicked = stage == "click" or labels.happened("click").any()
    return loss(self, stage, p, labels) if clicked else torch.zeros(64, dtype=torch.float64)


def root_of_nothing(self, stage, p, labels):
    return loss(self, stage, p, labels) + (loss(self, stage, p, labels).clamp(min=0) * labels.happened("click")).sqrt()


# fmt: off
fault(
    "a mean", Objective, TERMS, r"a value and a count of each row, both \(batch,\)",
    term=lambda self, *given: (loss(self, *given).mean() * given[2].known("click").mean(), rows(self, *given)),
)
fault("a term without description", Objective, TERMS, r"described in \.terms", init=lambda self: self.terms.pop("click"))
fault(
    "a stage of another chain", Objective, TERMS, "a term names stages and values of the chain",
    init=lambda self: self.terms.update(click=espace.Term(("click",), "refund", "", "", "")),
)
fault(
    "a value forgotten", Objective, TERMS, "there is a term for every value", GRADIENT,
    init=lambda self: setattr(self, "values", espace.ValueTerms(Chain.parse("impression -> click"))) or self.terms.pop(
        "revenue_given_conversion", None
    ),
)
fault(
    "not in log space", Objective, FINITE, "stay in log space, where both tails are exact",
    loss=lambda self, stage, p, labels: -p.prob(stage).where(labels.of(stage) == 1, 1 - p.prob(stage)).log(),
)
fault(
    "rows by inverse probability", Objective, FINITE, "a row counts a finite number of times",
    rows=lambda self, stage, p, labels: labels.known(stage) / p.prob(stage).detach().float(),
)
fault("rows below zero", Objective, FINITE, "not count less than zero times", rows=lambda self, *given: -rows(self, *given))
fault("a reward", Objective, AGREES, "lose less than their opposite", loss=lambda self, *given: -loss(self, *given))
fault("a mask by `if`", Objective, GRADIENT, "mask by multiplication, so that every tower gets", loss=only_if_clicked)
fault("the root of nothing", Objective, GRADIENT, "gradients are finite", loss=root_of_nothing)
fault(
    "unknown taken for no", Objective, UNKNOWN, "a row whose labels are not known adds nothing",
    term=lambda self, *given: (loss(self, *given), rows(self, *given)),
)
# fmt: on


# -- samplers


@sound(SamplerTests)
class Sampler:
    """Keeps each row with probability one half."""

    seen = 0

    def __init__(self, chain):
        self.chain = chain

    def __call__(self, labels, weights, random):
        rows = np.flatnonzero(random.random(len(labels)) < 0.5)
        return rows, weights[rows]


GIVES, OUT, NO_ROW = "gives_positions_and_a_weight_of_each", "a_row_of_weight_zero_stays_out", "no_rows_are_allowed"
UNKNOWN_ROWS, NOTHING = "unknown_labels_are_allowed", "a_batch_in_which_nothing_happened_is_allowed"
CHANCE, TRACE = "chance_comes_from_the_generator_only", "other_batches_leave_no_trace"
RATES = "uses_rows_as_often_as_its_rates_say"
sample = Sampler.__call__


@sound(SamplerTests)
class Stratified(Sampler):
    """Keeps half of the rows with the first stage, a fifth of the others, and says so."""

    def __call__(self, labels, weights, random):
        rows = np.flatnonzero(random.random(len(labels)) < np.where(labels[:, 0] == 1, 0.5, 0.2))
        return rows, weights[rows]

    def rates(self):
        return {self.chain.transitions[0].name: [0.5, 0.2]}


@sound(SamplerTests)
class Labelling(Sampler):
    """Forgets the last label of the rows that it keeps."""

    def __call__(self, labels, weights, random):
        rows, kept = sample(self, labels, weights, random)
        return rows, kept, self.relabelled(labels[rows])

    def relabelled(self, labels):
        return np.where(np.arange(labels.shape[1]) < labels.shape[1] - 1, labels, np.int8(-1))


@sound(SamplerTests)
class Thinning(Sampler):
    """Keeps rows by a probability that it is given."""

    scored_by = ("runs/ctr", "click")

    def __call__(self, labels, weights, random, score):
        rows = np.flatnonzero(random.random(len(labels)) < score(np.arange(len(labels))))
        return rows, weights[rows]


def changed(change: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """A sampler's method that changes what it would give."""
    return lambda self, *given: change(*sample(self, *given))


def first(look: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """A sampler's method that first does something with labels and weights."""
    return lambda self, labels, weights, random: (look(labels, weights), sample(self, labels, weights, random))[1]


def more_positives(self, labels, weights, random):
    rows = random.choice(np.flatnonzero(labels[:, 0] == 1), len(labels))
    return rows, weights[rows]


def counting(self, labels, weights, random):
    rows = np.flatnonzero((np.arange(len(labels)) + self.seen) % 7 > 0)
    self.seen += len(labels)
    return rows, weights[rows]


# fmt: off
for says, change, *also in [
    (r"positions are \(rows,\)", lambda rows, weights: (rows[:, None], weights), NO_ROW, OUT),
    ("positions are int64, not int32", lambda rows, weights: (rows.astype(np.int32), weights), NO_ROW),
    ("a position is one of the 200 rows", lambda rows, weights: (rows + 100, weights), OUT),
    ("one weight for every position", lambda rows, weights: (rows, weights[1:]), OUT),
    ("weights are float32, not float64", lambda rows, weights: (rows, weights.astype(np.float64)), NO_ROW),
    ("weights are finite", lambda rows, weights: (rows, weights + np.float32(np.inf)), OUT),
    ("weights are not negative", lambda rows, weights: (rows, -weights)),
]:
    fault(f"not so: {says}", Sampler, GIVES, says, UNKNOWN_ROWS, NOTHING, *also, __call__=changed(change))
for says, made in [
    (r"labels, if it gives any, are \(rows, stages but the root\)", lambda labels: labels[:, :1]),
    ("labels are int8, not int64", lambda labels: labels.astype(np.int64)),
    ("a label is 1, 0, -1 for not known, or -2 for", lambda labels: labels - np.int8(2)),
]:
    fault(
        f"not so: {says}", Labelling, GIVES, says, UNKNOWN_ROWS, NOTHING, NO_ROW,
        relabelled=lambda self, labels, made=made: made(labels),
    )
fault(
    "rates of another chain", Sampler, RATES, "rates are for transitions of the chain, and 'view_to_click' is none",
    rates=lambda self: {"view_to_click": [1, 0.5]},
)
fault(
    "a rate of positives only", Sampler, RATES, "has a rate for every outcome and for nothing",
    rates=lambda self: {"impression_to_click": [0.5]},
)
fault(
    "never used", Sampler, RATES, "what is never used cannot be made up for",
    rates=lambda self: {"impression_to_click": [1, 0]},
)
fault(
    "a rate that is not kept", Sampler, RATES, "used as often, on average, as rates",
    rates=lambda self: {"impression_to_click": [0.5, 0.4]},
)
fault(
    "for three stages", Sampler, GIVES, "any chain will do; it raised IndexError", *laws_of(SamplerTests),
    init=lambda self: self.chain.stages[3],
)
fault(
    "all rows alike", Sampler, OUT, "a row of weight 0 keeps it: no loss and no metric may see it",
    __call__=changed(lambda rows, weights: (rows, np.ones_like(weights))),
)
fault(
    "labels counted", Sampler, UNKNOWN_ROWS, "labels may be unknown, which is -1; it raised ValueError",
    __call__=first(lambda labels, weights: np.bincount(labels[:, 0])),
)
fault(
    "more positives", Sampler, NOTHING, "a batch may have no positive row; it raised ValueError", UNKNOWN_ROWS,
    __call__=more_positives,
)
fault(
    "one row at least", Sampler, NO_ROW, "a batch may have no rows; it raised ValueError",
    __call__=first(lambda labels, weights: weights.max()),
)
fault(
    "dice of its own", Sampler, CHANCE, "the same batch and generator give the same rows", TRACE,
    __call__=lambda self, labels, weights, random: sample(self, labels, weights, np.random),
)
fault("rows counted", Sampler, TRACE, "a resumed run has not seen the ones before", __call__=counting)
fault(
    "weights doubled in place", Sampler, "leaves_the_batch_as_it_is", "labels and weights are not changed in place",
    __call__=first(lambda labels, weights: np.multiply(weights, 2, out=weights)),
)
# fmt: on


# -- weightings


@sound(WeightingTests)
class Weighting(nn.Module):
    """The weighted sum."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, terms):
        return torch.stack([self.one(name, value) for name, value in terms.items()]).sum()

    def one(self, name, value):
        return self.weights[name] * value


@sound(WeightingTests)
class Warming(Weighting):
    """The weights grow with the calls."""

    def __init__(self, weights):
        super().__init__(weights)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, terms):
        if torch.is_grad_enabled():
            self.calls = self.calls + 1
        return super().forward(terms) * (2 - 0.5**self.calls)


NUMBER, TERM, NAMES = (
    "makes_one_finite_number_of_the_terms",
    "every_term_is_learnt",
    "terms_go_by_name_and_not_by_place",
)
NO_HARM, WIDE, AS_GIVEN = "a_term_without_rows_does_no_harm", "terms_may_be_float64", "leaves_the_terms_as_they_are"
ALL_BUT_ONE = [law for law in laws_of(WeightingTests) if law != AS_GIVEN]
weighted, one = Weighting.forward, Weighting.one


def by_place(self, terms):
    return torch.stack([w * value for w, value in zip(self.weights.values(), terms.values(), strict=True)]).sum()


def taking_out(self, terms):
    return self.one("click", terms.pop("click")) + weighted(self, terms)


def growing(self, terms):
    self.register_buffer("last", torch.zeros(()))
    return Warming.forward(self, terms)


# fmt: off
fault("a list", Weighting, NUMBER, r"of shape \(\), not \(1,\)", forward=lambda self, terms: weighted(self, terms)[None])
fault("a number", Weighting, NUMBER, "the loss is a tensor", *ALL_BUT_ONE, forward=lambda self, terms: 1.0)
fault("infinity", Weighting, NUMBER, "the loss is finite", NO_HARM, WIDE, one=lambda self, name, value: value / 0)
fault(
    "a term detached", Weighting, TERM, "every term gets a gradient in every batch",
    one=lambda self, name, value: one(self, name, value.detach() if name == "refund" else value),
)
fault(
    "a term subtracted", Weighting, TERM, "the loss rises with every term, so that every term is made smaller",
    one=lambda self, name, value: one(self, name, -value if name == "refund" else value),
)
fault(
    "a parameter that is not used", Weighting, LEARNS, "every parameter gets a gradient; these do not: s",
    init=lambda self: self.register_parameter("s", nn.Parameter(torch.zeros(()))),
)
fault("weights by place", Weighting, NAMES, "a term has its weight by its name", forward=by_place)
for name, function in [("the logarithm", torch.log), ("the root", torch.sqrt)]:
    fault(
        f"{name} of a loss", Weighting, NO_HARM, "without rows in the batch is 0; the loss and its gradients stay finite",
        one=lambda self, name, value, function=function: one(self, name, function(value)),
    )
fault(
    "one type of numbers", Weighting, WIDE, "terms may be float64, which they are in validation; it raised RuntimeError",
    init=lambda self: self.register_parameter("w", nn.Parameter(torch.tensor(list(self.weights.values())))),
    forward=lambda self, terms: torch.stack([terms[name] for name in self.weights]) @ self.w,
)
fault("a term taken out", Weighting, AS_GIVEN, "the terms are not changed in place", TERM, forward=taking_out)
fault(
    "every call counted", Warming, "a_call_without_gradients_changes_nothing", "without gradients: such a call leaves no trace",
    forward=lambda self, terms: torch.enable_grad()(Warming.forward)(self, terms),
)
fault(
    "a count that is not saved", Warming, SAVES, "what it remembers of earlier batches is in parameters or buffers",
    init=lambda self: self.register_buffer("calls", torch.zeros(()), persistent=False),
)
fault("a state that grows", Warming, SAVES, "what one saves another one of the same options loads; it raised", forward=growing)
# fmt: on


# -- metrics


@sound(MetricTests)
class Metric(torchmetrics.Metric):
    """Brier score: the weighted mean of (P - y)^2."""

    full_state_update = False
    reduce, dtype, extra = "sum", torch.float64, 0.0

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=self.dtype), dist_reduce_fx=self.reduce)
        self.add_state("weight", torch.zeros((), dtype=self.dtype), dist_reduce_fx="sum")
        self.add_state("seen", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scored):
        weights = self.weigh(scored).to(self.dtype)
        self.total += weights @ (scored.log_prob.to(self.dtype).exp() - scored.labels).square()
        self.weight += weights.sum()

    def weigh(self, scored):
        return scored.weights

    def compute(self):
        return {"brier": self.total / self.weight}


SAME_NAMES, PIECES = "names_do_not_depend_on_the_rows", "pieces_give_what_the_whole_gives"
ORDER, COPY = "the_order_of_rows_does_not_matter", "a_copy_lives_on_its_own"
UNSEEN, ONE_CLASS, EMPTY = (
    "rows_of_weight_zero_count_for_nothing",
    "one_class_alone_gives_no_infinity",
    "no_rows_give_nan",
)
RANKS, MEMORY, RESET = "ranks_together_give_what_one_gives", "memory_does_not_grow_with_the_rows", "reset_forgets"
COMPUTED = [law for law in laws_of(MetricTests) if law != MEMORY]
brier = Metric.compute


def fading(self, scored):
    place = self.seen + torch.arange(len(scored.weights), dtype=torch.float64)
    self.seen += len(place)
    return scored.weights * 0.99**place


def per_positive(self, scored):
    self.weight += (scored.labels * scored.weights).sum() - scored.weights.sum()
    return scored.weights


def only_with_positives(self, scored):
    assert not len(scored.labels) or scored.labels.any()
    return scored.weights


def remembering(self, scored):
    self.extra = self.extra + float((scored.weights * scored.labels).double().sum())
    return scored.weights


def keeping(self, scored):
    self.rows.append(scored.log_prob)
    return scored.weights


# fmt: off
fault(
    "names of what there is", Metric, SAME_NAMES, "compute gives the same names whatever the rows are",
    compute=lambda self: brier(self) if self.weight > 0 else {},
)
fault("nothing", Metric, SAME_NAMES, r"a metric computes \{name: number\}", compute=lambda self: {})
fault(
    "two numbers", Metric, SAME_NAMES, r"each value is one number, a tensor of shape \(\)", *COMPUTED,
    compute=lambda self: {"brier": torch.stack([self.total, self.weight])},
)
fault(
    "a mean of means", Metric, PIECES, "reading in pieces gives what reading at once gives", RANKS,
    weigh=lambda self, scored: scored.weights / scored.weights.sum(),
)
fault("sums in float32", Metric, PIECES, "to nine digits: add up, in float64", ORDER, RANKS, UNSEEN, dtype=torch.float32)
fault("rows that fade", Metric, ORDER, "the order of the rows does not matter", RANKS, UNSEEN, weigh=fading)
fault(
    "no weights", Metric, UNSEEN, "rows of weight 0 count for nothing",
    weigh=lambda self, scored: torch.ones_like(scored.weights),
)
fault(
    "zero for nothing", Metric, EMPTY, r"without rows a metric is NaN, and a count .* these are not: brier",
    compute=lambda self: {"brier": self.total / self.weight.clamp(min=1)},
)
fault(
    "one row at least", Metric, EMPTY, "a part may have no rows in the space of a metric; it raised", SAME_NAMES, PIECES, RANKS,
    weigh=lambda self, scored: scored.weights + 0 * scored.weights.max(),
)
fault("per positive", Metric, ONE_CLASS, "NaN where it is undefined, never infinite; these are: brier", weigh=per_positive)
fault(
    "one positive at least", Metric, ONE_CLASS, "all rows may have one label; it raised AssertionError", SAME_NAMES, PIECES,
    weigh=only_with_positives,
)
fault("the mean of ranks", Metric, RANKS, "put together by dist_reduce_fx, give what one process gives$", reduce="mean")
fault("ranks side by side", Metric, RANKS, "give what one process gives; it raised RuntimeError", reduce=None)
fault(
    "all rows kept", Metric, MEMORY, "18,000 more rows took 72,000 more bytes", RANKS,
    init=lambda self: self.add_state("rows", [], dist_reduce_fx="cat"), weigh=keeping,
)
fault(
    "a plain attribute", Metric, RESET, "reset forgets all rows: what is remembered is an add_state", RANKS,
    compute=lambda self: {"brier": self.total / self.weight + self.extra}, weigh=remembering,
)
fault(
    "one for all", Metric, COPY, "a copy lives on its own, since every probability gets one",
    __deepcopy__=lambda self, memo: self,
)
# fmt: on


# -- readers


@sound(ReaderTests, source=lambda self, folder, rows: rows)
class Reader:
    """Rows with a number and a price; `source` says how many."""

    at = -1

    def __init__(self, source, split):
        self.table = pa.table({"row": range(source), "price": [row / 3 for row in range(source)]})
        self.schema = self.table.schema
        self.pieces = [Piece("table", i, min(64, source - start)) for i, start in enumerate(range(0, source, 64))]
        self.fingerprint = f"{source} rows"

    def read(self, piece, columns):
        if missing := set(columns) - set(self.schema.names):
            raise DataError(f"{piece}: there is no column {', '.join(missing)}.")
        return self.table.slice(64 * piece.index, 64).select(list(columns))


PROMISED, SCHEMA = "a_piece_has_the_rows_that_it_promises", "what_is_read_has_the_schema"
COLUMNS, SENT = "only_the_named_columns_are_read", "can_be_sent_to_another_process"
ALWAYS, CONTENT = "a_piece_is_always_the_same", "the_fingerprint_is_that_of_the_content"
ABSENT = "a_missing_column_is_a_data_error_that_names_it"
read = Reader.read


def saying_no(self, piece, columns):
    if set(columns) - set(self.schema.names):
        raise DataError("no")
    return read(self, piece, columns)


def reading_on(self, piece, columns):
    self.at = (self.at + 1) % len(self.pieces)
    return read(self, self.pieces[self.at], columns)


def named_anew(self):
    self.pieces = [Piece(uuid.uuid4().hex, piece.index, piece.rows) for piece in self.pieces]


# fmt: off
fault(
    "a row too few", Reader, PROMISED, "a piece has the rows that it promises: 64, not 63",
    read=lambda self, *given: read(self, *given).slice(1),
)
fault(
    "no pieces", Reader, PROMISED, "there are pieces, and rows in them", COLUMNS, ABSENT, SENT,
    init=lambda self: self.pieces.clear(),
)
fault(
    "other types", Reader, SCHEMA, "has the columns and types of reader.schema; table, row group 0 has",
    init=lambda self: setattr(self, "schema", pa.schema({"row": pa.int32(), "price": pa.float64()})),
)
fault(
    "one column more", Reader, COLUMNS, "read gives the named columns, in their order, and nothing else",
    read=lambda self, piece, columns: read(self, piece, dict.fromkeys(["row", *columns])),
)
fault("one piece after the other", Reader, ALWAYS, "a piece has the same rows whenever it is read", COLUMNS, read=reading_on)
fault("names drawn by chance", Reader, ALWAYS, "pieces are always the same", init=named_anew)
for value, says in [
    (lambda: "rows", "another content has another fingerprint"),
    (lambda: uuid.uuid4().hex, "the same source has the same fingerprint each time"),
    (lambda: 3, "the fingerprint is a text"),
]:
    fault(f"not so: {says}", Reader, CONTENT, says, init=lambda self, value=value: setattr(self, "fingerprint", value()))
fault(
    "a plain error", Reader, ABSENT, "a column that is not there is a DataError that names it, not KeyError",
    read=lambda self, piece, columns: self.table.slice(64 * piece.index, 64).select(list(columns)),
)
fault(
    "a column left out", Reader, ABSENT, "a column that is not there is a DataError that names it, not None",
    read=lambda self, piece, columns: read(self, piece, [name for name in columns if name in self.schema.names]),
)
fault("no name", Reader, ABSENT, r"a DataError that names it, not DataError\('no'\)", read=saying_no)
fault(
    "a function inside", Reader, SENT, "a reader can be pickled and reads the same in another process; it raised",
    init=lambda self: setattr(self, "each", lambda piece: piece),
)
# fmt: on


# -- stage kinds


@sound(StageTests)
class Halved(nn.Module):
    """P = c sigmoid(z), where c is learnt."""

    logits = 1

    def __init__(self):
        super().__init__()
        self.cap = nn.Parameter(torch.tensor(3.0))

    def forward(self, z):
        log_cap, log_rest = F.logsigmoid(self.cap), F.logsigmoid(-self.cap)
        log_not = torch.logaddexp(F.logsigmoid(-z[:, 0]) + log_cap, log_rest)
        return F.logsigmoid(z[:, 0]) + log_cap, log_not

    def start(self, rate):
        share = torch.tensor(rate) / self.cap.sigmoid()
        return [float(share.logit())]


TAILS, FAR, RATE = "gives_both_tails_of_one_probability_per_row", "both_tails_are_finite_far_out", "starts_at_the_rate"
LOGIT = "every_logit_and_parameter_learns"


# fmt: off
fault("no logits", Halved, TAILS, "set `logits`", *laws_of(StageTests), logits=None)
fault(
    "one column each", Halved, TAILS, r"it gives log P and log\(1 - P\), \(batch,\) each", RATE,
    forward=lambda self, z: tuple(t[:, None] for t in Halved.forward(self, z)),
)
fault(
    "tails of two", Halved, TAILS, "P and 1 - P add up to 1",
    forward=lambda self, z: (Halved.forward(self, z)[0], F.logsigmoid(-z[:, 0])),
)
fault(
    "the logarithm of a rounded 0", Halved, FAR, "at logits of 40 both logarithms", RATE, LOGIT,
    forward=lambda self, z: (z[:, 0].sigmoid().log(), (1 - z[:, 0].sigmoid()).log()),
)
fault(
    "a start for a plain sigmoid", Halved, RATE, "at 0.0001 it is another",
    start=lambda self, rate: [float(torch.tensor(rate).logit())],
)
fault("two starts", Halved, RATE, "one number for each logit", start=lambda self, rate: [0.0, 0.0])
fault("a logit that is not read", Halved, LOGIT, "every logit gets a gradient", RATE, logits=2)
fault(
    "a parameter that is not used", Halved, LOGIT, r"these do not: unused",
    init=lambda self: setattr(self, "unused", nn.Parameter(torch.zeros(1))),
)
fault(
    "centred by the batch", Halved, ROWS, "P of a row depends on that row only", FAR, RATE,
    forward=lambda self, z: Halved.forward(self, z - z.mean(0)),
)
fault(
    "a shift that is not saved", Halved, SAVES, "all that P depends on is a parameter or a buffer", RATE,
    init=lambda self: setattr(self, "shift", torch.randn(())), forward=lambda self, z: Halved.forward(self, z + self.shift),
)
# fmt: on


# -- pieces of chain


@sound(PieceTests)
class Refund(espace.ChainPiece):
    """What is bought may be sent back."""

    lines_of = (("conversion -> refund else keep",), {"refund": "returned"}, {"refund": {"weight": 2.0}})

    def __init__(self):
        super().__init__(*self.lines_of)


ADDED, PLAIN, SAME = "can_be_added_to_a_chain", "holds_plain_values", "is_the_same_each_time"
AGAIN = iter(range(100))


# fmt: off
fault(
    "lines alone", Refund, "brings_at_least_one_stage", r"it is an espace\.ChainPiece", ADDED, PLAIN,
    __new__=lambda cls: ["conversion -> refund"],
)
fault("no line", Refund, "brings_at_least_one_stage", "it brings at least one stage", lines_of=((),))
fault(
    "another arrow", Refund, "brings_at_least_one_stage", "its lines are of the chain's grammar; it raised ChainError", ADDED,
    lines_of=(("conversion > refund",),),
)
fault(
    "a stage that is there", Refund, ADDED, "it brings 'conversion', which is there already",
    lines_of=(("click -> conversion",),),
)
fault("a parent that is not", Refund, ADDED, "it follows 'pay', which the chain lacks", lines_of=(("pay -> refund",),))
fault(
    "stages that do not exclude each other", Refund, ADDED, r"P\(refund\) would be counted twice",
    lines_of=(("click -> refund", "conversion -> refund"),),
)
fault(
    "a weight of another stage", Refund, ADDED, "defaults for 'click', which it does not bring",
    lines_of=(("conversion -> refund",), {}, {"click": {"weight": 2.0}}),
)
fault(
    "a module as the kind", Refund, PLAIN, "can stand in a YAML; it raised TypeError",
    lines_of=(("conversion -> refund",), {}, {"refund": {"kind": nn.Identity()}}),
)
fault(
    "numbers for keys", Refund, PLAIN, "lists and text keys only",
    lines_of=(("conversion -> refund",), {}, {"refund": {1: 2}}),
)
fault(
    "a name drawn anew", Refund, SAME, "the same options give the same piece",
    lines_of=property(lambda self: ((f"conversion -> refund_{next(AGAIN)}",),)),
)
# fmt: on


# -- stage kinds of amounts


@sound(ValueTests)
class Exponential(nn.Module):
    """p(x) = exp(-x / m) / m: how long until something happens that may happen at any time."""

    logits, limits = 1, (0.0, 3e38)

    def log_density(self, z, x):
        return -z[:, 0] - x * (-z[:, 0]).exp()

    def log_mean(self, z):
        return z[:, 0]

    def start(self, mean, variance, zeros):
        return [float(torch.tensor(mean, dtype=torch.float64).log())]


@sound(ValueTests, atoms=(1.0, 2.0, 3.0, 4.0, 5.0), continuous=False)
class Stars(nn.Module):
    """1 and the successes of four tries of probability sigmoid(z): ordered marks from 1 to 5."""

    logits, limits = 1, (1.0, 5.0)

    def log_density(self, z, x):
        ways = torch.lgamma(x.new_tensor(5.0)) - torch.lgamma(x) - torch.lgamma(6 - x)
        return ways + (x - 1) * F.logsigmoid(z[:, 0]) + (5 - x) * F.logsigmoid(-z[:, 0])

    def mean(self, z):
        return 1 + 4 * z[:, 0].sigmoid()

    def start(self, mean, variance, zeros):
        return [float(torch.tensor((mean - 1) / 4, dtype=torch.float64).logit())]


ONE_EACH, DENSITY, MEAN = (
    "gives_one_log_density_and_one_mean_per_row",
    "the_density_integrates_to_one",
    "the_mean_is_that_of_the_density",
)
SLOPE, BEYOND, AT_MEAN = "gradients_are_those_of_finite_differences", "is_finite_far_out", "starts_at_the_mean"
exponential = Exponential.log_density


def of_means(self, z, x):
    return exponential(self, z.expand(len(x), -1), x) + 0 * z[3, 0]


# fmt: off
fault("no logits", Exponential, ONE_EACH, "set `logits`", *laws_of(ValueTests), logits=None)
fault("no limits", Exponential, ONE_EACH, "set `limits`", *laws_of(ValueTests), limits=(1.0, 0.0))
fault(
    "one column each", Exponential, ONE_EACH, r"log_density and the mean are \(batch,\) each", DENSITY, MEAN, SLOPE, LOGIT, ROWS,
    log_mean=lambda self, z: z, log_density=lambda self, z, x: exponential(self, z, x)[:, None],
)
fault("twice the density", Exponential, DENSITY, "adds up to 1, not to 2.0000", MEAN,
    log_density=lambda self, z, x: exponential(self, z, x) + torch.tensor(2.0).log(),
)
fault(
    "an atom too few", Stars, DENSITY, "with the probabilities of `atoms`, adds up to 1", MEAN, SLOPE, LOGIT, BEYOND,
    log_density=lambda self, z, x: torch.where(x == 5, -torch.inf, Stars.log_density(self, z, x)),
)
fault("the median", Exponential, MEAN, "is the mean of the amounts under log_density", AT_MEAN,
    log_mean=lambda self, z: z[:, 0] + torch.tensor(2.0, dtype=z.dtype).log().log(),
)
fault(
    "a gradient cut", Exponential, SLOPE, "are those that finite differences find",
    log_density=lambda self, z, x: -z[:, 0] - x * (-z[:, 0]).exp().detach(),
)
fault(
    "the logarithm of a rounded 0", Stars, BEYOND, "log_density, the logarithm of the mean and their gradients are finite",
    log_density=lambda self, z, x: Stars.log_density(self, 0 * z, x)
    + (x - 1) * (2 * z[:, 0].sigmoid()).log() + (5 - x) * (2 * (1 - z[:, 0].sigmoid())).log(),
)
fault("a start at the mean itself", Exponential, AT_MEAN, "start gives the logits at which the mean is",
    start=lambda self, mean, variance, zeros: [mean],
)
fault(
    "two starts", Exponential, AT_MEAN, "gives one number for each logit", start=lambda self, *moments: [0.0, 0.0],
)
fault("a logit that is not read", Exponential, LOGIT, "every logit gets a gradient", AT_MEAN, logits=2)
fault(
    "a parameter that is not used", Exponential, LOGIT, r"these do not: unused",
    init=lambda self: setattr(self, "unused", nn.Parameter(torch.zeros(1))),
)
fault(
    "centred by the batch", Exponential, ROWS, "density and mean of a row depend on that row only", DENSITY, MEAN, SLOPE, AT_MEAN,
    log_density=lambda self, z, x: exponential(self, z - z.mean(0), x),
)
fault(
    "a start that is not saved", Exponential, SAVES, "is a parameter or a buffer, so that it is saved, start included",
    log_density=lambda self, z, x: exponential(self, z + getattr(self, "far", 0.0), x),
    start=lambda self, mean, variance, zeros: (setattr(self, "far", 0.5), Exponential.start(self, mean, variance, zeros))[1],
)
# fmt: on


# -- callbacks


@sound(CallbackTests)
class Shrinking(pl.Callback):
    """Makes the bias smaller by how many steps there were, and by chance; keeps how far it went."""

    def __init__(self):
        self.steps, self.far = 0, torch.zeros((), dtype=torch.float64)

    def on_train_batch_end(self, trainer, module, *_):
        self.steps += 1
        move = self.steps * torch.rand((), dtype=torch.float64) / 100
        self.far = self.far + move
        with torch.no_grad():
            module.model.bias -= move

    def state_dict(self):
        return {"steps": self.steps, "far": self.far}

    def load_state_dict(self, state_dict):
        self.steps, self.far = state_dict["steps"], state_dict["far"]


KEY, BACK = "two_of_the_same_options_have_one_place_in_a_checkpoint", "its_state_is_plain_and_comes_back"
RESUMED = "a_run_that_is_resumed_ends_as_one_that_was_never_stopped"
ONLY = Shrinking()
kept = Shrinking.state_dict


def by_a_count_of_its_own(self, trainer, module, *_):
    Shrinking.on_train_batch_end(self, trainer, module)
    self.beside = self.beside + 1
    with torch.no_grad():
        module.model.bias -= self.beside / 100


# fmt: off
fault(
    "something else", Shrinking, "is_a_callback_of_lightning", r"it inherits from pytorch_lightning\.Callback",
    *laws_of(CallbackTests), __new__=lambda cls: object(),
)
fault(
    "one for all", Shrinking, "is_a_callback_of_lightning", "the factory gives a new one each time", RESUMED,
    __new__=lambda cls: ONLY,
)
fault(
    "a key drawn by chance", Shrinking, KEY, "a resumed run finds its state again", RESUMED,
    state_key=property(lambda self: uuid.uuid4().hex),
)
fault(
    "a number of numpy", Shrinking, BACK, "what it keeps is plain values and tensors", RESUMED,
    state_dict=lambda self: kept(self) | {"steps": np.int64(self.steps)},
)
fault(
    "another name for it", Shrinking, BACK, "it takes back what it gave; it raised KeyError: 'far'", RESUMED,
    state_dict=lambda self: {"steps": self.steps, "distance": self.far},
)
fault(
    "nothing taken back", Shrinking, BACK, "it gives again what it took back", RESUMED,
    load_state_dict=lambda self, state: None,
)
fault(
    "digits lost", Shrinking, BACK, "it gives again what it took back", RESUMED,
    load_state_dict=lambda self, state: Shrinking.load_state_dict(self, state | {"far": state["far"].float().double()}),
)
fault(
    "a function in the checkpoint", Shrinking, RESUMED, "its state goes into a checkpoint and comes out of it; it raised",
    on_save_checkpoint=lambda self, trainer, module, checkpoint: checkpoint.update(move=lambda: 0),
)
fault(
    "a count that is not kept", Shrinking, RESUMED, "weights are the same whether a run was stopped or not",
    beside=0, on_train_batch_end=by_a_count_of_its_own,
)
fault(
    "a new beginning", Shrinking, RESUMED, "and so is what the callback keeps",
    on_train_start=lambda self, *_: setattr(self, "far", torch.zeros((), dtype=torch.float64)),
)
# fmt: on


# -- loggers


@sound(LoggerTests)
class Lines(Logger):
    """A line for each time that something is told, behind its step."""

    name, version = "lines", ""

    def __init__(self, folder, resumed_at):
        super().__init__()
        self.path = folder / "lines.txt"
        lines = [] if resumed_at is None else self.path.read_text().splitlines()
        self.path.write_text("".join(f"{line}\n" for line in lines if int(line.split()[0]) <= resumed_at))

    def log_hyperparams(self, params):
        pass

    def log_metrics(self, metrics, step=None):
        with self.path.open("a") as file:
            file.write(f"{step} {self.line(metrics)}\n")

    def line(self, metrics):
        return " ".join(f"{name}={value}" for name, value in metrics.items())


TAKES, GOES_ON = "takes_what_a_run_tells_and_leaves_it_as_it_is", "goes_on_with_a_run"
line = Lines.line


def rising(self, metrics, step):
    told = self.path.read_text().splitlines()
    assert not told or int(told[-1].split()[0]) <= step
    Lines.log_metrics(self, metrics, step)


# fmt: off
fault(
    "something else", Lines, "is_a_logger_of_lightning", r"it inherits from pytorch_lightning\.loggers\.Logger",
    *laws_of(LoggerTests), __new__=lambda cls, *given: object(),
)
fault(
    "thousandths", Lines, TAKES, "numbers may be NaN, and names differ from step to step; it raised ValueError",
    line=lambda self, metrics: line(self, {name: int(1000 * value) for name, value in metrics.items()}),
)
fault(
    "one column", Lines, TAKES, "names differ from step to step; it raised KeyError: 'train/loss'",
    line=lambda self, metrics: str(metrics["train/loss"]),
)
for name, change in [
    ("the epoch taken out", lambda told: told.pop("epoch")),
    ("rounded in place", lambda told: told.update({name: round(value) for name, value in told.items() if value == value})),
]:
    fault(
        name, Lines, TAKES, "what it is given is not changed: others read it too",
        line=lambda self, metrics, change=change: (change(metrics), line(self, metrics))[1],
    )
fault(
    "an option taken out", Lines, TAKES, "what it is given is not changed: others read it too",
    log_hyperparams=lambda self, params: params["tower"].pop("type"),
)
fault(
    "a new file each time", Lines, GOES_ON, "lose some of its steps, and go on; it raised FileExistsError",
    __init__=lambda self, folder, resumed_at: (folder / "mine").mkdir() or Lines.__init__(self, folder, resumed_at),
)
fault(
    "steps that never go back", Lines, GOES_ON, "lose some of its steps, and go on; it raised AssertionError",
    __init__=lambda self, folder, resumed_at: Lines.__init__(self, folder, resumed_at and 100), log_metrics=rising,
)
# fmt: on


# -- optimisers


@sound(OptimizerTests)
class Heavy(torch.optim.Optimizer):
    """Along a mean of gradients."""

    def __init__(self, groups):
        super().__init__(groups, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.memory(p).setdefault("mean", torch.zeros_like(p))
                p -= self.rate(group) * mean.mul_(0.5).add_(p.grad)

    def rate(self, group):
        return group["lr"]

    def memory(self, p):
        return self.state[p]


OF_TORCH, STILL = "is_an_optimizer_of_torch", "nothing_moves_at_a_rate_of_nothing"


def of_one_group(self, groups):
    Heavy.__init__(self, [p for group in groups for p in group["params"]])


def beside(self, p):
    """A memory that no checkpoint holds."""
    return vars(self).setdefault("memories", {}).setdefault(p, {})


def of_numpy(self, p):
    self.state[p]["share"] = np.float64(0.5)
    return self.state[p]


# fmt: off
fault(
    "something else", Heavy, OF_TORCH, r"it is a torch\.optim\.Optimizer", *laws_of(OptimizerTests),
    __new__=lambda cls, groups: object(),
)
fault("one group", Heavy, OF_TORCH, "its groups are those that it was given", STILL, __init__=of_one_group)
fault("uphill", Heavy, "loses_less", "the loss of a small problem falls", rate=lambda self, group: -group["lr"])
fault(
    "the rate of the beginning", Heavy, STILL, "it goes by the lr of each group, which a schedule sets in every step",
    rate=lambda self, group: self.defaults["lr"],
)
for name, which in [("first", 0), ("last", -1)]:
    fault(
        f"the rate of the {name} group for all", Heavy, STILL, "it goes by the lr of each group",
        rate=lambda self, group, which=which: self.param_groups[which]["lr"],
    )
fault("a memory beside its state", Heavy, RESUMED, "all that it remembers is in its state_dict", memory=beside)
fault(
    "a number of numpy", Heavy, RESUMED, "its state is plain values and tensors, .*; it raised UnpicklingError",
    memory=of_numpy,
)
# fmt: on


# -- schedules


@sound(ScheduleTests)
class Falling:
    """In a straight line to nothing at the end of the run."""

    calls = 0

    def __init__(self, steps):
        self.steps = steps

    def __call__(self, step):
        return max(1 - step / self.steps, 0.0)


@sound(ScheduleTests)
class Waiting:
    """Halved after some judgements in a row that were no better."""

    patience = 2

    def __init__(self, steps):
        self.now, self.best, self.waited = 1.0, float("inf"), 0

    def __call__(self, step):
        return self.now

    def judged(self, loss):
        self.best, self.waited = (loss, 0) if loss < self.best else (self.best, self.waited + 1)
        if self.waited == self.patience:
            self.now, self.waited = self.now / 2, 0

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state_dict):
        vars(self).update(state_dict)


FACTORS, BY_STEP, GOES_ON_FROM = "is_finite_and_not_negative", "goes_by_the_step_only", "goes_on_from_its_state"


def counting_calls(self, step):
    self.calls += 1
    return Falling.__call__(self, self.calls)


def without(name):
    return lambda self: {key: value for key, value in vars(self).items() if key != name}


# fmt: off
fault("below nothing", Falling, FACTORS, "a factor is finite and not negative", __call__=lambda self, step: 1 - step / self.steps)
fault("infinity", Falling, FACTORS, "a factor is finite", __call__=lambda self, step: 1 if step else float("inf"))
fault(
    "one step at least", Falling, FACTORS, "gives a number for each of 2 steps; it raised ZeroDivisionError", BY_STEP,
    __call__=lambda self, step: 1 / step,
)
fault("calls counted", Falling, BY_STEP, "a resumed run begins anywhere", __call__=counting_calls)
for name in ("now", "best", "waited"):
    fault(
        f"no {name}", Waiting, GOES_ON_FROM, "all that it remembers is in its state_dict", state_dict=without(name),
    )
fault(
    "patience that starts anew", Waiting, GOES_ON_FROM, "all that it remembers is in its state_dict",
    patience=20, state_dict=without("waited"),
)
fault(
    "a number of numpy", Waiting, GOES_ON_FROM, "its state is plain values and tensors, .*; it raised UnpicklingError",
    state_dict=lambda self: vars(self) | {"now": np.float64(self.now)},
)
fault("no state", Waiting, GOES_ON_FROM, "and it takes it back; it raised TypeError", state_dict=None)
# fmt: on


# -- the proofs


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{kind_of(f.tests)}: {f.name}")
def test_a_faulty_part_breaks_the_law_that_says_so(fault: Fault, tmp_path: Path) -> None:
    broken = broken_by(fault.tests, tmp_path)
    assert set(broken) <= {fault.law, *fault.also}
    with pytest.raises(AssertionError, match=fault.says):
        raise broken[fault.law]


@pytest.mark.parametrize("tests", SOUND.values(), ids=lambda tests: tests.__name__)
def test_a_sound_part_breaks_no_law(tests: type, tmp_path: Path) -> None:
    assert broken_by(tests, tmp_path) == {}


def test_every_law_has_a_faulty_part() -> None:
    proved = {(base, fault.law) for fault in FAULTS for base in fault.tests.__mro__}
    assert not [f"{base.__name__}.{law}" for base in BASES for law in laws_of(base) if (base, law) not in proved]


def test_every_law_has_a_line_in_the_documentation() -> None:
    section = pages.sections_of(pages.HOME / "docs" / "plugins.md")["Tests"]
    assert set(re.findall(r"^\| `(\w+)` \| \S", section, re.M)) == {
        law for base in (ModuleLaws, *BASES) for law in laws_of(base)
    }
