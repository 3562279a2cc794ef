"""Rows are drawn from known probabilities; training on them has to find every conditional again, within its standard error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from espace.chain.chain import Chain
from espace.chain.labels import Labels
from espace.chain.probability import Probabilities
from espace.chain.terms import ValueTerms
from espace.config import Config
from espace.data.batch import Batch
from espace.data.encoding.labels import resolve
from espace.parts.objectives.entire_space import EntireSpace
from espace.parts.objectives.parent_space import ParentSpace
from espace.registry.registry import load
from espace.runs.experiment import Experiment
from espace.training.judging import Terms
from tests.chains import chain_of

CELLS = 3  # kinds of rows; within one every row has the same probabilities
ROWS = 60_000
ESM2 = Chain.parse(["impression -> click", "click -> action else other", "action -> buy", "other -> buy"])
CREDIT_CARD = Chain.parse("impression -> click -> application -> approval -> activation")


class Drawn:
    """Rows of a chain, drawn transition by transition from probabilities between 0.15 and 0.85, or of K + 1 even classes."""

    def __init__(self, chain: Chain, seed: int, rows: int = ROWS) -> None:
        random = np.random.default_rng(seed)
        self.chain = chain
        self.cell = random.integers(CELLS, size=rows)
        self.truth = {t: self._shares(random, len(t.outcomes)) for t in chain.transitions}  # (CELLS, K + 1)
        self.happened = {stage: np.zeros(rows, bool) for stage in chain.stages} | {chain.root: np.ones(rows, bool)}
        for t, shares in self.truth.items():
            chosen = (random.random(rows)[:, None] >= shares[self.cell].cumsum(1)[:, :-1]).sum(1)
            for place, stage in enumerate(t.classes):
                if stage is not None:
                    self.happened[stage] |= self.happened[t.parent] & (chosen == place)

    @staticmethod
    def _shares(random: np.random.Generator, outcomes: int) -> np.ndarray:
        shares = random.uniform(0.15, 0.85, (CELLS, outcomes + 1))
        if outcomes == 1:
            shares[:, 1] = 1 - shares[:, 0]
        return shares / shares.sum(1, keepdims=True)

    def columns(self) -> dict[str, np.ndarray]:
        return {stage: self.happened[stage].astype(np.int8) for stage in self.chain.labelled}

    def deviations(self, predicted: dict[tuple[str, str], np.ndarray]) -> np.ndarray:
        """How many standard errors `{(stage, parent): (CELLS,)}` are from the truth."""
        found = []
        for t, shares in self.truth.items():
            rows = np.bincount(self.cell[self.happened[t.parent]], minlength=CELLS)
            for place, stage in enumerate(t.classes):
                if stage is not None:
                    p = shares[:, place]
                    found.append((predicted[stage, t.parent] - p) / np.sqrt(p * (1 - p) / rows))
        return np.concatenate(found)


def fitted(drawn: Drawn, objective) -> dict[tuple[str, str], np.ndarray]:
    """P(stage given parent) of every cell at the least loss, with a logit of their own for every cell."""
    chain = drawn.chain
    z = {
        t.name: torch.zeros(CELLS, len(t.outcomes), dtype=torch.float64, requires_grad=True) for t in chain.transitions
    }
    labels = torch.from_numpy(resolve(chain, drawn.columns(), "error").values)
    rows = len(labels)
    batch = Batch(torch.empty(rows, 0), {}, torch.empty(rows, 0), labels, torch.ones(rows), {})
    cell = torch.from_numpy(drawn.cell)
    optimizer = torch.optim.LBFGS(z.values(), max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        p = Probabilities(chain, {name: logits[cell] for name, logits in z.items()})
        loss = torch.stack(list(Terms.of(objective, p, batch).means().values())).sum()
        loss.backward()
        return loss

    optimizer.step(step)
    p = Probabilities(chain, {name: logits.detach() for name, logits in z.items()})
    return {(c, t.parent): p.prob(c, given=t.parent).numpy() for t in chain.transitions for c in t.children}


def assert_drawn_from(z: np.ndarray) -> None:
    """Errors of a right estimate: none above 4, and of mean square about 1."""
    assert np.abs(z).max() < 4
    assert (z**2).mean() < 1 + 4 * np.sqrt(2 / len(z))


def parsed(seed: int) -> Chain:
    return Chain.parse([str(t) for t in chain_of(seed)])


@pytest.mark.parametrize("seed", range(12))
def test_judged_in_its_parent_space_every_conditional_of_any_chain_is_found(seed):
    drawn = Drawn(parsed(seed), seed)
    assert_drawn_from(drawn.deviations(fitted(drawn, ParentSpace(drawn.chain))))


TREES = [seed for seed in range(60) if all(len(parsed(seed).parents(s)) < 2 for s in parsed(seed).stages)][:8]


@pytest.mark.parametrize("seed", TREES)
def test_judged_over_the_entire_space_every_conditional_is_found_where_no_stage_has_two_parents(seed):
    drawn = Drawn(parsed(seed), seed)
    assert_drawn_from(drawn.deviations(fitted(drawn, EntireSpace(drawn.chain))))


def test_over_the_entire_space_two_ways_to_a_stage_are_found_by_their_sum_alone():
    """ESM2's loss holds P(buy) only: the mixture is found, and the sum stays where the parts are moved."""
    drawn = Drawn(ESM2, seed=0)
    found = fitted(drawn, EntireSpace(ESM2))
    clicks, buys = (np.bincount(drawn.cell[drawn.happened[s]], minlength=CELLS) for s in ("click", "buy"))
    action, by_action, by_other = (found[step] for step in (("action", "click"), ("buy", "action"), ("buy", "other")))
    mixture = action * by_action + (1 - action) * by_other
    np.testing.assert_allclose(mixture, buys / clicks, atol=1e-5)
    assert np.abs(drawn.deviations(found)).max() > 10


