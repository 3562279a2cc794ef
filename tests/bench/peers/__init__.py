"""One runner per peer, each in an environment of its own: the same ESMM from the same Parquet files, one JSON line."""
