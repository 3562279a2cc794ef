"""Comparisons: variants of an experiment over seeds, shares of the rows and conditions, and what really differs."""

from espace.compare.comparing import compare

__all__ = ["compare"]
