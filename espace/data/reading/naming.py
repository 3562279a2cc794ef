"""Names that users chose, as names of files."""

from __future__ import annotations

import hashlib

_LONGEST = 180  # bytes: file systems take 255, and an ending is still to come


def file_name(name: str) -> str:
    """The name without anything that a file system could take amiss; different names stay different.

    Letters (of any script), digits, `_` and `-` stay as they are, all else is percent-encoded: `../x` is `%2E%2E%2Fx`.
    A long one is cut, with a digest of all of it behind.
    """
    encoded = "".join(c if c.isalnum() or c in "_-" else _percent(c) for c in name) or "%"
    if len(encoded.encode()) <= _LONGEST:
        return encoded
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return f"{encoded.encode()[: _LONGEST - 33].decode(errors='ignore')}~{digest}"


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogatepass"))
