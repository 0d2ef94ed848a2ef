"""Seeds of what is random in a stream, from plain values, the same in every process."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Return one seed from several plain values, the same in every process, and unlike those of similar values.

    Only numbers and strings are allowed: their text is hashed, and a class's own would change with its name.
    """
    return hash_seed(repr(parts))


def hash_seed(text: str) -> int:
    """Return 48 bits of a text's hash, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")
