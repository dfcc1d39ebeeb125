"""Batches, which exist in one protocol version (2025-03-26 basic, "Batching"), over stdio and streamable HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import trio

from gateway.calls import Era
from gateway.errors import GatewayError
from gateway.frontends.legacy.notifications import handle_notification

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from gateway.frontends.legacy.sessions import InFlight, LegacySession
    from gateway.frontends.request_handler import RequestHandler
    from gateway.jsonrpc import Id, Message

    Respond = Callable[[Message, Id, trio.CancelScope], Awaitable[bytes | None]]


async def respond_to_batch(
    handler: RequestHandler,
    session: LegacySession | None,
    messages: Iterable[Message],
    in_flight: InFlight,
    respond: Respond,
) -> bytes | None:
    """Return the batch of responses, in order of arrival; None if there are none.

    `respond` returns the response to one request, or None if it was cancelled, and removes it from `in_flight`.
    """
    responses: list[bytes] = []

    async def collect(message: Message, request_id: Id, scope: trio.CancelScope) -> None:
        response = await respond(message, request_id, scope)
        if response is not None:
            responses.append(response)

    async with trio.open_nursery() as nursery:
        for message in messages:
            if message.method is msgspec.UNSET or not isinstance(message.id, int | str):
                handle_notification(handler, session, message, in_flight)
                continue
            try:
                scope = in_flight.add(message.id)
            except GatewayError as exc:
                if session is not None:
                    handler.turn_away(message, session.caller, exc)
                responses.append(handler.encode_error(message.id, exc, Era.LEGACY)[0])
            else:
                nursery.start_soon(collect, message, message.id, scope)
    return b"[" + b",".join(responses) + b"]" if responses else None
