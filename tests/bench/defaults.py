"""Defaults against a logistic regression and LightGBM: `python -m tests.bench.defaults`.

Five real sets, a YAML of chain, data and features and nothing else, five seeds. Every probability that has at least 300
positives among the test rows is judged in its own space: AUC, log-loss and predicted over observed. A baseline is
trained for each probability alone, on the rows of its own space: a logistic regression on one-hot ids and standardised
numbers, L2, C among .01, .1 and 1 by validation log-loss; LightGBM with ids as categories, stopped by validation
log-loss.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

import espace

DATA = Path(os.environ.get("ESPACE_DATA", "../shared/data"))
LEAST = 300  # positives among the test rows
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """One set: its files, its chain, and its features by kind. `by`: validation rows are the latest by this column."""

    train: str
    test: str
    chain: str
    ids: Sequence[str]
    numbers: Sequence[str] = ()
    validation: str | float = 0.15  # a file, or a share of the training rows
    by: str | None = None
    labels: Mapping[str, str] | None = None
    value: str | None = None

    @property
    def stages(self) -> list[str]:
        """Root first."""
        return self.chain.split(" -> ")


TASKS = {
    "oulad": Task(
        "oulad/train.csv",
        "oulad/test.csv",
        "enrolment -> stays -> passes -> distinction",
        ids=("code_module", "season", "gender", "region", "highest_education", "imd_band", "age_band", "disability"),
        numbers=("num_of_prev_attempts", "studied_credits"),
    ),
    "hillstrom": Task(
        "hillstrom/train.csv",
        "hillstrom/test.csv",
        "email -> visit -> conversion",
        ids=("history_segment", "mens", "womens", "zip_code", "newbie", "channel", "segment"),
        numbers=("recency", "history"),
        value="spend",
    ),
    "kuairec": Task(
        "kuairec/train.parquet",
        "kuairec/test.parquet",
        "impression -> w50 -> w100 -> w200",
        ids=("user", "item"),
        validation=0.1,
        labels={"w50": "half", "w100": "full", "w200": "twice"},
    ),
    "beibei": Task(
        "beibei/train.parquet",
        "beibei/test.parquet",
        "pair -> view -> cart -> buy",
        ids=("user_id", "item_id"),
        validation="beibei/validation.parquet",
    ),
    "ebnerd": Task(
        "ebnerd/train.parquet",
        "ebnerd/validation.parquet",
        "impression -> click -> read -> finish",
        ids=("user_id", "article_id", "device_type", "is_sso_user", "is_subscriber", "on_article", "hour"),
        numbers=("list_length",),
        by="impression_time",
    ),
}


# --------------------------------------------------------------------------------------------------------- rows


def read(name: str) -> pa.Table:
    path = DATA / name
    return pq.read_table(path) if path.suffix == ".parquet" else csv.read_csv(path)


def parts(task: Task, rows: int | None = None) -> dict[str, pa.Table]:
    """Training, validation and test rows, the same for every system and every seed.

    rows: of training and validation rows together, so many are drawn; all of them by default.
    """
    train = read(task.train)
    if rows and rows < len(train):
        train = train.take(np.sort(np.random.default_rng(1).permutation(len(train))[:rows]))
    if isinstance(task.validation, str):
        validation = read(task.validation)
        if rows:
            validation = validation.slice(0, max(1, rows // 8))
        return {"train": train, "validation": validation, "test": read(task.test)}
    order = (
        np.argsort(train[task.by].to_numpy(), kind="stable")
        if task.by
        else np.random.default_rng(0).permutation(len(train))
    )
    cut = int(len(train) * (1 - task.validation))
    first, second = np.sort(order[:cut]), np.sort(order[cut:])
    return {"train": train.take(first), "validation": train.take(second), "test": read(task.test)}


@dataclass(frozen=True)
class Target:
    """One probability: which rows are judged, and what happened there."""

    name: str
    stage: str
    parent: str | None  # of a conditional


def targets(task: Task) -> list[Target]:
    stages = task.stages[1:]
    marginals = [Target(f"p_{s}", s, None) for s in stages]
    return marginals + [Target(f"p_{s}_given_{p}", s, p) for p, s in itertools.pairwise(stages)]


def judged(task: Task, target: Target, table: pa.Table) -> tuple[NDArray[np.bool_], NDArray[np.int8]]:
    """(rows,) whether a row is judged and whether it happened."""

    def column(stage: str) -> Floats:
        return table[(task.labels or {}).get(stage, stage)].cast(pa.float64()).to_numpy(zero_copy_only=False)

    label = column(target.stage)
    use = ~np.isnan(label)
    if target.parent:
        use &= column(target.parent) == 1
    return use, np.nan_to_num(label).astype(np.int8)


# ---------------------------------------------------------------------------------------------------- baselines


def logistic(task: Task, tables: Mapping[str, pa.Table], target: Target) -> Floats:
    """P of every test row."""
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    use, happened = judged(task, target, tables["train"])
    ids = {part: _text(table, task.ids) for part, table in tables.items()}
    encoder = OneHotEncoder(handle_unknown="ignore").fit(ids["train"][use])
    inputs = {part: encoder.transform(rows) for part, rows in ids.items()}
    if task.numbers:
        numbers = {part: _numbers(table, task.numbers) for part, table in tables.items()}
        scaler = StandardScaler().fit(numbers["train"][use])
        inputs = {n: sparse.hstack([x, scaler.transform(numbers[n])]).tocsr() for n, x in inputs.items()}
    best: tuple[float, Floats] | None = None
    for c in (0.01, 0.1, 1.0):
        model = LogisticRegression(C=c, max_iter=2000).fit(inputs["train"][use], happened[use])
        keep, truth = judged(task, target, tables["validation"])
        loss = log_loss(model.predict_proba(inputs["validation"])[keep, 1], truth[keep])
        if best is None or loss < best[0]:
            best = loss, model.predict_proba(inputs["test"])[:, 1]
    assert best is not None
    return best[1]


def boosted(task: Task, tables: Mapping[str, pa.Table], target: Target) -> Floats:
    """P of every test row."""
    import lightgbm

    use, happened = judged(task, target, tables["train"])
    ids = {part: _text(table, task.ids) for part, table in tables.items()}
    known = [{v: i for i, v in enumerate(np.unique(ids["train"][use][:, c]))} for c in range(len(task.ids))]

    def inputs(part: str) -> Floats:
        codes = [np.array([known[c].get(v, np.nan) for v in ids[part][:, c]]) for c in range(len(task.ids))]
        return np.column_stack([*codes, *_numbers(tables[part], task.numbers).T])

    keep, truth = judged(task, target, tables["validation"])
    categories = list(range(len(task.ids)))
    options = {"objective": "binary", "learning_rate": 0.05, "verbose": -1, "seed": 0, "num_threads": 2}
    train = lightgbm.Dataset(inputs("train")[use], happened[use], categorical_feature=categories)
    valid = lightgbm.Dataset(inputs("validation")[keep], truth[keep], reference=train)
    stop = lightgbm.early_stopping(50, verbose=False)
    model = lightgbm.train(options, train, 1000, valid_sets=[valid], callbacks=[stop])
    return model.predict(inputs("test"))


def _text(table: pa.Table, names: Sequence[str]) -> NDArray[Any]:
    return np.column_stack([table[n].cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False) for n in names])


def _numbers(table: pa.Table, names: Sequence[str]) -> Floats:
    columns = [table[n].cast(pa.float64()).to_numpy(zero_copy_only=False) for n in names]
    return np.column_stack(columns) if columns else np.empty((len(table), 0))


# ------------------------------------------------------------------------------------------------------- espace


def written(task: Task, tables: Mapping[str, pa.Table], folder: Path) -> Path:
    """The YAML of a user who sets nothing."""
    for part, table in tables.items():
        pq.write_table(table, folder / f"{part}.parquet")
    chain = task.chain + (f" => {task.value}" if task.value else "")
    features: dict[str, Any] = dict.fromkeys(task.ids, "id") | dict.fromkeys(task.numbers, "number")
    tree = {"chain": [chain], "data": {p: str(folder / f"{p}.parquet") for p in tables}, "features": features}
    if task.labels:
        tree["labels"] = dict(task.labels)
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def ours(
    task: Task, tables: Mapping[str, pa.Table], path: Path, overrides: Sequence[str]
) -> dict[str, dict[str, Floats]]:
    """{part: {probability: (rows,)}}."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = espace.Experiment.from_yaml(path, overrides).fit(Path(folder) / "run")
        found = {part: run.predict(tables[part]) for part in ("validation", "test")}
    return {part: {n: table[n].to_numpy() for n in table.column_names} for part, table in found.items()}


