"""The management API without HTTP: reads fleet snapshots, requests changes from the reloader."""

from __future__ import annotations

from itertools import starmap
from typing import TYPE_CHECKING, Any

import msgspec

from gateway import jsonrpc
from gateway.admin import documents as doc
from gateway.admin.events import Feed
from gateway.admin.tree import make_tree
from gateway.backends.stderr import shown
from gateway.config import parse_config
from gateway.config.findings import did_you_mean
from gateway.config.shown import shown_config
from gateway.eras.methods import Kind
from gateway.eras.tools import View
from gateway.errors import ConfigError, UnknownServer
from gateway.masking import SECRETS
from gateway.supervisor.history import CallStats
from gateway.supervisor.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import trio

    from gateway.processes.guard import ChildGuard
    from gateway.reload.reloader import Reloader
    from gateway.router import Router


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
    ) -> None:
        """Create it; `gauges` reads the metrics that only the frontends know (`metrics.FAMILIES`)."""
        self.feed = Feed(router.fleet)
        self.gauges = gauges or {}
        self.audit_lines_dropped = audit_lines_dropped
        self.spans_dropped = spans_dropped
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

    def show_server(self, name: str) -> doc.ServerDetail:
        """Everything about one server. Raises UnknownServer."""
        config = self._fleet.config.servers.get(name)
        if config is None:
            text = f"there is no server {name!r}{did_you_mean(name, self._fleet.config.servers)}"
            raise UnknownServer(text)
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
        )

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

    async def reload(self) -> doc.Reloaded:
        """Reload the config file."""
        found = await self._reloader.reload("api")
        return doc.Reloaded(
            list(found.added), list(found.removed), list(found.changed), list(found.unchanged), found.not_ready
        )


def _without_secrets(span: msgspec.Raw) -> Any:
    """Return a server's description of itself with secrets masked."""
    return None if span is jsonrpc.ABSENT else SECRETS.mask_all(jsonrpc.decode_any(span))
