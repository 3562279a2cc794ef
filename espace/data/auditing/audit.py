"""What is wrong, or looks wrong, with the labels and features of a part: errors stop a run, warnings are printed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from espace.chain.chain import Chain
from espace.chain.grammar import Transition
from espace.chain.merges import merge_without
from espace.data.auditing.scan import Scan
from espace.data.encoding.known import ALL, ANY, Known
from espace.data.encoding.labels import Limits, Policy
from espace.data.reading.split import Part

_LEAK = 0.99
_UNKNOWN = 0.2
_SORTED = 0.02  # of the variance of a label: between pieces, so that their order matters


def errors(
    part: Part,
    scan: Scan,
    chain: Chain,
    labels: Mapping[str, str],
    policy: Policy,
    allow: Collection[str],
    limits: Mapping[str, Limits],
) -> list[str]:
    """Every reason not to train on this part; training stops with all of them."""
    found = [] if scan.tally.kept else [_nothing_left(part, scan)]
    if scan.weight == 0 and scan.tally.kept:
        found.append(
            f"{part.name}: the weights of all {scan.tally.rows:,} rows are 0, so no row counts. Check data.weight."
        )
    if policy == "error":
        violations = scan.tally.violations.items()
        found += [_violation(part, scan, chain, name, rows, limits) for name, rows in violations if rows]
    elif scan.tally.broken and policy != "drop":
        found.append(
            f"{part.name}: {scan.tally.broken:,} rows contradict the chain in a way that data.violations: {policy}"
            " cannot mend. Fix the labels, or set data.violations: drop."
        )
    if part.name == "train":
        found += _never(part, scan, chain, labels) + _leaks(scan, allow)
    return found + _nobody_stands_for(part, scan, chain)


def _nothing_left(part: Part, scan: Scan) -> str:
    if scan.tally.rows:
        return f"{part.name}: all {scan.tally.rows:,} rows contradict the chain, so drop leaves none. Check the labels."
    rows, source = sum(p.rows for p in part.reader.pieces), part.reader.pieces[0].source
    return f"{part.name}: none of the {rows:,} rows of {source} {part.keep}. Change data.split or data.share."


def _violation(part: Part, scan: Scan, chain: Chain, name: str, rows: int, limits: Mapping[str, Limits]) -> str:
    places = "; ".join(scan.tally.examples[name])
    of = f"{part.name}: {rows:,} of {scan.tally.rows:,} rows"
    for v in chain.values:
        if name == v.amount:
            what = f"{v.amount} other than 0 but {v.parent} = 0"
            where = f"in this chain {v.amount} is measured where {v.parent} happened"
            return f"{of} have {what}; {where} (such as {places}). {_mend(chain, v.amount, [v.parent])}"
        if name == v.name:
            what = f"{v.amount} {_outside(*limits[v.amount])}, which its distribution does not have (such as {places})"
            other = f"Choose another stages.{v.amount}.kind, fix the column, or set data.violations: drop."
            return f"{of} have {what}. {other}"
    if name not in chain.stages:
        outcomes = next(t.outcomes for t in chain.transitions if t.name == name)
        return (
            f"{of} have more than one of {', '.join(outcomes)}, but in this chain they exclude each other"
            f" (such as {places}). Fix the labels, declare independent transitions, or set data.violations: drop (such"
            " rows are left out) or zero (the first of them stays)."
        )
    parents = chain.parents(name)
    return (
        f"{of} have {name} = 1 but {' and '.join(f'{p} = 0' for p in parents)}; in this chain {name} follows"
        f" {' or '.join(parents)} (such as {places}). {_mend(chain, name, parents)}"
    )


def _mend(chain: Chain, name: str, parents: Sequence[str]) -> str:
    """The ways out for a stage or value that happened without its parents."""
    ways = ["drop (such rows are left out)", f"zero ({name} = 0)"]
    if all(len(chain.parents(stage)) < 2 for stage in chain.stages):  # where config lets `promote` be chosen
        ways.append(f"promote ({parents[0]} = 1)")
    said = f"Fix the labels, or set data.violations: {', '.join(ways[:-1])} or {ways[-1]}."
    lines = merge_without(chain, name) if name in chain.stages else []
    without = f" If {name} can happen without {' and '.join(parents)}, let the chain say so: {', '.join(lines)}."
    return said + (without if lines else "")


def _outside(low: float, high: float) -> str:
    """What lies outside the limits of an amount."""
    below = "of 0 or less" if 0 < low < 1e-30 else f"below {low:g}"
    return below if high > 1e30 else f"below {low:g} or above {high:g}"


def _never(part: Part, scan: Scan, chain: Chain, labels: Mapping[str, str]) -> list[str]:
    return [
        f"{part.name}: the label of '{stage}', column '{labels[stage]}', is never 1 in"
        f" {scan.tally.stages[stage].read:,} known rows, so P({stage}) cannot be learnt."
        f" Check the column, or take '{stage}' out of the chain."
        for stage in chain.labelled
        if scan.tally.kept and not scan.tally.stages[stage].read_positives
    ] + [
        f"{part.name}: '{v.amount}', column '{labels[v.amount]}', is not known in any row where {v.parent} happened, so"
        f" it cannot be learnt. Check the column, or take '{v.amount}' out of the chain."
        for v in chain.values
        if scan.tally.kept and not scan.tally.amounts[v.amount].known
    ]


def _nobody_stands_for(part: Part, scan: Scan, chain: Chain) -> list[str]:
    """Rows without a label for which no row with one can stand: a whole stratum of `data.known_by`."""
    tally, found = scan.tally, []
    heads = {t.name: t for t in chain.heads}
    several = len(tally.known.strata) > 1
    for what, name, stratum, rows in tally.known.never() if tally.kept else ():
        outcomes = heads[name].outcomes
        if what == ALL and len(outcomes) > 1 and (several or part.name == "train") and _goes_on(chain, heads[name]):
            found.append(
                f"{part.name}: in none of the {rows:,} rows in which '{heads[name].parent}' happened"
                f"{f' and data.known_by is {stratum}' if several else ''} are the labels of {', '.join(outcomes)} all"
                " known, so what follows one of them cannot be judged. Fill in those that follow from the others."
            )
        elif several and what not in (ANY, ALL) and what not in chain.otherwise:
            found.append(
                f"{part.name}: '{what}' is null in all {rows:,} rows in which '{heads[name].parent}' happened and"
                f" data.known_by is {stratum}, so no known row can stand for them. Leave these rows out, or let"
                " data.known_by name a column with wider classes."
            )
    return found


def _goes_on(chain: Chain, transition: Transition) -> bool:
    """Whether something follows one of the classes of a transition."""
    return any(t.parent in transition.children for t in chain.heads)


def _leaks(scan: Scan, allow: Collection[str]) -> list[str]:
    return [
        f"features.{name}: alone it tells '{stage}' with an AUC of {auc:.4f}, so it is most likely a copy of the label"
        f" or made from it. Remove the feature, or list it in data.allow_leaks if it is known before the impression."
        for name, (stage, auc) in scan.leaks.items()
        if auc > _LEAK and name not in allow
    ]


def _standing(scan: Scan, chain: Chain) -> list[str]:
    """Which labels are not known, and what is done about it, a line for each stage and value."""
    known = scan.tally.known
    if not known.incomplete:
        return []
    found = []
    for t in chain.heads:
        for what in t.outcomes:
            share = known.share(what, t.name)
            if share == 1 or math.isnan(share) or not share:
                continue
            if what in chain.stages and known.at_random(chain, what):
                where = "" if t.parent == chain.root else f", whether '{t.parent}' happened or not"
                found.append(
                    f"'{what}' is null in {1 - share:.1%} of the rows{where}; they are left out where it counts."
                )
            else:
                found.append(
                    f"'{what}' is known in {share:.1%} of the rows in which '{t.parent}' happened; there a known row"
                    f" stands for {_each(known, what, t.name)}."
                )
    return found


def _each(known: Known, what: str, transition: str) -> str:
    """For how many rows a known one stands: `1.25 rows`, or by stratum `1 to 4 rows, by data.known_by`."""
    shares = known.weighed((what, transition))
    each = sorted((1 / shares[shares > 0]).tolist())
    if len(known.strata) == 1:
        return f"{each[0]:.3g} rows"
    return f"{each[0]:.3g} to {each[-1]:.3g} rows, by data.known_by"


def in_order(scan: Scan, shuffle: bool) -> list[str]:
    """Labels by which the training rows look sorted; shuffle: whether they are read in another order."""
    mended = "With data.shuffle each window takes rows from all over the data, so batches do not show it."
    mend = "Batches follow that order: set data.shuffle: true, or sort the file at random."
    return [
        f"train: the rows look sorted: '{stage}' is 1 in {found.low:.2%} to {found.high:.2%} of the rows of a piece."
        f" {mended if shuffle else mend}"
        for stage, found in scan.tally.pieces.items()
        if found.explained(scan.tally.stages[stage]) > _SORTED
    ]


def warnings(part: Part, scan: Scan, chain: Chain) -> list[str]:
    """What a user should know before trusting a run."""
    found = [
        f"{part.name}: the labels of '{pair.replace('=', chr(39) + ' and ' + chr(39))}' never differ in"
        f" {scan.tally.kept:,} rows. Is one a copy of the other?"
        for pair, rows in scan.tally.differ.items()
        if rows == 0 and scan.tally.kept
    ]
    found += [f"{part.name}: {line}" for line in _standing(scan, chain)]
    found += [
        f"{part.name}: '{stage}' is 1 in all {tally.known:,} known rows. Are the rows without it missing from the data?"
        for stage, tally in scan.tally.stages.items()
        if tally.positives == tally.known > 0
    ]
    found += [
        f"{part.name}: {share:.0%} of the values of '{name}' were not seen in training; they share one 'unknown'"
        " vector."
        for name, share in scan.unknown.items()
        if share > _UNKNOWN
    ]
    found += [
        f"{part.name}: '{name}' is missing or not finite in {missing:,} of {rows:,} rows; there it counts as missing."
        for name, (missing, rows) in scan.missing.items()
        if missing
    ]
    found += [f"{part.name}: {stray.told(name, scan.tally.rows)}" for name, stray in scan.strays.items()]
    if part.name != "train":
        found += [
            f"{part.name}: '{stage}' never happens in {tally.known:,} known rows, so its AUC is undefined."
            for stage, tally in scan.tally.stages.items()
            if not tally.positives
        ]
    return found