@pytest.mark.parametrize(
    ("chain", "objective"),
    [(ESM2, "parent_space"), (CREDIT_CARD, "parent_space"), (CREDIT_CARD, "entire_space")],
    ids=["esm2", "credit card", "credit card, entire space"],
)
def test_espace_fit_finds_them_too(chain: Chain, objective: str, tmp_path: Path) -> None:
    """Rows that are alike are one row with their number as weight, so that every batch is all of them."""
    drawn = Drawn(chain, seed=1)
    kinds, counts = np.unique(np.stack([drawn.cell, *drawn.columns().values()]), axis=1, return_counts=True)
    table = pa.table({**dict(zip(("cell", *chain.labelled), kinds, strict=True)), "weight": counts.astype(np.float32)})
    pq.write_table(pa.concat_tables([table] * 100), tmp_path / "rows.parquet")
    values = {
        "chain": chain.lines(),
        "data": {
            "train": str(tmp_path / "rows.parquet"),
            "batch_size": len(table),
            "shuffle": False,
            "weight": "weight",
        },
        "features": {"cell": {"type": "id", "unknown_rate": 0.0}},
        "embedding": {"dim": 4, "std": 0.5},
        "tower": {"type": "mlp", "hidden_units": [8]},
        "objective": objective,
        "optimizer": {"lr": 0.1},
        "trainer": {"max_steps": 400, "accelerator": "cpu"},
    }
    registry = load()
    run = Experiment(Config.from_dict(values, registry), registry).fit(tmp_path / "run")
    assert run is not None
    p = run.predict(pa.table({"cell": np.arange(CELLS)}))
    found = {step: p[f"p_{name}"].to_numpy() for name, step in steps_of(chain).items()}
    assert_drawn_from(drawn.deviations(found))


def steps_of(chain: Chain) -> dict[str, tuple[str, str]]:
    """{address: (stage, parent)} of the conditionals."""
    steps = ((c, t.parent) for t in chain.transitions for c in t.children)
    return {stage if parent == chain.root else f"{stage}_given_{parent}": (stage, parent) for stage, parent in steps}


def amounts_of(kind: str, random: np.random.Generator, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Amounts of rows of these cells, drawn from the kind itself, and the true mean of every cell."""
    mu, sigma = random.uniform(0, 2, CELLS), random.uniform(0.3, 0.8, CELLS)
    if kind == "normal":
        return random.normal((10 * mu - 10)[cell], 5 * sigma[cell]), 10 * mu - 10
    if kind == "gamma":
        shape = 1 / sigma**2
        return random.gamma(shape[cell], (np.exp(mu) / shape)[cell]), np.exp(mu)
    p = random.uniform(0.3, 0.8, CELLS) if kind == "ziln" else np.ones(CELLS)
    paid = random.random(len(cell)) < p[cell]
    return np.where(paid, np.exp(random.normal(mu[cell], sigma[cell])), 0.0), p * np.exp(mu + sigma**2 / 2)


@pytest.mark.parametrize("kind", ["lognormal", "ziln", "gamma", "normal"])
@pytest.mark.parametrize("seed", range(4))
def test_the_mean_of_every_value_is_found(seed: int, kind: str) -> None:
    """The best fit of a likelihood is no further from the truth than the mean of the sample is."""
    plain = parsed(seed)
    drawn, random = Drawn(plain, seed), np.random.default_rng(seed)
    parent = plain.stages[-1]
    chain = Chain.parse([*plain.lines(), f"{parent} => amount"])
    amounts, means = amounts_of(kind, random, drawn.cell)
    amounts = np.where(drawn.happened[parent], amounts, np.nan)
    made = load().get("stages", kind).factory().double()
    seen = amounts[~np.isnan(amounts)]
    start = torch.tensor(made.start(seen.mean(), seen.var(), (seen == 0).mean()), dtype=torch.float64)
    z = start.repeat(CELLS, 1).requires_grad_()
    others = {t.name: torch.zeros(ROWS, len(t.outcomes), dtype=torch.float64) for t in chain.transitions}
    labels = Labels(
        chain, torch.from_numpy(resolve(plain, drawn.columns(), "error").values), torch.from_numpy(amounts)[:, None]
    )
    optimizer = torch.optim.LBFGS([z], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def values(rows: torch.Tensor) -> Probabilities:
        return Probabilities(chain, others | {chain.values[0].name: rows}, {chain.values[0].name: made})

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        (term,) = ValueTerms(chain)(values(z[torch.from_numpy(drawn.cell)]), labels).values()
        loss = term[0].sum() / term[1].sum()
        loss.backward()
        return loss

    optimizer.step(step)
    found = values(z[torch.from_numpy(drawn.cell)]).value("amount", parent).detach().numpy()
    for cell in range(CELLS):
        inside = amounts[(drawn.cell == cell) & drawn.happened[parent]]
        assert abs(found[drawn.cell == cell][0] - means[cell]) < 4 * inside.std() / np.sqrt(len(inside))
