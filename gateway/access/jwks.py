"""The keys of an authorization server, kept: fetched when they are needed, again when they are old.

A token that names a key which nobody knows has the keys fetched anew, for servers change them; but not more often than
every `REFETCH_AFTER` seconds, whatever is sent here. One fetch at a time, and whoever needs it waits for it.
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
"""Seconds for which keys are believed; a key that was taken back is used for so long."""
REFETCH_AFTER: Final = 30.0
"""Seconds between two fetches, whether the first one succeeded or not."""
MAX_KEYS: Final = 64
"""Keys that are kept; servers have two or three."""
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
        """The key with which a token is checked that says this of itself; None if there is none.

        Raises:
            AuthorityDown: no keys are known, and none can be fetched now.
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
                log.warning("a key of the authorization server cannot be used: %s", type(exc).__name__)
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
            log.warning("the keys of the authorization server cannot be fetched, those known go on to hold: %s", exc)
            return
        usable = [key for key in keys if key.get("use", "sig") == "sig" and key.get("kty") in _KINDS.values()]
        self._raw = {str(key.get("kid", number)): key for number, key in enumerate(usable[:MAX_KEYS])}
        self._made = {}
        self._fetched_at = trio.current_time()
