"""Which keys of `features` are patterns over columns, and no names."""

from __future__ import annotations


def is_pattern(name: str, part: object) -> bool:
    """Whether a key of `features` stands for columns, and is no name."""
    return ("*" in name or "?" in name) and not (isinstance(part, dict) and part.get("column") is not None)


def has_patterns(features: object) -> bool:
    """Whether some features are written as patterns."""
    return isinstance(features, dict) and any(is_pattern(name, part) for name, part in features.items())
