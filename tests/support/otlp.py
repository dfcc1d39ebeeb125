"""An OTLP receiver: an HTTP server that decodes the protobuf which exporters send."""

from __future__ import annotations

import gzip
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

RECEIVE_WITHIN = 20.0  # seconds until an exporter has sent what a test waits for, on the busiest machine too
KINDS = {2: "server", 3: "client"}
ERROR = 2


@dataclass
class Received:
    """A span as the receiver has decoded it."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent: str
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    links: list[str]
    is_error: bool
    message: str
    state: str
    seconds: float


@dataclass
class Receiver:
    """What has arrived at `url`; until `answering` is set, no request is answered."""

    url: str = ""
    spans: list[Received] = field(default_factory=list)
    points: dict[str, list[Any]] = field(default_factory=dict)
    """The last data points of each metric, with their attributes as a dict."""
    requests: int = 0
    answering: threading.Event = field(default_factory=threading.Event)
    status: int = 200
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait(self, found: Callable[[Receiver], Any]) -> Any:
        """Wait until `found` returns something true, and return it."""
        with self.changed:
            assert self.changed.wait_for(lambda: found(self), RECEIVE_WITHIN), self.spans
            return found(self)

    def named(self, name: str, kind: str | None = None, service: str | None = None) -> list[Received]:
        return [
            span
            for span in self.spans
            if span.name == name and kind in {None, span.kind} and service in {None, span.service}
        ]

    def take(self, path: str, body: bytes) -> None:
        with self.changed:
            self.requests += 1
            if path == "/v1/traces":
                for part in ExportTraceServiceRequest.FromString(body).resource_spans:
                    service = attributes_of(part.resource.attributes)["service.name"]
                    self.spans += [read_span(service, span) for scope in part.scope_spans for span in scope.spans]
            else:
                assert path == "/v1/metrics"
                for part in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    for scope in part.scope_metrics:
                        for metric in scope.metrics:
                            points = metric.histogram.data_points
                            self.points[metric.name] = [(attributes_of(point.attributes), point) for point in points]
            self.changed.notify_all()


def attributes_of(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def read_span(service: str, span: Any) -> Received:
    return Received(
        service,
        span.name,
        KINDS.get(span.kind, "internal"),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        attributes_of(span.attributes),
        [(event.name, attributes_of(event.attributes)) for event in span.events],
        [link.span_id.hex() for link in span.links],
        span.status.code == ERROR,
        span.status.message,
        span.trace_state,
        (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
    )


@contextmanager
def open_receiver(*, answers: bool = True) -> Generator[Receiver]:
    receiver = Receiver()
    if answers:
        receiver.answering.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.headers["content-type"] == "application/x-protobuf"
            receiver.answering.wait(RECEIVE_WITHIN)
            receiver.take(self.path, body)
            self.send_response(receiver.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.answering.set()
        server.shutdown()
        thread.join()
        server.server_close()


def export_to(receiver: Receiver, **variables: str) -> dict[str, str]:
    """The environment of a process that exports to this receiver soon after each request."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_METRIC_EXPORT_INTERVAL": "100",
        **variables,
    }
