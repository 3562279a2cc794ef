"""Weightings: from loss terms to one loss. One idea per file."""
