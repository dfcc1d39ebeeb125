"""`GET /metrics`: what the gateway counts anyway, in the text format of Prometheus.

Nothing is counted for this alone but the bucket of a call's time: a scrape reads the counters where they are, between
two checkpoints, and a worker thread makes the text. Labels are names of servers in the config and fixed words,
never what a client sends, so their number is bounded.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

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
"""Scrapes whose text is being made at once; more wait. Each costs a thread."""
GAUGES: Final = {
    "sessions": "Sessions of clients.",
    "streams": "Streams on which clients listen for what is not an answer.",
    "calls_suspended": "Calls that wait for their client to come back with its input.",
}
"""What only the frontends know; `Management.gauges` has a function for each that there is."""


class Metrics:
    """Everything that is counted, for who asks."""

    def __init__(self, management: Management) -> None:
        self._management = management
        self._threads = trio.CapacityLimiter(MAX_SCRAPES)

    async def text(self) -> bytes:
        """The document, as of now."""
        families = [*self._whole(), *self._by_backend()]
        # May be abandoned: it only makes text of values that nobody changes any more.
        return await trio.to_thread.run_sync(_render, families, limiter=self._threads, abandon_on_cancel=True)

    def _whole(self) -> Iterable[Family]:
        management, router = self._management, self._management.router
        yield "gauge", "info", "The gateway's version.", ("version",), [((VERSION,), 1)]
        yield _one("gauge", "calls_in_flight", "Calls that have come and not been answered.", router.under_way)
        yield _one("gauge", "event_readers", "Clients that read the events.", len(management.feed))
        yield _one(
            "counter", "notifications_dropped", "Notifications dropped because a client was too slow.", router.dropped
        )
        yield _one("counter", "log_lines_dropped", "Log lines for which stderr was too slow.", dropped_lines())
        dropped = management.audit_lines_dropped()
        yield _one("counter", "audit_lines_dropped", "Lines of the audit that its file has not got.", dropped)
        for name, read in management.gauges.items():
            yield _one("gauge", name, GAUGES[name], read())
        children = () if management.guard is None else management.guard.snapshot()
        yield _one("gauge", "children", "Processes that the gateway has started.", len(children))
        grown = sum(len(child.descendants) for child in children)
        yield _one("gauge", "descendants", "Processes that those have started, at the last look.", grown)
        done = [((outcome,), count) for outcome, count in management.reloads.items()]
        yield "counter", "reloads", "Other configs, by whether they were applied.", ("outcome",), done

    def _by_backend(self) -> Iterable[Family]:
        router = self._management.router
        found = router.fleet.supervisors
        calls = [((name, word), count) for name, one in found.items() for word, count in one.history.outcomes()]
        yield "counter", "calls", "Calls that have ended, by how.", ("backend", "outcome"), calls
        refused = [
            (key, count)
            for key, count in router.refused.items()
            if not key[0] or key[0] in found  # the router drops those of removed servers later
        ]
        text = "Calls that did not get as far as a queue, by why; without a backend where none was found."
        yield "counter", "calls_refused", text, ("backend", "reason"), refused
        states = [((name, state), int(one.state is state)) for name, one in found.items() for state in State]
        yield "gauge", "backend_state", "1 for the state that a backend is in.", ("backend", "state"), states
        for kind, name, text, read in _OF_BACKEND:
            yield kind, name, text, ("backend",), [((backend,), read(one)) for backend, one in found.items()]
        times = [((name,), (list(one.history.buckets), one.history.seconds)) for name, one in found.items()]
        yield "histogram", "call_duration_seconds", "How long calls took, cancelled ones included.", ("backend",), times


Family = tuple[str, str, str, tuple[str, ...], list[tuple[tuple[str, ...], Any]]]
"""Kind, name, text, names of labels, and by the labels' values a number, or a histogram's buckets and sum."""

_OF_BACKEND: Final[tuple[tuple[str, str, str, Callable[[Supervisor], int]], ...]] = (
    ("counter", "backend_restarts", "How often a backend was started again.", lambda one: one.restarts),
    ("gauge", "backend_queued", "Calls that wait for a backend.", lambda one: one.queued),
    ("gauge", "backend_in_flight", "Calls that a backend works on.", lambda one: one.in_flight),
    ("gauge", "backend_sessions", "Sessions that belong to single clients or calls.", lambda one: one.sessions),
)


def _one(kind: str, name: str, text: str, value: int) -> Family:
    return kind, name, text, (), [((), value)]


def _render(families: list[Family]) -> bytes:
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    kinds: dict[str, Any] = {
        "counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily,
    }  # fmt: skip
    bounds = [*map(str, BOUNDS), "+Inf"]

    class Collector:
        def collect(self) -> Iterable[Any]:
            for kind, name, text, labels, samples in families:
                family = kinds[kind](PREFIX + name, text, labels=labels)
                for values, found in samples:
                    if kind == "histogram":
                        counts: list[int] = found[0]
                        family.add_metric(values, list(zip(bounds, accumulate(counts), strict=True)), found[1])
                    else:
                        family.add_metric(values, found)
                yield family

    registry = CollectorRegistry()
    registry.register(Collector())  # pyright: ignore[reportArgumentType] - it has what a collector needs
    ProcessCollector(registry=registry)
    return generate_latest(registry)
