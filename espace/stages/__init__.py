"""Stage kinds: how the outcome of a stage is distributed given its parent."""
