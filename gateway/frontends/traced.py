"""The request handler of a gateway that traces: each client request has a span.

A call without a task has its span from its delivery (`Delivery.begin`); all other requests get it here. Both end here.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from gateway import jsonrpc
from gateway.calls import ANYBODY, Era
from gateway.eras import errors
from gateway.eras.methods import OWNER_KIND
from gateway.errors import GatewayError
from gateway.frontends.request_handler import RequestHandler
from gateway.telemetry import works_within
from gateway.tracing.spans import RequestTrace

if TYPE_CHECKING:
    from collections.abc import Generator

    from gateway.calls import Call, Caller, Failure, Identity, Outcome, ServerRequest, Trace
    from gateway.frontends.call_stream import CallStream
    from gateway.frontends.legacy.sessions import ClientIntroduction, LegacySession
    from gateway.frontends.modern.suspended_calls import SuspendedCalls
    from gateway.jsonrpc import Body, Id, Message
    from gateway.router import Router
    from gateway.tracing.spans import Tracing


class TracedRequestHandler(RequestHandler):
    """A request handler that begins and ends spans."""

    def __init__(
        self, router: Router, version: str, parking: SuspendedCalls, gateways: tuple[str, ...], tracing: Tracing
    ) -> None:
        super().__init__(router, version, parking, gateways)
        self.tracing = self._tracing = tracing

    def _begin(self, message: Message, caller: Caller | None) -> RequestTrace:
        method, members, target = str(message.method), dict[str, msgspec.Raw](), ""
        try:
            params = jsonrpc.decode_object(message.params)
            members = jsonrpc.decode_object(params.get("_meta", jsonrpc.EMPTY_OBJECT))
            if method in OWNER_KIND:
                target = jsonrpc.decode_string(params[OWNER_KIND[method].key])
        except (KeyError, ValueError):
            pass  # the response says so
        request_id = message.id if isinstance(message.id, int | str) else ""
        return self._tracing.begin(method, target, request_id, caller, members)

    @contextmanager
    def _answering(self, trace: RequestTrace, era: Era) -> Generator[None]:
        """End the span if an exception ends this block."""
        try:
            with works_within(trace.ids):
                yield
        except GatewayError as exc:
            trace.responded(self.encode_error(None, exc, era)[1], exc)
            raise
        except BaseException:
            trace.cancelled("the client cancelled the request")
            raise

    def introduce(self, message: Message, identity: Identity = ANYBODY) -> ClientIntroduction:
        """Begin the span of `initialize`; `greeting` ends it."""
        trace = self._begin(message, None)
        try:
            introduction = super().introduce(message, identity)
        except GatewayError as exc:
            trace.responded(errors.to_wire(exc, Era.LEGACY).code, exc)
            raise
        return msgspec.structs.replace(introduction, trace=trace)

    def greeting(self, introduction: ClientIntroduction) -> bytes:
        """Answer `initialize`."""
        answer = super().greeting(introduction)
        if introduction.trace is not None:
            introduction.trace.responded(None, None)
        return answer

    def welcome(self, session: LegacySession) -> None:
        """Count the duration of the session too."""
        super().welcome(session)
        session.on_end.append(self._tracing.client_session(session.caller.version))

    async def legacy(self, message: Message, session: LegacySession, trace: Trace | None = None) -> bytes | CallStream:
        """Answer a legacy request, or forward it."""
        trace = self._begin(message, session.caller)
        with self._answering(trace, Era.LEGACY):
            answer = await super().legacy(message, session, trace)
        if isinstance(answer, bytes):
            trace.responded(None, None)
        return answer

    async def modern(self, call: Call, request_id: Id = "") -> bytes | CallStream:
        """Answer a modern request, or forward it."""
        call.trace = trace = self._tracing.begin_call(call, request_id)
        with self._answering(trace, Era.MODERN):
            answer = await super().modern(call, request_id)
        if isinstance(answer, bytes):
            trace.responded(None, None)
        elif isinstance(answer.call.trace, RequestTrace) and answer.call is not call:
            answer.call.trace.resumed_by(trace)
        return answer

    async def ask_modern(self, flow: CallStream, request_id: Id, ask: ServerRequest) -> bytes | Outcome | None:
        """Pass a server request to a modern client, which suspends its call."""
        answer = await super().ask_modern(flow, request_id, ask)
        if isinstance(answer, bytes) and flow.call.trace is not None:
            flow.call.trace.suspended()
        return answer

    def encode_outcome(self, call: Call, request_id: Id, outcome: Outcome) -> tuple[Body, int | None]:
        """Return the response to a call, and end its span."""
        body, code = super().encode_outcome(call, request_id, outcome)
        if call.trace is not None:
            call.trace.responded(code, outcome)
        return body, code

    def encode_error(
        self, request_id: Id | None, problem: GatewayError | Failure, era: Era, call: Call | None = None
    ) -> tuple[bytes, int]:
        """Return the error response to a request, and end the span of its call."""
        body, code = super().encode_error(request_id, problem, era, call)
        if call is not None and call.trace is not None:
            call.trace.responded(code, problem)
        return body, code
