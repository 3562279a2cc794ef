"""Rows to batches in an order that is a function of seed and epoch, and to the device that trains on them."""
