"""API keys: generation, hashing and lookup by the credential that a client sends.

A key is 256 random bits, so a single SHA-256 is enough to store it: there is nothing to guess, and neither a salt nor a
slow hash would add anything. Keys are looked up by that digest. The lookup time reveals at most something about the
digest of the value sent, which leads neither to the digest of another key nor to the key: this is as safe as a
constant-time comparison, and costs the same for any number of keys.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PREFIX: Final = "mcpgw_"
"""Prefix of every key, so that secret scanners recognize them."""
KEY_BYTES: Final = 32
MAX_CREDENTIAL: Final = 16_384
"""Maximum length of a credential; a JWT with many claims has a few thousand characters."""
ONCE: Final = frozenset({b"host", b"origin", b"authorization", b"x-api-key", b"mcp-session-id"})
"""Headers that decide access: if one appears twice, a proxy may have checked the other value."""
_METHOD: Final = "sha256:"


def make_key() -> str:
    """Return a new key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def hash_key(key: str) -> str:
    """Return a key's hash as the config stores it."""
    return _METHOD + hashlib.sha256(key.encode("utf-8")).hexdigest()


def digest_of(credential: bytes) -> bytes:
    """Return the digest that is stored for a key or token; the credential is not."""
    return hashlib.sha256(credential).digest()


def digest_in(hashed: str) -> bytes:
    """Return the digest in a hash from the config."""
    return bytes.fromhex(hashed.removeprefix(_METHOD))


def repeated_header(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the first header in `ONCE` that a request repeats; empty if there is none.

    Shared by the HTTP frontends and the embedded mount, so that both reject the same requests.
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
    """Return the credential in `Authorization: Bearer X` or `X-API-Key: X`, or empty.

    RFC 6750, 2.1; a token in the URL is ignored (2.3; MCP basic/authorization forbids it).
    """
    given = headers.get(b"authorization")
    if given is None:
        return headers.get(b"x-api-key", b"").strip()
    scheme, _, credential = given.strip().partition(b" ")
    return credential.strip() if scheme.lower() == b"bearer" else b""
