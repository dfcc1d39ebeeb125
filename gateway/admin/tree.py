"""The live tree: session -> call -> backend -> process, how old each is and what it waits for."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec
import trio

from gateway import jsonrpc
from gateway.admin.documents import BackendNode, CallNode, SessionNode, Tree
from gateway.supervisor.lifecycle import State

if TYPE_CHECKING:
    from gateway.calls import Caller
    from gateway.inflight.pending import PendingCall
    from gateway.processes.guard import ChildGuard
    from gateway.router import Router
    from gateway.supervisor.fleet import Fleet

_MAX_SHOWN = 200  # characters of a name that a client gives


class _Client(msgspec.Struct):
    name: str = ""


_clients = msgspec.json.Decoder(_Client)


def make_tree(router: Router, guard: ChildGuard | None) -> Tree:
    """Everything that is under way at this moment."""
    groups: dict[tuple[str | None, str | None, str], list[PendingCall]] = {}
    for ticket in router.tickets():
        caller = ticket.call.caller
        groups.setdefault((caller.session, caller.principal, caller.era), []).append(ticket)
    now = trio.current_time()
    sessions = [
        _session(tickets[0].call.caller, [_call(ticket, router.fleet, now) for ticket in tickets])
        for tickets in groups.values()
    ]
    return Tree(os.getpid(), sessions, _backends(router.fleet, guard))


def _session(caller: Caller, calls: list[CallNode]) -> SessionNode:
    try:
        client = jsonrpc.read(_clients, caller.client_info).name[:_MAX_SHOWN] or None
    except (ValueError, RecursionError):
        client = None
    return SessionNode(caller.label, caller.era, client, caller.principal, calls)


def _call(ticket: PendingCall, fleet: Fleet, now: float) -> CallNode:
    supervisor = fleet.supervisors.get(ticket.backend)
    return CallNode(
        call=ticket.number,
        method=ticket.call.method,
        name=ticket.call.name[:_MAX_SHOWN],
        backend=ticket.backend,
        pid=None if supervisor is None else supervisor.status().pid,
        age=round(now - ticket.opened_at, 3),
        deadline_in=round(ticket.deadline - now, 3),
        waits_for=_waits_for(ticket, None if supervisor is None else supervisor.state),
    )


def _waits_for(ticket: PendingCall, state: State | None) -> str:
    if ticket.over:
        return "delivery"
    if ticket.is_waiting_for_client:
        return "client"
    if ticket.on_close is not None:
        return "backend"
    return "start" if state in {State.STARTING, State.BACKOFF, State.STOPPED} else "queue"


def _backends(fleet: Fleet, guard: ChildGuard | None) -> list[BackendNode]:
    children = {} if guard is None else {child.backend: child for child in guard.snapshot()}
    nodes: list[BackendNode] = []
    for name, status in fleet.statuses().items():
        child = children.get(name)
        descendants = [] if child is None else list(child.descendants)
        age = None if child is None else round(time.time() - child.started_at, 1)
        nodes.append(BackendNode(name, status.state, status.pid, descendants, age, status.in_flight, status.queued))
    return nodes
