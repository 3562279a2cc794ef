"""Rows that are drawn from a known world instead of read, with the true probabilities beside them."""
