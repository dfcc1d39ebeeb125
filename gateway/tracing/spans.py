"""The spans of requests, begun and ended by the code that handles them.

A client request has a `RequestTrace`: the span of the gateway as a server, and the one of the backend request that is
under way for it, its child. A server request has an `AskTrace`, the reverse of that. Requests of the gateway's own have
an `OwnRequest`. Nothing here waits, and nothing here knows the SDK.
"""

from __future__ import annotations

import enum
import time
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast

from gateway.calls import Complete, Failure
from gateway.errors import GatewayError, code_of, first_in_group
from gateway.tracing import conventions, trace_context
from gateway.tracing.conventions import PIPE, SUCCESS, Network, Operation
from gateway.tracing.durations import CLIENT_OPERATION, CLIENT_SESSION, SERVER_OPERATION, SERVER_SESSION
from gateway.tracing.trace_context import SAMPLED, TRACEPARENT, TRACESTATE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    import msgspec

    from gateway.calls import Call, Caller, Outcome
    from gateway.jsonrpc import Id
    from gateway.tracing.conventions import Ending
    from gateway.tracing.durations import Durations, HistogramName, Series
    from gateway.tracing.sampling import Sampler
    from gateway.tracing.trace_context import TraceContext

MAX_EVENTS: Final = 64
"""Events of one span; the SDK's limit is 128. A call that is asked for input over and over must not grow one."""
MAX_KINDS: Final = 2_000
"""Operations of one peer whose names and attributes are kept for later requests."""
MAX_KEPT: Final = 512
"""Characters of the method and target of a kind that is kept: a client may send megabytes as a name or URI."""
MAX_ID: Final = 128
"""Characters kept of a client's request id."""


class Side(enum.Enum):
    """The side of a request that a span describes."""

    SERVER = "SERVER"
    CLIENT = "CLIENT"


class Span:
    """A recorded span. Times are nanoseconds of Unix time."""

    __slots__ = (
        "attributes",
        "context",
        "ended_at",
        "ending",
        "events",
        "kind",
        "links",
        "name",
        "parent",
        "started_at",
    )

    def __init__(
        self,
        name: str,
        kind: Side,
        context: TraceContext,
        parent: TraceContext | None,
        attributes: dict[str, str | int],
        started_at: int,
    ) -> None:
        self.name = name
        self.kind = kind
        self.context = context
        self.parent = parent
        self.attributes = attributes
        self.started_at = started_at
        self.ended_at = 0
        self.ending = SUCCESS
        self.events: list[tuple[str, int, Mapping[str, str]]] = []
        self.links: list[TraceContext] = []


class Arrival(NamedTuple):
    """What carried a client's request here."""

    network: Network = PIPE
    client: tuple[str, int | None] | None = None
    """The address and port of the client."""
    context: TraceContext | None = None
    """The context of the HTTP request."""


BY_STDIO: Final = Arrival()
_arrival: ContextVar[Arrival] = ContextVar("arrival", default=BY_STDIO)


class RequestKind:
    """What all requests of one operation have in common."""

    __slots__ = ("attributes", "histogram", "name", "operation", "series", "side")

    def __init__(self, side: Side, operation: Operation) -> None:
        self.side = side
        self.operation = operation
        self.name = conventions.span_name(operation)
        self.attributes = conventions.span_attributes(operation)
        self.histogram = SERVER_OPERATION if side is Side.SERVER else CLIENT_OPERATION
        self.series: Series | None = None
        """The durations of those that succeed, once there is one."""


_K = TypeVar("_K")


def keep_kind(kinds: dict[_K, RequestKind], key: _K, kind: RequestKind) -> None:
    """Keep a kind for later requests, unless it is long; forget all if too many."""
    if len(kind.operation.method) + len(kind.operation.target) > MAX_KEPT:
        return
    if len(kinds) >= MAX_KINDS:
        kinds.clear()
    kinds[key] = kind


