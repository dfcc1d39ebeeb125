"""Fakes with hooks: a backend for supervisors, a scripted peer, an ASGI exchange.

They keep the promises of their real counterparts: the session finishes every call before it ends its body, the
conversation's peer sees whole lines, the exchange is one request body and a list of what was sent.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import trio
import trio.testing

from gateway import jsonrpc
from gateway.backends.session.conversation import Conversation
from gateway.backends.session.handshake import ServerIntroduction
from gateway.backends.session.session_state import DesiredState
from gateway.calls import Call, Caller, Complete, Era
from gateway.catalog.listing import Item, Listing
from gateway.catalog.parts import Naming, make_part
from gateway.catalog.snapshot import ListNews, Snapshot
from gateway.config.model import ServerConfig
from gateway.eras.methods import Kind
from gateway.eras.requests import Hop
from gateway.errors import BackendError, BackendExited, BackendTooSlow
from gateway.inflight.pending import PendingCall

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

    from gateway.backends.session.contracts import SessionObserver
    from gateway.calls import Outcome

SOON = 10.0
"""Seconds, on the real clock, after which a waiting test fails."""
RESULT = Complete(b'{"content":[]}', Era.LEGACY)
LEGACY_CALLER = Caller(era=Era.LEGACY, version="2025-11-25")
MODERN_CALLER = Caller(era=Era.MODERN, version="2026-07-28")


async def settle() -> None:
    """Let every task run until it waits for an action of the test."""
    await trio.testing.wait_all_tasks_blocked()


def make_call(
    name: str = "x", method: str = "tools/call", *, caller: Caller = LEGACY_CALLER, token: jsonrpc.Id | None = None
) -> Call:
    member = "uri" if method == "resources/read" else "name"
    return Call(
        method=method, name=name, params={member: jsonrpc.raw(name)}, meta={}, caller=caller, progress_token=token
    )


def make_news(*changed: str) -> ListNews:
    """News of these features ("tools", "prompts")."""
    items = {kind: (Item("x", b'{"name":"x","uri":"x"}'),) for kind in Kind if kind.feature in changed}
    part = make_part("a", "a", Listing(items=items), Naming())
    return ListNews(Snapshot(), Snapshot([part], listed=frozenset({"a"})))


def make_pending(
    name: str = "x", *, timeout: float = 300.0, pending: dict[str, Any] | None = None, **kwargs: Any
) -> PendingCall:
    return PendingCall(make_call(name, **kwargs), backend="b", own_name=name, timeout=timeout, **(pending or {}))


class Carrier:
    """Implements `gateway.inflight.pending.CallCarrier`: the reasons of its cancels."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def withdraw(self, request_id: int, pending: PendingCall, reason: str) -> None:
        self.reasons.append(reason)


def make_listing(*tools: str, **kwargs: Any) -> Listing:
    items = tuple(Item(name, jsonrpc.encode({"name": name})) for name in tools)
    return Listing(items={Kind.TOOLS: items}, capabilities={"tools": msgspec.Raw(b"{}")}, **kwargs)


class FakeUpkeep:
    """Records the desired state of the session."""

    def __init__(self) -> None:
        self.wishes = DesiredState()
        self.subscriptions: list[str] = []
        self.asked: list[float] = []
        """When the gateway asked whether the backend lives."""
        self.is_silent = False
        self.passed_on: list[tuple[str, bytes]] = []
        """What clients have said on their own."""

    def set_desired(self, wishes: DesiredState) -> None:
        self.wishes = wishes

    def subscribed(self, uri: str) -> None:
        self.subscriptions.append(uri)

    def pass_on(self, method: str, params: msgspec.Raw) -> None:
        self.passed_on.append((method, bytes(params)))

    async def ping(self, *, timeout: float) -> Outcome:
        self.asked.append(trio.current_time())
        if self.is_silent:
            await trio.sleep(timeout)
            return BackendTooSlow("b", "did not answer ping")
        await trio.lowlevel.checkpoint()
        return RESULT


