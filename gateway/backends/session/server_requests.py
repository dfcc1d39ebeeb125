"""Route server-initiated messages to the client they belong to.

A message on a call's own stream belongs to that call. On a shared pipe it belongs to the only client that has a call in
flight there; if there are several, or none, a request is refused with an error that names the option to set, and a log
message goes to the gateway's own log. No message reaches a client that it may not be meant for.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Final

from gateway import jsonrpc
from gateway.backends.stderr import NO_CALL
from gateway.calls import Failure, Notification, ServerRequest
from gateway.eras import asks, meta, tasks
from gateway.eras.methods import CAPABILITY
from gateway.errors import InvalidParams
from gateway.masking import SECRETS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import msgspec

    from gateway.inflight.pending import PendingCall

MAX_OPEN: Final = 1_024
"""Unanswered requests of one backend session."""
MAX_ELICITED: Final = 1_000
"""URL elicitations whose client is remembered; the oldest is forgotten."""

log = logging.getLogger("gateway.backend")


class ServerRequestRouter:
    """The unanswered requests of one backend session to clients."""

    def __init__(
        self,
        backend: str,
        *,
        post: Callable[[bytes], None],
        calls: Callable[[], Collection[PendingCall]],
        for_client: Callable[[str, str, dict[str, msgspec.Raw]], None],
    ) -> None:
        self._backend = backend
        self._for_client = for_client
        self._elicited: dict[str, str] = {}
        self._post = post
        self._calls = calls
        self._open: dict[jsonrpc.Id, tuple[ServerRequest, PendingCall]] = {}
        self.asked: dict[str, None] = {}
        """The methods of the requests so far, of those that a client could answer."""

    def owner(self, pending: PendingCall | None) -> PendingCall | None:
        """Return the call that a message belongs to.

        That is the call of its stream, else the latest call if all are of one client.
        """
        if pending is not None:
            return pending
        latest: PendingCall | None = None
        for candidate in self._calls():
            if latest is not None and not latest.call.caller.same_client(candidate.call.caller):
                return None
            latest = candidate
        return latest

    def request(self, message: jsonrpc.Message, pending: PendingCall | None) -> None:
        """Handle a request of the backend."""
        request_id, method = message.id, message.method
        if not isinstance(request_id, int | str) or not isinstance(method, str):
            return
        if method == "ping":
            self._post(jsonrpc.response(request_id, b"{}") + b"\n")
        elif method not in CAPABILITY:
            self._refuse(request_id, jsonrpc.METHOD_NOT_FOUND, f"the gateway serves no {method}")
        elif request_id in self._open:
            self._refuse(request_id, jsonrpc.INVALID_REQUEST, f"request id {request_id!r} is still in use")
        else:
            self.asked[method] = None
            self._deliver(request_id, method, message, self.owner(pending))

    def _deliver(
        self, request_id: jsonrpc.Id, method: str, message: jsonrpc.Message, owner: PendingCall | None
    ) -> None:
        if owner is None:
            in_flight = len(self._calls())
            text = (
                f"{method} belongs to no single client: {in_flight} calls are in flight in this session;"
                f" set session: client (or call) for server {self._backend!r}"
                if in_flight
                else f"{method} {NO_CALL}"
            )
            self._refuse(request_id, jsonrpc.INTERNAL_ERROR, text)
            return
        try:
            params = jsonrpc.decode_object(message.params)
            meta.drop_nulls(method, params)
            wants_progress = meta.progress_token(meta.split_request_meta(dict(params))[1]) is not None
        except (ValueError, InvalidParams) as exc:
            self._refuse(request_id, jsonrpc.INVALID_PARAMS, str(exc))
            return
        related = tasks.related(params)
        meta.drop_key(params, tasks.RELATED)
        params.pop("task", None)  # clients are offered no tasks, neither their own nor the backend's
        missing = asks.missing_capability(owner.call.caller, method, params)
        if missing is not None:
            code = jsonrpc.INVALID_PARAMS if "." in missing else jsonrpc.METHOD_NOT_FOUND
            self._refuse(request_id, code, f"the client has not declared the capability {missing}")
            return
        try:
            params = asks.for_version(method, params, owner.call.caller.version)
        except ValueError as exc:
            self._refuse(request_id, jsonrpc.INVALID_PARAMS, str(exc))
            return

        def settle(reply: bytes | Failure) -> None:
            if self._open.pop(request_id, None) is None:
                return
            if isinstance(reply, Failure):
                self._refuse(request_id, reply.code, reply.message, reply.data)
            else:
                reply = tasks.relate(reply, related) if related else reply
                self._post(jsonrpc.response(request_id, reply) + b"\n")

        def report_progress(progress: dict[str, msgspec.Raw]) -> None:
            if self._open:  # else the session is over, or has no calls that this could be about
                self._post(jsonrpc.notification("notifications/progress", jsonrpc.encode(progress)) + b"\n")

        if "elicitationId" in params and (key := owner.call.caller.session) is not None:
            # The client's call may be over when the server reports that the URL flow is complete.
            with contextlib.suppress(ValueError):
                self._elicited[jsonrpc.decode_string(params["elicitationId"])] = key
                if len(self._elicited) > MAX_ELICITED:
                    del self._elicited[next(iter(self._elicited))]
        ask = ServerRequest(method, params, settle, report_progress if wants_progress else None)
        ask.trace = None if owner.call.trace is None else owner.call.trace.asked(method, request_id, params)
        if len(self._open) >= MAX_OPEN:  # those of calls that ended without a response
            oldest, _ = self._open[next(iter(self._open))]
            oldest.refuse(jsonrpc.INTERNAL_ERROR, "too many later requests are open")
        self._open[request_id] = (ask, owner)
        owner.ask(ask)

    def cancelled(self, params: msgspec.Raw) -> None:
        """Handle the backend's `notifications/cancelled`, which withdraws a request of its own."""
        try:
            request_id = jsonrpc.decode_id(jsonrpc.decode_object(params)["requestId"])
        except (KeyError, ValueError):
            return
        opened = self._open.pop(request_id, None)
        if opened is not None:
            ask, owner = opened
            owner.withdraw_ask(ask)

    def close(self) -> None:
        """Forget open requests: the session is over, and its ids may be used again."""
        self._open.clear()

    def completed(self, params: msgspec.Raw) -> None:
        """Handle `notifications/elicitation/complete`, for the client that was shown the URL."""
        try:
            members = jsonrpc.decode_object(params)
            key = self._elicited.pop(jsonrpc.decode_string(members["elicitationId"]), None)
            meta.drop_nulls("notifications/elicitation/complete", members)
        except (KeyError, ValueError):
            return
        if key is not None:
            self._for_client(key, "notifications/elicitation/complete", members)

    def vendor(self, method: str, params: msgspec.Raw, pending: PendingCall | None) -> None:
        """Pass an unknown notification unchanged to the only client it can be for."""
        owner = self.owner(pending)
        try:
            members = jsonrpc.decode_object(params)
        except ValueError:
            return
        meta.drop_nulls(method, members)
        if owner is None:
            log.debug("backend %r sent %s, which belongs to no client", self._backend, method)
        else:
            owner.notify(Notification(method, members))

    def message(self, params: msgspec.Raw, pending: PendingCall | None) -> None:
        """Pass a log message to the only client it can be for, or log it."""
        owner = self.owner(pending)
        try:
            members = jsonrpc.decode_object(params)
        except ValueError:
            return
        meta.drop_nulls("notifications/message", members)
        if owner is not None:
            owner.notify(Notification("notifications/message", members))
            return
        data = bytes(members.get("data", jsonrpc.ABSENT))[:500]
        log.info("%s", SECRETS.mask(data.decode(errors="replace")), extra={"backend": self._backend})

    def _refuse(self, request_id: jsonrpc.Id, code: int, text: str, data: bytes | None = None) -> None:
        self._post(jsonrpc.error_response(request_id, code, text, data) + b"\n")
