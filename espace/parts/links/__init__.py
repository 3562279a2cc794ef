"""Links: what flows between the towers along the chain. One idea per file."""
