"""One spelling for one value: a category is the same whatever holds it, and whatever stands beside it in its column.

A whole number is its digits, whether it is an integer, a float, a decimal or text (`12`, `12.0`); a truth value is
`true` or `false`; a moment is `2024-01-31 08:30:00.5`, at midnight the date alone, and with a zone it is told in UTC,
with a Z behind it. Other text stays as it is, less the blanks around it; blanks alone are null.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from espace.errors import DataError

_ODD = r"^$|^[\s\pZ]|[\s\pZ]$|^-?[0-9]+\.0+$|e\+[0-9]{2}$|^(True|False)$|^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ]"  # text to be looked at
_POINT_ZERO = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0+")  # how others write a float or a decimal that is whole
_EXPONENT = re.compile(r"-?[1-9](?:\.[0-9]+)?e\+[0-9]{2}")  # how they write one that is large
_MOMENT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}:[0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,9}))?)? ?"
    r"(Z|[+-][0-9]{2}(?::?[0-9]{2})?)?"
)
_EXACT = {2: 2**11, 4: 2**24, 8: 2**53}  # bytes of a float: from here on whole numbers beside each other are one


def canonical(values: pa.Array) -> pa.Array:
    """Category values as int64 or as text, a whole number either way: its digits are its text. NaN and blanks are null.

    Raises DataError for a type that cannot be a category (a struct, a map), and for floats so large that neighbouring
    whole numbers are one.
    """
    kind, types = values.type, pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return canonical(values.storage)
    if types.is_dictionary(kind):
        return canonical(values.dictionary).take(values.indices)
    if types.is_floating(kind):
        return _of_floats(values)
    if types.is_integer(kind) and kind != pa.uint64():
        return values.cast(pa.int64())
    if types.is_decimal(kind):
        return _by_value(values, lambda number: _digits(format(number, "f")))
    if types.is_timestamp(kind):
        return _of_moments(values)
    if is_text(kind):
        return _of_texts(values.cast(pa.string()))
    if is_bytes(kind):
        return _of_bytes(values)
    try:
        return _plain_fractions(values.cast(pa.string()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"a column of type {kind} cannot be a category. Use whole numbers or text.") from error


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column of this type holds bytes."""
    types = pa.types
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def whole(texts: pa.Array) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which canonical texts are the digits of an int64, (n,), and the numbers, (n,), 0 where they are not."""
    short = pc.match_substring_regex(texts, r"^(0|-?[1-9][0-9]{0,17})$")
    long = pc.match_substring_regex(texts, r"^-?[1-9][0-9]{18}$")
    if pc.any(long).as_py():
        largest = pc.if_else(pc.starts_with(texts, "-"), str(2**63), str(2**63 - 1))
        fits = pc.less_equal(pc.utf8_ltrim(texts, "-"), largest)  # as many digits on both sides
        short = pc.or_(short, pc.and_(long, fits))
    known = pc.fill_null(short, False)
    numbers = pc.if_else(known, texts, "0").cast(pa.int64())
    return known.to_numpy(zero_copy_only=False), numbers.to_numpy(zero_copy_only=False)


def _by_value(values: pa.Array, spell: Callable[[Any], str | None]) -> pa.Array:  # Any: what Arrow makes of a value
    """Every value as `spell` says; each distinct one is asked for once."""
    encoded = values.dictionary_encode()
    spelt = [None if v is None else spell(v) for v in encoded.dictionary.to_pylist()]
    return pa.array(spelt, pa.string()).take(encoded.indices)


def _of_floats(values: pa.Array) -> pa.Array:
    found = np.asarray(values.to_numpy(zero_copy_only=False))
    missing, limit = np.isnan(found), _EXACT[found.dtype.itemsize]
    rounded = np.isfinite(found) & (np.abs(found) >= limit)
    if rounded.any():
        power = limit.bit_length() - 1
        raise DataError(
            f"ids are of type {values.type}, and {found[rounded.argmax()]:.17g} is at or above 2**{power}, where this"
            " type rounds neighbouring ids to one. Write the column as int64 or as text; in pandas, ids with missing"
            " values stay whole as Int64."
        )
    numbers = np.where(missing, 0, found)
    if np.array_equal(numbers, np.trunc(numbers)) and np.isfinite(numbers).all():
        return pa.array(numbers.astype(np.int64), mask=missing)
    distinct, place = np.unique(numbers, return_inverse=True)
    spelt = [str(int(v)) if np.isfinite(v) and v == np.trunc(v) else str(v) for v in distinct]
    return pa.array(spelt, pa.string()).take(pa.array(place, mask=missing))


def _digits(number: str) -> str:
    """A number less the zeros behind its point, and less the point: `4.00` is `4`, and `-0.0` is `0`."""
    if "." in number and "e" not in number:
        number = number.rstrip("0").rstrip(".")
    return "0" if number == "-0" else number


def _of_moments(values: pa.Array) -> pa.Array:
    zone = "" if values.type.tz is None else "Z"
    encoded = values.cast(pa.timestamp(values.type.unit)).dictionary_encode()  # with a zone, in UTC
    texts = _plain_fractions(encoded.dictionary.cast(pa.string())).to_pylist()
    spelt = [None if text is None else _moment(text, zone) for text in texts]
    return pa.array(spelt, pa.string()).take(encoded.indices)


def _moment(text: str, zone: str) -> str:
    return text.removesuffix(" 00:00:00") if not zone else text + zone


def _plain_fractions(texts: pa.Array) -> pa.Array:
    """Times less the zeros behind their last point."""
    return pc.replace_substring_regex(pc.replace_substring_regex(texts, r"(\.[0-9]*?)0+$", r"\1"), r"\.$", "")


def _of_bytes(values: pa.Array) -> pa.Array:
    values = values.cast(pa.binary())
    try:
        return _of_texts(values.cast(pa.string()))
    except pa.ArrowInvalid:
        return _by_value(values, _spelt_bytes)


def _spelt_bytes(value: bytes) -> str | None:
    try:
        return _spelt(value.decode())
    except UnicodeDecodeError:
        return rf"\x{value.hex()}"  # as databases write it


def _of_texts(texts: pa.Array) -> pa.Array:
    odd = pc.any(pc.match_substring_regex(texts, _ODD)).as_py()
    return _by_value(texts, _spelt) if odd else texts


def _spelt(text: str) -> str | None:
    text = text.strip()
    if text in ("True", "False"):
        return text.lower()
    if _POINT_ZERO.fullmatch(text) or _EXPONENT.fullmatch(text):
        return _spelt_number(text)
    if moment := _MOMENT.fullmatch(text):
        return _spelt_moment(*moment.groups()) or text
    return text or None


def _spelt_number(text: str) -> str:
    """A number that was written as a float or a decimal: its digits where it is whole."""
    number = Decimal(text)
    if number != number.to_integral_value():
        return text
    is_float = "e" in text or (text.endswith(".0") and text.count("0", text.index(".")) == 1)
    if is_float and abs(number) >= _EXACT[8]:
        raise DataError(
            f"the id {text!r} was written as a float at or above 2**53, of which whoever wrote it rounded neighbouring"
            " ids to one. Write ids as whole numbers or as text; in pandas, ids with missing values stay whole as"
            " Int64."
        )
    return _digits(format(number, "f"))


def _spelt_moment(date: str, minute: str, second: str | None, fraction: str | None, zone: str | None) -> str | None:
    """A moment as a column of moments spells it; None for a day or a time that there is not."""
    try:
        at = datetime.fromisoformat(f"{date}T{minute}:{second or '00'}")
        at -= timedelta(0) if zone is None else _offset(zone)
    except (ValueError, OverflowError):
        return None
    rest = (fraction or "").rstrip("0")
    return _moment(f"{at.isoformat(' ')}{f'.{rest}' if rest else ''}", "" if zone is None else "Z")


def _offset(zone: str) -> timedelta:
    """What `+09:00` is ahead of UTC."""
    if zone == "Z":
        return timedelta(0)
    digits = zone[1:].replace(":", "").ljust(4, "0")
    ahead = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return -ahead if zone[0] == "-" else ahead