# ------------------------------------------------------------------------------------------------------- judging


def auc(p: Floats, happened: NDArray[np.int8]) -> float:
    from scipy.stats import rankdata

    ranks, n = rankdata(p), int(happened.sum())
    return float((ranks[happened == 1].sum() - n * (n + 1) / 2) / (n * (len(p) - n)))


def log_loss(p: Floats, happened: NDArray[np.int8]) -> float:
    p = np.clip(p, 1e-9, 1 - 1e-9)
    return float(-np.where(happened == 1, np.log(p), np.log1p(-p)).mean())


def measures(p: Floats, happened: NDArray[np.int8]) -> dict[str, float]:
    p = p.astype(np.float64)
    ratio, spread = p.sum() / happened.sum(), np.sqrt((p * (1 - p)).sum()) / happened.sum()
    return {"auc": auc(p, happened), "log_loss": log_loss(p, happened), "ratio": float(ratio), "se": float(spread)}


def lines(name: str, seeds: int, overrides: Sequence[str], cache: Path | None) -> Iterator[dict[str, Any]]:
    """One line a probability: the baselines' measures and those of every seed."""
    task = TASKS[name]
    tables = parts(task)
    test = {t.name: judged(task, t, tables["test"]) for t in targets(task)}
    wanted = [t for t in targets(task) if (test[t.name][0] & (test[t.name][1] == 1)).sum() >= LEAST]
    known = json.loads(cache.read_text()) if cache and cache.exists() else {}
    found: dict[str, list[dict[str, float]]] = {t.name: [] for t in wanted}
    with TemporaryDirectory() as folder:
        path = written(task, tables, Path(folder))
        for seed in range(seeds):
            began = time.perf_counter()
            predicted = ours(task, tables, path, [f"seed={seed}", *overrides])["test"]
            for t in wanted:
                use, happened = test[t.name]
                took = {"seconds": time.perf_counter() - began}
                found[t.name].append(measures(predicted[t.name][use], happened[use]) | took)
    for t in wanted:
        use, happened = test[t.name]
        for label, baseline in (("logistic", logistic), ("boosted", boosted)):
            key = f"{name}/{t.name}/{label}"
            if key not in known:
                with contextlib.redirect_stderr(io.StringIO()):
                    known[key] = measures(baseline(task, tables, t)[use], happened[use])
        yield {"set": name, "probability": t.name, "seeds": found[t.name]} | {
            label: known[f"{name}/{t.name}/{label}"] for label in ("logistic", "boosted")
        }
    if cache:
        cache.write_text(json.dumps(known))


