"""What must hold before the systems of the ESMM paper (Ma et al., SIGIR 2018, section 3.2) are compared on anything.

With p = P(click), q = P(conversion given click), rows without end and towers without bounds, what each system serves for q is

    BASE, UNBIAS, DIVISION, ESMM-NS, ESMM    q
    OVERSAMPLING                             k q / (1 + (k - 1) q)         odds k times those of q
    AMAN                                     p q / (p + s (1 - p))

Worlds of 240 kinds of rows come near to that: 6 users, 5 items, 8 contexts. Every system differs from another by its YAML alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from scipy.stats import spearmanr

from espace import Experiment
from espace.compare.statistics import Ranked
from espace.data.simulator.simulator import Simulator
from espace.runs.run import Run

FACTOR, RATE = 5, 0.5  # of OVERSAMPLING and AMAN
SMALL = {"users": 6, "items": 5, "user_skew": 0, "item_skew": 0, "click_rate": 0.4, "conversion_rate": 0.4}
# Who wishes to click wishes less to convert, so that AMAN's optimum is far from q.
WORLD = {**SMALL, "rho": -0.5, "kappa": 0.8, "tau": 1.5}
FEATURES = {"user_id": "id", "item_id": "id", "context": "id"}
TEST_ROWS = 65_536
# Whole batches: a small last one would be a noisy last step.
LONG = {"rows": 48 * 16_384, "batch": 16_384, "epochs": 7, "lr": 0.005}
SHORT = {"rows": 30 * 8192, "batch": 8192, "epochs": 4, "lr": 0.004}
ADDITIVE = {"type": "mlp", "hidden_units": []}  # a tower without layers: no interaction of user and item


def clicked_rows(**sampler: Any) -> dict[str, Any]:
    return {"objective": "parent_space", "sampler": {"stage": "conversion", **sampler}}


SYSTEMS: dict[str, dict[str, Any]] = {
    "BASE": {"objective": "parent_space"},
    "AMAN": clicked_rows(type="unclicked_negatives", rate=RATE),
    "OVERSAMPLING": clicked_rows(type="oversample", factor=FACTOR, correct=False),
    "UNBIAS": clicked_rows(type="rejection", floor=0.2),  # its P(click) is BASE's
    "DIVISION": {"stages": {"conversion": {"head": "joint"}}, "embedding": {"shared": False}},
    "ESMM-NS": {"embedding": {"shared": False}},
    "ESMM": {},
}
OF_Q = ("BASE", "UNBIAS", "DIVISION", "ESMM-NS", "ESMM")


def optimum(system: str, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """What a system serves for q with rows without end."""
    if system == "AMAN":
        return p * q / (p + RATE * (1 - p))
    return FACTOR * q / (1 + (FACTOR - 1) * q) if system == "OVERSAMPLING" else q


def table_of(rows: int, split: str, **knobs: Any) -> pa.Table:
    """Rows of the simulator, without histories."""
    reader = Simulator(rows, split, **knobs)
    names = [n for n in reader.schema.names if not n.startswith("history")]
    return pa.concat_tables(reader.read(piece, names) for piece in reader.pieces)


class Bench:
    """Trains systems in a folder: `data` is their section of the YAML, `tower` that of conversion where it is another one."""

    def __init__(
        self, folder: Path, data: dict[str, Any], *, epochs: int, lr: float, tower: dict[str, Any] | None = None
    ) -> None:
        self.folder = folder
        self._runs: dict[str, Run] = {}
        self.tree = {
            "chain": ["impression -> click -> conversion"],
            "data": data,
            "features": FEATURES,
            "tower": {"type": "mlp", "hidden_units": [64]},
            "towers": {"conversion": tower} if tower else {},
            "optimizer": {"lr": lr, "betas": [0.95, 0.99], "eps": 1e-5},
            "trainer": {"accelerator": "cpu", "max_epochs": epochs},
        }

    def run(self, system: str) -> Run:
        """The run of a system, trained when it is asked for first. UNBIAS takes its P(click) from that of BASE."""
        if system not in self._runs:
            part = SYSTEMS[system]
            if system == "UNBIAS":
                part = {**part, "sampler": {**part["sampler"], "run": str(self.run("BASE").folder)}}
            tree = {**self.tree, **part, "embedding": {"dim": 8, "std": 0.5, **part.get("embedding", {})}}
            path = self.folder / f"{system}.yaml"
            path.write_text(yaml.safe_dump(tree))
            self._runs[system] = Experiment.from_yaml(path).fit(self.folder / system)
        return self._runs[system]


class World:
    """The test rows of a simulated world, and what systems trained in it serve for q there."""

    def __init__(
        self,
        folder: Path,
        *,
        rows: int,
        batch: int,
        epochs: int,
        lr: float,
        tower: dict[str, Any] | None = None,
        **knobs: Any,
    ) -> None:
        knobs = {**WORLD, **knobs}
        data = {"type": "simulator", "train": rows, "batch_size": batch, **knobs}
        self._bench = Bench(folder, data, epochs=epochs, lr=lr, tower=tower)
        self._table = table_of(TEST_ROWS, "test", **knobs)
        self._served: dict[str, np.ndarray] = {}
        labels = ("click", "conversion", "potential_conversion")
        truths = ("click", "conversion_given_click", "conversion_given_do_click")
        self.clicked, self.converted, self.would = (self._table[n].to_numpy() == 1 for n in labels)
        self.p, self.q, self.q_do = (self._table[f"true_{n}"].to_numpy() for n in truths)

    def served(self, system: str) -> np.ndarray:
        """P(conversion given click) of a system, (TEST_ROWS,)."""
        if system not in self._served:
            predicted = self._bench.run(system).predict(self._table)
            self._served[system] = predicted["p_conversion_given_click"].to_numpy()
        return self._served[system]


def standard_error(scores: np.ndarray, positive: np.ndarray) -> float:
    """Of an AUC, by the placements of either class in the other (DeLong et al., 1988)."""
    up, down = np.sort(scores[positive]), np.sort(scores[~positive])
    above = [np.searchsorted(b, a, "left") + np.searchsorted(b, a, "right") for a, b in ((up, down), (down, up))]
    return float(np.sqrt(sum(np.var(n / 2 / len(b)) / len(n) for n, b in zip(above, (down, up), strict=True))))


def null_error(positive: np.ndarray) -> float:
    """Standard error of the AUC of scores that have nothing to do with the labels (Mann and Whitney, 1947)."""
    ups, downs = positive.sum(), (~positive).sum()
    return float(np.sqrt((ups + downs + 1) / (12.0 * ups * downs)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), **LONG)


@pytest.fixture(scope="module")
def confounded(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("confounded"), **SHORT, gamma=1.5)


# --- rows without end


def behind(world: World, system: str) -> np.ndarray:
    """By how many standard errors of the oracle's AUC a system's is below it: on clicked rows, and on all impressions."""
    served, found = world.served(system), []
    for rows, label in ((world.clicked, world.converted), (slice(None), world.would)):
        scores, best, positive = served[rows], world.q[rows], label[rows]
        found.append((Ranked.of(best, positive).auc - Ranked.of(scores, positive).auc) / standard_error(best, positive))
    return np.array(found)


@pytest.mark.parametrize("system", [*OF_Q, "OVERSAMPLING"])
def test_with_rows_enough_all_but_one_rank_as_well_as_the_truth_in_either_space(world, system):
    """Within one standard error of the AUC of the truth on these rows, 0.003 on clicked rows and 0.002 on all."""
    assert np.abs(behind(world, system)).max() < 1


def test_aman_does_not_and_is_far_behind(world):
    assert (behind(world, "AMAN") > 5).all()


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_serves_its_optimum(world, system):
    served, best = world.served(system), optimum(system, world.p, world.q)
    assert spearmanr(served, best)[0] > 0.99
    for rows in (world.clicked, ~world.clicked):
        assert served[rows].mean() == pytest.approx(best[rows].mean(), rel=0.05)


def test_amans_optimum_is_not_q_and_oversamplings_odds_are_those_of_q_times_the_factor(world):
    assert spearmanr(world.served("AMAN"), world.q)[0] < 0.95
    assert world.served("AMAN").mean() < 0.8 * world.q.mean()
    served, q = world.served("OVERSAMPLING"), world.q
    times = np.log(served / (1 - served)) - np.log(q / (1 - q))
    assert np.exp(np.median(times)) == pytest.approx(FACTOR, rel=0.05)
    assert spearmanr(times, q)[0] ** 2 < 0.25


# --- a hidden cause of click and conversion


def test_without_a_hidden_cause_the_two_conversion_rates_are_one(world):
    assert world.q_do == pytest.approx(world.q, rel=1e-9)


@pytest.mark.parametrize("system", OF_Q)
def test_with_one_every_system_finds_the_rate_among_those_who_click_and_none_the_rate_if_all_did(confounded, system):
    conditional, forced = confounded.q.mean(), confounded.q_do.mean()
    assert conditional / forced > 1.2
    assert confounded.served(system).mean() == pytest.approx(conditional, rel=0.05)
    assert confounded.served(system).mean() > 1.1 * forced


# --- no selection


@pytest.fixture(scope="module", params=[0.0, 1.0], ids=["not selected", "selected"])
def too_small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Worlds in which the conversion tower cannot be right everywhere, so that it matters on which rows it learns."""
    return World(tmp_path_factory.mktemp("small"), **SHORT, tower=ADDITIVE, rho=0.9, kappa=request.param)


