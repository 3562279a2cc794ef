"""What the data says before training: rates, violations, leaks; reasons not to train."""
