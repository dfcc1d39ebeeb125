"""Public names: `<namespace><separator><own name>`, shortened and made unique deterministically.

2026-07-28 server/tools, "Tool Names": 1 to 128 characters; several clients allow only 64, so the maximum is a setting.
Names are looked up in a table, never parsed.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from gateway import surrogates

if TYPE_CHECKING:
    from collections.abc import Iterable

HASH_LENGTH: Final = 8
"""Hex digits of the hash that replaces the truncated part; 32 bits distinguish thousands of names."""
_UNSEEN: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5"
    r"\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    r"\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Characters that break displayed lists and log lines or make two names look alike: control characters, line ends,
format characters such as bidirectional overrides, tags, and invisible characters (Unicode 16: Cc, Cf, Zl, Zp and
Default_Ignorable_Code_Point)."""


_NOT_STRICT: Final = re.compile(r"[^A-Za-z0-9_-]")
"""Characters that model APIs reject in tool names."""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:HASH_LENGTH]


def public_name(namespace: str, separator: str, own: str, max_length: int, *, is_strict: bool = False) -> str:
    """Return an item's public name, truncated to `max_length` with a hash.

    The hash is that of the full name. Control and format characters (with `is_strict` all but ASCII letters, digits,
    `_` and `-`) are replaced by `_`, also with a hash, and lone surrogates by U+FFFD; the backend still receives its
    own name.
    """
    own = surrogates.text_without_surrogates(own)
    full = f"{namespace}{separator}{own}" if namespace else own
    printable = (_NOT_STRICT if is_strict else _UNSEEN).sub("_", full)
    if printable != full:
        tail = f"_{_digest(full)}"
        return f"{printable[: max_length - len(tail)]}{tail}"
    return shorten(full, max_length)


def shorten(full: str, max_length: int) -> str:
    """Truncate a name to `max_length` characters, deterministically."""
    if len(full) <= max_length:
        return full
    return f"{full[: max_length - HASH_LENGTH - 1]}_{_digest(full)}"


def distinct_name(taken: str, backend: str, own: str, max_length: int) -> str:
    """Return another name for an item whose public name is taken, deterministically."""
    tail = f"_{_digest(f'{backend} {own}')}"  # a server's name contains no space
    return f"{taken[: max_length - len(tail)]}{tail}"


class Claims:
    """The prefixes of public names, each reserved for its server."""

    def __init__(self, namespaces: Iterable[str], separator: str) -> None:
        self._separator = separator
        self._prefixes = sorted({f"{namespace}{separator}" for namespace in namespaces if namespace})

    def within(self, namespace: str) -> tuple[str, ...]:
        """Return other servers' prefixes with which the names of this namespace can begin."""
        own = f"{namespace}{self._separator}" if namespace else ""
        first = last = bisect_right(self._prefixes, own)
        while last < len(self._prefixes) and self._prefixes[last].startswith(own):
            last += 1
        return tuple(self._prefixes[first:last])
