"""What an operator should know of a running gateway: `GET /diagnosis` and `mcp-gateway doctor --running`.

All of it is computed on request, from statistics and lists that exist anyway.
"""

from __future__ import annotations

from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from gateway.admin import documents as doc
from gateway.calls import EVERYTHING
from gateway.catalog.client_names import refused_names
from gateway.config.plain_secrets import plain_secrets, plain_secrets_of_config
from gateway.eras.methods import Kind
from gateway.eras.tools import View
from gateway.supervisor.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.catalog.snapshot import Snapshot
    from gateway.supervisor.fleet import Fleet
    from gateway.supervisor.history import Latency
    from gateway.supervisor.supervisor import Supervisor

MAX_ROWS: Final = 10
"""Tools in each table."""
BYTES_PER_TOKEN: Final = 4
"""Roughly, for JSON with English descriptions; models differ."""
LARGE_TOOL: Final = 2_000
"""Tokens of one tool: ten times the usual."""
LARGE_VIEW: Final = 20_000
"""Tokens of a list of tools: a tenth of a usual context window, spent before the first question."""
SLOW: Final = 10_000.0
"""Milliseconds: a p99 that users notice."""
ENOUGH_CALLS: Final = 20
"""Calls from which a share of failed ones says something."""
FAILING: Final = 0.1
"""The share of failed calls that is reported."""
HINT: Final = "its stderr is in GET /servers/NAME and the log; 'mcp-gateway doctor FILE' starts it on its own"


