"""Where the values of `metrics.csv` go besides."""
