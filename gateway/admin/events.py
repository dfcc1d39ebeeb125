"""Live feed of state changes, completed calls and reloads over SSE, bounded and non-blocking.

A reader that is too slow loses events and is notified how many. Without readers, no events are created.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from gateway import jsonrpc
from gateway.calls import Failure
from gateway.errors import Busy, GatewayError
from gateway.frontends.http.exchange import ClientGone
from gateway.telemetry import now_iso

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from gateway.frontends.http.exchange import Exchange
    from gateway.inflight.pending import PendingCall
    from gateway.supervisor.fleet import Fleet
    from gateway.supervisor.supervisor import Supervisor

MAX_READERS: Final = 16
"""Concurrent readers; further ones are refused."""
MAX_EVENTS: Final = 512
"""Events buffered for one reader; further ones are dropped and counted."""
MAX_SHOWN: Final = 200
"""Characters of a name that a client has sent."""
KEEP_ALIVE: Final = 15.0
"""Seconds of silence before a comment is sent, so that proxies keep the stream open."""
KEEP_ALIVE_FRAME: Final = b": keep-alive\r\n\r\n"

log = logging.getLogger("gateway.admin")


class Reader:
    """One reader of the feed."""

    def __init__(self) -> None:
        self._send, self.receive = trio.open_memory_channel[bytes](MAX_EVENTS)
        self._dropped = 0

    def put(self, kind: str, event: dict[str, Any]) -> None:
        """Queue an event, or drop it if the queue is full."""
        if self._dropped:
            event = {**event, "dropped": self._dropped}
        try:
            self._send.send_nowait(b"event: " + kind.encode() + b"\r\ndata: " + jsonrpc.encode(event) + b"\r\n\r\n")
            self._dropped = 0
        except trio.WouldBlock:
            self._dropped += 1

    async def next_frame(self) -> bytes:
        """Wait for an event, at most `KEEP_ALIVE`."""
        with trio.move_on_after(KEEP_ALIVE):
            return await self.receive.receive()
        return KEEP_ALIVE_FRAME

    def close(self) -> None:
        """Close both ends of the queue."""
        self._send.close()
        self.receive.close()


class Feed:
    """The events of a fleet, for its readers."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._readers: set[Reader] = set()
        self._states: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._readers)

    def publish_reload(self, news: dict[str, Any]) -> None:
        """Publish the progress of a config change: started, applied or refused."""
        self._publish("reload", news)

    @contextmanager
    def read(self) -> Generator[Reader]:
        """Receive all events while the context is open.

        Raises:
            Busy: there are too many readers.
        """
        if len(self._readers) >= MAX_READERS:
            text = f"too many readers of the events ({MAX_READERS})"
            raise Busy(text)
        reader = Reader()
        if not self._readers:
            self._states = {name: one.state for name, one in self._fleet.supervisors.items()}
            self._fleet.observe(self._observe)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            reader.close()
            if not self._readers:
                self._fleet.unobserve(self._observe)

    def _observe(self, supervisor: Supervisor, pending: PendingCall | None, seconds: float) -> None:
        if pending is not None:
            outcome = pending.outcome
            failed = isinstance(outcome, Failure | GatewayError)
            self._publish(
                "call",
                {
                    "at": now_iso(),
                    "server": supervisor.name,
                    "method": pending.call.method,
                    "name": (pending.call.known_as or pending.call.name)[:MAX_SHOWN],
                    "ms": round(seconds * 1000, 3),
                    "outcome": "cancelled" if outcome is None else "error" if failed else "answered",
                    "reason": outcome.code if isinstance(outcome, GatewayError) else None,
                },
            )
        elif self._states.get(supervisor.name) != supervisor.state and not self._fleet.is_replaced(supervisor):
            self._states[supervisor.name] = supervisor.state
            self._publish(
                "state",
                {
                    "at": supervisor.since,
                    "server": supervisor.name,
                    "state": supervisor.state,
                    "reason": supervisor.last_error,
                },
            )

    def _publish(self, kind: str, event: dict[str, Any]) -> None:
        for reader in self._readers:
            reader.put(kind, event)


async def serve_events(exchange: Exchange, feed: Feed, closing: trio.Event, may_read: Callable[[], bool]) -> None:
    """Send the feed until the client disconnects, loses its access, or the gateway closes.

    Raises Busy before anything is sent.
    """
    with feed.read() as reader:
        await serve_stream(exchange, reader.next_frame, closing, may_read)


async def serve_stream(
    exchange: Exchange,
    next_frame: Callable[[], Awaitable[bytes]],
    closing: trio.Event,
    may_read: Callable[[], bool],
) -> None:
    """Send frames while there are any, the client may read them, and the gateway runs."""
    try:
        async with trio.open_nursery() as nursery:

            async def until_gone() -> None:
                await exchange.hung_up()
                nursery.cancel_scope.cancel(reason="the client has disconnected")

            async def until_closing() -> None:
                await closing.wait()
                nursery.cancel_scope.cancel(reason="the gateway is closing")

            nursery.start_soon(until_gone)
            nursery.start_soon(until_closing)
            await exchange.frames(b": events follow\r\n\r\n")
            while frame := await next_frame():
                if not may_read():  # the config has come to require the token
                    break
                await exchange.frames(frame)
            nursery.cancel_scope.cancel(reason="the stream has ended")
        await exchange.end_stream()
    except* ClientGone:
        log.debug("a reader of a stream has disconnected")
