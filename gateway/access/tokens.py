"""Tokens of an authorization server: whether one is good here, whose it is, and for how long.

2026-07-28 basic/authorization, "Token Handling": only tokens that were issued for this very resource (RFC 8707). Read
as a JWT (RFC 9068), or asked about (RFC 7662). Results are kept for a while by the token's digest, in bounded tables,
so that a token is not checked again with each request. Introspection costs a request to the authorization server: one
client address gets only a share of those at once, so that a sender of junk tokens does not starve new good ones.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import Counter, OrderedDict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import trio

from gateway.access.authority import Authority, AuthorityDown
from gateway.access.jwks import KeySet
from gateway.access.keys import digest_of
from gateway.config.oauth import is_same_issuer
from gateway.errors import Busy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.access.authority import Fetch
    from gateway.config.access import Introspection, ResourceServer

BELIEVED_FOR: Final = 60.0
"""Seconds for which a JWT is not checked again: so long a key that its server took back may still be good."""
MAX_KNOWN: Final = 4_096
"""Tokens that are known; those not used for longest are forgotten."""
REFUSED_FOR: Final = 5.0
"""Seconds for which a token that introspection refused is refused without asking; short, since it may become valid."""
MAX_REFUSED: Final = 4_096
"""Refused tokens that are remembered; the oldest are forgotten."""
MAX_ASKED: Final = 16
"""Introspections at once."""
MAX_WAITING: Final = 256
"""Requests that may wait for one of those; more are refused."""
ADDRESS_ASKED: Final = 4
"""Introspections at once for one client address: a quarter, so that three others are never without."""
ADDRESS_WAITING: Final = 16
"""Requests of one client address that may wait; more are refused."""
IPV6_PREFIX: Final = 64
"""Bits of an IPv6 address that make a client: a host has all addresses of such a network."""
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


class _RequestSlots:
    """Which introspections may run now: so many at once, and fewer for one client address.

    An address is known only while it has requests here, so there are never more than `MAX_ASKED` and `MAX_WAITING`.
    """

    def __init__(self) -> None:
        self._all = trio.Semaphore(MAX_ASKED)
        self._by_address: dict[str, trio.Semaphore] = {}
        self._present: Counter[str] = Counter()
        self._waiting = 0

    @asynccontextmanager
    async def slot(self, address: str | None) -> AsyncGenerator[None]:
        """Wait for a turn and hold it in this block; an unknown address (a Unix socket) has no bound of its own.

        Raises:
            Busy: too many requests are waiting.
        """
        if self._waiting >= MAX_WAITING:
            raise Busy("too many tokens are being checked; try again", retry_after=1.0)
        if address is None:
            async with self._wait(self._all):
                yield
            return
        network = _address_network(address)
        if self._present[network] >= ADDRESS_ASKED + ADDRESS_WAITING:
            raise Busy("too many tokens from this address are being checked; try again", retry_after=1.0)
        own = self._by_address.setdefault(network, trio.Semaphore(ADDRESS_ASKED))
        self._present[network] += 1
        try:
            async with self._wait(own), self._wait(self._all):
                yield
        finally:
            self._present[network] -= 1
            if not self._present[network]:
                del self._present[network], self._by_address[network]

    @asynccontextmanager
    async def _wait(self, semaphore: trio.Semaphore) -> AsyncGenerator[None]:
        self._waiting += 1
        try:
            await semaphore.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            semaphore.release()


class _Inquiry:
    """An introspection under way, for every request that came with this token meanwhile."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.outcome: Known | Invalid | AuthorityDown | None = None
        """None after the end: the request that asked was cancelled, or had no turn."""