async def diagnose(fleet: Fleet) -> doc.Diagnosis:
    """Examine all servers and views; other tasks run between two of them."""
    config, supervisors, whole = fleet.config, dict(fleet.supervisors), fleet.snapshot()
    findings = [_secrets(None, [place]) for place in plain_secrets_of_config(config)]
    durations: list[doc.ToolDurations] = []
    tools: list[doc.ToolSize] = []
    for name, server in config.servers.items():
        await trio.lowlevel.checkpoint()
        if places := plain_secrets(server):
            findings.append(_secrets(name, places))
        if (supervisor := supervisors.get(name)) is None:
            continue
        latencies = supervisor.history.latency_by_tool()
        sizes = _sizes_of_tools(name, whole)
        findings += _examine_state(supervisor)
        findings += _examine_calls(supervisor, latencies)
        findings += _examine_sizes(sizes)
        durations += [doc.ToolDurations(name, tool, latency) for tool, latency in latencies.items()]
        tools += sizes
    views: list[doc.ViewSize] = []
    names: set[str] = set()
    for view in (None, *whole.views):
        await trio.lowlevel.checkpoint()
        seen = whole if view is None else whole.within(msgspec.structs.replace(EVERYTHING, view=view))
        listed = [public for found in seen.listed_by_backend(Kind.TOOLS).values() for public, _ in found]
        size = sum(map(len, seen.page(Kind.TOOLS, None, None, View.LATEST).chunks))
        views.append(doc.ViewSize(view, len(listed), size, size // BYTES_PER_TOKEN))
        names.update(listed)
    findings += _examine_views(views)
    findings += _examine_names(sorted(names))
    return doc.Diagnosis(
        states={name: one.state for name, one in supervisors.items()},
        slowest=sorted(durations, key=lambda one: one.latency.p99 or 0, reverse=True)[:MAX_ROWS],
        largest=sorted(tools, key=attrgetter("bytes"), reverse=True)[:MAX_ROWS],
        views=views,
        findings=sorted(findings, key=lambda one: one.level != "problem"),
    )


def _sizes_of_tools(server: str, snapshot: Snapshot) -> list[doc.ToolSize]:
    listed = snapshot.placed(Kind.TOOLS, server) if server in snapshot.listed else ()
    return [doc.ToolSize(server, one.public, len(one.raw), len(one.raw) // BYTES_PER_TOKEN) for one in listed]


def _examine_sizes(tools: list[doc.ToolSize]) -> Iterator[doc.Finding]:
    large = [one for one in tools if one.tokens_estimate > LARGE_TOOL]
    if large:
        largest = max(large, key=attrgetter("bytes"))
        text = f"{_several(len(large), 'large tool')}, such as {largest.tool!r}: {_size(largest)}"
        hint = "leave it out or describe it more briefly ('tools'); clients send it to the model with each request"
        yield doc.Finding("warning", "large_tool", largest.server, text, hint)


def _examine_state(supervisor: Supervisor) -> Iterator[doc.Finding]:
    status, name = supervisor.status(), supervisor.name
    if status.state in {State.BACKOFF, State.FAILED}:
        state = "between restarts" if status.state is State.BACKOFF else "marked failed"
        yield doc.Finding("problem", "unavailable", name, f"{state}: {status.last_error}", HINT)
    elif status.restarts and status.last_error is not None:  # without an error it was only idle
        text = f"{_several(status.restarts, 'restart')}; the last error: {status.last_error}"
        yield doc.Finding("warning", "restarts", name, text, HINT)
    if status.breaker not in {None, "closed"}:
        text = f"the circuit breaker is {status.breaker}"
        yield doc.Finding("warning", "breaker", name, text, "see 'errors' in the details of the server")
    if status.asked and supervisor.config.session == "shared":
        text = f"sends {' and '.join(sorted(status.asked))}, which work only while one client alone has calls there"
        hint = "if several clients share it, give it 'session': 'client'"
        yield doc.Finding("warning", "shared", name, text, hint)
    for text in status.warnings:
        yield doc.Finding("warning", "lists", name, text)


def _examine_calls(supervisor: Supervisor, latencies: dict[str, Latency]) -> Iterator[doc.Finding]:
    history, name = supervisor.history, supervisor.name
    if history.calls >= ENOUGH_CALLS and history.failed > FAILING * history.calls:
        errors = [error for error in history.errors if error.call is not None]
        last = f"; the last, of {errors[-1].call!r}: {errors[-1].error}" if errors else ""
        text = f"{history.failed / history.calls:.0%} of {history.calls} calls failed{last}"
        yield doc.Finding("warning", "failing", name, text)
    slow = {tool: one.p99 for tool, one in latencies.items() if one.p99 and one.p99 >= SLOW}
    if slow:
        tool, p99 = max(slow.items(), key=itemgetter(1))
        timeout = supervisor.gate.timeout("tools/call", tool)
        text = f"{_several(len(slow), 'slow tool')}, such as {tool!r} with a p99 of {p99 / 1000:.1f} s"
        hint = f"its calls end at {timeout:g} s (call_timeout, tool_timeouts)"
        yield doc.Finding("warning", "slow", name, text, hint)


def _examine_views(sizes: list[doc.ViewSize]) -> Iterator[doc.Finding]:
    for size in sizes:
        if size.tokens_estimate <= LARGE_VIEW:
            continue
        where = "outside views" if size.view is None else f"of the view {size.view!r}"
        text = f"the list of tools {where} is large: {_size(size)}"
        hint = "offer fewer tools ('tools'), or make a view for each use ('views')"
        yield doc.Finding("warning", "large_view", None, text, hint)


def _examine_names(names: list[str]) -> Iterator[doc.Finding]:
    if refused := refused_names(names):
        most = max(refused.values(), key=len)
        text = f"{len(most)} of {len(names)} names of tools are refused by {', '.join(refused)}"
        hint = "connect these with ?separator=__&max_name_length=48, or 'serve --separator __ --max-name-length 48'"
        yield doc.Finding("warning", "refused_names", None, f"{text}, such as {most[0]!r}", hint)


def _secrets(server: str | None, places: list[str]) -> doc.Finding:
    text = f"secrets in plain text in the config: {', '.join(places)}"
    return doc.Finding("warning", "plain_secret", server, text, "write ${NAME}, ${file:PATH} or ${cmd:COMMAND} instead")


def _size(one: doc.ToolSize | doc.ViewSize) -> str:
    return f"{one.bytes:,} bytes, about {one.tokens_estimate:,} tokens (an estimate)"


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
