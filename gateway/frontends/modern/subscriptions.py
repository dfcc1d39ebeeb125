"""One `subscriptions/listen` of a modern client (2026-07-28 basic/patterns/subscriptions).

The acknowledgement comes first and names only the parts that are honoured; every message carries the subscription's id.
Pending changes are a set of features, so a slow client cannot make it grow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import trio

from gateway import jsonrpc
from gateway.calls import EVERYTHING
from gateway.eras import meta, results
from gateway.eras.methods import LIST_CHANGED, LISTENED
from gateway.errors import InvalidParams
from gateway.frontends import resource_subscriptions
from gateway.frontends.notification_queue import NotificationQueue

if TYPE_CHECKING:
    from gateway.access.principals import Principal
    from gateway.calls import Call
    from gateway.catalog.snapshot import ListNews
    from gateway.frontends.request_handler import RequestHandler


class Subscription:
    """One client's filter and its pending notifications."""

    def __init__(self, answers: RequestHandler, request_id: jsonrpc.Id, call: Call) -> None:
        """Read the filter.

        Raises:
            InvalidParams: `params.notifications` is missing or has the wrong form.
        """
        try:
            wanted = jsonrpc.decode_object(call.params["notifications"])
        except (KeyError, ValueError):
            text = "subscriptions/listen needs params.notifications, an object"
            raise InvalidParams(text) from None
        self._answers = answers
        self._id = request_id
        self._features: dict[str, str] = {}
        for key, value in wanted.items():
            if key not in LISTENED:
                continue
            if bytes(value) not in {b"true", b"false", b"null"}:
                text = f"params.notifications.{key} must be true or false"
                raise InvalidParams(text)
            if bytes(value) == b"true":
                self._features[LISTENED[key]] = key
        self._changes = NotificationQueue(request_id)
        self._caller = call.caller
        self._trace = None if answers.tracing is None else answers.tracing.begin_call(call, request_id)
        self.over = trio.Event()
        """Set when its client may no longer use this endpoint."""
        self._key = call.caller.session or call.caller.principal
        self._uris = _uris(wanted)

    async def open(self) -> bytes:
        """Subscribe; return the acknowledgement, which must be sent first."""
        fleet = self._answers.fleet
        fleet.subscribe(self.notify_list_changed)
        if self._key is not None:
            fleet.mailboxes.register(self._key, self.handle_private_notification)
        self._answers.listeners.add(self)
        honoured: dict[str, object] = dict.fromkeys(self._features.values(), True)
        if self._uris:
            watched = await resource_subscriptions.watch_all(
                self._answers.router, self, self._uris, self._caller, self._changes, lambda: self._caller.scope
            )
            if watched:
                honoured["resourceSubscriptions"] = watched
        return jsonrpc.notification(
            "notifications/subscriptions/acknowledged",
            jsonrpc.encode({"_meta": {meta.SUBSCRIPTION_ID: self._id}, "notifications": honoured}),
        )

    def close(self) -> None:
        """Unsubscribe. Safe to repeat, and after an `open` that was cancelled."""
        self._answers.listeners.discard(self)
        if self._trace is not None:
            self._trace.responded(None, None)
        self._answers.fleet.unsubscribe(self.notify_list_changed)
        if self._key is not None:
            self._answers.fleet.mailboxes.close(self._key, self.handle_private_notification)
        self._answers.fleet.forget(self)

    def update_principal(self, principal: Principal) -> None:
        """Apply the present rules of this principal: drop notifications out of scope.

        A no-op for a subscription of another one.
        """
        own = self._caller.scope or EVERYTHING
        view = own.view
        if self._caller.principal != principal.name:
            return
        scope = principal.identity_at(view, own.names).scope
        if not principal.may_use_view(view):
            self.over.set()
        elif scope != self._caller.scope:
            self._caller = msgspec.structs.replace(self._caller, scope=scope)
            self._changes.add(self._features)

    def notify_list_changed(self, news: ListNews) -> None:
        """Note that lists changed."""
        wanted = news.features(self._caller.scope, self._caller.era) & self._features.keys()
        if wanted:
            self._changes.add(wanted)

    def handle_private_notification(self, method: str, params: dict[str, msgspec.Raw]) -> None:
        """Note list changes of the client's own backend session; ignore its other notifications."""
        del params
        if LIST_CHANGED.get(method) in self._features:
            self._changes.add([LIST_CHANGED[method]])

    async def next_notifications(self) -> list[bytes]:
        """Wait for changes; return the notifications to send."""
        return await self._changes.next_batch()

    def result(self) -> bytes:
        """Return the response that ends the subscription gracefully ("Graceful Closure")."""
        own = {meta.SUBSCRIPTION_ID: self._id}
        result = results.modern_result({}, server_info=self._answers.server_info, own_meta=dict(own))
        return jsonrpc.response(self._id, result)


def _uris(wanted: dict[str, msgspec.Raw]) -> list[str]:
    try:
        if wanted["resourceSubscriptions"] == jsonrpc.NULL:
            return []
        spans = jsonrpc.decode_array(wanted["resourceSubscriptions"])
        return list(dict.fromkeys(jsonrpc.decode_string(span) for span in spans))
    except KeyError:
        return []
    except ValueError:
        text = "params.notifications.resourceSubscriptions must be a list of strings"
        raise InvalidParams(text) from None
