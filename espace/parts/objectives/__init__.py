"""Objectives: from probabilities and labels to loss terms. One idea per file."""
