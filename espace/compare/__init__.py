"""Comparisons: variants of an experiment over seeds, shares of the rows and conditions, and which differences are real."""

from espace.compare.comparing import compare

__all__ = ["compare"]
