"""Tokens of an authorization server: whether one is good here, whose it is, and for how long.

2026-07-28 basic/authorization, "Token Handling": only tokens that were issued for this very resource (RFC 8707). Read
as a JWT (RFC 9068), or asked about (RFC 7662). What was found good is kept for a while by its digest, in a bounded
table, so that a token is not checked anew with each request.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import trio

from gateway.access.authority import Authority
from gateway.access.jwks import KeySet
from gateway.access.keys import digest_of
from gateway.errors import Busy

if TYPE_CHECKING:
    from gateway.access.authority import Fetch
    from gateway.config.access_model import Introspection, ResourceServer

BELIEVED_FOR: Final = 60.0
"""Seconds for which a JWT is not checked again: so long a key that its server took back may still be good."""
MAX_KNOWN: Final = 4_096
"""Tokens that are known; those not used for longest are forgotten."""
MAX_ASKED: Final = 16
"""Introspections at once."""
MAX_WAITING: Final = 64
"""Requests that may wait for one of those; more are refused."""
MAX_SUBJECT: Final = 256
"""Characters of a subject; it ends up in logs."""
SUBJECT: Final = "oauth:"
"""Begins the name of a principal that a token names as its `sub`. No key's name holds a colon."""
CLIENT: Final = "oauth-client:"
"""Begins the name of a principal for whose token only a `client_id` is known: no subject's name can begin like this."""


class Invalid(Exception):
    """The token is not good here; the text says why, and repeats nothing of it."""


class Known(msgspec.Struct, frozen=True):
    """A token that is good."""

    principal: str
    """The name of its principal: `SUBJECT` or `CLIENT`, and the claim."""
    scopes: frozenset[str]
    until: float
    """On the loop's clock: when it expires."""
    believed_until: float
    """On the loop's clock: when it must be looked at again."""


class Tokens:
    """Checks tokens of one authorization server."""

    def __init__(self, settings: ResourceServer, send: Fetch | None = None) -> None:
        self._settings = settings
        self._authority = Authority(settings) if send is None else Authority(settings, send)
        self._keys = KeySet(self._authority)
        self._audience = (settings.resource, settings.resource.rstrip("/"), *settings.audience)
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        self._turns = trio.Semaphore(MAX_ASKED)

    async def check(self, token: bytes) -> Known:
        """Whose token this is.

        Raises:
            Invalid: it is not good here.
            AuthorityDown: that cannot be found out now.
            Busy: too many are being asked about.
        """
        digest = digest_of(token)
        known = self._known.get(digest)
        if known is not None:
            if trio.current_time() < known.believed_until:
                self._known.move_to_end(digest)
                return known
            del self._known[digest]
        try:
            text = token.decode("ascii")
        except UnicodeDecodeError:
            raise Invalid("it is no token") from None
        asked = self._settings.introspection
        known = await (self._read(text) if asked is None else self._ask(asked, text))
        self._known[digest] = known
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return known

    async def _read(self, token: str) -> Known:
        import jwt

        settings = self._settings
        try:
            head = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise Invalid("it is no JWT") from None
        algorithm, key_id = head.get("alg"), head.get("kid")
        if algorithm not in settings.algorithms:
            raise Invalid("it is signed in a way that is not accepted")
        key = await self._keys.find(key_id if isinstance(key_id, str) else None, cast("str", algorithm))
        if key is None:
            raise Invalid("it is signed with a key that its server does not have")
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[cast("str", algorithm)],
                audience=self._audience,
                issuer=settings.issuer,
                leeway=settings.leeway,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as exc:  # claims may be of any type and size
            raise Invalid(_WHY.get(type(exc).__name__, "it does not check out")) from None
        return self._accept(claims, BELIEVED_FOR)

    async def _ask(self, asked: Introspection, token: str) -> Known:
        if self._turns.statistics().tasks_waiting >= MAX_WAITING:
            raise Busy("too many tokens are being asked about", retry_after=1.0)
        async with self._turns:
            claims = await self._authority.introspect(asked, token)
        now = time.time()
        if claims.get("active") is not True:
            raise Invalid("it is not active")
        audience = claims.get("aud")
        given = cast("list[object]", audience) if isinstance(audience, list) else [audience]
        if not any(one in self._audience for one in given):
            raise Invalid(_WHY["InvalidAudienceError"])
        if claims.get("iss", self._settings.issuer) != self._settings.issuer:
            raise Invalid(_WHY["InvalidIssuerError"])
        if _seconds(claims.get("nbf"), 0.0) > now + self._settings.leeway:
            raise Invalid(_WHY["ImmatureSignatureError"])
        if _seconds(claims.get("exp"), float("inf")) <= now - self._settings.leeway:
            raise Invalid(_WHY["ExpiredSignatureError"])
        return self._accept(claims, asked.cache)

    def _accept(self, claims: dict[str, Any], believed_for: float) -> Known:
        # Two namespaces (RFC 9068, 5): a user may well have the name that is another client's id.
        subject, prefix = claims.get("sub"), SUBJECT
        if subject is None:
            subject, prefix = claims.get("client_id"), CLIENT
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT or not subject.isprintable():
            raise Invalid("it does not say whose it is")
        now = trio.current_time()
        left = _seconds(claims.get("exp"), float("inf")) + self._settings.leeway - time.time()
        return Known(prefix + subject, _scopes(claims), now + left, now + min(left, believed_for))


def _seconds(value: object, default: float) -> float:
    """A time, in seconds since 1970."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Invalid("it does not check out")
    try:
        return float(value)
    except OverflowError:
        raise Invalid("it does not check out") from None


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """The scopes of a token: `scope` (RFC 8693, 4.2), or `scp` as some servers have it."""
    found: object = claims.get("scope", claims.get("scp"))
    words = found.split() if isinstance(found, str) else cast("list[object]", found) if isinstance(found, list) else []
    return frozenset(word for word in words if isinstance(word, str))


_WHY: Final = {
    "ExpiredSignatureError": "it has expired",
    "ImmatureSignatureError": "it is not valid yet",
    "InvalidAudienceError": "it was issued for another resource",
    "InvalidIssuerError": "it was issued by another server",
    "InvalidSignatureError": "its signature is wrong",
}
