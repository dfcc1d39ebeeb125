"""A legacy client's notifications and responses, over any transport.

Responses to server requests, cancellations, progress, changed roots; and notifications unknown to MCP, which go to the
backend if there is only one (as unknown methods do), and are dropped otherwise. Nothing here waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.eras.methods import CLIENT_NOTIFICATIONS
from gateway.frontends.request_handler import cancelled_id

if TYPE_CHECKING:
    from gateway.frontends.legacy.sessions import InFlight, LegacySession
    from gateway.frontends.request_handler import RequestHandler
    from gateway.jsonrpc import Message


def handle_notification(
    answers: RequestHandler, session: LegacySession | None, message: Message, in_flight: InFlight
) -> None:
    """Handle a notification or a response; without a session only cancellations count."""
    match message.method:
        case "notifications/cancelled":
            request_id = cancelled_id(message)
            if request_id is not None:
                in_flight.cancel(request_id)
        case _ if session is None:
            pass
        case msgspec.UNSET:
            session.server_requests.handle_response(message)
        case "notifications/roots/list_changed":
            answers.fleet.roots_changed(session.key)
        case "notifications/progress":
            session.server_requests.progress(message)
        case method if method not in CLIENT_NOTIFICATIONS:
            answers.router.pass_on(str(method), message.params, session.caller)
        case _:
            pass  # the handshake is the gateway's own, and no server is offered tasks of clients