def test_where_all_are_as_likely_to_click_unbias_is_base_and_where_not_it_is_nearer_to_the_truth_of_all(too_small):
    base, unbias = (too_small.served(system).mean() / too_small.q.mean() for system in ("BASE", "UNBIAS"))
    assert unbias == pytest.approx(1, abs=0.05)
    if np.ptp(too_small.p) < 1e-9:
        assert base == pytest.approx(unbias, abs=0.03)
        assert spearmanr(*map(too_small.served, ("BASE", "UNBIAS")))[0] > 0.99
    else:
        assert base > 1.1


# --- labels that belong to other rows


class Log:
    """The simulator's rows as files, of which the labels stay with each other and are, or are not, moved to other rows."""

    def __init__(self, folder: Path, *, shuffled: bool) -> None:
        data = {"type": "files", "batch_size": 2048}
        for split, rows in (("train", 20 * 2048), ("test", TEST_ROWS)):
            table = table_of(rows, split, **WORLD).select([*FEATURES, "click", "conversion"])
            moved = np.random.default_rng([rows]).permutation(rows) if shuffled else np.arange(rows)
            labels = table.select(["click", "conversion"]).take(moved)
            data[split] = str(folder / f"{split}.parquet")
            pq.write_table(
                pa.table({**{n: table[n] for n in FEATURES}, **{n: labels[n] for n in labels.schema.names}}),
                data[split],
            )
        self.click, self.conversion = (labels[n].to_numpy() == 1 for n in ("click", "conversion"))
        self._bench = Bench(folder, data, epochs=4, lr=0.004)

    def deviations(self, system: str) -> np.ndarray:
        """(AUC - 0.5) / standard error on the test rows, of click, conversion and conversion given click."""
        run = self._bench.run(system)
        found = json.loads((run.folder / "results.json").read_text())
        truth = {
            "click": self.click,
            "conversion": self.conversion,
            "conversion_given_click": self.conversion[self.click],
        }
        return np.array([(found[f"test/{n}/auc"] - 0.5) / null_error(positive) for n, positive in truth.items()])


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return Log(tmp_path_factory.mktemp("shuffled"), shuffled=True)


@pytest.mark.parametrize("system", SYSTEMS)
def test_with_shuffled_labels_every_auc_is_one_half(shuffled, system):
    """Within four standard errors, 0.009 for click, 0.010 for conversion, 0.014 for conversion given click."""
    assert np.abs(shuffled.deviations(system)).max() < 4


def test_with_the_labels_in_their_places_it_is_not(tmp_path):
    assert (Log(tmp_path, shuffled=False).deviations("BASE") > 20).all()
