"""Samplers: which rows of a training batch are used, how often, with what weight. One idea per file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import espace

NEGATIVE = -2  # a label: did not happen, and is judged given the parent although that did not happen either


def label(chain: espace.Chain, labels: NDArray[np.int8], stage: str) -> NDArray[np.int8]:
    """The label of a stage, (rows,), of `labels`, (rows, stages but the root); 1 for the root."""
    return np.ones(len(labels), np.int8) if stage == chain.root else labels[:, chain.stages.index(stage) - 1]


def reached(chain: espace.Chain, labels: NDArray[np.int8], stage: str) -> NDArray[np.bool_]:
    """Whether a parent of a stage is known to have happened, (rows,)."""
    found: NDArray[np.bool_] = np.any([label(chain, labels, parent) == 1 for parent in chain.parents(stage)], axis=0)
    return found


def parent_of(chain: espace.Chain, stage: str) -> str:
    """The one parent of a stage. Raises ValueError for a stage without one, or with the root for one."""
    conditionals = {o: t.parent for t in chain.transitions for o in t.outcomes if t.parent != chain.root}
    known = [s for s in conditionals if len(chain.parents(s)) == 1]
    if stage not in known:
        raise ValueError(f"stage: '{stage}' is not given one other stage. Possible: {', '.join(known) or 'none'}")
    return conditionals[stage]
