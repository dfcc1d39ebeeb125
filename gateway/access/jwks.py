"""Cache of an authorization server's keys: fetched on first use and refreshed when stale.

A token with an unknown key id triggers a refresh, since servers rotate keys, but at most one every `REFETCH_AFTER`
seconds whatever clients send. There is one fetch at a time, shared by all requests that need it.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Final

import trio

from gateway.access.authority import AuthorityDown

if TYPE_CHECKING:
    from jwt import PyJWK

    from gateway.access.authority import Authority

FRESH: Final = 3_600.0
"""Seconds until the keys are stale; a withdrawn key is still accepted for this long."""
REFETCH_AFTER: Final = 30.0
"""Minimum seconds between two fetches, whether or not the first succeeded."""
MAX_KEYS: Final = 64
"""Limit of cached keys; servers have two or three."""
_KINDS: Final = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}

log = logging.getLogger("gateway.access")


class KeySet:
    """The keys by id."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._raw: dict[str, dict[str, Any]] = {}
        self._made: dict[tuple[str, str], PyJWK | None] = {}
        self._fetched_at = self._tried_at = -math.inf
        self._turn = trio.Lock()

    async def find(self, key_id: str | None, algorithm: str) -> PyJWK | None:
        """Return the key for a token with these headers; None if there is none.

        Raises:
            AuthorityDown: no keys are cached and none can be fetched.
        """
        if not self._knows(key_id):
            async with self._turn:
                if not self._knows(key_id) and self._tried_at + REFETCH_AFTER <= trio.current_time():
                    await self._fetch()
        if not self._raw:
            text = "the keys of the authorization server are not known yet"
            raise AuthorityDown(text)
        if key_id is None:
            if len(self._raw) != 1:
                return None
            (key_id,) = self._raw
        raw = self._raw.get(key_id)
        if raw is None or raw.get("alg", algorithm) != algorithm or raw["kty"] != _KINDS[algorithm[:2]]:
            return None
        if (key_id, algorithm) not in self._made:  # as many as keys have algorithms: bounded
            from jwt import PyJWK, PyJWTError

            try:
                self._made[key_id, algorithm] = PyJWK(raw, algorithm)
            except PyJWTError as exc:
                log.warning("skipping unusable key of the authorization server: %s", type(exc).__name__)
                self._made[key_id, algorithm] = None
        return self._made[key_id, algorithm]

    def _knows(self, key_id: str | None) -> bool:
        if self._fetched_at + FRESH <= trio.current_time():
            return False
        return bool(self._raw) if key_id is None else key_id in self._raw

    async def _fetch(self) -> None:
        self._tried_at = trio.current_time()
        try:
            keys = await self._authority.keys()
        except AuthorityDown as exc:
            if not self._raw:
                raise
            log.warning("JWKS refresh failed, using the cached keys: %s", exc)
            return
        usable = [key for key in keys if key.get("use", "sig") == "sig" and key.get("kty") in _KINDS.values()]
        self._raw = {str(key.get("kid", number)): key for number, key in enumerate(usable[:MAX_KEYS])}
        self._made = {}
        self._fetched_at = trio.current_time()
