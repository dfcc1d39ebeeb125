"""The operations of the management API: one row each, and the coroutine that handles it.

To add an endpoint, add a handler here, its row in `OPERATIONS`, its method of `Management` in `servers`, and its
response Struct in `documents`. The routes, the access checks and the OpenAPI document are generated from the rows.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from gateway.admin import documents as doc
from gateway.admin.events import serve_events
from gateway.admin.metrics import CONTENT_TYPE
from gateway.admin.openapi import Operation, openapi_document
from gateway.admin.request import Refused, number_in
from gateway.admin.stderr_stream import serve_stderr
from gateway.version import VERSION

if TYPE_CHECKING:
    from gateway.admin.request import Request


async def livez(request: Request) -> None:
    """Answer that the process is alive."""
    await request.answer(doc.Probe("ok"))


async def readyz(request: Request) -> None:
    """Answer 200 if all required servers are ready, else 503."""
    if request.management.is_ready():
        await request.answer(doc.Probe("ready"))
    else:
        await request.answer(doc.Probe("not ready"), 503)


async def health(request: Request) -> None:
    """Answer with the health document, or only its status for clients that may not read."""
    report = request.management.health()
    detailed = request.access.mode != "off" and request.may_read()
    await request.answer(report if detailed else doc.Probe(report.status))


async def list_servers(request: Request) -> None:
    """List all servers of the config."""
    await request.answer(request.management.list_servers())


async def add_servers(request: Request) -> None:
    """Add or replace the servers of the config in the body."""
    await request.answer(await request.management.add(await request.read_json()))


async def show_server(request: Request) -> None:
    """Show the details of one server."""
    await request.answer(request.management.show_server(request.server))


async def list_items(request: Request) -> None:
    """List what one server offers, with schemas."""
    await request.answer(request.management.list_items(request.server))


async def list_processes(request: Request) -> None:
    """List the processes of one server."""
    await request.answer(request.management.list_processes(request.server))


async def read_stderr(request: Request) -> None:
    """Stream a server's stderr; answer HEAD with the headers of the stream."""
    management, name = request.management, request.server
    management.find_stderr(name)
    if request.exchange.method == "HEAD":
        await request.exchange.end_stream()
        return
    find = partial(management.find_stderr, name)
    await serve_stderr(request.exchange, management.stderr_streams, find, management.closing, request.may_read)


async def remove_server(request: Request) -> None:
    """Remove one server."""
    await request.answer(await request.management.remove(request.server))


async def restart_server(request: Request) -> None:
    """Start a replacement of one server, then stop the old one."""
    await request.answer(await request.management.restart(request.server))


async def enable_server(request: Request) -> None:
    """Enable one server."""
    await request.answer(await request.management.switch(request.server, disabled=False))


async def disable_server(request: Request) -> None:
    """Disable one server."""
    await request.answer(await request.management.switch(request.server, disabled=True))


async def reload(request: Request) -> None:
    """Read the config file again."""
    await request.answer(await request.management.reload())


async def list_tools(request: Request) -> None:
    """List the public names of tools."""
    await request.answer(request.management.list_tools())


async def show_tree(request: Request) -> None:
    """Show the active calls and the processes."""
    await request.answer(request.management.show_tree())


async def cancel_call(request: Request) -> None:
    """Cancel an active call."""
    number = number_in(request.exchange.scope["path_params"]["number"])
    if number is None or not request.management.cancel(number):
        raise Refused(404, doc.Problem("No active call has this number."))
    await request.answer(doc.Cancelled(number))


async def show_history(request: Request) -> None:
    """Show the samples of the past."""
    after = number_in(request.query.get("after", "0"))
    if after is None:
        raise Refused(400, doc.Problem("'after' must be the number of a sample."))
    await request.answer(request.management.history.document(after))


async def diagnose(request: Request) -> None:
    """Report what is slow, failing, large or insecure."""
    await request.answer(await request.management.diagnose())


async def read_metrics(request: Request) -> None:
    """Send the metrics."""
    await request.exchange.text(await request.metrics.text(), CONTENT_TYPE)


