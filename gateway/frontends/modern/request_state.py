"""Opaque `requestState`: sealed with AES-GCM, so that a client can neither read nor change it.

2026-07-28 basic/patterns/mrtr, "Security": treat as attacker-controlled, protect its integrity, bind it to the
principal and the request, let it expire. The keys are random per process unless the config gives some, which replicas
then share; the first key seals, all of them open.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import time
from typing import TYPE_CHECKING, Final

import msgspec

from gateway import jsonrpc
from gateway.clock import elapsed_time
from gateway.errors import InvalidParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.calls import Call

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
PURPOSE: Final = b"trio-mcp-gateway requestState 1"
"""Authenticated with every token, so that tokens made with the same key elsewhere are not valid here."""
LIFETIME: Final = 600.0
"""Seconds for which a token is accepted."""
MAX_TOKEN: Final = 1_048_576
"""Characters of the longest token that is read; a backend's own state travels inside."""
UNSEALED: Final = frozenset({"inputResponses", "requestState"})
"""Members of a retry's params that differ from those of the first request."""


class State(msgspec.Struct, omit_defaults=True):
    """The content of a token: its request, and the call to resume."""

    principal: str | None
    digest: str
    expires: float
    parked: str = ""
    """Key of a suspended call."""
    view: str | None = None
    """The view whose endpoint it was given at."""
    backend: str = ""
    """The backend whose own state is `inner`."""
    inner: msgspec.Raw = jsonrpc.ABSENT


_states = msgspec.json.Decoder(State)


def digest_of(call: Call) -> str:
    """Return a digest of the method and of all params that a retry must repeat."""
    params = {name: _canonical(span) for name, span in call.params.items() if name not in UNSEALED}
    return hashlib.sha256(_sorted([call.method, call.name, params])).hexdigest()


def _canonical(span: msgspec.Raw) -> str:
    """Return a digest of a value, independent of the order of members and the like.

    A value that cannot be decoded, because of its nesting or the range of its numbers, must be repeated verbatim.
    """
    try:
        data = _sorted(jsonrpc.decode_any(span))
    except jsonrpc.UNDECODABLE:
        data = b"as it is: " + bytes(span)
    return hashlib.sha256(data).hexdigest()


def _sorted(value: object) -> bytes:
    try:
        return msgspec.json.encode(value, order="deterministic")
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(value, sort_keys=True).encode("ascii")


class RequestStateCodec:
    """Makes and reads tokens."""

    def __init__(self, keys: Sequence[bytes] = (), *, clock: Callable[[], float] | None = None) -> None:
        """Take the keys, or make one that only this process has."""
        self._keys = tuple(keys) or (os.urandom(KEY_BYTES),)
        # Replicas share only the wall clock; this process has one that is never set.
        self._clock = clock or (time.time if keys else elapsed_time)

    def encode(self, call: Call, *, parked: str = "", backend: str = "", inner: msgspec.Raw = jsonrpc.ABSENT) -> str:
        """Return a token for the retry of this call."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        state: dict[str, object] = {
            "principal": call.caller.principal,
            "view": _view_of(call),
            "digest": digest_of(call),
            "expires": self._clock() + LIFETIME,
            "parked": parked,
            "backend": backend,
        }
        if inner is not jsonrpc.ABSENT:
            state["inner"] = inner
        nonce = os.urandom(NONCE_BYTES)
        sealed = nonce + AESGCM(self._keys[0]).encrypt(nonce, jsonrpc.encode(state), PURPOSE)
        return base64.urlsafe_b64encode(sealed).decode("ascii")

    def decode(self, call: Call, token: str) -> State:
        """Read the token of a retry.

        Raises:
            InvalidParams: it is foreign, was changed, has expired, or was given for another request or principal.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            if len(token) > MAX_TOKEN:
                raise InvalidParams(_refusal("is too long"))
            sealed = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise InvalidParams(_refusal("is not one that this server gave")) from None
        for key in self._keys:
            try:
                plain = AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], PURPOSE)
                state = jsonrpc.read(_states, plain)
                break
            except (InvalidTag, ValueError):
                continue
        else:
            raise InvalidParams(_refusal("is not one that this server gave"))
        same_principal = hmac.compare_digest(_name_of(state.principal), _name_of(call.caller.principal))
        if self._clock() > state.expires:
            raise InvalidParams(_refusal("has expired"))
        if not same_principal or state.view != _view_of(call) or not hmac.compare_digest(state.digest, digest_of(call)):
            raise InvalidParams(_refusal("was given for another request"))
        return state


def _name_of(principal: str | None) -> bytes:
    """Return bytes unique to a principal, or to anonymous callers."""
    return b"" if principal is None else b"=" + principal.encode(errors="surrogatepass")


def _view_of(call: Call) -> str | None:
    return None if call.caller.scope is None else call.caller.scope.view


def _refusal(why: str) -> str:
    return f"params.requestState {why}; send the request again without inputResponses and requestState"
