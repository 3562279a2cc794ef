"""From files to batches: `reading`, `encoding`, `auditing`, `stream`, each importing only those before it.

A chain and a description of columns come in, `Batch` goes out. No model, no loss, no YAML.
"""
