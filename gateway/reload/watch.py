"""Watcher for changes of a config file, however they are made.

It watches the directories of the path and of its target, not the file, which detects a file that is renamed into place,
deleted and recreated, or behind a swapped symlink (as in config maps). Polling every few seconds finds changes without
events, as on network file systems. There is one thread, in `watchfiles`.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from typing import TYPE_CHECKING, Final, Never

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from pathlib import Path

STEP_MS: Final = 200
"""Pause that ends a burst of events; also the time that the thread needs to stop."""
DEBOUNCE_MS: Final = 1_000
"""Longest burst of events that is awaited."""
LOOK_MS: Final = 1_000
"""Interval of polling without events."""
RETRY_INTERVAL: Final = 2.0
"""Seconds between two checks if directories cannot be watched at all."""

log = logging.getLogger("gateway.reload")

Mark = tuple[object, ...]


def mark_of(path: Path) -> Mark:
    """Return a value that changes with the file; empty if it is absent."""
    try:
        found = path.stat()
        if stat.S_ISFIFO(found.st_mode):  # a pipe stays the same, whatever is written to it
            return (os.path.realpath(path), found.st_ino)
        return (os.path.realpath(path), found.st_ino, found.st_mtime_ns, found.st_size)
    except OSError:
        return ()


async def watch(
    path: Path, changed: Callable[[], Awaitable[None]], *, since: Mark, retry_interval: float = RETRY_INTERVAL
) -> None:
    """Call `changed()` whenever the file differs from the last check, first from `since`; until cancelled."""
    seen = since
    stop = threading.Event()
    try:
        while True:
            directories = _directories(path)
            try:
                events = await trio.to_thread.run_sync(_events, directories, stop, abandon_on_cancel=True)
            except (ImportError, OSError, RuntimeError) as exc:  # not installed, or not available for this system
                log.warning("directories cannot be watched (%s): polling the config every %g s", exc, retry_interval)
                events = None
            if events is None:
                await _poll(path, changed, seen, retry_interval)
            alive = True
            while alive and directories == _directories(path):
                found = mark_of(path)
                if found != seen and found:  # a missing file is about to be recreated
                    seen = found
                    await changed()
                # May be abandoned: the thread only waits, and ends once `stop` is set.
                alive = await trio.to_thread.run_sync(_next, events, abandon_on_cancel=True)
            events.close()
            if not alive:
                await trio.sleep(retry_interval)
    finally:
        stop.set()


async def _poll(path: Path, changed: Callable[[], Awaitable[None]], seen: Mark, interval: float) -> Never:
    """Check the file every `interval` seconds, until cancelled."""
    while True:
        found = mark_of(path)
        if found != seen and found:
            seen = found
            await changed()
        await trio.sleep(interval)


def _directories(path: Path) -> dict[str, int]:
    """Return the directories to watch, with identities to detect a recreated one."""
    found: dict[str, int] = {}
    for name in {os.path.dirname(os.path.abspath(path)), os.path.dirname(os.path.realpath(path))}:  # noqa: PTH100, PTH120
        try:
            found[name] = os.stat(name).st_ino  # noqa: PTH116
        except OSError:
            continue
    return found


def _events(directories: dict[str, int], stop: threading.Event) -> Generator[object]:
    from watchfiles import watch as watch_files

    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it reports every event in the directory
    return watch_files(
        *directories,
        watch_filter=None,
        step=STEP_MS,
        debounce=DEBOUNCE_MS,
        rust_timeout=LOOK_MS,
        yield_on_timeout=True,
        recursive=False,
        stop_event=stop,
        raise_interrupt=False,
        ignore_permission_denied=True,
    )


def _next(events: Generator[object]) -> bool:
    """Wait for an event or a timeout; return False if watching is not possible."""
    try:
        return next(events, None) is not None
    except (OSError, RuntimeError) as exc:  # no such directory, or no inotify watches left
        log.debug("watching for changes of the config: %s", exc)
        return False
