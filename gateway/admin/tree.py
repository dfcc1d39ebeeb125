"""The live tree: session, call, backend, process, with ages and causes of waits."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import trio

from gateway import jsonrpc
from gateway.admin.documents import BackendNode, CallNode, SessionNode, Tree
from gateway.clock import elapsed_time
from gateway.inflight.state import CallState
from gateway.supervisor.lifecycle import State
from gateway.supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from gateway.inflight.pending import PendingCall
    from gateway.processes.guard import ChildGuard
    from gateway.router import Router
    from gateway.supervisor.fleet import Fleet

_MAX_SHOWN = 200  # maximum length of a name from a client


class _Client(msgspec.Struct):
    name: str = ""


_clients = msgspec.json.Decoder(_Client)


def make_tree(router: Router, guard: ChildGuard | None) -> Tree:
    """Return the active sessions, calls and processes."""
    by_session: dict[tuple[str | None, str | None, str], list[PendingCall]] = {}
    for call in router.pending_calls():
        caller = call.call.caller
        by_session.setdefault((caller.session, caller.principal, caller.era), []).append(call)
    now = trio.current_time()
    sessions: list[SessionNode] = []
    for calls in by_session.values():
        caller = calls[0].call.caller
        try:
            client = jsonrpc.read(_clients, caller.client_info).name[:_MAX_SHOWN] or None
        except (ValueError, RecursionError):
            client = None
        nodes = [_describe_call(call, router.fleet, now) for call in calls]
        sessions.append(SessionNode(caller.label, caller.era, client, caller.principal, nodes))
    reports = () if guard is None else guard.snapshot()
    children = {child.pid: child for child in reports}
    processes: dict[str, list[int]] = {}
    for child in reports:
        processes.setdefault(child.backend, []).extend((child.pid, *child.descendants))
    backends: list[BackendNode] = []
    for name, status in router.fleet.statuses().items():
        child = children.get(status.pid or 0)
        descendants = [] if child is None else list(child.descendants)
        age = None if child is None else round(elapsed_time() - child.started_at, 1)
        counts = (status.in_flight, status.queued)
        pids = processes.get(name, [])
        backends.append(BackendNode(name, status.state, status.pid, descendants, age, *counts, pids))
    return Tree(os.getpid(), sessions, backends)


def _describe_call(call: PendingCall, fleet: Fleet, now: float) -> CallNode:
    # A backend with several sessions has an owner for each, and perhaps a process.
    supervisor = call.owner if isinstance(call.owner, Supervisor) else fleet.supervisors.get(call.backend)
    if call.over:
        waits_for = "delivery"
    elif call.state is CallState.WAITING_FOR_CLIENT:
        waits_for = "client"
    elif call.is_sent:
        waits_for = "backend"
    elif supervisor is not None and supervisor.state in {State.STARTING, State.BACKOFF, State.STOPPED}:
        waits_for = "start"
    else:
        waits_for = "queue"
    return CallNode(
        call=call.number,
        method=call.call.method,
        name=call.call.name[:_MAX_SHOWN],
        backend=call.backend,
        pid=None if supervisor is None else supervisor.status().pid,
        age=round(now - call.opened_at, 3),
        deadline_in=round(call.deadline - now, 3),
        waits_for=waits_for,
    )