class Timed:
    """One side of a request: its duration, and its span if the trace is sampled."""

    __slots__ = ("_began", "_kind", "_tracing", "context", "is_known", "is_over", "span")

    def __init__(self, tracing: Tracing, kind: RequestKind, parent: TraceContext | None, request_id: Id) -> None:
        self._tracing = tracing
        self._kind = kind
        self._began = time.perf_counter()
        self.is_over = False
        self.is_known = kind.side is Side.CLIENT
        """Whether a backend has the target."""
        self.context = context = tracing.sampler.begin(parent)
        self.span: Span | None = None
        if context.flags & SAMPLED and tracing.keep is not None:
            attributes = kind.attributes | {"jsonrpc.request.id": str(request_id)[:MAX_ID]}
            self.span = Span(kind.name, kind.side, context, parent, attributes, time.time_ns())

    @property
    def operation(self) -> Operation:
        """What was requested."""
        return self._kind.operation

    @property
    def keys(self) -> dict[str, str]:
        """The keys for headers or `_meta`; none if spans are not exported."""
        return {} if self._tracing.keep is None else self.context.keys()

    def _now(self, span: Span) -> int:
        """Return the time, measured from the span's start, since the wall clock may be set."""
        return span.started_at + round((time.perf_counter() - self._began) * 1e9)

    def note(self, event: str, details: Mapping[str, str]) -> None:
        """Add an event to the span."""
        span = self.span
        if span is not None and not self.is_over and len(span.events) < MAX_EVENTS:
            span.events.append((event, self._now(span), details))

    def end(self, ending: Ending) -> None:
        """Record the end; only the first one counts."""
        if self.is_over:
            return
        self.is_over = True
        tracing, span = self._tracing, self.span
        if span is not None and tracing.keep is not None:
            span.ended_at = self._now(span)
            span.ending = ending
            tracing.keep(span)
        if tracing.durations is not None:
            kind, seconds = self._kind, time.perf_counter() - self._began
            if ending is SUCCESS and self.is_known:  # nearly always
                series = kind.series = kind.series or find_series(tracing.durations, kind, ending, is_known=True)
            else:
                series = find_series(tracing.durations, kind, ending, is_known=self.is_known)
            series.add(seconds)


def find_series(durations: Durations, kind: RequestKind, ending: Ending, *, is_known: bool) -> Series:
    """Return the series for this ending; `is_known`: a backend has the target."""
    operation = conventions.bounded(kind.operation, is_known=is_known)
    describe = partial(conventions.metric_attributes, operation, ending)
    return durations.series(kind.histogram, (operation, ending.error_type, ending.status_code), describe)


class RequestTrace:
    """The spans of a client request. Implements `gateway.calls.Trace`."""

    __slots__ = ("_backend", "_result", "_server", "_tracing")

    def __init__(self, tracing: Tracing, server: Timed) -> None:
        self._tracing = tracing
        self._server = server
        self._backend: Timed | None = None
        self._result: Ending | None = None
        """How the backend's result ends the request, once there is one."""

    @property
    def context(self) -> TraceContext:
        """The context of the client's request."""
        return self._server.context

    @property
    def ids(self) -> dict[str, str]:
        """The ids of trace and span, for logs."""
        context = self._server.context
        return {"trace_id": context.trace_id, "span_id": context.span_id} if self._server.keys else {}

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The HTTP headers of the request to the backend."""
        return [(name.encode(), value.encode()) for name, value in (self._backend or self._server).keys.items()]

    def note(self, event: str, **details: str) -> None:
        """Add an event to the client's request."""
        self._server.note(event, details)

    def sent(self, request: Timed) -> None:
        """Note a request to the backend."""
        self._server.is_known = True
        self._backend = request

    def backend_ended(self, outcome: Outcome | None, reason: str | None = None) -> None:
        """End the request to the backend, which `reason` has cancelled, if there is one."""
        backend, self._backend = self._backend, None
        if backend is not None:
            if reason is not None:
                backend.note("cancelled", {"reason": reason})
            if type(outcome) is Complete:  # nearly always
                is_success = conventions.TOOL_ERROR not in outcome.result
                self._result = SUCCESS if is_success else conventions.client_ending(outcome, backend.operation.method)
                backend.end(self._result)
            else:
                backend.end(conventions.client_ending(outcome, backend.operation.method))

    def retried(self, outcome: Outcome) -> None:
        """Note that the backend gets the call once more."""
        self.backend_ended(outcome)
        self.note("retried")

    def responded(self, code: int | None, outcome: Outcome | None) -> None:
        """End the client's request with its response; `code` is that of an error."""
        if code is None and self._result is not None:
            self._server.end(self._result)
        else:
            self._server.end(conventions.server_ending(code, outcome, self._server.operation.method))

    def cancelled(self, reason: str) -> None:
        """End the client's request without a response, unless it has ended."""
        if not self._server.is_over:
            self.note("cancelled", reason=reason)
            self._server.end(SUCCESS)

    def suspended(self) -> None:
        """End the client's request with *input required*; the one to the backend continues."""
        for one in (self._server, self._backend):
            if one is not None:
                one.note("suspended", {})
        self._server.end(SUCCESS)

    def resumed_by(self, retry: RequestTrace) -> None:
        """Continue the call for another request of its client."""
        self._server = retry._server
        backend = self._backend
        if backend is not None:
            backend.note("resumed", {})
            if retry._server.span is not None:
                retry._server.span.links.append(backend.context)
        self.note("resumed")

    def ask(self, method: str) -> AskTrace:
        """Begin a server request that asks the client for something on its own request's behalf."""
        operation = self._server.operation._replace(method=method, target="")
        return AskTrace(self._tracing, None, operation, self._server.context)

    def asked(self, method: str, request_id: Id, params: Mapping[str, msgspec.Raw]) -> AskTrace:
        """Begin a server request that the backend has sent."""
        backend = self._backend
        if backend is None:
            return self.ask(method)
        kind = RequestKind(Side.SERVER, backend.operation._replace(method=method, target=""))
        parent = trace_context.from_params(params) or backend.context
        served = Timed(self._tracing, kind, parent, request_id)
        operation = self._server.operation._replace(method=method, target="")
        return AskTrace(self._tracing, served, operation, served.context)


