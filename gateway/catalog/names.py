"""Public names: `<namespace><separator><own name>`, shortened and made unique in a way that survives restarts.

2026-07-28 server/tools, "Tool Names": 1 to 128 characters; several clients allow only 64, so the maximum is a setting.
A name is looked up in a table, never taken apart.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

HASH_LENGTH: Final = 8
"""Hex digits of the hash that replaces what was cut off; 32 bits keep thousands of names apart."""
MIN_LENGTH: Final = 16
"""A maximum below this could not hold a hash and still be recognised."""


_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""What breaks the lists that people are shown, and log lines: control characters and line ends."""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:HASH_LENGTH]


def public_name(namespace: str, separator: str, own: str, max_length: int) -> str:
    """The public name of a backend's item; one longer than `max_length` is cut and ends in a hash of the whole.

    Control characters are served as `_`, with such a hash, too: the backend still gets the name that it gave.
    """
    full = f"{namespace}{separator}{own}" if namespace else own
    printable = _CONTROLS.sub("_", full)
    if printable != full:
        tail = f"_{_digest(full)}"
        return f"{printable[: max_length - len(tail)]}{tail}"
    return shorten(full, max_length)


def shorten(full: str, max_length: int) -> str:
    """Cut a name to `max_length` characters, deterministically."""
    if len(full) <= max_length:
        return full
    return f"{full[: max_length - HASH_LENGTH - 1]}_{_digest(full)}"


def distinct_name(taken: str, backend: str, own: str, max_length: int) -> str:
    """Another name for an item whose public name another backend already has; depends on nothing but its arguments."""
    tail = f"_{_digest(f'{backend} {own}')}"  # a server's name holds no space
    return f"{taken[: max_length - len(tail)]}{tail}"
