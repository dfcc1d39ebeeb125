"""`GET /metrics`: the gateway's counters in the Prometheus text format.

Only the histogram of call durations exists for this endpoint alone: a scrape reads the other counters in place, between
two checkpoints, and a worker thread formats the text. Label values are names of configured servers and fixed words,
never client input, so their number is bounded.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import trio

from gateway.supervisor.history import BOUNDS
from gateway.supervisor.lifecycle import State
from gateway.telemetry import dropped_lines
from gateway.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.admin.servers import Management
    from gateway.supervisor.supervisor import Supervisor

PREFIX: Final = "mcp_gateway_"
CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
MAX_SCRAPES: Final = 2
"""Concurrent scrapes; further ones wait. Each uses a thread."""


class Family(NamedTuple):
    """One metric: its kind, its help text and the names of its labels."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


FAMILIES: Final = {
    "info": Family("gauge", "Always 1; the label has the gateway's version.", ("version",)),
    "calls_in_flight": Family("gauge", "Calls without an outcome."),
    "unsent_bytes": Family("gauge", "Bytes buffered for clients to read."),
    "buffered_bytes": Family("gauge", "Bytes buffered in all, those for clients included (max_buffered_bytes)."),
    "event_readers": Family("gauge", "Clients that read /events."),
    "notifications_dropped": Family("counter", "Notifications dropped because a client was too slow."),
    "log_lines_dropped": Family("counter", "Log lines dropped because stderr was too slow."),
    "audit_lines_dropped": Family("counter", "Audit lines dropped because the file was too slow."),
    "spans_dropped": Family("counter", "Spans dropped because the OpenTelemetry endpoint was too slow, or failed."),
    "sessions": Family("gauge", "Client sessions."),
    "streams": Family("gauge", "Open streams for notifications to clients."),
    "calls_suspended": Family("gauge", "Suspended calls, which wait for their client's input."),
    "children": Family("gauge", "Processes started by the gateway."),
    "descendants": Family("gauge", "Descendants of those processes, at the last scan."),
    "reloads": Family("counter", "Config changes, by result.", ("outcome",)),
    "calls": Family("counter", "Completed calls, by outcome.", ("backend", "outcome")),
    "calls_refused": Family(
        "counter",
        "Calls refused before they were queued, by error code; `backend` is empty if the name belongs to none.",
        ("backend", "reason"),
    ),
    "backend_state": Family("gauge", "1 for the current state of a backend, 0 for the others.", ("backend", "state")),
    "backend_restarts": Family("counter", "Restarts of a backend.", ("backend",)),
    "backend_queued": Family("gauge", "Calls in a backend's queue.", ("backend",)),
    "backend_in_flight": Family("gauge", "Calls sent to a backend, without an outcome.", ("backend",)),
    "backend_sessions": Family("gauge", "Backend sessions that belong to one client or call.", ("backend",)),
    "call_duration_seconds": Family("histogram", "Duration of calls, cancelled ones included.", ("backend",)),
}
"""Every metric, by its name without `PREFIX` (and, for counters, without `_total`)."""


class Metrics:
    """Collects all metrics for a scrape."""

    def __init__(self, management: Management) -> None:
        self._management = management
        self._threads = trio.CapacityLimiter(MAX_SCRAPES)

    async def text(self) -> bytes:
        """Return the present metrics as text."""
        management, router = self._management, self._management.router
        found = router.fleet.supervisors
        children = () if management.guard is None else management.guard.snapshot()
        numbers = {
            "calls_in_flight": router.under_way,
            "unsent_bytes": router.buffers.unsent,
            "buffered_bytes": router.buffers.used,
            "event_readers": len(management.feed),
            "notifications_dropped": router.dropped,
            "log_lines_dropped": dropped_lines(),
            "audit_lines_dropped": management.audit_lines_dropped(),
            "spans_dropped": management.spans_dropped(),
            "children": len(children),
            "descendants": sum(len(child.descendants) for child in children),
            **{name: read() for name, read in management.gauges.items()},
        }
        values: dict[str, Samples] = {
            "info": [((VERSION,), 1)],
            **{name: [((), number)] for name, number in numbers.items()},
            "reloads": [((outcome,), count) for outcome, count in management.reloads.items()],
            "calls": [((name, word), n) for name, one in found.items() for word, n in one.history.outcomes()],
            # The router drops those of removed servers later.
            "calls_refused": [(key, n) for key, n in router.refused.items() if not key[0] or key[0] in found],
            "backend_state": [((name, word), int(one.state is word)) for name, one in found.items() for word in State],
            **{name: [((one,), read(found[one])) for one in found] for name, read in _OF_BACKEND.items()},
            "call_duration_seconds": [
                ((name,), (list(one.history.buckets), one.history.seconds)) for name, one in found.items()
            ],
        }
        # May be abandoned: it only formats immutable values.
        return await trio.to_thread.run_sync(_render, values, limiter=self._threads, abandon_on_cancel=True)


Samples = list[tuple[tuple[str, ...], Any]]
"""A number for each combination of label values, or a histogram's buckets and sum."""

_OF_BACKEND: Final[dict[str, Callable[[Supervisor], int]]] = {
    "backend_restarts": lambda one: one.restarts,
    "backend_queued": lambda one: one.queued,
    "backend_in_flight": lambda one: one.in_flight,
    "backend_sessions": lambda one: one.sessions,
}


def _render(values: dict[str, Samples]) -> bytes:
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    kinds: dict[str, Any] = {
        "counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily,
    }  # fmt: skip
    bounds = [*map(str, BOUNDS), "+Inf"]

    class Collector:
        def collect(self) -> Iterable[Any]:
            for name, samples in values.items():
                kind, text, labels = FAMILIES[name]
                family = kinds[kind](PREFIX + name, text, labels=labels)
                for label_values, found in samples:
                    if kind == "histogram":
                        counts: list[int] = found[0]
                        family.add_metric(label_values, list(zip(bounds, accumulate(counts), strict=True)), found[1])
                    else:
                        family.add_metric(label_values, found)
                yield family

    registry = CollectorRegistry()
    registry.register(Collector())  # pyright: ignore[reportArgumentType] - it has what a collector needs
    ProcessCollector(registry=registry)
    return generate_latest(registry)
