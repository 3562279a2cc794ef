"""Tables to batches of numbers: columns become ids, numbers, lists and labels, by vocabularies that are learnt once."""
