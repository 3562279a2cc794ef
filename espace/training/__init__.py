"""A model and batches to trained weights: the step, the optimiser and its kernels, judging, checkpoints, signals.

Lightning lives here and in `data/stream/`. What an experiment is, and what is printed of it, is not for this room.
"""
