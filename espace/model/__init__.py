"""Batches to logits: embedding tables, what towers see of them, blocks that towers are made of, and the whole model.

No loss and no optimiser: what is learnt from the logits is no business of this room.
"""
