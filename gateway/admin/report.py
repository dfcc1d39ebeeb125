"""The report of `mcp-gateway ps`: every backend with its process, descendants and state."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from gateway import jsonrpc
from gateway.clock import elapsed_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.processes.guard import ChildGuard
    from gateway.supervisor.fleet import Fleet

_STARTED = time.monotonic()
DISABLED: Final[dict[str, object]] = {
    "name": "", "state": "disabled", "pid": None, "descendants": [], "age": None, "restarts": 0, "in_flight": 0,
    "queued": 0, "last_error": None, "warnings": [], "asked": [],
}  # fmt: skip
"""A disabled server among the backends."""


def encode_report(
    fleet: Fleet,
    guard: ChildGuard,
    *,
    transport: str,
    urls: Sequence[str] = (),
    shared: Mapping[str, object] | None = None,
) -> bytes:
    """Return `{"pid", "config", "transport", "urls", "age", "backends": [...]}`, including disabled backends.

    Ages are in seconds; `descendants` are the pids of the child's own descendants. A gateway that serves relays adds
    `shared`: its number of `clients` and its `log`.
    """
    children = {child.pid: child for child in guard.snapshot()}
    backends: list[dict[str, object]] = []
    for name, server in fleet.config.servers.items():
        supervisor = fleet.supervisors.get(name)
        if supervisor is None:
            backends.append(DISABLED | {"name": name, "disabled": server.disabled_by})
            continue
        status = supervisor.status()
        child = children.get(status.pid or 0)
        backends.append({
            "name": name,
            "state": status.state,
            "pid": status.pid,
            "descendants": [] if child is None else list(child.descendants),
            "age": None if child is None else round(elapsed_time() - child.started_at, 1),
            "restarts": status.restarts,
            "in_flight": status.in_flight,
            "queued": status.queued,
            "last_error": status.last_error,
            "warnings": status.warnings,
            "asked": status.asked,
        })
    return jsonrpc.encode({
        "pid": os.getpid(),
        "config": os.path.realpath(fleet.config.source),
        "transport": transport,
        "urls": list(urls),
        "age": round(time.monotonic() - _STARTED, 1),
        "backends": backends,
        **(shared or {}),
    })