async def read_events(request: Request) -> None:
    """Send events until the client disconnects; answer HEAD with the headers of the stream."""
    if request.exchange.method == "HEAD":
        await request.exchange.end_stream()
        return
    await serve_events(request.exchange, request.management.feed, request.management.closing, request.may_read)


async def show_openapi(request: Request) -> None:
    """Send the OpenAPI document."""
    await request.answer(openapi_document(OPERATIONS, VERSION))


OPERATIONS: Final = (
    Operation("GET", "/livez", "livez", livez, "Liveness probe.", (doc.Probe,), "open"),
    Operation("GET", "/readyz", "readyz", readyz, "Readiness probe: all required servers.", (doc.Probe,), "open",
              (503,), problem=doc.Probe),
    Operation("GET", "/health", "health", health, "The gateway's health; details only for clients that may read.",
              (doc.Health, doc.Probe), "open"),
    Operation("GET", "/servers", "list_servers", list_servers, "All servers.", (doc.ServerList,)),
    Operation("POST", "/servers", "add_servers", add_servers, "Add or replace servers; the body is a config.",
              (doc.Added,), "change", (400, 413, 415, 422, 503), takes_config=True),
    Operation("GET", "/servers/{name}", "show_server", show_server, "Details of one server.",
              (doc.ServerDetail,), "read", (404,)),
    Operation("GET", "/servers/{name}/items", "list_items", list_items,
              "Tools, prompts, resources and templates of one server.", (doc.ServerItems,), "read", (404,)),
    Operation("GET", "/servers/{name}/processes", "list_processes", list_processes, "The processes of one server.",
              (doc.Processes,), "read", (404,)),
    Operation("GET", "/servers/{name}/stderr", "read_stderr", read_stderr,
              "What the processes of one server write to stderr, as server-sent events.", (), "read", (404, 503),
              content_type="text/event-stream"),
    Operation("DELETE", "/servers/{name}", "remove_server", remove_server, "Remove a server.", (doc.Removed,),
              "change", (404, 422, 503)),
    Operation("POST", "/servers/{name}/restart", "restart_server", restart_server,
              "Restart a server, starting its replacement first.", (doc.Done,), "change", (404, 409, 415, 503)),
    Operation("POST", "/servers/{name}/enable", "enable_server", enable_server, "Enable a server.", (doc.Done,),
              "change", (404, 415, 422, 503)),
    Operation("POST", "/servers/{name}/disable", "disable_server", disable_server, "Disable a server.", (doc.Done,),
              "change", (404, 415, 422, 503)),
    Operation("POST", "/reload", "reload", reload, "Read the config file again.", (doc.Reloaded,), "change",
              (415, 422, 503)),
    Operation("GET", "/tools", "list_tools", list_tools, "Public names of tools, by server.", (doc.Tools,)),
    Operation("GET", "/tree", "show_tree", show_tree, "The active calls and the processes.", (doc.Tree,)),
    Operation("POST", "/calls/{number}/cancel", "cancel_call", cancel_call,
              "Cancel an active call; its client gets the error `cancelled_by_admin`.", (doc.Cancelled,), "change",
              (404, 415)),
    Operation("GET", "/history", "show_history", show_history,
              "Calls, durations, errors, memory and processes: 15 minutes every 5 s, 24 hours by the minute.",
              (doc.History,), "read", (400,), query=("after",)),
    Operation("GET", "/diagnosis", "diagnose", diagnose, "What is slow, failing, large or insecure.",
              (doc.Diagnosis,)),
    Operation("GET", "/metrics", "read_metrics", read_metrics, "Metrics in the Prometheus text format.",
              content_type="text/plain"),
    Operation("GET", "/events", "read_events", read_events,
              "State changes, calls and reloads as they happen, as server-sent events.", problems=(503,),
              content_type="text/event-stream"),
    Operation("GET", "/openapi.json", "show_openapi", show_openapi, "This document."),
)  # fmt: skip
"""Every operation, in the order of the document."""
