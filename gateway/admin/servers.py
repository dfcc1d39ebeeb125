"""The management API without HTTP: reads fleet snapshots, requests changes from the reloader."""

from __future__ import annotations

from itertools import starmap
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gateway import jsonrpc
from gateway.admin import documents as doc
from gateway.admin.diagnosis import diagnose
from gateway.admin.events import Feed
from gateway.admin.history import History
from gateway.admin.stderr_stream import StderrStreams
from gateway.admin.tree import make_tree
from gateway.backends.stderr import shown
from gateway.clock import elapsed_time
from gateway.config import parse_config
from gateway.config.findings import did_you_mean
from gateway.config.shown import shown_config
from gateway.eras.methods import Kind
from gateway.eras.tools import View
from gateway.errors import CODES, CancelledByAdmin, ConfigError, UnknownServer
from gateway.masking import SECRETS
from gateway.processes.usage import read_usage
from gateway.supervisor.history import MAX_TEXT, CallStats
from gateway.supervisor.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import trio

    from gateway.backends.stderr import StderrTail
    from gateway.config import ServerConfig
    from gateway.inflight.pending import PendingCall
    from gateway.processes.guard import ChildGuard
    from gateway.reload.reloader import Reloader
    from gateway.router import Router
    from gateway.supervisor.supervisor import Supervisor

HINTS: Final = {
    "backend_exited": "see its stderr; `mcp-gateway doctor` starts it once and shows the cause",
    "backend_unavailable": "check its command or address, and that this machine can reach it",
}
"""What an operator can do, where `CODES` speaks to the client of a failed call."""
MAX_PROCESSES: Final = 200
"""Processes shown of one server."""


