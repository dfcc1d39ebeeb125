"""Keys: how they are made, and how one is found by what a client sends.

A key is 256 random bits, so a single SHA-256 is enough to keep it by: there is nothing to guess, and no salt or slow
hash would make that harder. The table is looked up by that digest. What its time could tell is about the digest of
what was sent, from which nobody gets to the digest of another key, let alone to the key: so it is as good as a
comparison in constant time, and costs the same for any number of keys.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PREFIX: Final = "mcpgw_"
"""Begins every key, so that scanners for leaked secrets can know them."""
KEY_BYTES: Final = 32
MAX_CREDENTIAL: Final = 16_384
"""Longest token that is looked at; a JWT with many claims has some thousand characters."""
ONCE: Final = frozenset({b"host", b"origin", b"authorization", b"x-api-key", b"mcp-session-id"})
"""Headers that say who asks for what: of two, a proxy in front may have checked the other one."""
_METHOD: Final = "sha256:"


def make_key() -> str:
    """A new key, of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def hash_key(key: str) -> str:
    """What the config holds of a key."""
    return _METHOD + hashlib.sha256(key.encode("utf-8")).hexdigest()


def digest_of(credential: bytes) -> bytes:
    """What stands for a key or token wherever it is kept: the thing itself is kept nowhere."""
    return hashlib.sha256(credential).digest()


def digest_in(hashed: str) -> bytes:
    """The digest in a hash as the config has it."""
    return bytes.fromhex(hashed.removeprefix(_METHOD))


def repeated_header(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the name of the first header in `ONCE` that a request has more than once; empty if there is none.

    Shared by the HTTP frontends and the embedded mount, so that both refuse the same requests.
    """
    seen: set[bytes] = set()
    for raw, _ in headers:
        name = raw.lower()
        if name in ONCE and name in seen:
            return name.decode("ascii")
        seen.add(name)
    return ""


def repeated_text(name: str) -> str:
    """Return the error for a request with a header of that name twice."""
    return f"header {name!r} appears more than once; send it once"


def credential_in(headers: Mapping[bytes, bytes]) -> bytes:
    """The key or token that a request bears: `Authorization: Bearer X`, or else `X-API-Key: X`; empty if there is none.

    RFC 6750, 2.1; one in the address is never looked at (2.3, and basic/authorization of MCP forbids it).
    """
    given = headers.get(b"authorization")
    if given is None:
        return headers.get(b"x-api-key", b"").strip()
    scheme, _, credential = given.strip().partition(b" ")
    return credential.strip() if scheme.lower() == b"bearer" else b""
