"""Resource subscriptions of clients of both eras: each backend is subscribed once.

The first legacy client's own `resources/subscribe` is forwarded, so that it gets the backend's own response; the
gateway answers later ones itself. A client's subscriptions end with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from gateway import jsonrpc
from gateway.calls import Call, Complete, Era, Failure
from gateway.catalog.parts import has_capability
from gateway.errors import BackendProtocol, Busy, GatewayError, RequestError, UnknownMethod

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from gateway.calls import Caller, Scope
    from gateway.catalog.ownership import Route
    from gateway.frontends.legacy.sessions import LegacySession
    from gateway.frontends.notification_queue import NotificationQueue
    from gateway.router import Router

MAX_WATCHED: Final = 1_000
"""Resources that one client may be subscribed to."""


class Refused(RequestError):
    """The backend itself refused; its own error goes to the client."""

    code: ClassVar[str] = "backend_refused"

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def can_be_watched(router: Router, backend: str) -> bool:
    """Return whether a backend declares `resources.subscribe`."""
    parts = [part for part in router.fleet.snapshot().parts if part.backend == backend]
    return has_capability(parts, ("resources", "subscribe"))


def watch(
    router: Router,
    client: object,
    route: Route,
    uri: str,
    changes: NotificationQueue,
    caller: Caller,
    scope: Callable[[], Scope | None] | None = None,
) -> None:
    """Notify a client of updates of a resource, while it may see it.

    Updates name the URI that the client knows.

    `scope` returns the client's present scope, if that may differ from the caller's.

    Raises:
        Busy: the client watches too many.
    """
    wish_list = router.fleet.wish_list
    if len(wish_list.watched(client)) >= MAX_WATCHED:
        text = f"{MAX_WATCHED} resources are subscribed to already"
        raise Busy(text)

    def may_see() -> bool:
        now = caller.scope if scope is None else scope()
        if now is None:
            return True
        seen = router.fleet.snapshot(now)
        return seen.any_resource and route.backend in seen.backends

    def notify(updated: str, params: dict[str, msgspec.Raw]) -> None:
        if not may_see():
            return
        shown = uri + updated[len(route.own) :]  # the resource itself, or one that is part of it
        changes.updated(shown, params if route.own == uri else {**params, "uri": jsonrpc.raw(shown)})

    wish_list.watch(client, route.backend, route.own, notify, key=caller.session or caller.principal)
    router.fleet.apply_subscriptions([route.backend])


async def subscribe(router: Router, session: LegacySession, call: Call) -> bytes:
    """Answer a legacy `resources/subscribe`.

    Raises:
        UnknownMethod: the backend has no subscriptions.
        Refused, GatewayError: the backend did not accept it.
    """
    route = await router.route(call)
    if not can_be_watched(router, route.backend):
        text = f"backend {route.backend!r} has no resource subscriptions"
        raise UnknownMethod(text)
    result = b"{}"
    greeting = router.fleet.supervisors[route.backend].greeting
    is_legacy = greeting is not None and greeting.era is Era.LEGACY
    if is_legacy and route.own not in router.fleet.wish_list.of(route.backend).uris:
        pending = await router.submit(call)
        try:
            outcome = await pending.wait_outcome("a client cannot be asked anything while it subscribes")
        finally:
            router.release(pending)
        if isinstance(outcome, Failure):
            raise Refused(outcome)
        if not isinstance(outcome, Complete):
            text = "neither accepted nor refused a subscription"
            raise outcome if isinstance(outcome, GatewayError) else BackendProtocol(route.backend, text)
        result = outcome.whole()
        router.fleet.supervisors[route.backend].subscribed(route.own)
    if session not in router.fleet.wish_list:
        session.on_end.append(lambda: router.fleet.forget(session))
    watch(router, session, route, call.name, session.changes, call.caller, lambda: session.caller.scope)
    return result


async def unsubscribe(router: Router, session: LegacySession, call: Call) -> bytes:
    """Answer a legacy `resources/unsubscribe`, even without a subscription."""
    route = await router.route(call)
    router.fleet.wish_list.unwatch(session, route.backend, route.own)
    router.fleet.apply_subscriptions([route.backend])
    return b"{}"


async def watch_all(
    router: Router,
    client: object,
    uris: list[str],
    caller: Caller,
    changes: NotificationQueue,
    scope: Callable[[], Scope | None] | None = None,
) -> list[str]:
    """Watch as many of these resources as possible for a modern client; return those watched."""
    honoured: list[str] = []
    for uri in uris[:MAX_WATCHED]:  # never more: looking each of them up would delay all clients
        call = Call(method="resources/read", name=uri, params={}, meta={}, caller=caller)
        try:
            route = await router.route(call)
            if can_be_watched(router, route.backend):
                watch(router, client, route, uri, changes, caller, scope)
                honoured.append(uri)
        except GatewayError:
            continue  # not honoured, and therefore not acknowledged
    return honoured