class Management:
    """One gateway from its operator's point of view."""

    def __init__(
        self,
        router: Router,
        reloader: Reloader,
        *,
        transport: str,
        draining: Callable[[], bool],
        closing: trio.Event,
        guard: ChildGuard | None = None,
        gauges: Mapping[str, Callable[[], int]] | None = None,
        audit_lines_dropped: Callable[[], int] = int,
        spans_dropped: Callable[[], int] = int,
        note_cancelled: Callable[[PendingCall], None] = lambda _pending: None,
    ) -> None:
        """Create it.

        `gauges` reads the metrics in `gateway.admin.metrics.FAMILIES` that only the frontends know; `note_cancelled` is
        called with each call before it is cancelled. `history` needs a task that runs it.
        """
        self.feed = Feed(router.fleet)
        self.gauges = gauges or {}
        self.audit_lines_dropped = audit_lines_dropped
        self.spans_dropped = spans_dropped
        self._note_cancelled = note_cancelled
        self.history = History(router, guard)
        self.stderr_streams = StderrStreams()
        reloader.on_news.append(self.feed.publish_reload)
        self.closing = closing
        self.router = router
        self._fleet = router.fleet
        self._reloader = reloader
        self._transport = transport
        self._draining = draining
        self.guard = guard

    @property
    def max_body(self) -> int:
        """Maximum size of a request body in bytes."""
        return self._fleet.settings.max_body_bytes

    @property
    def reloads(self) -> dict[str, int]:
        """Number of config changes that were applied and refused."""
        return self._reloader.counts

    # Reading.

    @property
    def is_guarded(self) -> bool:
        """True if the present config has a section `access`."""
        access = self._fleet.config.access
        return access is not None and access.says_something

    def is_ready(self) -> bool:
        """Return whether every required server is ready or starts with its next call."""
        if self._draining():
            return False
        for server in self._fleet.config.servers.values():
            if not server.required:
                continue
            supervisor = self._fleet.supervisors.get(server.name)
            if supervisor is None:
                return False
            if not (supervisor.state is State.READY or (supervisor.state is State.STOPPED and supervisor.offered)):
                return False
        return True

    def health(self) -> doc.Health:
        """Return the gateway's health: 200 once the socket is open, whatever the backends' state."""
        return doc.Health(
            status="draining" if self._draining() else "ok",
            transport=self._transport,
            servers=list(self._fleet.supervisors),
            backends=self._fleet.statuses(),
            reload=self._reloader.last,
        )

    def list_servers(self) -> doc.ServerList:
        """Return all servers of the config, in its order."""
        details: dict[str, doc.ServerLine] = {}
        for name, config in self._fleet.config.servers.items():
            supervisor = self._fleet.supervisors.get(name)
            status = None if supervisor is None else supervisor.status()
            details[name] = doc.ServerLine(
                state="disabled" if status is None else status.state,
                origin=self._reloader.origin(name),
                transport=config.transport or "auto",
                required=config.required,
                restarts=0 if status is None else status.restarts,
                tools=0 if status is None else status.tools,
                last_error=None if status is None else status.last_error,
                disabled=config.disabled_by or None,
                since=None if status is None else status.since,
                era=None if status is None else status.era,
                in_flight=0 if status is None else status.in_flight,
                queued=0 if status is None else status.queued,
                hint=None if supervisor is None else _hint(supervisor),
            )
        return doc.ServerList(list(details), details)

    def list_tools(self) -> doc.Tools:
        """Return the public names by server; empty for a server that lists none."""
        listed = self._fleet.snapshot().listed_by_backend(Kind.TOOLS)
        return doc.Tools({
            name: [public for public, _ in listed.get(name, [])] for name in self._fleet.supervisors
        })  # fmt: skip

    async def list_all(self) -> bytes:
        """Return the catalog, and problems and warnings by server; wait like a list."""
        await self._fleet.first_starts()
        snapshot, statuses = self._fleet.snapshot(), self._fleet.statuses()
        pages = {kind.member: snapshot.page(kind, None, None, View.LATEST).joined for kind in Kind}
        return jsonrpc.encode({
            "items": {member: msgspec.Raw(b"[" + joined + b"]") for member, joined in pages.items()},
            "problems": {
                name: one.last_error or f"it is {one.state}" for name, one in statuses.items() if one.state != "ready"
            },
            "warnings": {name: one.warnings for name, one in statuses.items() if one.warnings},
        })

    def show_tree(self) -> doc.Tree:
        """Return the active sessions, calls and processes."""
        return make_tree(self.router, self.guard)

    async def diagnose(self) -> doc.Diagnosis:
        """Return what is slow, failing, large or insecure."""
        return await diagnose(self._fleet)

    def show_server(self, name: str) -> doc.ServerDetail:
        """Everything about one server. Raises UnknownServer."""
        config = self._find(name)
        supervisor = self._fleet.supervisors.get(name)
        history = CallStats() if supervisor is None else supervisor.history
        greeting = None if supervisor is None else supervisor.greeting
        listed = self._fleet.snapshot().listed_by_backend(Kind.TOOLS).get(name, [])
        capabilities: dict[str, msgspec.Raw] = {}
        if supervisor is not None and supervisor.listing is not None:
            capabilities = supervisor.listing.capabilities
        return doc.ServerDetail(
            name=name,
            origin=self._reloader.origin(name),
            config=shown_config(config),
            status=None if supervisor is None else supervisor.status(),
            protocol_version=None if greeting is None else greeting.version,
            server_info=None if greeting is None else _without_secrets(greeting.server_info),
            capabilities={name: _without_secrets(value) for name, value in capabilities.items()},
            tools=list(starmap(doc.ToolLine, listed)),
            calls=history.calls,
            failed=history.failed,
            latency=history.latency(),
            errors=list(history.errors),
            stderr=[shown(line) for line in history.stderr],
            states=self._fleet.states.of(name),
            hint=None if supervisor is None else _hint(supervisor),
        )

    def list_items(self, name: str) -> doc.ServerItems:
        """Return what one server offers, listed or not. Raises UnknownServer."""
        self._find(name)
        snapshot = self._fleet.snapshot()
        found = {
            kind: [
                doc.Item(entry.public, entry.own, _without_secrets(msgspec.Raw(entry.raw)), entry.era)
                for entry in snapshot.placed(kind, name)
            ]
            for kind in Kind
        }
        return doc.ServerItems(found[Kind.TOOLS], found[Kind.PROMPTS], found[Kind.RESOURCES], found[Kind.TEMPLATES])

    def list_processes(self, name: str) -> doc.Processes:
        """Return the processes of one server. Raises UnknownServer."""
        self._find(name)
        children = [] if self.guard is None else [one for one in self.guard.snapshot() if one.backend == name]
        pids = [(pid, child) for child in children for pid in (child.pid, *child.descendants)]
        lines: list[doc.ProcessLine] = []
        for pid, child in pids[:MAX_PROCESSES]:
            if (usage := read_usage(pid)) is not None:
                age = round(elapsed_time() - child.started_at, 1)
                lines.append(doc.ProcessLine(pid, child.pid, age, usage.name, usage.memory, usage.cpu))
        return doc.Processes(lines)

    def find_stderr(self, name: str) -> StderrTail | None:
        """Return the last lines of a server's stderr; None if it is disabled. Raises UnknownServer."""
        self._find(name)
        supervisor = self._fleet.supervisors.get(name)
        return None if supervisor is None else supervisor.history.stderr

    def _find(self, name: str) -> ServerConfig:
        config = self._fleet.config.servers.get(name)
        if config is None:
            text = f"there is no server {name!r}{did_you_mean(name, self._fleet.config.servers)}"
            raise UnknownServer(text)
        return config

    # Changing. Each may raise ConfigError, Busy or ShuttingDown, and has then changed nothing.

    async def add(self, body: bytes) -> doc.Added:
        """Add or replace the servers of a config."""
        config = parse_config(body, environ=self._reloader.environ, source="the body")
        if not config.servers:
            raise ConfigError(["the body: 'mcpServers' names no server"])
        root = msgspec.json.decode(body)
        applied = await self._reloader.put(root.get("mcpServers") or root["servers"])
        names = list(config.servers)
        return doc.Added(names, {name: why for name, why in applied.not_ready.items() if name in names})

    async def remove(self, name: str) -> doc.Removed:
        """Remove a server. Raises UnknownServer."""
        await self._reloader.remove(name)
        return doc.Removed(name)

    async def switch(self, name: str, *, disabled: bool) -> doc.Done:
        """Disable or enable a server. Raises UnknownServer."""
        applied = await self._reloader.switch(name, disabled=disabled)
        return doc.Done(name, "disabled" if disabled else "enabled", applied.not_ready.get(name))

    async def restart(self, name: str) -> doc.Done:
        """Restart a server. Raises UnknownServer and NotChangeable."""
        applied = await self._reloader.restart(name)
        return doc.Done(name, "restarted", applied.not_ready.get(name))

    def cancel(self, number: int) -> bool:
        """Cancel an active call, also at its backend; return whether there is one."""
        pending = self.router.find(number)
        if pending is not None:
            self._note_cancelled(pending)
            text = "the call was cancelled over the gateway's management API"
            pending.abandon(CancelledByAdmin(text), "cancelled by the gateway's operator")
        return pending is not None

    async def reload(self) -> doc.Reloaded:
        """Reload the config file."""
        found = await self._reloader.reload("api")
        return doc.Reloaded(
            list(found.added), list(found.removed), list(found.changed), list(found.unchanged), found.not_ready
        )


def _hint(supervisor: Supervisor) -> str | None:
    """Return the remedy for a backend's last error, if that has a code."""
    if supervisor.last_error is None:
        return None
    errors = (one for one in reversed(supervisor.history.errors) if one.call is None)
    last = next(errors, None)
    if last is None or last.code is None or last.error != SECRETS.mask_briefly(supervisor.last_error, MAX_TEXT):
        return None
    return HINTS.get(last.code) or CODES[last.code].remedy


def _without_secrets(span: msgspec.Raw) -> Any:
    """Return a server's description of itself with secrets masked."""
    return None if span is jsonrpc.ABSENT else SECRETS.mask_all(jsonrpc.decode_any(span))
