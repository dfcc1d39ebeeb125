"""The export thread: bounded queue, counted drops, bounded end; and what its exporters get."""

from __future__ import annotations

import threading
import time

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExportResult

from gateway.tracing.conventions import PIPE, SUCCESS, Ending, Operation
from gateway.tracing.durations import Durations
from gateway.tracing.exporting import ExportThread, gateway_resource, open_tracing, readable_durations
from gateway.tracing.sampling import Sampler
from gateway.tracing.settings import TracingSettings
from gateway.tracing.spans import RequestKind, Side, Timed, Tracing
from gateway.tracing.trace_context import SAMPLED, TraceContext
from tests.support.otlp import export_to, open_receiver

SETTINGS = TracingSettings(traces=True, max_queue=4, max_batch=2, span_interval=3600.0)
ENDS_WITHIN = 10.0


class Exporter:
    """Takes batches, one at a time, when it is let."""

    def __init__(self, result: SpanExportResult = SpanExportResult.SUCCESS) -> None:
        self.result = result
        self.names: list[str] = []
        self.begun, self.let = threading.Event(), threading.Event()

    def export(self, batch: object, /) -> SpanExportResult:
        self.begun.set()
        self.let.wait(ENDS_WITHIN)
        self.names += [span.name for span in batch]
        return self.result

    def shutdown(self) -> None:
        pass


def end_spans(thread: ExportThread, *names: str) -> None:
    tracing = Tracing(Sampler(), keep=thread.keep)
    for name in names:
        Timed(tracing, RequestKind(Side.CLIENT, Operation(name, "", "", PIPE)), None, 1).end(SUCCESS)


def test_full_queue_drops_and_counts() -> None:
    exporter = Exporter()
    thread = ExportThread(SETTINGS, exporter, None, Resource({}))
    end_spans(thread, "a", "b")  # a batch, which the exporter now holds
    assert exporter.begun.wait(ENDS_WITHIN)
    end_spans(thread, *"cdefgh")
    assert thread.dropped == 2
    exporter.let.set()
    thread.close(ENDS_WITHIN)
    assert exporter.names == list("abcdef")
    assert not [each for each in threading.enumerate() if each.name == "telemetry exporter"]


def test_failed_exports_count_as_dropped(caplog: pytest.LogCaptureFixture) -> None:
    exporter = Exporter(SpanExportResult.FAILURE)
    exporter.let.set()
    thread = ExportThread(SETTINGS, exporter, None, Resource({}))
    end_spans(thread, "a", "b")
    thread.close(ENDS_WITHIN)
    assert thread.dropped == 2
    assert "2 spans dropped" in caplog.text


def test_end_does_not_wait_for_a_hanging_endpoint(caplog: pytest.LogCaptureFixture) -> None:
    exporter = Exporter()
    thread = ExportThread(SETTINGS, exporter, None, Resource({}))
    end_spans(thread, "a", "b")
    assert exporter.begun.wait(ENDS_WITHIN)
    began = time.monotonic()
    thread.close(0.1)
    assert time.monotonic() - began < ENDS_WITHIN / 2
    assert "did not accept the last export" in caplog.text
    exporter.let.set()
    (left,) = [each for each in threading.enumerate() if each.name == "telemetry exporter"]
    left.join(ENDS_WITHIN)
    assert not left.is_alive()


def test_variables_name_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gateway_resource().attributes["service.name"] == "trio-mcp-gateway"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.version=7")
    found = gateway_resource().attributes
    assert (found["service.name"], found["service.version"]) == ("mine", "7")
    assert found["deployment.environment.name"] == "test"


def test_half_a_surrogate_pair_costs_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_receiver() as receiver:
        environ = export_to(receiver)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        with open_tracing(TracingSettings.of(environ)) as tracing:
            kind = RequestKind(Side.CLIENT, Operation("tools/call", "cut \ud83d", "", PIPE))
            for request_id in ("\ud83d", "whole"):
                request = Timed(tracing, kind, None, request_id)
                request.note("cancelled", {"reason": "\ud83d"})
                request.end(Ending("\ud83d", "1", "\ud83d"))
    assert [span.attributes["jsonrpc.request.id"] for span in receiver.spans] == ["?", "whole"]
    assert {span.name for span in receiver.spans} == {"tools/call cut ?"}
    assert "mcp.client.operation.duration" in receiver.points


def test_invalid_state_of_a_client_is_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with open_receiver() as receiver:
        environ = export_to(receiver)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        with open_tracing(TracingSettings.of(environ)) as tracing:
            kind = RequestKind(Side.SERVER, Operation("ping", "", "", PIPE))
            for state in ("x" * 8_000, "a=1"):
                Timed(tracing, kind, TraceContext("a" * 32, "b" * 16, SAMPLED, state), 1).end(SUCCESS)
    assert [span.state for span in receiver.spans] == ["", "a=1"]
    assert not caplog.text


def test_endpoint_that_is_down_is_logged_rarely(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with open_tracing(TracingSettings.of(environ | {"OTEL_BSP_SCHEDULE_DELAY": "1"})) as tracing:
        kind = RequestKind(Side.CLIENT, Operation("ping", "", "", PIPE))
        for _ in range(3):
            Timed(tracing, kind, None, 1).end(SUCCESS)
    assert tracing.dropped() == 3
    assert len([record for record in caplog.records if record.name.startswith("opentelemetry")]) == 1


@pytest.mark.parametrize("signal", ["traces", "metrics"])
def test_each_signal_alone_reaches_the_receiver(signal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"traces": "METRICS", "metrics": "TRACES"}[signal]
    with open_receiver() as receiver:
        environ = export_to(receiver, **{f"OTEL_{other}_EXPORTER": "none"})
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        with open_tracing(TracingSettings.of(environ)) as tracing:
            Timed(tracing, RequestKind(Side.CLIENT, Operation("ping", "", "", PIPE)), None, 1).end(SUCCESS)
    assert [span.name for span in receiver.spans] == (["ping"] if signal == "traces" else [])
    assert list(receiver.points) == (["mcp.client.operation.duration"] if signal == "metrics" else [])


def test_a_metric_never_ends_before_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = Durations()
    Timed(Tracing(Sampler(), durations=durations), RequestKind(Side.CLIENT, Operation("a", "", "", PIPE)), None, 1).end(
        SUCCESS
    )
    past = time.time_ns() - 36_000 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: past)
    found = readable_durations(durations, Resource({}))
    assert found is not None
    (metric,) = found.resource_metrics[0].scope_metrics[0].metrics
    (point,) = metric.data.data_points
    assert point.time_unix_nano >= point.start_time_unix_nano