class Tokens:
    """Checks tokens of one authorization server."""

    def __init__(
        self,
        settings: ResourceServer,
        send: Fetch | None = None,
        *,
        max_known: int = MAX_KNOWN,
        max_refused: int = MAX_REFUSED,
    ) -> None:
        self._settings = settings
        self._max_known = max_known
        self._max_refused = max_refused
        self._authority = Authority(settings) if send is None else Authority(settings, send)
        self._keys = KeySet(self._authority)
        self._audience = (settings.resource, settings.resource.rstrip("/"), *settings.audience)
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        """Until when a token is refused without asking, and why."""
        self._inquiries: dict[bytes, _Inquiry] = {}
        self._slots = _RequestSlots()

    async def check(self, token: bytes, address: str | None = None) -> Known:
        """Return whose token this is; `address` is that of the client, if it has one.

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
        known = await (self._read(text) if asked is None else self._introspect(asked, text, digest, address))
        self._known[digest] = known
        if len(self._known) > self._max_known:
            self._known.popitem(last=False)
        return known

    async def _introspect(self, asked: Introspection, token: str, digest: bytes, address: str | None) -> Known:
        """Ask about a token, or share what another request has found out or is finding out about it."""
        while True:
            until, why = self._refused.get(digest, (-math.inf, ""))
            if trio.current_time() < until:
                raise Invalid(why)
            inquiry = self._inquiries.get(digest)
            if inquiry is None:
                break
            await inquiry.done.wait()
            if isinstance(inquiry.outcome, Known):
                return inquiry.outcome
            if inquiry.outcome is not None:  # another exception of its kind: this one belongs to the other task
                raise type(inquiry.outcome)(str(inquiry.outcome))
        inquiry = self._inquiries[digest] = _Inquiry()
        try:
            async with self._slots.slot(address):
                inquiry.outcome = await self._query(asked, token)
            return inquiry.outcome
        except Invalid as exc:
            inquiry.outcome = exc
            self._refused[digest] = (trio.current_time() + min(REFUSED_FOR, asked.cache), str(exc))
            self._refused.move_to_end(digest)
            if len(self._refused) > self._max_refused:
                self._refused.popitem(last=False)
            raise
        except AuthorityDown as exc:
            inquiry.outcome = exc
            raise
        finally:
            del self._inquiries[digest]
            inquiry.done.set()

    async def _read(self, token: str) -> Known:
        import jwt

        settings = self._settings
        try:
            head = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise Invalid("it is neither a known key nor a JWT") from None
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
                leeway=settings.leeway,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as exc:  # claims may be of any type and size
            raise Invalid(_WHY.get(type(exc).__name__, "it does not check out")) from None
        if not is_same_issuer(claims["iss"], settings.issuer):
            raise Invalid(_WHY["InvalidIssuerError"])
        return self._accept(claims, BELIEVED_FOR)

    async def _query(self, asked: Introspection, token: str) -> Known:
        claims = await self._authority.introspect(asked, token)
        now = time.time()
        if claims.get("active") is not True:
            raise Invalid("it is not active")
        audience = claims.get("aud")
        given = cast("list[object]", audience) if isinstance(audience, list) else [audience]
        if not any(one in self._audience for one in given):
            raise Invalid(_WHY["InvalidAudienceError"])
        if not is_same_issuer(claims.get("iss", self._settings.issuer), self._settings.issuer):
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
        given: object = claims.get("scope", claims.get("scp"))  # `scope` (RFC 8693, 4.2), or `scp` from some servers
        words = given.split() if isinstance(given, str) else given
        listed = cast("list[object]", words) if isinstance(words, list) else []
        scopes = frozenset(word for word in listed if isinstance(word, str))
        now = trio.current_time()
        left = _seconds(claims.get("exp"), float("inf")) + self._settings.leeway - time.time()
        return Known(prefix + subject, scopes, now + left, now + min(left, believed_for))


def _address_network(address: str) -> str:
    """Return what stands for a client: its IPv4 address, or the network of its IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.IPv6Network((int(parsed), IPV6_PREFIX), strict=False))


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


_WHY: Final = {
    "ExpiredSignatureError": "it has expired",
    "ImmatureSignatureError": "it is not valid yet",
    "InvalidAudienceError": "it was issued for another resource",
    "InvalidIssuerError": "it was issued by another server",
    "InvalidSignatureError": "its signature is wrong",
}