class AskTrace:
    """The spans of a server request: the backend's, and the gateway's to the client."""

    __slots__ = ("_operation", "_parent", "_sent", "_served", "_tracing")

    def __init__(self, tracing: Tracing, served: Timed | None, operation: Operation, parent: TraceContext) -> None:
        self._tracing = tracing
        self._served = served
        self._operation = operation
        self._parent = parent
        self._sent: Timed | None = None

    def sent(self, request_id: Id) -> dict[str, str]:
        """Note the request to the client; return the keys for its `_meta`."""
        kind = RequestKind(Side.CLIENT, self._operation)
        self._sent = Timed(self._tracing, kind, self._parent, request_id)
        return self._sent.keys

    def settled(self, reply: bytes | Failure) -> None:
        """End both with the client's reply, or the gateway's refusal."""
        method, failure = self._operation.method, reply if isinstance(reply, Failure) else None
        if self._sent is not None:
            self._sent.end(conventions.client_ending(failure, method))
        if self._served is not None:
            self._served.end(conventions.server_ending(None if failure is None else failure.code, failure, method))


class OwnRequest:
    """A request of the gateway's own to a backend. Implements `gateway.calls.RequestSpan`."""

    __slots__ = ("_request",)

    def __init__(self, request: Timed) -> None:
        self._request = request

    @property
    def keys(self) -> dict[str, str]:
        """The keys for its `_meta`."""
        return self._request.keys

    def ended(self, outcome: Outcome | None) -> None:
        """End the request; without an outcome it was cancelled."""
        if outcome is None:
            self._request.note("cancelled", {})
        self._request.end(conventions.client_ending(outcome, self._request.operation.method))


class BackendSpans:
    """Begins the spans of requests to one backend. Implements `gateway.calls.BackendTracing`."""

    def __init__(self, tracing: Tracing, backend: str, network: Network) -> None:
        self._tracing = tracing
        self._backend = backend
        self._network = network
        self._kinds: dict[tuple[str, str, str], RequestKind] = {}
        self.version = ""
        """The protocol version of its session, when that is known."""

    def begin_call(self, call: Call, own_name: str, request_id: int, *, era: str, version: str) -> dict[str, str]:
        """Begin the request that carries a client's call; return the keys for its `_meta`."""
        trace = call.trace
        if not isinstance(trace, RequestTrace):  # a call of the program around the gateway
            return {}
        if call.caller.era != era:
            trace.note("bridged", client_era=call.caller.era, backend_era=era)
        request = self._begin(call.method, own_name, request_id, trace.context, version)
        trace.sent(request)
        return request.keys

    def begin(self, method: str, request_id: int, *, version: str, call: Call | None = None) -> OwnRequest:
        """Begin a request of the gateway's own, perhaps about a client's call."""
        trace = None if call is None else call.trace
        parent = trace.context if isinstance(trace, RequestTrace) else None
        return OwnRequest(self._begin(method, "", request_id, parent, version))

    def _begin(self, method: str, target: str, request_id: int, parent: TraceContext | None, version: str) -> Timed:
        key = method, target, version or self.version
        kind = self._kinds.get(key)
        if kind is None:
            kind = RequestKind(Side.CLIENT, Operation(*key, self._network, self._backend))
            keep_kind(self._kinds, key, kind)
        return Timed(self._tracing, kind, parent, request_id)

    @contextmanager
    def session(self) -> Generator[Callable[[str], None]]:
        """Count the duration of a session.

        The block calls the function that it gets with the protocol version, once the session is open.
        """
        began: float | None = None
        error_type = ""

        def open_with(version: str) -> None:
            nonlocal began
            self.version, began = version, time.perf_counter()

        try:
            yield open_with
        except BaseException as exc:
            group = cast("BaseExceptionGroup[BaseException]", exc)
            problem = first_in_group(group) if isinstance(exc, BaseExceptionGroup) else exc
            if isinstance(problem, (GatewayError, OSError)):
                error_type = code_of(problem)
            raise
        finally:
            if began is not None:
                seconds = time.perf_counter() - began
                self._tracing.session_ended(CLIENT_SESSION, self.version, self._network, seconds, error_type)


