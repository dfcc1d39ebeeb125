"""The single path of config changes, one at a time: read, validate, apply whole.

The reloader owns a task for each running change, so that a disconnecting client does not interrupt it, and the task
that watches the file. Invariant: the fleet's config is the source's base with its overlay; both are set only after the
fleet has applied the config.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec
import trio

from gateway.config.findings import did_you_mean
from gateway.errors import Busy, ConfigError, GatewayError, RequestError, ShuttingDown, UnknownServer
from gateway.reload.watch import watch
from gateway.telemetry import now_iso

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from gateway.config import Config
    from gateway.reload.overlay import Base, Overlay
    from gateway.reload.source import ConfigSource
    from gateway.supervisor.fleet import Applied, Fleet

MAX_WAITING: Final = 32
"""Limit of queued changes; each may take as long as a backend's start."""
LOOKS: Final = 3
"""Attempts at reading an invalid file before it is rejected: editors write in two steps."""
LOOK_AGAIN_AFTER: Final = 0.3
"""Seconds between these attempts."""
WATCH_AFTER: Final = 1.0
"""Seconds before the watch starts, so that its import does not delay the start; no change is missed."""

log = logging.getLogger("gateway.reload")


class NotChangeable(RequestError):
    """The server can only be changed in its config's source."""

    code: ClassVar[str] = "not_changeable"


class LastReload(msgspec.Struct, frozen=True):
    """The latest attempted change: time, origin, and the reason if it was refused."""

    at: str
    by: str
    ok: bool
    problems: tuple[str, ...] = ()
    not_ready: dict[str, str] = {}


