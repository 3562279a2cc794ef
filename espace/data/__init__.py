"""From files to batches: readers, vocabularies, encoding, the plan of batches, the audit."""
