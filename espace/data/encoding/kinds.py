"""What training saw in a column of categories, so that a part of another type is converted exactly or refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from espace.data.reading.spelling import is_bytes, is_text

NUMBER, TRUTH, MOMENT, ZONED, CLOCK, TEXT = "number", "truth", "moment", "zoned", "clock", "text"
_LOOKS = {  # of canonical text
    NUMBER: r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[+-]?[0-9]+)?$",
    TRUTH: r"^(true|false)$",
    MOMENT: r"^[0-9]{4}-[0-9]{2}-[0-9]{2}( [0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?)?$",
    ZONED: r"^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?Z$",
    CLOCK: r"^[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?$",
}
State = list[str | list[str]]


@dataclass(frozen=True)
class Kind:
    """Of one feature: the Arrow type of its column; what it is, or of text what it can be read as; the zone of its
    moments, None without one."""

    type: str
    family: str
    shown: frozenset[str]
    zone: str | None = None

    def joined(self, other: Kind) -> Kind:
        """Of both pieces of one column."""
        return replace(self if self.family else other, shown=self.shown | other.shown)

    def refusal(self, found: Kind) -> str | None:
        """Why values of another kind cannot be compared with those of training; None where they can.

        Text is compared with numbers by their digits, and with anything else where it is spelt as that.
        """
        if not (self.shown and found.shown) or {self.family, found.family} <= {TEXT, NUMBER}:
            return None
        if (self.family == TEXT and found.family in self.shown) or found.shown <= {self.family}:
            return None
        return f"it was {self.type} in training and is {found.type} here. Write it as {self.type}, as in training."

    def state(self) -> State:
        """As plain values."""
        return [self.type, self.family, sorted(self.shown), self.zone or ""]

    @classmethod
    def from_state(cls, state: State) -> Kind:
        """The kind of `state()`."""
        kind, family, shown, zone = state
        return cls(str(kind), str(family), frozenset(shown), str(zone) or None)


def kind_of(kind: pa.DataType, values: pa.Array) -> Kind:
    """The kind of a column of that type with these canonical values."""
    kind = _plain(kind)
    family = family_of(kind)
    return Kind(str(kind), family, _looks(values) if family == TEXT else frozenset([family] if family else []))


def family_of(kind: pa.DataType) -> str:
    """What values of a type are; nothing for a column without values."""
    types = pa.types
    if types.is_null(kind):
        return ""
    if types.is_boolean(kind):
        return TRUTH
    if types.is_timestamp(kind):
        return MOMENT if kind.tz is None else ZONED
    if types.is_date(kind):
        return MOMENT
    if types.is_time(kind):
        return CLOCK
    return TEXT if is_text(kind) or is_bytes(kind) else NUMBER


def _plain(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    return _plain(kind.value_type) if pa.types.is_nested(kind) else kind


def _looks(texts: pa.Array) -> frozenset[str]:
    """What each of some canonical texts can be read as."""
    texts, found, left = pc.drop_null(texts.cast(pa.string())), [], len(texts) - texts.null_count
    for family, pattern in _LOOKS.items():
        hits = pc.sum(pc.match_substring_regex(texts, pattern)).as_py() or 0
        found += [family] if hits else []
        left -= hits
    return frozenset([*found, TEXT] if left else found)
