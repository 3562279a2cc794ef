"""What the columns of a file may be. In: rows; out: a guess at chain, data and features. No model, no YAML text."""