def verdict(line: Mapping[str, Any]) -> str:
    """What is missed, of the mean over seeds: a for AUC, l for log-loss, r for the ratio."""
    mean = {k: float(np.mean([s[k] for s in line["seeds"]])) for k in ("auc", "log_loss", "ratio", "se")}
    best_auc = max(line[b]["auc"] for b in ("logistic", "boosted"))
    best_loss = min(line[b]["log_loss"] for b in ("logistic", "boosted"))
    missed = "a" if mean["auc"] < best_auc - 0.005 else ""
    missed += "l" if mean["log_loss"] > best_loss * 1.01 else ""
    return missed + ("r" if abs(mean["ratio"] - 1) > max(0.1, 2 * mean["se"]) else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[], help="overrides, as of espace fit", dest="overrides")
    parser.add_argument("--cache", type=Path, help="a JSON file that keeps the baselines' figures")
    args = parser.parse_args()
    print(
        f"{'set':10}{'probability':31}{'espace':>7}{'sd':>6}{'LR':>7}{'LGBM':>7}"
        f"{'loss':>8}{'LR':>8}{'LGBM':>8}{'p/o':>7}{'2 se':>6} {'LR':>5} {'LGBM':>5}{'s':>6} missed"
    )
    for name in args.sets:
        for line in lines(name, args.seeds, args.overrides, args.cache):
            show(line)


def show(line: Mapping[str, Any]) -> None:
    column = {k: np.array([s[k] for s in line["seeds"]]) for k in line["seeds"][0]}
    lr, lgbm = line["logistic"], line["boosted"]
    print(
        f"{line['set']:10}{line['probability']:31}{column['auc'].mean():7.4f}{column['auc'].std():6.4f}"
        f"{lr['auc']:7.4f}{lgbm['auc']:7.4f}{column['log_loss'].mean():8.5f}{lr['log_loss']:8.5f}{lgbm['log_loss']:8.5f}"
        f"{column['ratio'].mean():7.3f}{2 * column['se'].mean():6.3f} {lr['ratio']:5.2f} {lgbm['ratio']:5.2f}"
        f"{column['seconds'].mean():6.0f} {verdict(line)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
