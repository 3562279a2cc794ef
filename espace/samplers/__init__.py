"""Samplers: which rows of a training batch are used, how often, with what weight. One idea per file."""
