"""Recovery of sessions that a server has lost: judging its responses, and replacing the session.

Servers that restart, or whose sessions expire, report it in many ways. `judge` alone decides what a response may mean,
and `Recovery` has a lost session replaced. A request is repeated only if the transport refused it, so that no handler
has seen it; everything else reaches its client unchanged, and at most triggers a probe.
"""

from __future__ import annotations

import enum
import logging
import math
import re
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import msgspec
import trio

from gateway import jsonrpc
from gateway.backends.http.sse_events import EventParser
from gateway.backends.session.conversation import MAX_BATCH
from gateway.backends.session.session_state import RELISTEN_DELAY
from gateway.errors import BackendError, BackendExited, BackendUnavailable
from gateway.http_client.body import MAX_ERROR_BYTES, media_type, read_body
from gateway.http_client.errors import BodyTooLong, Undecodable
from gateway.proxies import CLOSE_WAIT

if TYPE_CHECKING:
    from gateway.http_client.body import Response

RENEW_INTERVAL: Final = 10.0
"""Minimum seconds between two new sessions: a server that refuses each of them must not be flooded."""
MAX_INCURABLE: Final = 256
"""Requests remembered because a new session refused them too; beyond that, all are forgotten."""
MAX_HINT: Final = 1_000
"""Characters of an error's text, and bytes of its data, that are searched for a hint at the session."""
_NOT_FOUND: Final = 404
_SERVER_ERROR: Final = 500
_REFUSALS: Final = frozenset({400, _NOT_FOUND, 410, 422})
"""Statuses with which servers refuse a session; only 404 is in the specification."""
OTHER_CAUSES: Final = frozenset({401, 403, 407, 413, 429})
"""Statuses about the client, its rate or its proxy, never about the session."""
_UNREAD: Final = frozenset({401, 403})
"""Statuses whose meaning no body changes."""
_TRANSPORT_CODES: Final = frozenset({-32000, -32001, jsonrpc.INVALID_REQUEST})
"""Error codes that the SDKs send with 404 for an unknown session; others come from a handler."""
_SESSION_CODES: Final = frozenset({-32001, -32002})
_HINT: Final = re.compile(r"session|initiali[sz]|handshake|transport|connection|expired|unknown client", re.IGNORECASE)

log = logging.getLogger("gateway.backend")


class Verdict(enum.Enum):
    """The meaning of a response for its session."""

    REFUSED = enum.auto()
    """The transport does not know the session, and refused the request before any handler ran."""
    DOUBTFUL = enum.auto()
    """It may be lost; only a probe can show."""
    UNRELATED = enum.auto()


def judge(status: int, code: int | None, text: str, *, answered: bool) -> Verdict:
    """Decide whether a response may mean that the server does not know the session.

    The text only ever leads to a probe, so that nothing depends on its wording.

    Args:
        status: The HTTP status; 200 for what came on a stream.
        code: The code of the JSON-RPC error, None if there is none.
        text: Its message, and what is known of its data.
        answered: Whether it is a JSON-RPC answer with the request's own id, so that a handler may have run.
    """
    if answered:
        if status == _NOT_FOUND and code in _TRANSPORT_CODES:
            return Verdict.REFUSED
    elif status in _REFUSALS:
        return Verdict.REFUSED
    elif status in OTHER_CAUSES:
        return Verdict.UNRELATED
    elif code is None or status > _NOT_FOUND:
        return Verdict.DOUBTFUL
    if status >= _SERVER_ERROR or (status == _NOT_FOUND and code != jsonrpc.METHOD_NOT_FOUND):
        return Verdict.DOUBTFUL
    if code in _SESSION_CODES or _HINT.search(text, 0, 2 * MAX_HINT):
        return Verdict.DOUBTFUL
    return Verdict.UNRELATED


class Refusal(msgspec.Struct, frozen=True):
    """The body of a response whose status refuses the request."""

    verdict: Verdict
    message: jsonrpc.Message | None
    """The JSON-RPC error in it, whatever its id."""
    body: bytes = b""
    undecodable: Undecodable | None = None
    """The reason why it could not be read."""