class FakeSession:
    """Implements `gateway.backends.session.interface.Session`; the test plays the backend."""

    def __init__(self, listing: Listing, listener: SessionObserver) -> None:
        self.greeting = ServerIntroduction(era=Era.LEGACY, version="2025-11-25", capabilities={})
        self.listing = listing
        self.pid: int | None = 4711
        self.stray_output = ""
        self.asked = ()
        self.batches: list[list[str]] = []
        """The names of the calls of each `send`."""
        self.working: list[PendingCall] = []
        """Calls that were sent and have not ended."""
        self.withdrawn: list[tuple[str, str]] = []
        self.relisted: list[tuple[str, float]] = []
        """The lists read again, and when."""
        self.on_relist: Callable[[str], dict[Kind, tuple[Item, ...]] | Listing] = lambda feature: dict(
            self.listing.items
        )
        self.has_room = trio.Event()
        self.has_room.set()
        self.upkeep: Any = FakeUpkeep()
        self._listener = listener
        self._crashed = trio.Event()
        self._is_closed = False
        self._last_id = 0
        self._problem: BaseException | None = None

    @property
    def in_flight(self) -> int:
        return len(self.working)

    @property
    def names(self) -> list[str]:
        """All calls that were ever sent, in order."""
        return [name for batch in self.batches for name in batch]

    def send(self, pending_calls: list[PendingCall]) -> None:
        assert self.can_send
        self.batches.append([pending.own_name for pending in pending_calls])
        for pending in pending_calls:
            self.working.append(pending)
            self._last_id += 1
            pending.sent(self, self._last_id)

    def withdraw(self, request_id: int, pending: PendingCall, reason: str) -> None:
        self.withdrawn.append((pending.own_name, reason))
        self.working.remove(pending)
        self._listener.freed()

    @property
    def can_send(self) -> bool:
        return self.has_room.is_set() and not self._is_closed

    async def wait_writable(self) -> None:
        await self.has_room.wait()

    async def relist(self, feature: str) -> Listing:
        self.relisted.append((feature, trio.current_time()))
        await trio.lowlevel.checkpoint()
        found = self.on_relist(feature)
        return found if isinstance(found, Listing) else Listing(items=found)

    def answer(self, count: int = 1, outcome: Outcome = RESULT) -> None:
        """Answer the oldest calls."""
        for pending in self.working[:count]:
            self.working.remove(pending)
            pending.finish(outcome)
            self._listener.freed()

    def change(self, feature: str = "tools") -> None:
        """Announce that lists have changed."""
        self._listener.list_changed(feature)

    def update(self, uri: str) -> None:
        """Announce that a resource was updated."""
        self._listener.resource_updated(uri, {})

    def write_stderr(self, line: bytes) -> None:
        """Write a line to stderr."""
        self._listener.wrote_stderr(line)

    def crash(self, problem: BaseException) -> None:
        """End the session with a crash."""
        self._problem = problem
        self._crashed.set()

    def close(self, problem: BackendError) -> None:
        self._is_closed = True
        working, self.working = self.working, []
        for pending in working:
            pending.finish(problem)

    async def run(self) -> None:
        """Wait for the crash, and raise it."""
        await self._crashed.wait()
        assert self._problem is not None
        if isinstance(self._problem, BackendError):
            self.close(self._problem)
        raise self._problem