class Reloader:
    """Applies one change at a time."""

    nursery: trio.Nursery

    def __init__(
        self,
        source: ConfigSource,
        fleet: Fleet,
        *,
        apply: Callable[..., Awaitable[Applied]] | None = None,
        check: Callable[[Config], None] | None = None,
    ) -> None:
        """Create it; `apply` applies a config (default: `Fleet.apply`).

        `check` is called first and raises ConfigError for a config that cannot apply to this run.
        """
        self.last: LastReload | None = None
        self.counts = {"applied": 0, "refused": 0}
        """The number of changes by result."""
        self.on_news: list[Callable[[dict[str, Any]], None]] = []
        """Callbacks for the start and the result of a change. They must not block."""
        self._source = source
        self._fleet = fleet
        self._put_in_place = apply or fleet.apply
        self._check = check
        self._turn = trio.Lock()
        self._waiting = 0
        self._running = False

    async def run(self, *, watching: bool = True, task_status: trio.TaskStatus[None]) -> None:
        """Own the running changes until cancelled."""
        async with trio.open_nursery() as self.nursery:
            self._running = True
            try:
                task_status.started()
                if watching and self._source.path is not None:
                    await trio.sleep(WATCH_AFTER)
                    await watch(self._source.path, partial(self._quietly, "file", LOOKS), since=self._source.mark)
                await trio.sleep_forever()
            finally:
                self._running = False

    def stop(self) -> None:
        """Cancel running changes that the fleet has not applied yet; their callers get ShuttingDown."""
        if self._running:
            self._running = False
            self.nursery.cancel_scope.cancel(reason="the gateway is stopping")

    # Requests. Each may raise ConfigError, Busy or ShuttingDown, and has then changed nothing.

    async def reload(self, by: str) -> Applied:
        """Read the file again and apply it."""
        return await self._do(by, partial(self._reload, by))

    def reload_soon(self, by: str) -> None:
        """Start a reload without waiting; its result is logged."""
        if self._running:
            self.nursery.start_soon(self._quietly, by, 1)

    async def put(self, servers: dict[str, dict[str, Any]]) -> Applied:
        """Add or replace servers, given in the format of a config file."""

        def edit(overlay: Overlay, base: Base) -> Overlay:
            for name, raw in servers.items():
                overlay = overlay.put(base, name, raw)
            return overlay

        return await self._do("api", partial(self._edit, edit, "api"))

    async def remove(self, name: str) -> Applied:
        """Remove a server. Also raises UnknownServer."""

        def edit(overlay: Overlay, base: Base) -> Overlay:
            self._check_known(name)
            return overlay.remove(base, name)

        return await self._do("api", partial(self._edit, edit, "api"))

    async def switch(self, name: str, *, disabled: bool) -> Applied:
        """Disable or enable a server. Also raises UnknownServer."""

        def edit(overlay: Overlay, base: Base) -> Overlay:
            self._check_known(name)
            return overlay.switch(base, name, disabled, now_iso())

        return await self._do("api", partial(self._edit, edit, "api"))

    async def restart(self, name: str) -> Applied:
        """Restart a server, starting the replacement first. Raises UnknownServer; NotChangeable if disabled."""

        async def restart() -> Applied:
            if self._check_known(name).disabled:
                text = f"server {name!r} is disabled; enable it first"
                raise NotChangeable(text)
            return await self._apply("api", self._fleet.config, restart=(name,))

        return await self._do("api", restart)

    @property
    def environ(self) -> Mapping[str, str]:
        """The variables for a config."""
        return self._source.environ

    def origin(self, name: str) -> str:
        """Return a server's origin: `file`, `api`, or `file, changed by api`."""
        change = self._source.overlay.changes.get(name)
        given = "given" if self._source.path is None else "file"
        if change is None:
            return given
        return "api" if change.over is None else f"{given}, changed by api"

    # Tasks.

    async def _do(self, by: str, job: Callable[[], Awaitable[Applied]]) -> Applied:
        """Run a job in one of the reloader's tasks, in turn."""
        if not self._running:
            text = "the gateway is not running"
            raise ShuttingDown(text)
        if self._waiting >= MAX_WAITING:
            text = f"{MAX_WAITING} changes of the config are queued; retry later"
            raise Busy(text)
        self._waiting += 1
        results: list[Applied] = []
        problems: list[GatewayError] = []
        done = trio.Event()

        async def work() -> None:
            try:
                async with self._turn:
                    self._report(by, "begun")
                    results.append(await job())
                self._report(by, "applied", **msgspec.structs.asdict(results[0]))
            except GatewayError as exc:
                problems.append(exc)
                self._report(by, "refused", code=exc.code, reason=str(exc))
            finally:
                self._waiting -= 1
                done.set()

        self.nursery.start_soon(work)
        await done.wait()
        if results:
            return results[0]
        raise problems[0] if problems else ShuttingDown("the gateway is shutting down")

    def _report(self, by: str, what: str, **further: Any) -> None:
        if what in self.counts:
            self.counts[what] += 1
        for tell in self.on_news:
            tell({"at": now_iso(), "by": by, "reload": what, **further})

    async def _quietly(self, by: str, looks: int) -> None:
        """Reload; the result is in the log and in `last`."""
        try:
            await self._do(by, partial(self._reload, by, looks))
        except (ConfigError, ShuttingDown):
            return  # already logged
        except GatewayError as exc:
            log.warning("not reloaded: %s", exc, extra={"event": "config_not_reloaded", "by": by, "code": exc.code})

    async def _reload(self, by: str, looks: int = 1) -> Applied:
        source = self._source
        while True:
            looks -= 1
            try:
                base = await trio.to_thread.run_sync(source.read, abandon_on_cancel=True)
                overlay, void = source.overlay.without_void(base)
                config = self._composed(overlay, base)
                break
            except ConfigError as exc:
                if looks <= 0:
                    raise self._refused(by, exc) from None
            await trio.sleep(LOOK_AGAIN_AFTER)
        source.log_discarded(void)
        for warning in config.warnings:
            if warning not in self._fleet.config.warnings:
                log.warning("%s", warning, extra={"event": "config_warning"})
        applied = await self._apply(by, config)
        source.base = base
        await self._keep(overlay)
        return applied

    def _composed(self, overlay: Overlay, base: Base) -> Config:
        config = overlay.compose(base, self._source.environ)
        if self._check is not None:
            self._check(config)
        return config

    async def _edit(self, edit: Callable[[Overlay, Base], Overlay], by: str) -> Applied:
        source = self._source
        overlay = edit(source.overlay, source.base)
        try:
            config = self._composed(overlay, source.base)
        except ConfigError as exc:
            raise self._refused(by, exc) from None
        applied = await self._apply(by, config)
        await self._keep(overlay)
        return applied

    async def _apply(self, by: str, config: Config, *, restart: tuple[str, ...] = ()) -> Applied:
        applied = await self._put_in_place(config, restart=restart)
        self.last = LastReload(now_iso(), by, ok=True, not_ready=applied.not_ready)
        parts = [
            f"{word} {', '.join(names)}"
            for word, names in (("added", applied.added), ("removed", applied.removed), ("changed", applied.changed))
            if names
        ]
        names = {"added": applied.added, "removed": applied.removed, "changed": applied.changed}
        extra = {"event": "config_reloaded", "by": by, **names}
        log.info("config reloaded (%s): %s", by, "; ".join(parts) or "no server has changed", extra=extra)
        for name, reason in applied.not_ready.items():
            extra = {"event": "backend_not_ready", "backend": name}
            log.warning("server %r is not ready after the reload: %s", name, reason, extra=extra)
        return applied

    async def _keep(self, overlay: Overlay) -> None:
        if overlay == self._source.overlay:
            return
        self._source.overlay = overlay
        if not self._source.keeps:
            return
        try:
            await trio.to_thread.run_sync(self._source.save_overlay, overlay)
        except OSError as exc:
            extra = {"event": "api_changes_not_saved"}
            log.error("changes over the API will be lost at a restart: %s", exc, extra=extra)

    def _refused(self, by: str, problem: ConfigError) -> ConfigError:
        self.last = LastReload(now_iso(), by, ok=False, problems=tuple(map(str, problem.problems)))
        extra = {"event": "config_rejected", "by": by, "code": problem.code}
        log.error("config rejected (%s): %s; keeping the current one", by, "; ".join(problem.problems), extra=extra)
        return problem

    def _check_known(self, name: str) -> Any:
        server = self._fleet.config.servers.get(name)
        if server is None:
            text = f"there is no server {name!r}{did_you_mean(name, self._fleet.config.servers)}"
            raise UnknownServer(text)
        return server
