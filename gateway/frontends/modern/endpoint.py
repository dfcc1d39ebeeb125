"""The modern era over HTTP: each POST is independent (2026-07-28 basic/transports/streamable-http).

Headers are checked against the body before anything is done; closing the response cancels the request. No session, no
resumption: `Mcp-Session-Id` and `Last-Event-ID` are ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import trio

from gateway import jsonrpc
from gateway.calls import Era
from gateway.eras import errors, headers, requests
from gateway.eras.methods import LISTEN
from gateway.eras.param_headers import check_param_headers, find_second_argument
from gateway.errors import GatewayError, InvalidParams
from gateway.frontends.http.exchange import ClientGone, Exchange
from gateway.frontends.http.response import ModernDelivery
from gateway.frontends.modern.subscriptions import Subscription

if TYPE_CHECKING:
    from gateway.calls import Call
    from gateway.frontends.request_handler import RequestHandler
    from gateway.jsonrpc import Id, Message

_OK = 200


class ModernFrontend:
    """Answers modern POSTs."""

    def __init__(self, answers: RequestHandler, closing: trio.Event) -> None:
        self._answers = answers
        self._closing = closing

    async def post(self, exchange: Exchange, message: Message) -> None:
        """Answer one message. Raises ClientGone."""
        if message.method is msgspec.UNSET:
            problem = errors.WireError(jsonrpc.INVALID_REQUEST, "a client must not POST responses")
            await exchange.json(400, problem.encode(None))
            return
        request_id = message.id
        if request_id is msgspec.UNSET or request_id is None:
            await exchange.empty(202)
            return
        try:
            call = self._read(exchange, message)
        except InvalidParams as exc:
            body, _ = self._answers.encode_error(request_id, exc, Era.MODERN)
            await exchange.json(400, body)  # a malformed request, not a refused one (basic/index, "_meta")
            return
        except headers.HeaderMismatch as exc:
            await exchange.json(400, errors.WireError(errors.HEADER_MISMATCH, str(exc)).encode(request_id))
            return
        except GatewayError as exc:
            await self._refuse(exchange, request_id, exc)
            return
        try:
            if call.method == LISTEN:
                await self._listen(exchange, Subscription(self._answers, request_id, call))
                return
            answer = await self._answers.modern(call, request_id)
        except GatewayError as exc:
            await self._refuse(exchange, request_id, exc)
            return
        if isinstance(answer, bytes):
            await exchange.message(jsonrpc.response(request_id, answer))
            return
        await ModernDelivery(exchange, self._answers, answer.call, request_id).carry(answer)

    def begin(self, exchange: Exchange, message: Message, request_id: Id) -> bool:
        """Submit a tool call without a task; return False, without effect, if it needs one."""
        try:
            call = self._read(exchange, message)
        except (GatewayError, headers.HeaderMismatch):
            return False
        return ModernDelivery(exchange, self._answers, call, request_id).begin()

    def _read(self, exchange: Exchange, message: Message) -> Call:
        """Make the call of a request whose headers agree with its body.

        Raises:
            HeaderMismatch: they do not.
            GatewayError: the body is not a request of this era.
        """
        mirrored = headers.mirrored(exchange.scope["headers"])
        try:
            call = requests.modern_call(message, identity=exchange.identity, address=exchange.counted_address)
        except requests.UnsupportedVersion as exc:
            version = mirrored.get(headers.VERSION_HEADER, b"").decode("latin-1")
            if version != exc.requested:
                text = (
                    f"Header mismatch: MCP-Protocol-Version header value {version!r}"
                    f" does not match body value {exc.requested!r}"
                )
                raise headers.HeaderMismatch(text) from None
            raise
        headers.check(mirrored, call)
        if call.method == "tools/call":
            annotations = self._answers.fleet.snapshot(call.caller.scope).mirrored_params(call.name)
            if annotations:
                arguments = call.params.get("arguments", jsonrpc.EMPTY_OBJECT)
                if self._answers.fleet.is_limited(call.caller.scope):
                    twice = find_second_argument(annotations, arguments)
                    if twice is not None:
                        raise InvalidParams(requests.ambiguous(f"params.arguments.{twice}"))
                check_param_headers(mirrored, annotations, arguments)
        return call

    async def _refuse(self, exchange: Exchange, request_id: Id, problem: GatewayError) -> None:
        body, code = self._answers.encode_error(request_id, problem, Era.MODERN)
        status = errors.http_status(code)
        await (exchange.message(body) if status == _OK else exchange.json(status, body))

    async def _listen(self, exchange: Exchange, subscription: Subscription) -> None:
        """Keep a subscription's stream open until the client disconnects or the gateway stops."""
        try:
            await exchange.event(await subscription.open())
            async with trio.open_nursery() as nursery:

                async def end_on(event: trio.Event, reason: str) -> None:
                    await event.wait()
                    nursery.cancel_scope.cancel(reason=reason)

                async def watch_client() -> None:
                    await exchange.hung_up()
                    raise ClientGone

                nursery.start_soon(end_on, self._closing, "the gateway is shutting down")
                nursery.start_soon(end_on, subscription.over, "the client may no longer use this view")
                nursery.start_soon(watch_client)
                with exchange.while_valid():
                    while True:
                        messages: list[bytes] = []
                        with trio.move_on_after(self._answers.settings.keep_alive_interval) as silence:
                            messages = await subscription.next_notifications()
                        if silence.cancelled_caught:
                            await exchange.keep_alive()
                        for message in messages:
                            await exchange.event(message)
                nursery.cancel_scope.cancel(reason="the client's key or token is no longer valid")
            await exchange.event(subscription.result())
            await exchange.end_stream()
        except* ClientGone:
            pass
        finally:
            subscription.close()
