"""Which items are held out for validation: decided by their name alone, so that it never changes."""

import hashlib


def held_out(name: str, fraction: float) -> bool:
    """Whether ``name`` falls into the held-out fraction: its SHA-256, read as a number in [0, 1), is below it."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64 < fraction
