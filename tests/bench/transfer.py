"""Where ESMM wins: whether click knows something that conversion can use, and which part of ESMM uses it.

    python -m tests.bench.transfer [--transfer 0 1] [--rows 100000] [--clicks 0.04 0.2] [--worlds 3] [--workers 2]

BASE (rows of the parent) with an embedding for each tower and with one for both; ESMM-NS and ESMM; ESMM whose click does not
learn from conversions, and that again with the conversion's term divided by expected clicks. All are judged by pCVR AUC on
clicked rows, and on all against the potential conversion that the simulator draws from the truth. `espace compare` trains, judges
and reckons the intervals over worlds; its folder keeps what is finished, so the same command goes on after a stop. Then the
differences to BASE are printed as one table, and appended to `differences.jsonl` beside the runs.

Predictions, written before the first run:

1. At transfer 0, one embedding for both does not help: shared BASE is at BASE or below, ESMM is below ESMM-NS.
2. At transfer 1, shared BASE gains against BASE, relative to transfer 0, and more with 4 % clicks than with 20 %.
3. ESMM is not above shared BASE: what is won is won by the embedding, not by the loss.
4. Detaching the parents changes little by itself; with the divisor ESMM comes to shared BASE, within the interval: the
   expected gradient is then (1 - q) / (1 - p q) times that of BASE, near 1 where conversions are rare.

Two systems were added after one world had shown 4 to hold, with a prediction before they were run: (5) if the weight of the
conversion's term is all, shared BASE divided by impressions falls as ESMM does, and ESMM divided by expected clicks needs no
detaching.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from espace.compare import compare
from espace.compare.outcome import Outcome

METRICS = {"clicked rows": "conversion_given_click/auc", "all rows": "conversion_given_click_entire_space/auc"}
APART, ONE = "embedding.shared=false", "embedding.shared=true"
DETACHED = "objective={type: entire_space, detach_parents: true}"
SCALED = "objective={type: entire_space, detach_parents: true, divide_by: parents}"
SYSTEMS = {
    "BASE": ["objective=parent_space", APART],
    "shared BASE": ["objective=parent_space", ONE],
    "ESMM-NS": ["objective=entire_space", APART],
    "ESMM": ["objective=entire_space", ONE],
    "ESMM detached": [DETACHED, ONE],
    "ESMM detached, scaled": [SCALED, ONE],
    "ESMM scaled": ["objective={type: entire_space, divide_by: parents}", ONE],
    "shared BASE per impression": ["objective={type: parent_space, divide_by: impressions}", ONE],
}


def conditions_of(options: argparse.Namespace) -> dict[str, list[str]]:
    """The cells, each with what it changes."""
    cells = itertools.product(options.transfer, options.rows, options.clicks)
    return {
        f"transfer {t:g}, {rows} rows, {rate:.0%} clicks": [
            f"data.transfer={t}",
            f"data.train={rows}",
            f"data.click_rate={rate}",
        ]
        for t, rows, rate in cells
    }


def comparison(options: argparse.Namespace) -> dict[str, object]:
    """What `espace compare` reads."""
    return {
        "base": str(Path("examples/esmm.yaml").resolve()),
        "overrides": [
            "features.history=null",
            "data.seed=${seed}",  # every seed is a world of its own
            f"data.rho={options.rho}",
            f"data.validation={options.judged // 2}",
            f"data.test={options.judged}",
            f"trainer.max_epochs={options.epochs}",
            "trainer.val_check_interval=0.5",
            f"optimizer.lr={options.lr}",
            f"tower.hidden_units={list(options.hidden_units)}",
            "monitor=val/conversion_given_click/auc",
        ],
        "seeds": list(range(options.worlds)),
        "conditions": conditions_of(options),
        "report": list(METRICS.values()),
        "variants": SYSTEMS,
        "against": "BASE",
    }


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--transfer", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--clicks", type=float, nargs="+", default=[0.04, 0.2])
    parser.add_argument("--worlds", type=int, default=3)
    parser.add_argument("--rho", type=float, default=0.3)
    parser.add_argument("--judged", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--hidden-units", type=int, nargs="+", default=[64, 32])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "espace-transfer")
    return parser.parse_args(given)


def found(outcome: Outcome) -> Iterator[dict[str, object]]:
    """A line for each cell, metric and system: the AUC of BASE, the mean difference from it and its interval."""
    for (condition, _, metric, system), compared in outcome.differences.items():
        mean, low, high = compared.interval
        base = outcome.summary("BASE", condition, 1.0, metric).mean
        place = {"cell": condition, "metric": metric, "system": system, "worlds": compared.seeds}
        yield {**place, "base": base, "difference": mean, "low": low, "high": high}


def table(lines: Sequence[Mapping[str, Any]], metric: str) -> Iterator[str]:
    """A row for each cell, a column for each system."""
    systems = [system for system in SYSTEMS if system != "BASE"]
    yield f"| cell | BASE | {' | '.join(systems)} |"
    yield f"|{'---|' * (len(systems) + 2)}"
    mine = [line for line in lines if line["metric"] == metric]
    for cell in dict.fromkeys(line["cell"] for line in mine):
        of = {line["system"]: line for line in mine if line["cell"] == cell}
        cells = [
            f"{of[s]['difference']:+.4f} ({of[s]['low']:+.4f} to {of[s]['high']:+.4f})" for s in systems if s in of
        ]
        yield f"| {cell} | {next(iter(of.values()))['base']:.4f} | {' | '.join(cells)} |"


def main() -> None:
    """Train and print."""
    options = arguments()
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / "transfer.yaml"
    file.write_text(yaml.safe_dump(comparison(options), sort_keys=False))
    lines = list(found(compare(file, out=options.folder / "runs", workers=options.workers)))
    with (options.folder / "differences.jsonl").open("a") as record:
        record.writelines(f"{json.dumps(line)}\n" for line in lines)
    for name, metric in METRICS.items():
        print(f"\npCVR AUC, {name}: difference from BASE and 95 % interval over {options.worlds} worlds\n")
        print("\n".join(table(lines, metric)))


if __name__ == "__main__":
    main()