class FakeBackend:
    """Implements `gateway.backends.session.interface.Opener`: records each start; `on_start` decides its result."""

    def __init__(self, listing: Listing | None = None, *, on_start: Callable[[int], Awaitable[None]] | None = None):
        self.listing = make_listing("x") if listing is None else listing
        self.starts: list[float] = []
        self.sessions: list[FakeSession] = []
        self.open = 0
        """Sessions that are open now."""
        self.on_start = on_start
        """Called with the number of the start, from 1; may wait, may raise."""
        self.on_close: Callable[[], Awaitable[None]] | None = None
        self.eras: tuple[Era, ...] = ()
        """The eras that it may offer: a session is opened in the one asked for, else in the first."""
        self.refused: Era | None = None
        """The era of them that it refuses, as is found out by asking."""
        self.listings: dict[Era, Listing] = {}
        """What it lists in sessions of one era, where that is not `listing`."""

    @property
    def session(self) -> FakeSession:
        """The session that was opened last."""
        return self.sessions[-1]

    def fail(self, *numbers: int, problem: Exception | None = None) -> None:
        """Have these starts fail immediately."""

        async def on_start(number: int) -> None:
            await trio.lowlevel.checkpoint()
            if number in numbers:
                raise problem or BackendExited("b", "exited with status 1")

        self.on_start = on_start

    def hold(self) -> None:
        """Have starts wait until `held` is set."""
        self.held = trio.Event()

        async def on_start(_number: int) -> None:
            await self.held.wait()

        self.on_start = on_start

    def stall(self) -> None:
        """Have every start hang."""

        async def on_start(_number: int) -> None:
            await trio.sleep_forever()

        self.on_start = on_start

    @asynccontextmanager
    async def __call__(
        self,
        config: ServerConfig,
        listener: SessionObserver,
        *,
        capabilities: object = None,
        era: Era | None = None,
    ) -> AsyncGenerator[FakeSession]:
        self.starts.append(trio.current_time())
        if self.on_start is not None:
            await self.on_start(len(self.starts))
        session = FakeSession(self.listing, listener)
        if self.eras:
            greeting = make_introduction(era=self.eras[0] if era is None or era is self.refused else era)
            others = [one for one in self.eras if one is not greeting.era]
            session.greeting = msgspec.structs.replace(greeting, other_era=others[0] if others else None)
            session.listing = self.listings.get(greeting.era, self.listing)
        self.sessions.append(session)
        self.open += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.run)
                yield session
                nursery.cancel_scope.cancel()
        finally:
            self.open -= 1
            session.close(BackendExited(config.name, "was stopped"))
            if self.on_close is not None:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1000):
                    await self.on_close()


def backends(by_name: dict[str, FakeBackend]) -> Callable[..., Any]:
    """One opener for a fleet of fakes."""

    def opener(config: ServerConfig, listener: SessionObserver, **kwargs: Any) -> Any:
        return by_name[config.name](config, listener, **kwargs)

    return opener


# -- conversations -----------------------------------------------------------------------------------------------------


class Ears:
    """Implements `gateway.backends.session.contracts.SessionObserver`."""

    def __init__(self) -> None:
        self.received: list[str] = []

    def list_changed(self, feature: str) -> None:
        self.received.append(feature)

    def resource_updated(self, uri: str, params: dict[str, Any]) -> None:
        self.received.append(f"updated {uri}")

    def for_client(self, key: str, method: str, params: dict[str, Any]) -> None:
        self.received.append(f"{method} for {key}")

    def freed(self) -> None:
        self.received.append("freed")

    def wrote_stderr(self, line: bytes) -> None:
        self.received.append(f"stderr: {line}")


class Script:
    """A conversation whose peer is the test, which sees posts and feeds messages.

    With `answers` (method -> result, exception-free callable or None for silence) it answers by itself.
    """

    def __init__(self, answers: dict[str, Any] | None = None, *, era: Era = Era.LEGACY) -> None:
        self.posted: list[Any] = []
        self.has_posted = trio.Event()
        """Set, and replaced by a new one, with each message that is posted."""
        self.ears = Ears()
        self.answers = answers or {}
        hop = Hop(era=era, client_info=msgspec.Raw(b'{"name":"gw"}'))
        self.conversation = Conversation("b", post=self.post, listener=self.ears, hop=hop)

    @property
    def methods(self) -> list[str]:
        """The methods of all messages, in order."""
        return [message.get("method", "") for message in self.posted]

    def post(self, data: bytes, *_: object, **__: object) -> None:
        for line in data.splitlines(keepends=True):
            assert line.endswith(b"\n"), "half a line was posted"
            message = json.loads(line)
            self.posted.append(message)
            self.has_posted.set()
            self.has_posted = trio.Event()
            if "id" in message and message.get("method") in self.answers:
                self._reply(message)

    def _reply(self, message: Any) -> None:
        answer = self.answers[message["method"]]
        if callable(answer):
            answer = answer(message.get("params", {}))
        if isinstance(answer, bytes):
            self.conversation.feed(answer)
        elif answer is not None:
            key = "error" if "code" in answer else "result"
            self.feed({"id": message["id"], key: answer})

    def send(self, pending: PendingCall) -> int:
        """Send a call; returns its id on this hop."""
        self.post(self.conversation.encode_call(pending))
        return self.posted[-1]["id"]

    def feed(self, message: dict[str, Any]) -> None:
        self.conversation.feed(json.dumps({"jsonrpc": "2.0", **message}).encode())