async def read_refusal(response: Response, request_id: int | None) -> Refusal:
    """Read the body of a refusal; `request_id` is None for a notification."""
    status = response.status_code
    if status in _UNREAD:
        return Refusal(Verdict.UNRELATED, None)
    try:
        body = await read_body(response, MAX_ERROR_BYTES)
    except (BodyTooLong, Undecodable) as exc:
        # It may be the response to this request, unless nothing serves this address.
        verdict = judge(status, None, "", answered=status != _NOT_FOUND)
        return Refusal(verdict, None, undecodable=exc if isinstance(exc, Undecodable) else None)
    message = _find_answer(body, media_type(response), str(request_id))
    answered = message is not None and str(message.id) == str(request_id)
    if message is None or message.error is jsonrpc.ABSENT:
        return Refusal(judge(status, None, "", answered=answered), None, body)
    error = jsonrpc.decode_error(message.error)
    return Refusal(judge(status, error.code, error.message, answered=answered), message, body)


def _find_answer(body: bytes, kind: str, request_id: str) -> jsonrpc.Message | None:
    """Return the response with this id in a body, whatever its type, else the first."""
    parts = [body]
    if kind == "text/event-stream":
        events = EventParser(MAX_ERROR_BYTES).feed(body + b"\n\n")
        parts = [event.data for event in events if isinstance(event.data, bytes)]
    found: jsonrpc.Message | None = None
    for part in parts:
        try:
            for data in jsonrpc.decode_batch(part, most=MAX_BATCH) if jsonrpc.is_batch(part) else [part]:
                message = jsonrpc.decode(data)
                if message.method is not msgspec.UNSET:
                    continue
                if str(message.id) == request_id:
                    return message
                found = found or message
        except jsonrpc.Malformed:
            continue
    return found


class Timing(msgspec.Struct, frozen=True):
    """Seconds that a session over HTTP waits before it contacts its server again."""

    resume_pause: float = 1.0
    """Before a broken stream is resumed, if the server sets no other pause."""
    least_resume_pause: float = 0.1
    """The minimum, if the server sets a pause of none: the gateway must not spin."""
    stream_pause: float = 1.0
    """Before the standalone stream is opened again, if the server sets no other pause."""
    probe_interval: float = 1.0
    """The minimum time between two probes."""
    relisten_delay: float = RELISTEN_DELAY
    goodbye_timeout: float = CLOSE_WAIT
    """For the response to the end of the session."""


TIMING: Final = Timing()


class Standing(enum.Enum):
    """The gateway's knowledge of its session at the server."""

    VALID = enum.auto()
    DOUBTED = enum.auto()
    """A probe is in progress; new calls wait for its result."""
    LOST = enum.auto()
    """Another session is being opened; everything but its `initialize` waits."""


_TRANSITIONS: Final = {
    Standing.VALID: {Standing.DOUBTED, Standing.LOST},
    Standing.DOUBTED: {Standing.VALID, Standing.LOST},
    Standing.LOST: {Standing.VALID},
}


class Renewable(Protocol):
    """The services that `Recovery` needs of its session."""

    @property
    def is_initialized(self) -> bool:
        """Whether the server has answered the handshake."""
        ...

    @property
    def is_stateful(self) -> bool:
        """Whether the server may hold state of this conversation: not in the modern era."""
        ...

    @property
    def has_id(self) -> bool:
        """Whether requests carry a session id."""
        ...

    async def probe(self) -> bool:
        """Probe; return whether the server refuses. Raises BackendExited if it is gone."""
        ...

    async def renew(self) -> None:
        """Replace the session by another. Raises BackendError, and the session is then unchanged."""
        ...

    def give_up(self, how: str) -> NoReturn:
        """End the session. Raises BackendExited."""
        ...


