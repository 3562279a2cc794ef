"""What can happen to an impression, and with which probability: lines of a chain and logits in, every probability out.

No files, no features, no modules that learn: a chain knows nothing of data or towers.
"""