# -- HTTP --------------------------------------------------------------------------------------------------------------


class FakeExchange:
    """One ASGI exchange: `scope`, `receive`, `send`, and everything that was sent."""

    def __init__(
        self, body: bytes | Iterable[bytes] = b"", *, method: str = "POST", headers: dict[str, str] | None = None
    ) -> None:
        pairs = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        self.scope: dict[str, Any] = {"type": "http", "method": method, "path": "/mcp", "headers": pairs}
        parts = [body] if isinstance(body, bytes) else list(body)
        self._incoming = [
            {"type": "http.request", "body": part, "more_body": index < len(parts) - 1}
            for index, part in enumerate(parts)
        ]
        self.sent: list[dict[str, Any]] = []
        self.gone = trio.Event()
        """Set it to hang up: `receive` says so, and `send` raises."""

    async def receive(self) -> dict[str, Any]:
        if self._incoming:
            await trio.lowlevel.checkpoint()
            return self._incoming.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await trio.lowlevel.checkpoint()
        if self.gone.is_set():
            raise OSError("the client has gone")
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def ended(self) -> bool:
        return bool(self.sent) and len(self.sent) > 1 and not self.sent[-1].get("more_body", False)

    @property
    def events(self) -> list[Any]:
        """The data of the SSE events, without comments."""
        blocks = self.body.replace(b"\r\n", b"\n").split(b"\n\n")
        lines = [line for block in blocks for line in block.split(b"\n") if line.startswith(b"data:")]
        return [json.loads(line[5:]) for line in lines]


class FakeRequest:
    """Implements `gateway.frontends.http.exchange.Request`: an exchange that may be answered without a task."""

    def __init__(self, nursery: trio.Nursery, body: bytes, *, headers: dict[str, str]) -> None:
        self.exchange = FakeExchange(headers=headers)
        """What a task of the request sees."""
        self.scope, self.receive, self.send = self.exchange.scope, self.exchange.receive, self.exchange.send
        self.body = body
        self.on_disconnect: Callable[[], None] | None = None
        self.responses: list[tuple[int, bytes]] = []
        """What was sent without a task."""
        self.has_task = False
        self._nursery = nursery

    def respond_nowait(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bool:
        if not self.exchange.gone.is_set():
            self.responses.append((status, body))
        return not self.exchange.gone.is_set()

    def start(self, app: Any) -> None:
        self.has_task = True
        self._nursery.start_soon(app, self.scope, self.receive, self.send)

    def hang_up(self) -> None:
        self.exchange.gone.set()
        if self.on_disconnect is not None and not self.responses:
            self.on_disconnect()


def public_names(snapshot: Snapshot, kind: Kind) -> dict[str, list[str]]:
    """Listed public names by backend."""
    return {backend: [name for name, _own in pairs] for backend, pairs in snapshot.listed_by_backend(kind).items()}


LIST_CAPABILITIES = {
    "tools": {"listChanged": True},
    "prompts": {},
    "resources": {"listChanged": True, "subscribe": True},
}


def make_introduction(capabilities: Any = None, era: Era = Era.MODERN) -> ServerIntroduction:
    spans = {
        name: msgspec.Raw(msgspec.json.encode(value)) for name, value in (capabilities or LIST_CAPABILITIES).items()
    }
    return ServerIntroduction(era=era, version="2026-07-28" if era is Era.MODERN else "2025-11-25", capabilities=spans)
