"""The export of spans and metrics over OTLP: one thread, which alone uses the SDK.

The gateway's thread only appends to a bounded queue: while the endpoint is slow, spans are dropped and counted. On
leaving `open_tracing`, the thread gets a bounded time to export what is left, and is then abandoned.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from opentelemetry.exporter.otlp.proto.http import metric_exporter, trace_exporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from gateway.tracing.conventions import ending_attributes
from gateway.tracing.durations import BOUNDS, Durations
from gateway.tracing.spans import Side, Tracing
from gateway.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from gateway.tracing.durations import HistogramName, Series
    from gateway.tracing.settings import TracingSettings
    from gateway.tracing.spans import Span
    from gateway.tracing.trace_context import TraceContext

FLUSH_TIMEOUT: Final = 2.0
"""Seconds that the exit waits for the last export."""
REPORT_INTERVAL: Final = 60.0
"""Seconds between two log lines about dropped spans, and about failed exports."""
SCOPE: Final = InstrumentationScope("trio-mcp-gateway", VERSION)

log = logging.getLogger("gateway.tracing")

_T_contra = TypeVar("_T_contra", contravariant=True)


class Exporter(Protocol[_T_contra]):
    """An exporter of the SDK's."""

    def export(self, batch: _T_contra, /) -> object:
        """Send this; return whether it was accepted. May take long."""
        ...

    def shutdown(self) -> None:
        """Send nothing more."""
        ...


class Rarely(logging.Filter):
    """Passes one record a minute: while an endpoint is down, every export fails."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is to be logged."""
        del record
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + REPORT_INTERVAL
        return True


def _drop(_record: logging.LogRecord) -> bool:
    return False


class ExportThread:
    """Exports spans and durations until it is closed.

    Args:
        settings: intervals and limits.
        spans: exports spans; None exports none, and none are kept then.
        metrics: exports the durations; None exports none.
        resource: describes this gateway.
    """

    def __init__(
        self,
        settings: TracingSettings,
        spans: Exporter[Sequence[ReadableSpan]] | None,
        metrics: Exporter[MetricsData] | None,
        resource: Resource,
    ) -> None:
        self.durations = None if metrics is None else Durations()
        self._settings = settings
        self._exporter = spans
        self._metrics = metrics
        self._resource = resource
        self._spans: deque[Span] = deque()
        self._refused = 0  # counted by the gateway's thread
        self._failed = 0  # counted by this one
        self._reported = 0
        self._report_at = 0.0
        self._wake = threading.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="telemetry exporter", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Spans that were not exported, because the queue was full or an export failed."""
        return self._refused + self._failed

    def keep(self, span: Span) -> None:
        """Queue a span for export; drop it if the queue is full."""
        spans = self._spans
        if len(spans) >= self._settings.max_queue:
            self._refused += 1
            return
        spans.append(span)
        if len(spans) == self._settings.max_batch:
            self._wake.set()

    def close(self, timeout: float) -> None:
        """Export what is left, within this many seconds."""
        self._is_closing = True
        self._wake.set()
        self._thread.join(timeout)
        for exporter in (self._exporter, self._metrics):
            if exporter is not None:
                exporter.shutdown()
        if self._thread.is_alive():
            log.warning("the OpenTelemetry endpoint did not accept the last export within %g s", timeout)

    def _run(self) -> None:
        next_metrics = time.monotonic() + self._settings.metric_interval
        while not self._is_closing:
            self._wake.wait(min(self._settings.span_interval, max(0.0, next_metrics - time.monotonic())))
            self._wake.clear()
            self._export_spans()
            if time.monotonic() >= next_metrics:
                next_metrics = time.monotonic() + self._settings.metric_interval
                self._export_metrics()
        self._export_spans()
        self._export_metrics()

    def _export_spans(self) -> None:
        while self._spans and self._exporter is not None:
            size = min(len(self._spans), self._settings.max_batch)
            batch = [readable(self._spans.popleft(), self._resource) for _ in range(size)]
            if self._exporter.export(batch) is not SpanExportResult.SUCCESS:
                self._failed += size
        lost, now = self.dropped - self._reported, time.monotonic()
        if lost and now >= self._report_at:
            self._reported, self._report_at = self.dropped, now + REPORT_INTERVAL
            extra = {"event": "spans_dropped", "count": lost}
            log.warning("%d spans dropped: the OpenTelemetry endpoint is too slow, or failed", lost, extra=extra)

    def _export_metrics(self) -> None:
        if self._metrics is None or self.durations is None:
            return
        data = readable_durations(self.durations, self._resource)
        if data is not None:
            self._metrics.export(data)


def encodable(text: str) -> str:
    """Return a text without surrogates, for which protobuf would refuse the whole batch."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def encodable_values(values: Mapping[str, str | int]) -> dict[str, str | int]:
    """Return attributes that protobuf accepts."""
    return {name: encodable(value) if isinstance(value, str) else value for name, value in values.items()}


