"""Opening sessions: the known eras of servers, and another attempt after an early end.

`EraRecords.open` runs an attempt to open a session. If the process or connection ends before its era is known, it runs
another attempt immediately: a server that ends at any first message but `initialize` gets that first, one that ends at
its version gets an older one. Results are kept for `ERA_MAX_AGE`, in the state directory if there is one, under a
digest of the server's command line or URL, and are dropped when a start with them fails or the server's own version
changes. Nothing here depends on the transport.
"""

from __future__ import annotations

import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import trio

from gateway import jsonrpc
from gateway.backends.session.handshake import Attempts
from gateway.calls import Era
from gateway.errors import BackendError, BackendExited, BackendUnavailable, first_in_group
from gateway.store import ERA_MAX_AGE, EraRecord, era_digest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from gateway.backends.session.handshake import ServerIntroduction
    from gateway.backends.session.interface import Session
    from gateway.config import ServerConfig
    from gateway.store import Store

STORE_WAIT: Final = 1.0
"""Seconds to read or write the state directory; a hanging disk must not delay a start."""

_S = TypeVar("_S", bound="Session")

log = logging.getLogger("gateway.backend")


class _Known(msgspec.Struct):
    """The record of one server while the gateway runs."""

    digest: str
    record: EraRecord | None
    skips_probe: bool = False
    """Whether the last start hung after the probe, so that the next one begins with `initialize`."""
    has_walked: bool = False
    """Whether every version was tried without success, in a process each: not repeated at every restart."""


class EraRecords:
    """The known eras of servers; without a store they are kept in memory."""

    def __init__(self, store: Store | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._known: dict[str, _Known] = {}

    @asynccontextmanager
    async def open(
        self,
        config: ServerConfig,
        attempt: Callable[[Attempts], AbstractAsyncContextManager[_S]],
        era: Era | None = None,
    ) -> AsyncGenerator[_S]:
        """Open a session with `attempt`, called again if the server ends too early.

        If the server is known to offer both eras, the session is opened in `era`. The default is the era of the last
        session for a child process, and the modern era over HTTP.

        Raises:
            BackendError, OSError, trio.TooSlowError: from the last attempt, perhaps grouped.
        """
        known = await self._recall(config)
        record: EraRecord | None = known.record
        if record is not None and not 0 <= self._clock() - record.at <= ERA_MAX_AGE:
            record = None  # too old, or from the future, because of a wrong clock
        attempts = self._begin(config, known, record, era)
        while True:
            opened = False
            failure: BaseExceptionGroup[BaseException] | None = None
            try:
                async with attempt(attempts) as session:
                    opened = True
                    await self._note_success(config, known, record, session.greeting, attempts)
                    yield session
            except* (BackendError, OSError, trio.TooSlowError) as group:
                if opened:
                    raise
                failure = group
            if failure is None:
                return
            was_reached = failure.split(BackendUnavailable)[1] is not None
            if was_reached and record is not None and attempts.era == Era.LEGACY and Era.LEGACY not in record.eras:
                log.info("backend %r refuses the legacy era: %s", config.name, first_in_group(failure))
                record = msgspec.structs.replace(record, refuses_legacy=True)
                await self._keep(config, known, record)
                attempts = self._begin(config, known, record, Era.MODERN)
                continue
            if failure.subgroup(BackendExited) is None or not attempts.prepare_restart():
                if was_reached:  # the server was reached: forget its record
                    known.skips_probe = attempts.hung_on_probe
                    known.has_walked = known.has_walked or attempts.has_walked
                    if known.record is not None:
                        await self._keep(config, known, None)
                raise failure
            text = "backend %r ended before its era was known; starting it again with initialize %s"
            log.info(text, config.name, attempts.next_version(), extra={"backend": config.name})

    def _begin(self, config: ServerConfig, known: _Known, record: EraRecord | None, era: Era | None) -> Attempts:
        """Choose the first message to the server."""
        pinned = config.pins_era
        if pinned:
            first: str = config.era
        elif known.skips_probe:
            first = Era.LEGACY
        elif record is None:
            first = "auto"
        elif era is not None and record.may_offer(era):
            first = era
        elif config.command is None and Era.MODERN in record.eras:
            first = Era.MODERN
        else:
            first = record.era
        if record is None:
            return Attempts(first, pinned=pinned, walks=not known.has_walked)
        return Attempts(
            first,
            pinned=pinned,
            version=record.asked or None,
            transport=record.transport,
            offered=record.offered,
            refuses_legacy=record.refuses_legacy,
            walks=False,
        )

    async def _recall(self, config: ServerConfig) -> _Known:
        """Return the record of a server, identified by its command line or URL."""
        digest = era_digest(config)
        known = self._known.get(config.name)
        if known is None or known.digest != digest:
            record: EraRecord | None = None
            if self._store is not None:
                with trio.move_on_after(STORE_WAIT):
                    record = await trio.to_thread.run_sync(self._store.load_era, config, abandon_on_cancel=True)
            known = self._known[config.name] = _Known(digest, record)
        return known

    async def _note_success(
        self,
        config: ServerConfig,
        known: _Known,
        record: EraRecord | None,
        greeting: ServerIntroduction,
        attempts: Attempts,
    ) -> None:
        """Record the result of a start; a record that it used stays, with its age."""
        known.skips_probe = known.has_walked = False
        if record is not None and greeting.era is Era.LEGACY and not attempts.was_probed:
            if _own_version(record.server_info) == _own_version(greeting.server_info):
                if record.era is not Era.LEGACY:  # a server of both eras
                    offered = tuple(dict.fromkeys([*record.offered, greeting.version]))
                    record = msgspec.structs.replace(record, era=Era.LEGACY, asked=greeting.asked, offered=offered)
                    await self._keep(config, known, record)
                return
            log.info("backend %r changed its version; its era is detected again at its next start", config.name)
            await self._keep(config, known, None)
            return
        info = greeting.server_info
        new_record = EraRecord(
            era=greeting.era,
            version=greeting.version,
            asked=greeting.asked,
            offered=greeting.offered or (greeting.version,),
            transport=attempts.transport or "stdio",
            server_info=msgspec.Raw(b"null") if info is jsonrpc.ABSENT else info,
            at=self._clock(),
            refuses_legacy=attempts.refuses_legacy,
        )
        await self._keep(config, known, new_record)

    async def _keep(self, config: ServerConfig, known: _Known, record: EraRecord | None) -> None:
        known.record = record
        store = self._store
        if store is None:
            return
        with trio.move_on_after(STORE_WAIT):
            try:
                # May be abandoned: a file is replaced as a whole or not at all.
                await trio.to_thread.run_sync(store.save_era, config, record, abandon_on_cancel=True)
            except OSError as exc:
                log.warning("cannot store the era of %r in %s: %s", config.name, store.directory, exc)


def _own_version(server_info: msgspec.Raw) -> str | None:
    """Return the version in a `serverInfo`; None without one."""
    try:
        return jsonrpc.decode_string(jsonrpc.decode_object(server_info)["version"])
    except (ValueError, KeyError):
        return None
