"""Spans of one request: with one signal only, and in unusual orders of events."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from gateway import jsonrpc
from gateway.calls import Call, Caller, Complete, Era, Failure
from gateway.errors import BackendExited
from gateway.tracing.conventions import PIPE
from gateway.tracing.durations import Durations
from gateway.tracing.sampling import Sampler
from gateway.tracing.spans import MAX_EVENTS, BackendSpans, Span, Tracing

CALLER = Caller(era=Era.LEGACY, version="2025-11-25")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
RESULT = Complete(b"{}", Era.LEGACY)


def begin(tracing: Tracing, **meta: str) -> tuple[Call, dict[str, str]]:
    """A call that has been sent to its backend, and the keys that this got."""
    given = {name: jsonrpc.raw(value) for name, value in meta.items()}
    call = Call(method="tools/call", name="a.x", params={}, meta=given, caller=CALLER)
    call.trace = tracing.begin_call(call, 1)
    return call, BackendSpans(tracing, "a", PIPE).begin_call(call, "x", 7, era=Era.LEGACY, version="")


def test_metrics_alone_change_no_keys() -> None:
    durations = Durations()
    call, keys = begin(Tracing(Sampler(), durations=durations), traceparent=TRACEPARENT)
    assert call.trace is not None
    assert (keys, call.trace.headers, call.trace.ids) == ({}, [], {})
    call.trace.backend_ended(RESULT)
    call.trace.responded(None, RESULT)
    assert sorted(series.histogram.name for series in durations.all()) == [
        "mcp.client.operation.duration",
        "mcp.server.operation.duration",
    ]


def test_only_the_first_end_counts() -> None:
    kept: list[Span] = []
    call, _ = begin(Tracing(Sampler(), keep=kept.append))
    assert call.trace is not None
    call.trace.backend_ended(RESULT)
    call.trace.responded(None, RESULT)
    call.trace.cancelled("late")
    call.trace.responded(-32603, BackendExited("a", "died"))
    call.trace.note("late")
    assert [(span.ending.error_type, span.events) for span in kept] == [("", []), ("", [])]


@pytest.mark.parametrize("hours", [10, -10])
def test_a_span_is_as_long_as_its_request(hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is done to the wall clock meanwhile."""
    kept: list[Span] = []
    call, _ = begin(Tracing(Sampler(), keep=kept.append))
    assert call.trace is not None
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + hours * 3600 * 10**9)
    call.trace.note("queued")
    call.trace.backend_ended(RESULT)
    call.trace.responded(None, RESULT)
    for span in kept:
        times = [span.started_at, *(at for _, at, _ in span.events), span.ended_at]
        assert times == sorted(times)
        assert times[-1] - times[0] < 60 * 10**9


@pytest.mark.parametrize("number", [1, 2 * MAX_EVENTS])
def test_events_of_a_span_are_bounded(number: int) -> None:
    kept: list[Span] = []
    call, _ = begin(Tracing(Sampler(), keep=kept.append))
    assert call.trace is not None
    for _ in range(number):
        call.trace.note("queued")
    call.trace.cancelled("enough")
    assert len(kept[0].events) == min(number + 1, MAX_EVENTS)


def test_refused_server_request_is_an_error_of_its_sender_alone() -> None:
    kept: list[Span] = []
    call, _ = begin(Tracing(Sampler(), keep=kept.append))
    assert call.trace is not None
    asked = call.trace.asked("roots/list", 5, {})
    asked.sent(9)
    asked.settled(Failure(-32601, "no roots", None, Era.LEGACY))
    sent, served = kept
    assert (sent.kind.value, sent.ending.error_type, sent.parent) == ("CLIENT", "-32601", served.context)
    assert (served.kind.value, served.ending.error_type, served.ending.status_code) == ("SERVER", "", "-32601")


def test_resources_of_one_kind_are_one_series() -> None:
    durations = Durations()
    tracing = Tracing(Sampler(0.0), durations=durations)
    for number in range(20):
        trace = tracing.begin("resources/read", f"memo://{number}", number, CALLER, {})
        trace.responded(None, RESULT)
        tracing.begin(f"x/{number}", "", number, CALLER, {}).responded(-32601, None)
    assert len(durations.all()) == 2


@pytest.mark.parametrize("method", ["tools/call", "resources/read", ""])
def test_long_targets_are_not_kept(method: str) -> None:
    tracing, size, number = Tracing(Sampler(0.0), durations=Durations()), 100_000, 20
    backend = BackendSpans(tracing, "a", PIPE)
    tracemalloc.start()
    try:
        for one in range(number):
            long = f"{one}".ljust(size, "x")
            call = Call(method=method or long, name=long, params={}, meta={}, caller=CALLER)
            call.trace = trace = tracing.begin_call(call, one)
            if method == "resources/read":  # any URI may be that of a template
                backend.begin_call(call, f"{long}y", one, era=Era.LEGACY, version="")
            trace.responded(-32602, None)
        assert tracemalloc.get_traced_memory()[0] < number * size / 4
    finally:
        tracemalloc.stop()
