"""Token validation: whether a token is valid here, its principal, and its expiry.

2026-07-28 basic/authorization, "Token Handling": only tokens that were issued for this very resource (RFC 8707). Tokens
are verified as JWTs (RFC 9068) or by introspection (RFC 7662). Results are cached by the token's digest in bounded
tables, so that a token is not checked with each request. Introspection costs a request to the authorization server:
each client address gets only a share of the concurrent ones, so that a sender of junk tokens cannot starve new valid
ones.
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
from gateway.clock import elapsed_time
from gateway.config.oauth import is_same_issuer
from gateway.errors import Busy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.access.authority import Fetch
    from gateway.config.access import Introspection, ResourceServer

BELIEVED_FOR: Final = 60.0
"""Seconds for which a verified JWT is not checked again: a withdrawn signing key may be accepted for this long."""
MAX_KNOWN: Final = 4_096
"""Limit of known tokens; the least recently used are forgotten."""
REFUSED_FOR: Final = 5.0
"""Seconds for which an introspection refusal is cached; short, since the token may become valid."""
MAX_REFUSED: Final = 4_096
"""Limit of remembered refusals; the oldest are forgotten."""
MAX_ASKED: Final = 16
"""Concurrent introspections."""
MAX_WAITING: Final = 256
"""Requests that may wait for an introspection; further ones are refused."""
ADDRESS_ASKED: Final = 4
"""Concurrent introspections for one client address: a quarter, so that one address cannot use all slots."""
ADDRESS_WAITING: Final = 16
"""Requests of one client address that may wait; further ones are refused."""
IPV6_PREFIX: Final = 64
"""Prefix length that identifies an IPv6 client: a host owns all addresses of such a network."""
MAX_SUBJECT: Final = 256
"""Maximum length of a subject; it is logged."""
SUBJECT: Final = "oauth:"
"""Prefix of a principal's name taken from the token's `sub`. No key's name contains a colon."""
CLIENT: Final = "oauth-client:"
"""Prefix of a principal's name taken from `client_id`, for tokens without `sub`: no subject's name can begin with
it."""


class Invalid(Exception):
    """The token is not valid here; the text says why, without quoting the token."""


class Known(msgspec.Struct, frozen=True):
    """A valid token."""

    principal: str
    """The name of its principal: `SUBJECT` or `CLIENT`, and the claim."""
    scopes: frozenset[str]
    until: float
    """When it expires, on the loop's clock."""
    believed_until: float
    """When it must be checked again, on the loop's clock."""
    believed_asleep_until: float
    """The same on a clock that runs while the process is stopped or the machine sleeps."""


class _RequestSlots:
    """Limits concurrent introspections, in all and for each client address.

    An address is kept only while it has requests, so there are at most `MAX_ASKED` plus `MAX_WAITING`.
    """

    def __init__(self) -> None:
        self._all = trio.Semaphore(MAX_ASKED)
        self._by_address: dict[str, trio.Semaphore] = {}
        self._present: Counter[str] = Counter()
        self._waiting = 0

    @asynccontextmanager
    async def slot(self, address: str | None) -> AsyncGenerator[None]:
        """Wait for a slot, held in this block.

        An unknown address (a Unix socket) has no separate limit.

        Raises:
            Busy: too many requests are waiting.
        """
        if self._waiting >= MAX_WAITING:
            raise Busy("too many tokens are being checked; retry later", retry_after=1.0)
        if address is None:
            async with self._wait(self._all):
                yield
            return
        network = _address_network(address)
        if self._present[network] >= ADDRESS_ASKED + ADDRESS_WAITING:
            raise Busy("too many tokens from this address are being checked; retry later", retry_after=1.0)
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
    """A running introspection, shared by all requests with this token."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.outcome: Known | Invalid | AuthorityDown | None = None
        """None once it has ended: the request that started it was cancelled, or got no slot."""


class Tokens:
    """Checks the tokens of one authorization server."""

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
        """The refused tokens, each with the expiry of the refusal and the reason."""
        self._inquiries: dict[bytes, _Inquiry] = {}
        self._slots = _RequestSlots()

    async def check(self, token: bytes, address: str | None = None) -> Known:
        """Return the token's principal and expiry; `address` is the client's, if known.

        Raises:
            Invalid: the token is not valid here.
            AuthorityDown: the authorization server cannot be reached.
            Busy: too many introspections are running.
        """
        digest = digest_of(token)
        known = self._known.get(digest)
        if known is not None:
            if trio.current_time() < known.believed_until and elapsed_time() < known.believed_asleep_until:
                self._known.move_to_end(digest)
                return known
            del self._known[digest]
        try:
            text = token.decode("ascii")
        except UnicodeDecodeError:
            raise Invalid("it is not a token") from None
        asked = self._settings.introspection
        known = await (self._read(text) if asked is None else self._introspect(asked, text, digest, address))
        self._known[digest] = known
        if len(self._known) > self._max_known:
            self._known.popitem(last=False)
        return known

    async def _introspect(self, asked: Introspection, token: str, digest: bytes, address: str | None) -> Known:
        """Introspect a token, or share the result of another request's introspection."""
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
            if inquiry.outcome is not None:  # a new exception, since this one belongs to the other task
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
            raise Invalid("its signature algorithm is not accepted")
        key = await self._keys.find(key_id if isinstance(key_id, str) else None, cast("str", algorithm))
        if key is None:
            raise Invalid("its signing key is unknown to its issuer")
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
            raise Invalid(_WHY.get(type(exc).__name__, "it is malformed")) from None
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
        # Two namespaces (RFC 9068, 5): a user's name may equal another client's id.
        subject, prefix = claims.get("sub"), SUBJECT
        if subject is None:
            subject, prefix = claims.get("client_id"), CLIENT
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT or not subject.isprintable():
            raise Invalid("it names no subject")
        given: object = claims.get("scope", claims.get("scp"))  # `scope` (RFC 8693, 4.2), or `scp` from some servers
        words = given.split() if isinstance(given, str) else given
        listed = cast("list[object]", words) if isinstance(words, list) else []
        scopes = frozenset(word for word in listed if isinstance(word, str))
        now = trio.current_time()
        left = _seconds(claims.get("exp"), float("inf")) + self._settings.leeway - time.time()
        believed = min(left, believed_for)
        return Known(prefix + subject, scopes, now + left, now + believed, elapsed_time() + believed)


def _address_network(address: str) -> str:
    """Return a client's IPv4 address, or the network of its IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.IPv6Network((int(parsed), IPV6_PREFIX), strict=False))


def _seconds(value: object, default: float) -> float:
    """Return a time in seconds since 1970."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Invalid("it is malformed")
    try:
        return float(value)
    except OverflowError:
        raise Invalid("it is malformed") from None


_WHY: Final = {
    "ExpiredSignatureError": "it has expired",
    "ImmatureSignatureError": "it is not valid yet",
    "InvalidAudienceError": "it was issued for another resource",
    "InvalidIssuerError": "it was issued by another server",
    "InvalidSignatureError": "its signature is wrong",
}