def readable(span: Span, resource: Resource) -> ReadableSpan:
    """Return a span in the form that exporters take."""
    ending, is_served = span.ending, span.kind is Side.SERVER
    status = (
        Status(StatusCode.ERROR, encodable(ending.message) or None) if ending.error_type else Status(StatusCode.UNSET)
    )
    return ReadableSpan(
        encodable(span.name),
        _readable_context(span.context),
        None if span.parent is None else _readable_context(span.parent, is_remote=is_served),
        resource,
        encodable_values(span.attributes | ending_attributes(ending)),
        [Event(name, encodable_values(details), at) for name, at, details in span.events],
        [Link(_readable_context(context, is_remote=True)) for context in span.links],
        SpanKind[span.kind.value],
        status=status,
        start_time=span.started_at,
        end_time=span.ended_at,
        instrumentation_scope=SCOPE,
    )


def _readable_context(context: TraceContext, *, is_remote: bool = False) -> SpanContext:
    state = TraceState.from_header([context.state]) if context.state else None
    trace_id, span_id = int(context.trace_id, 16), int(context.span_id, 16)
    return SpanContext(trace_id, span_id, is_remote, TraceFlags(context.flags), state)


def readable_durations(durations: Durations, resource: Resource) -> MetricsData | None:
    """Return all histograms in the form that exporters take; None if nothing was counted."""
    now = max(time.time_ns(), durations.since)  # the wall clock may have been set back
    points: dict[HistogramName, list[HistogramDataPoint]] = {}
    for series in durations.all():
        points.setdefault(series.histogram, []).append(_data_point(series, durations.since, now))
    if not points:
        return None
    temporality = AggregationTemporality.CUMULATIVE
    metrics = [
        Metric(histogram.name, histogram.description, "s", Histogram(found, temporality))
        for histogram, found in points.items()
    ]
    scope = ScopeMetrics(SCOPE, metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _data_point(series: Series, since: int, now: int) -> HistogramDataPoint:
    buckets = list(series.buckets)  # the gateway's thread continues to count: the sum of these is the count
    return HistogramDataPoint(
        attributes=encodable_values(dict(series.attributes)),
        start_time_unix_nano=since,
        time_unix_nano=now,
        count=sum(buckets),
        sum=series.total,
        bucket_counts=buckets,
        explicit_bounds=BOUNDS,
        min=series.shortest,
        max=series.longest,
    )


def gateway_resource() -> Resource:
    """Return the description of this gateway, which the environment may override."""
    given = Resource.create()
    own = {SERVICE_NAME: "trio-mcp-gateway", SERVICE_VERSION: VERSION}
    named = not str(given.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service")
    if named:
        del own[SERVICE_NAME]
    if SERVICE_VERSION in given.attributes:
        del own[SERVICE_VERSION]
    return given.merge(Resource(own))


@contextmanager
def open_tracing(settings: TracingSettings, *, flush_timeout: float = FLUSH_TIMEOUT) -> Generator[Tracing]:
    """Export over OTLP while the context is open; leaving it takes at most `flush_timeout` seconds."""
    rarely, states = Rarely(), logging.getLogger(TraceState.__module__)
    states.addFilter(_drop)  # it logs each invalid `tracestate`, which a client has sent
    for exporter in (trace_exporter, metric_exporter):
        logging.getLogger(exporter.__name__).addFilter(rarely)
    thread = ExportThread(
        settings,
        OTLPSpanExporter() if settings.traces else None,
        OTLPMetricExporter() if settings.metrics else None,
        gateway_resource(),
    )
    try:
        yield Tracing(
            settings.make_sampler(),
            keep=thread.keep if settings.traces else None,
            durations=thread.durations,
            dropped=lambda: thread.dropped,
        )
    finally:
        thread.close(flush_timeout)
        states.removeFilter(_drop)
        for exporter in (trace_exporter, metric_exporter):
            logging.getLogger(exporter.__name__).removeFilter(rarely)
