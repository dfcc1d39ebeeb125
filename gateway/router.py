"""One call, from its public name to the backend that owns it, and back.

`Router.submit` looks the name up in the catalog's table and hands a `PendingCall` to the owner's supervisor; the caller
must `release` it, whatever happens. A known name never becomes an unknown one: a name that a starting backend may own
waits for that backend.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final, Protocol

import trio

from gateway import jsonrpc
from gateway.budget import MAX_BUFFERED_BYTES, SMALL_BYTES, Budget
from gateway.calls import Complete, Failure
from gateway.catalog import uris
from gateway.catalog.ownership import Asked, Links, Pages, Route, publish, publish_error
from gateway.catalog.parts import has_capability
from gateway.eras.asks import shows_apps
from gateway.eras.methods import OWNER_KIND, Kind
from gateway.eras.requests import is_foreign_notification, is_mcp_method
from gateway.eras.tools import is_for_apps
from gateway.errors import (
    BackendError,
    BackendUnavailable,
    Busy,
    GatewayError,
    InvalidParams,
    Revoked,
    ServerDisabled,
    ShuttingDown,
    UnknownMethod,
    UnknownName,
)
from gateway.inflight.pending import Counted, PendingCall

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from gateway.calls import Call, Caller, Outcome
    from gateway.catalog.snapshot import Snapshot
    from gateway.inflight.pending import ClientSink
    from gateway.supervisor.fleet import Fleet


FULL_HINT: Final = 1.0
"""Seconds after which to retry a call refused because too many bytes are buffered."""

log = logging.getLogger("gateway.router")


class AdmissionControl(Protocol):
    """Admission control for calls. Implemented above, by `gateway.access.table.Access`."""

    def begin(self, caller: Caller, *, again: bool = False) -> Counted | None:
        """Count a call; return the observer of its end. Raises RequestError."""
        ...

    def takes_note(self, caller: Caller) -> bool:
        """Count a notification of this caller; return whether it may go to a backend."""
        ...


class Router:
    """Finds owners and tracks pending calls."""

    def __init__(
        self,
        fleet: Fleet,
        admission: AdmissionControl | None = None,
        *,
        buffers: Budget | None = None,
        note_refused: Callable[[Call, str, float, GatewayError | None], None] = (
            lambda _call, _backend, _seconds, _problem: None
        ),
    ) -> None:
        """Make a router; without `admission` callers have no limit.

        `buffers` counts the bytes that wait in memory; above its bound, new calls are refused.
        `note_refused` is called for each refused call: the call, its backend (empty if none was found), the seconds
        that it waited, and the reason; None if its client cancelled it. It must not wait.
        """
        self.fleet = fleet
        self.buffers = buffers or Budget(MAX_BUFFERED_BYTES)
        self._admission = admission
        self._note_refused = note_refused
        self._links = Links()
        self._pages = Pages()
        self._linked = fleet.supervisors  # the table is replaced with each config
        self.refused: dict[tuple[str, str], int] = {}
        """The number of refused calls, by backend (empty if none was found) and code of the error."""
        self.dropped = 0
        """Notifications of ended calls that were dropped because their client was too slow."""
        self._draining = False
        self._hurried = trio.Event()
        self._under_way: set[PendingCall] = set()
        self._drain_scope = trio.CancelScope()
        self._emptied = trio.lowlevel.ParkingLot()

    @property
    def under_way(self) -> int:
        """The number of pending calls."""
        return len(self._under_way)

    def pending_calls(self) -> tuple[PendingCall, ...]:
        """The pending calls."""
        return tuple(self._under_way)

    async def route(self, call: Call) -> Route:
        """Return a call's owner and the owner's name for its target; wait like `submit`.

        Raises:
            RequestError: unknown name or method, shutting down.
            BackendUnavailable: the owner is unknown because a possible owner has failed.
        """
        self._refuse_while_draining()
        return self._lookup(call) or await self._await_owner(call)

    def knows(self, call: Call) -> bool:
        """Return whether the name of a call is one that its caller sees now."""
        return self._lookup(call) is not None

    async def submit(self, call: Call, *, again: bool = False) -> PendingCall:
        """Submit a call to its owner; the caller must `release` the pending call.

        Waits only for a backend in its first start that may own the name, within that backend's call timeout. `again`
        says that this continues a call that has been admitted, and not been released yet.

        Raises:
            RequestError: unknown name or method, full queue, shutting down.
            BackendUnavailable: the owner has failed or is stopped.
        """
        pending = self.submit_now(call, again=again)
        if pending is not None:
            return pending
        began = trio.current_time()
        try:
            self._refuse_while_draining()
            counted = self._count(call, again=again)
            try:
                route = self._lookup(call) or await self._await_owner(call)
                self._refuse_while_draining()  # the drain may have begun and counted the calls it waits for
                if counted is not None and counted.ended:
                    raise Revoked
            except BaseException:
                if counted is not None:
                    counted.end_call()
                raise
            return self._hand_over(call, route, counted)
        except (GatewayError, trio.Cancelled) as exc:
            self._not_submitted(call, exc if isinstance(exc, GatewayError) else None, began)
            raise

    def submit_now(
        self, call: Call, *, again: bool = False, sink: ClientSink | None = None, patience: float = math.inf
    ) -> PendingCall | None:
        """Submit a call if its owner is known; return None if only `submit` can tell.

        `sink` and `patience` are those of `PendingCall`.
        """
        try:
            route = None if self._draining else self._lookup(call)
        except GatewayError:
            return None
        if route is None:
            return None
        try:
            return self._hand_over(call, route, self._count(call, again=again), sink, patience)
        except GatewayError as exc:
            self._not_submitted(call, exc, trio.current_time())
            raise

    def _count(self, call: Call, *, again: bool) -> Counted | None:
        """Have admission control count the call, for as long as it is pending."""
        if self.buffers.used > self.buffers.most and not again:
            raise self._buffers_full()
        return None if self._admission is None else self._admission.begin(call.caller, again=again)

    def _buffers_full(self) -> Busy:
        text = f"{self.buffers.used} bytes are buffered (max_buffered_bytes); try again"
        return Busy(text, retry_after=FULL_HINT)

    def _hand_over(
        self,
        call: Call,
        route: Route,
        counted: Counted | None,
        sink: ClientSink | None = None,
        patience: float = math.inf,
    ) -> PendingCall:
        """Submit a call to its owner; do not count it if it is refused."""
        supervisors = self.fleet.supervisors
        supervisor = supervisors[route.backend]
        is_page = route.own.startswith(uris.PAGE)
        pending = PendingCall(
            call,
            backend=route.backend,
            own_name=route.own,
            timeout=supervisor.gate.timeout(call.method, route.own),
            max_time=supervisor.config.max_call_time,
            as_task=route.task,
            deadlines=self.fleet.deadlines,
            counted=counted,
            # One backend alone has every URI for itself.
            publish=self._publish if call.method in OWNER_KIND and (len(supervisors) > 1 or is_page) else None,
            sink=sink,
            patience=patience,
            buffers=self.buffers,
        )
        self._under_way.add(pending)
        try:
            if call.size > SMALL_BYTES and not pending.hold(call.size):
                raise self._buffers_full()
            supervisor.submit(pending)
        except BaseException:
            pending.detach_sink()
            self._discard(pending)
            raise
        return pending

    def turn_away(self, call: Call, problem: GatewayError) -> None:
        """Count a call that its frontend has refused, and report it."""
        self._not_submitted(call, problem, trio.current_time())

    def _not_submitted(self, call: Call, problem: GatewayError | None, began: float) -> None:
        """Count and report a call that no backend has accepted.

        Without a problem its client has cancelled it.
        """
        backend = problem.backend if isinstance(problem, BackendError) else ""
        if isinstance(problem, Busy):
            route = self._lookup(call)
            backend = "" if route is None else route.backend
        key = backend, "cancelled" if problem is None else problem.code
        if key not in self.refused:  # adding a key drops those of removed servers, which bounds the table
            known = {"", *self.fleet.supervisors}
            self.refused = {old: count for old, count in self.refused.items() if old[0] in known}
        self.refused[key] = self.refused.get(key, 0) + 1
        self._note_refused(call, backend, trio.current_time() - began, problem)

    def _publish(self, pending: PendingCall, outcome: Outcome) -> Outcome:
        """Return an outcome with public URIs; record the links in it."""
        call = pending.call
        if self._linked is not self.fleet.supervisors:
            self._linked = self.fleet.supervisors
            self._links.retain(self._linked)
            self._pages.retain(self.fleet.config.servers)  # a disabled server may come back
        is_resource = OWNER_KIND[call.method] is Kind.RESOURCES
        asked = Asked(pending.backend, call.method, *((pending.own_name, call.name) if is_resource else ()))
        if isinstance(outcome, Complete):
            if call.method == "resources/read" and pending.own_name.startswith(uris.PAGE) and shows_apps(call.caller):
                self._pages.learn(call.caller, pending.backend)
            result = publish(self.fleet.snapshot(call.caller.scope).uris, self._links, asked, outcome.result)
            return outcome if result is outcome.result else Complete(result, outcome.era, outcome.strings)
        if isinstance(outcome, Failure):
            data = publish_error(asked, outcome.data)
            return outcome if data is outcome.data else Failure(outcome.code, outcome.message, data, outcome.era)
        return outcome

    def pass_on(self, method: str, params: msgspec.Raw, caller: Caller) -> None:
        """Pass a client's unknown notification to the backend for such methods, if any."""
        owner = _only_backend(self.fleet.snapshot(caller.scope))
        if owner is None:
            log.debug("dropped %s from a client: no single backend can be its target", method)
        elif not is_foreign_notification(method):
            log.debug("dropped %s from a client: not a notification", method)
        elif params is not jsonrpc.ABSENT and not bytes(params).lstrip().startswith(b"{"):
            log.debug("dropped %s from a client: params are not an object", method)
        elif self._admission is not None and not self._admission.takes_note(caller):
            log.debug("dropped %s from a client: rate limit exceeded", method)
        else:
            self.fleet.supervisors[owner].pass_on(method, params, caller.session or "")

    def _refuse_while_draining(self) -> None:
        if self._draining:
            text = "the gateway is shutting down and accepts no new calls"
            raise ShuttingDown(text)

    def cut_off(self, counted: Counted) -> None:
        """End and cancel all calls of a principal whose access has ended."""
        for pending in list(self._under_way):
            if pending.counted is counted:
                pending.abandon(Revoked(), "the client's access was revoked")

    def find(self, number: int) -> PendingCall | None:
        """Return the pending call with this number that has not ended, or None."""
        return next((one for one in self._under_way if one.number == number and not one.over), None)

    def waiting(self, backend: str) -> list[PendingCall]:
        """Return calls for this backend that have not been sent yet."""
        return [one for one in self._under_way if one.backend == backend and not one.is_sent and not one.over]

    def release(self, pending: PendingCall, reason: str = "the client cancelled the request") -> None:
        """Release a call; if it has not ended, cancel it at its backend."""
        if not pending.over:
            pending.close(reason)
        self._discard(pending)

    def _discard(self, pending: PendingCall) -> None:
        """Stop counting a call. Safe to repeat."""
        if pending not in self._under_way:
            return
        self._under_way.discard(pending)
        self.dropped += pending.dropped
        if pending.held:
            pending.free(pending.held)
        if pending.counted is not None:
            pending.counted.end_call()
        if self._draining and not self._under_way:
            self._emptied.unpark_all()

    def refuse_new(self) -> None:
        """Refuse new calls from now on."""
        self._draining = True

    async def drain(self, grace: float) -> bool:
        """Refuse new calls; wait `grace` seconds for pending ones; return whether all ended.

        Calls that did not end are finished with an error and cancelled at their backends.
        """
        self.refuse_new()
        if not self._hurried.is_set():
            with trio.move_on_after(grace) as self._drain_scope:
                while self._under_way:
                    await self._emptied.park()
        left = list(self._under_way)
        for pending in left:
            problem = BackendUnavailable(pending.backend, "was cut off: the gateway is shutting down")
            pending.abandon(problem, "the gateway is shutting down")
        return not left

    def stop_draining(self) -> None:
        """End the drain now."""
        self._hurried.set()
        self._drain_scope.cancel(reason="immediate stop requested")

    def _lookup(self, call: Call) -> Route | None:
        snapshot = self.fleet.snapshot(call.caller.scope)
        if call.method == "completion/complete":
            return self._completion_owner(call, snapshot)
        kind = OWNER_KIND.get(call.method)
        if kind is None:
            # A method that MCP does not define goes to the only backend, if there is only one. Not for a caller who may
            # see only a part of that backend: such a method might disclose the rest.
            owner = _only_backend(snapshot)
            if owner is None or is_mcp_method(call.method):
                text = f"method {call.method!r} is not served"
                raise UnknownMethod(text)
            return Route(owner, "")
        if kind is Kind.RESOURCES:
            return self._resource_owner(call.name, snapshot)
        route = snapshot.route(kind, call.name) or (self._app_tool(call, snapshot) if kind is Kind.TOOLS else None)
        if snapshot.known_as:
            call.known_as = snapshot.known_as.get(call.name, "")
        return route

    def _app_tool(self, call: Call, snapshot: Snapshot) -> Route | None:
        """Resolve an app's call by its server's own tool name to the public name.

        MCP Apps: a page calls the tools of its server, whose public names it does not know. Its host forwards the call
        without naming the page; it can only be one that the host has read.

        Raises:
            UnknownName: several servers whose pages the client has read have such a tool.
        """
        owners = self._pages.owners(call.caller)
        if not owners or not shows_apps(call.caller):
            return None
        entries = [entry for owner in sorted(owners) for entry in snapshot.placed(Kind.TOOLS, owner)]
        named = [one for one in entries if one.own == call.name and one.era in {None, call.caller.era}]
        found = [entry.public for entry in named if is_for_apps(entry.raw)]
        # Includes servers whose tool this caller may not call: their pages must not reach another server's tool.
        meant = sum(
            any(item.own == call.name and is_for_apps(item.raw) for item in one.listing.items.get(Kind.TOOLS, ()))
            for name, one in self.fleet.supervisors.items()
            if name in owners and one.listing is not None and all(scope.sees_server(name) for scope in snapshot.limits)
        )
        if found and meant > 1:
            text = f"tool {call.name!r} is ambiguous; call {' or '.join(found)}, or give each server a view (views)"
            raise UnknownName(text)
        if not found:
            return None
        call.name = found[0]
        return snapshot.route(Kind.TOOLS, call.name)

    def _resource_owner(self, uri: str, snapshot: Snapshot) -> Route | None:
        route = snapshot.uris.resources.get(uri)  # nearly always
        if not snapshot.any_resource:
            return route
        if route is None and (named := snapshot.uris.named_in(uri)) is not None and named[0] not in snapshot.backends:
            return None  # it belongs only to a server that this caller does not see
        route = route or snapshot.uris.find(uri, self._links.owner(uri, snapshot.backends))
        if route is not None and route.backend in self.fleet.supervisors:
            return route
        # The only backend with resources decides on URIs that no backend lists.
        owners = [part.backend for part in snapshot.parts if has_capability([part], ["resources"])]
        return Route(owners[0], uri) if len(owners) == 1 else None

    def _completion_owner(self, call: Call, snapshot: Snapshot) -> Route | None:
        """Find the owner of the prompt or template in `ref`; put its own name there."""
        try:
            ref: dict[str, msgspec.Raw] = jsonrpc.decode_object(call.params["ref"])
            kind = jsonrpc.decode_string(ref["type"])
            member = "name" if kind == "ref/prompt" else "uri"
            call.name = call.name or jsonrpc.decode_string(ref[member])
        except (KeyError, ValueError):
            text = "completion/complete needs params.ref, with a type and a name or uri"
            raise InvalidParams(text) from None
        route = snapshot.route(Kind.PROMPTS, call.name)
        if member == "uri":
            route = snapshot.uris.templates.get(call.name) or self._resource_owner(call.name, snapshot)
        if route is not None and route.own != call.name:
            ref[member] = jsonrpc.raw(route.own)
            call.params["ref"] = jsonrpc.raw(ref)
        return route

    async def _await_owner(self, call: Call) -> Route:
        """Wait for backends without a known catalog that may own the name; then decide."""
        scope = call.caller.scope
        await self.fleet.first_starts(scope, era=call.caller.era)
        route = self._lookup(call)
        if route is not None:
            return route
        away: BackendUnavailable | None = None
        for supervisor in list(self.fleet.strangers(call.name, OWNER_KIND.get(call.method), scope)):
            if not supervisor.config.effective_namespace:
                continue  # it may own any name: waiting for it would delay every misspelled call
            supervisor.request_start()
            with trio.move_on_after(supervisor.config.call_timeout):
                await supervisor.known.wait()
            route = self._lookup(call)
            if route is not None:
                return route
            if supervisor.listing is None:
                reason = supervisor.last_error or "it has not started yet"
                away = BackendUnavailable(supervisor.name, f"is not available ({supervisor.state}): {reason}")
        if away is not None:
            raise away
        kind = OWNER_KIND.get(call.method)
        disabled = None if kind is None else self.fleet.disabled_owner(call.name, kind, scope)
        raise unknown(call) if disabled is None else ServerDisabled(disabled)


def unknown(call: Call) -> UnknownName:
    """Return the error for a name without an owner, or hidden from the caller."""
    kind = OWNER_KIND.get(call.method)
    noun = (kind or Kind.PROMPTS).noun
    return UnknownName(f"Unknown {noun}: {call.name}", uri=call.name if kind is Kind.RESOURCES else None)


def _only_backend(snapshot: Snapshot) -> str | None:
    """Return the only backend, for a caller who may see all of it."""
    return snapshot.backends[0] if len(snapshot.backends) == 1 and snapshot.whole_servers else None
