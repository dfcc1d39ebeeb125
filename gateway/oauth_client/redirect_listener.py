"""Redirect listener for a login: receives one authorization response on 127.0.0.1 (RFC 8252, 7.3).

Any page in the browser can send requests here, so a response is accepted only with the `state` of this login, and
connections are bounded in time, number and size. The browser's page is held until `report` gives the login's result,
since the code may still be rejected. The listener lives as long as the `async with` block; its tasks belong to that
block's nursery.
"""

from __future__ import annotations

import contextlib
import hmac
import html
import socket
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

import trio

from gateway.httpd.request_parser import ProtocolError, RequestHead, RequestParser
from gateway.masking import SECRETS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

HOST: Final = "127.0.0.1"
PATH: Final = "/callback"
MAX_CONNECTIONS: Final = 8
"""Concurrent connections: browsers open some in advance and leave them idle."""
CONNECTION_WAIT: Final = 10.0
"""Seconds for a request to arrive, and for a page to be read."""
RESULT_TIMEOUT: Final = 5.0
"""Seconds to hold a page for the result; then a page is sent that reloads itself."""
DELIVERY_TIMEOUT: Final = 2.0
"""Seconds for the browser to load the result page after the login has ended."""
MAX_REQUEST: Final = 16_384
"""Bytes of a request's head; an authorization code has a few hundred."""
BACKLOG: Final = 8
MAX_TEXT: Final = 200
"""Maximum length of the server's text in a page."""

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">{2}<title>{0}</title><h1>{0}</h1><p>{1}</p></html>"""
_RELOAD = """<meta http-equiv="refresh" content="1">"""


def _page(title: str, text: str, head: str = "") -> str:
    return _PAGE.format(title, html.escape(text, quote=False), head)


class PortTaken(Exception):
    """The configured port is in use."""


class RedirectListener:
    """The browser's response: `answer` has the query's parameters, or `refusal` the reason for having none."""

    def __init__(self, port: int, result_timeout: float = RESULT_TIMEOUT) -> None:
        self.port = port
        self.uri = f"http://{HOST}:{port}{PATH}"
        self.answer: dict[str, str] = {}
        self.refusal: str | None = None
        self.on_settled: Callable[[], None] | None = None
        """Called when the response has arrived, which ends pending requests to open the page."""
        self._state: str | None = None
        self._settled = trio.Event()
        self._problem: str | None = None
        self._reported = trio.Event()
        self._result_timeout = result_timeout
        self._held = 0
        self._reload_due = False
        self._delivered = trio.lowlevel.ParkingLot()

    def expect(self, state: str) -> None:
        """Accept only the response with this state."""
        self._state = state

    def refuse(self, reason: str) -> None:
        """End the login without a response."""
        if not self._settled.is_set():
            self.refusal = reason
            self._settled.set()

    async def wait(self) -> None:
        """Wait for the response or the refusal; the caller bounds the time."""
        await self._settled.wait()

    def report(self, problem: str | None) -> None:
        """Set the login's result: None for success. Only the first call counts."""
        if not self._reported.is_set():
            self._problem = problem
            self._reported.set()

    @contextlib.asynccontextmanager
    async def hold_page(self) -> AsyncGenerator[str]:
        """Wait for the result, within the timeout; yield the page to send."""
        self._held += 1
        try:
            with trio.move_on_after(self._result_timeout):
                await self._reported.wait()
            self._reload_due = not self._reported.is_set()
            if not self._reported.is_set():
                text = "The gateway is still waiting for the authorization server. This page will show the result."
                yield _page("Not finished yet", text, _RELOAD)
            elif self._problem is not None:
                yield _page("Login failed", f"{self._problem}. You may close this page.")
            else:
                yield _page("Logged in", "The login was successful. You may close this page.")
        finally:
            self._held -= 1
            self._delivered.unpark_all()

    async def deliver(self) -> None:
        """Wait until the browser has the result page; the caller bounds the time."""
        while self._held or self._reload_due:
            await self._delivered.park()

    def handle_request(self, target: str) -> tuple[int, str] | None:
        """Handle the target of one request.

        Returns the status and the page; None if the page depends on the result (`hold_page`).
        """
        parts = urlsplit(target)
        if parts.path != PATH:
            return 404, _page("Not found", "This page does not exist.")
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if self._state is None or not hmac.compare_digest(query.get("state", "").encode(), self._state.encode()):
            return 400, _page("Not this login", "The response belongs to another login, or to none.")
        if self._settled.is_set():
            if query == self.answer:  # the same page, reloaded
                return None
            return 400, _page("Too late", "This login has already ended.")
        if "code" not in query:
            words = ": ".join(query[name] for name in ("error", "error_description") if query.get(name)) or "nothing"
            words = SECRETS.mask("".join(char if char.isprintable() else " " for char in words))[:MAX_TEXT]
            self.refuse(f"the authorization server reported {words}")
            text = f"The gateway was denied access: {self.refusal}. You may close this page."
            return 200, _page("Login refused", text)
        self.answer = query
        self._settled.set()
        if self.on_settled is not None:
            self.on_settled()
        return None


