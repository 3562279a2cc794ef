"""Towers: features of a row in, one vector out. One idea per file."""
