"""Sharing: how the transitions share what comes after the embedding. One idea per file."""