class Recovery:
    """Detects and replaces a session that the server has lost, once per `RENEW_INTERVAL`.

    If the session is lost again within that time, calls that the transport refused wait, within their deadlines, for
    the end of the interval; other calls get the errors that the server sends meanwhile.
    """

    def __init__(self, session: Renewable, probe_interval: float = TIMING.probe_interval) -> None:
        self.standing = Standing.VALID
        self.generation = 0
        """The number of sessions so far; a refusal is about the one that its request was sent in."""
        self._session = session
        self._probe_interval = probe_interval
        self._changed = trio.Event()
        self._alarm = trio.Event()
        self._probe_scope = trio.CancelScope()
        self._is_probing = False
        self._is_proven = False
        self._renew_at = -math.inf
        self._hold_at = -math.inf
        """The time from which calls may be held during a probe: errors that only look like a loss must not slow a
        server down."""
        self._incurable: set[str] = set()

    def _to(self, new: Standing) -> None:
        """Change the state: the only place that does."""
        if new is self.standing:
            return
        if new not in _TRANSITIONS[self.standing]:
            text = f"{self.standing} may not be followed by {new}"
            raise RuntimeError(text)
        self.standing = new
        self._changed.set()
        self._changed = trio.Event()

    async def admitted(self, method: str, *, is_call: bool) -> None:
        """Wait until a request may be sent."""
        while (self.standing is Standing.LOST and method != "initialize") or (
            self.standing is Standing.DOUBTED and is_call
        ):
            await self._changed.wait()

    def refused(self, generation: int, key: str, *, is_call: bool) -> bool:
        """Note a request's refusal by the transport; return whether to send it again.

        `key` identifies the target: the tool or the method.
        """
        if generation != self.generation:
            return True  # it has been replaced meanwhile
        if self.standing is not Standing.LOST:
            if self._is_probing and not is_call:
                return False  # the probe itself
            if not self._session.has_id or key in self._incurable:
                if is_call:
                    self.suspect()
                return False
            self._to(Standing.LOST)
            self._probe_scope.cancel(reason="the session is lost")
            self._alarm.set()
        self._is_proven = True
        return True

    def refused_again(self, key: str) -> None:
        """Record that a new session refused it too: its next refusal costs no session."""
        if len(self._incurable) >= MAX_INCURABLE:
            self._incurable.clear()
        self._incurable.add(key)

    def suspect(self) -> None:
        """Probe the session, which may be lost."""
        if self._is_probing or self.standing is not Standing.VALID or not self._session.is_stateful:
            return
        if trio.current_time() >= self._hold_at:
            self._to(Standing.DOUBTED)
        self._alarm.set()

    def doubt(self) -> None:
        """Check after a failed connection whether the server is still reachable.

        A no-op before the handshake is over: a server that closes the connection at the era probe is reachable, and
        `initialize` is still to be sent.
        """
        if self._session.is_initialized:
            self._alarm.set()

    async def run(self) -> None:
        """Handle alarms one at a time until cancelled. Raises BackendExited when the session is over."""
        while True:
            await self._alarm.wait()
            self._alarm = trio.Event()
            if self.standing is not Standing.LOST:
                await self._probe()
            if self.standing is Standing.LOST:
                await trio.sleep_until(self._renew_at)
                self._renew_at = self._hold_at = trio.current_time() + RENEW_INTERVAL
                try:
                    await self._session.renew()
                except BackendError as problem:
                    if self._is_proven or isinstance(problem, (BackendExited, BackendUnavailable)):
                        how = f"has forgotten the session, and starting another failed: {problem.reason}"
                        self._session.give_up(how)
                    log.warning(
                        "%s: no new session for now",
                        problem,
                        extra={"event": "session_not_renewed", "backend": problem.backend, "code": problem.code},
                    )
                else:
                    self.generation += 1
                self._to(Standing.VALID)
            await trio.sleep(self._probe_interval)

    async def _probe(self) -> None:
        """Probe whether the server still knows the session, and set the state accordingly."""
        is_refused = False
        self._is_probing = True
        try:
            with trio.CancelScope() as self._probe_scope:
                is_refused = await self._session.probe()
        finally:
            self._is_probing = False
        self._hold_at = trio.current_time() + RENEW_INTERVAL
        if self.standing is Standing.LOST:  # a call was refused meanwhile
            return
        if not is_refused:
            self._to(Standing.VALID)
            return
        self._incurable.clear()  # earlier refusals may have had the same reason
        if trio.current_time() < self._renew_at:
            self._to(Standing.VALID)
            await trio.sleep_until(self._renew_at)
            self._alarm.set()
            return
        self._is_proven = False
        self._to(Standing.LOST)
