"""Raw releases of public data sets, made into Parquet."""
