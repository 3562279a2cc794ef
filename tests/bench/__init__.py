"""Timings and memory, by hand: not part of the tests."""
