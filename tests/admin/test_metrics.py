"""Prometheus metrics: existing counters, under names and labels of bounded number."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from gateway.admin.metrics import FAMILIES
from gateway.calls import Failure, InputRequired
from gateway.errors import BackendExited, UnknownName
from gateway.supervisor.history import BOUNDS, CallStats
from gateway.supervisor.lifecycle import State
from tests.support.admin import CONFIG, Harness, open_harness
from tests.support.fakes import LEGACY_CALLER, make_call, make_pending, settle

if TYPE_CHECKING:
    from pathlib import Path

# The clock does not jump in here: it would not wait for the thread that makes the text.


async def scrape(harness: Harness) -> dict[tuple[str, ...], float]:
    """Every sample, by its name and the values of its labels."""
    exchange = await harness.exchange("GET", "/metrics", headers={})
    assert exchange.status == 200
    assert exchange.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name.removeprefix("mcp_gateway_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(exchange.body.decode())
        for sample in family.samples
    }


async def call(harness: Harness, outcome: Any = None) -> None:
    pending = await harness.router.submit(make_call("a.x"))
    await settle()
    if outcome is None:
        harness.fakes["a"].session.answer()
    elif outcome != "cancel":
        harness.fakes["a"].session.answer(outcome=outcome)
    harness.router.release(pending)


async def test_calls_are_counted_by_backend_and_outcome(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        failure = Failure(-32000, "no", None, LEGACY_CALLER.era)
        for outcome in (None, None, failure, BackendExited("a", "exited"), "cancel", InputRequired(b"{}")):
            await call(harness, outcome)
        for number in range(3):
            with pytest.raises(UnknownName):
                await harness.router.submit(make_call(f"made-up-{number}"))
        under_way = await harness.router.submit(make_call("a.x"))
        await settle()
        found = await scrape(harness)
        harness.router.release(under_way)
    counted = {labels[2]: value for labels, value in found.items() if labels[:2] == ("calls_total", "a")}
    assert counted == {"answered": 2, "error": 1, "failed": 1, "cancelled": 1, "input_required": 1}
    assert found["calls_refused_total", "", "unknown_name"] == 3
    assert found["call_duration_seconds_count", "a"] == found["call_duration_seconds_bucket", "a", "+Inf"] == 6
    assert (found["calls_in_flight",], found["backend_in_flight", "a"], found["backend_in_flight", "b"]) == (1, 1, 0)
    assert "made-up" not in str(found)


async def test_states_processes_and_reloads(tmp_path: Path) -> None:
    gauges = dict.fromkeys(("sessions", "streams", "calls_suspended"), lambda: 7)
    async with open_harness(tmp_path, gauges=gauges, audit_lines_dropped=lambda: 3) as harness:
        harness.path.write_text("{")
        assert (await harness.ask("POST", "/reload", {}))[0] == 422
        harness.path.write_text(json.dumps(CONFIG))
        assert (await harness.ask("POST", "/servers/a/restart", {}))[0] == 200
        found = await scrape(harness)
    states = {labels[2] for labels, value in found.items() if labels[:2] == ("backend_state", "a") and value}
    assert states == {"ready"}
    assert len([labels for labels in found if labels[:2] == ("backend_state", "a")]) == len(State)
    assert [found[name,] for name in gauges] == [7, 7, 7]
    assert found["audit_lines_dropped_total",] == 3
    assert (found["reloads_total", "applied"], found["reloads_total", "refused"]) == (1, 1)
    assert found["process_resident_memory_bytes",] > 1e6
    assert found["process_open_fds",] > 2
    # Every metric of the table has a value; no call was refused here.
    sampled = {labels[0].removesuffix("_total").removesuffix("_count") for labels in found}
    assert set(FAMILIES) - sampled == {"calls_refused"}


async def test_a_scrape_leaves_the_counters_alone(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        counts = {("gone", "busy"): 1, ("a", "busy"): 2, ("", "unknown_name"): 3}
        harness.router.refused = dict(counts)
        first, second = [
            {labels: value for labels, value in (await scrape(harness)).items() if labels[0] == "calls_refused_total"}
            for _ in range(2)
        ]
        assert harness.router.refused == counts
    assert first == second == {("calls_refused_total", "a", "busy"): 2, ("calls_refused_total", "", "unknown_name"): 3}


async def test_counts_of_removed_servers_are_dropped_later(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        harness.router.refused = {("gone", "busy"): 1, ("a", "busy"): 2}
        for expected in (1, 2):
            with pytest.raises(UnknownName):
                await harness.router.submit(make_call("made-up"))
            assert harness.router.refused == {("a", "busy"): 2, ("", "unknown_name"): expected}


@pytest.mark.parametrize(
    ("seconds", "bound"), [(0.0, 0.001), (0.001, 0.001), (0.0011, 0.0025), (300, 300), (301, None)]
)
async def test_a_call_counts_in_its_duration_bucket(seconds: float, bound: float | None) -> None:
    history = CallStats()
    history.ended(make_pending(), seconds)
    index = len(BOUNDS) if bound is None else BOUNDS.index(bound)
    assert [number for number, count in enumerate(history.buckets) if count] == [index]
    assert dict(history.outcomes())["cancelled"] == 1
    await trio.lowlevel.checkpoint()


async def test_reading_the_metrics_is_reading_like_any_other(tmp_path: Path) -> None:
    async with open_harness(tmp_path, host="0.0.0.0") as harness:
        assert (await harness.exchange("GET", "/metrics", headers={})).status == 401
        exchange = await harness.exchange("GET", "/metrics")
        assert (exchange.status, exchange.body.startswith(rb"# HELP mcp_gateway_info")) == (200, True)