@asynccontextmanager
async def open_redirect_listener(
    port: int | None,
    preferred: int | None = None,
    *,
    result_timeout: float = RESULT_TIMEOUT,
    delivery_timeout: float = DELIVERY_TIMEOUT,
) -> AsyncGenerator[RedirectListener]:
    """Listen on `port`, else on the `preferred` one if it is free, else on any.

    Raises:
        PortTaken: `port` is in use.
    """
    with _bind(port, preferred) as sock:
        listener = RedirectListener(sock.getsockname()[1], result_timeout)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_accept, sock, listener)
            try:
                yield listener
                listener.report("the login was stopped before the authorization server answered")
                with trio.move_on_after(delivery_timeout):
                    await listener.deliver()
            finally:
                nursery.cancel_scope.cancel(reason="the login has ended")


def _bind(port: int | None, preferred: int | None) -> trio.socket.SocketType:
    for candidate in (port,) if port is not None else (preferred, 0) if preferred is not None else (0,):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((HOST, candidate))
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
        else:
            return trio.socket.from_stdlib_socket(sock)
    text = f"port {port} on {HOST} is in use (oauth.redirect_port)"
    raise PortTaken(text)


async def _accept(sock: trio.socket.SocketType, listener: RedirectListener) -> None:
    places = trio.Semaphore(MAX_CONNECTIONS)
    ours = {f"{name}:{listener.port}".encode() for name in (HOST, "localhost")}

    async def serve(connection: trio.socket.SocketType) -> None:
        """Read one request and answer it."""
        try:
            with connection, contextlib.suppress(OSError, trio.BrokenResourceError):
                stream = trio.SocketStream(connection)
                parser = RequestParser(MAX_REQUEST)
                head: RequestHead | bytes | None = None
                with trio.move_on_after(CONNECTION_WAIT), contextlib.suppress(ProtocolError):
                    while (head := parser.next_event()) is None and (data := await stream.receive_some(MAX_REQUEST)):
                        parser.receive(bytes(data))
                if not isinstance(head, RequestHead):
                    return
                # Another host name indicates DNS rebinding.
                if head.method != "GET" or dict(head.headers).get(b"host") not in ours:
                    page = 400, _page("Not here", "This address only accepts the response of a login.")
                else:
                    page = listener.handle_request(head.target.decode("ascii", "replace"))
                if page is not None:
                    await _send(stream, *page)
                    return
                async with listener.hold_page() as text:
                    await _send(stream, 200, text)
        finally:
            places.release()

    async with trio.open_nursery() as nursery:
        while True:
            await places.acquire()
            connection, _ = await sock.accept()
            nursery.start_soon(serve, connection)


async def _send(stream: trio.SocketStream, status: int, page: str) -> None:
    body = page.encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        "content-type: text/html; charset=utf-8\r\n"
        f"content-length: {len(body)}\r\n"
        "cache-control: no-store\r\n"
        "referrer-policy: no-referrer\r\n"
        "content-security-policy: default-src 'none'\r\n"
        "connection: close\r\n\r\n"
    )
    with trio.move_on_after(CONNECTION_WAIT):
        await stream.send_all(head.encode() + body)