class Tracing:
    """Begins the spans of client requests, and has what ended recorded.

    Args:
        sampler: decides which traces are recorded.
        keep: receives each span when it ends, and must not wait; None records none.
        durations: counts durations; None counts none.
        dropped: returns the number of spans that were kept, but not exported.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        keep: Callable[[Span], None] | None = None,
        durations: Durations | None = None,
        dropped: Callable[[], int] = int,
    ) -> None:
        self.sampler = sampler
        self.keep = keep
        self.durations = durations
        self.dropped = dropped
        self._kinds: dict[tuple[str, str, str, Network], RequestKind] = {}
        self._networks: dict[tuple[bool, str], Network] = {}

    def server_kind(self, method: str, target: str, version: str, network: Network) -> RequestKind:
        """Return what the requests of clients with this target have in common."""
        key = method, target, version, network
        kind = self._kinds.get(key)
        if kind is None:
            kind = RequestKind(Side.SERVER, Operation(*key))
            keep_kind(self._kinds, key, kind)
        return kind

    def arrived(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> None:
        """Note the HTTP request that carries the next client requests of this task."""
        key = scope.get("client") is not None, scope.get("http_version", "")
        network = self._networks.get(key)
        if network is None:
            network = self._networks[key] = Network("tcp" if key[0] else "unix", "http", key[1])
        context = trace_context.from_headers(headers) if b"traceparent" in headers else None
        _arrival.set(Arrival(network, scope.get("client"), context))

    def begin_call(self, call: Call, request_id: Id) -> RequestTrace:
        """Begin a client's call; remove an invalid context from its `_meta`."""
        trace = self.begin(call.method, call.name, request_id, call.caller, call.meta)
        if TRACESTATE in call.meta and trace_context.from_meta(call.meta) is None:
            call.meta = {key: value for key, value in call.meta.items() if key != TRACESTATE}
        return trace

    def begin(
        self,
        method: str,
        target: str,
        request_id: Id,
        caller: Caller | None,
        meta: Mapping[str, msgspec.Raw],
    ) -> RequestTrace:
        """Begin a client request with this `_meta`, of a caller if that is known."""
        arrival = _arrival.get()
        given = trace_context.from_meta(meta) if TRACEPARENT in meta else None
        parent = given or arrival.context
        version = "" if caller is None else caller.version
        kind = self.server_kind(method, target, version, arrival.network)
        server = Timed(self, kind, parent, request_id)
        span = server.span
        if span is not None:
            if given is not None and arrival.context is not None and arrival.context.span_id != given.span_id:
                span.links.append(arrival.context)
            if caller is not None and caller.label is not None:
                span.attributes["mcp.session.id"] = caller.label
            if arrival.client is not None:
                address, port = arrival.client
                span.attributes |= {"client.address": str(address), "client.port": int(port or 0)}
        return RequestTrace(self, server)

    def client_session(self, version: str) -> Callable[[], None]:
        """Begin a session of a client; return the function that notes its end."""
        began, network = time.perf_counter(), _arrival.get().network

        def end() -> None:
            self.session_ended(SERVER_SESSION, version, network, time.perf_counter() - began)

        return end

    def session_ended(
        self, histogram: HistogramName, version: str, network: Network, seconds: float, error_type: str = ""
    ) -> None:
        """Count the end of a session."""
        if self.durations is not None:
            describe = partial(conventions.session_attributes, version, network, error_type)
            self.durations.series(histogram, (version, network, error_type), describe).add(seconds)
