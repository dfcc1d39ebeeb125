"""Tells when a config file has become another one, however that came about.

What is watched are the directories, not the file: that of the name and that of what it leads to. So a file that is
renamed into place, deleted and made anew, or reached over a symlink that is swapped (as config maps do it) is seen. A
look at the file every few seconds finds what no event tells, as on network file systems. One thread, in `watchfiles`.
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
"""How long a burst of events must pause to be over; also how long the thread lives on after it is told to end."""
DEBOUNCE_MS: Final = 1_000
"""How long a burst of events is waited out at most."""
LOOK_MS: Final = 1_000
"""How often the file is looked at where no event comes."""
RETRY_INTERVAL: Final = 2.0
"""Seconds between two looks where directories cannot be watched at all."""

log = logging.getLogger("gateway.reload")

Mark = tuple[object, ...]


def mark_of(path: Path) -> Mark:
    """What changes whenever the file becomes another one; empty while it is not there."""
    try:
        found = path.stat()
        if stat.S_ISFIFO(found.st_mode):  # whatever is written into it, it is the same one
            return (os.path.realpath(path), found.st_ino)
        return (os.path.realpath(path), found.st_ino, found.st_mtime_ns, found.st_size)
    except OSError:
        return ()


async def watch(
    path: Path, changed: Callable[[], Awaitable[None]], *, since: Mark, retry_interval: float = RETRY_INTERVAL
) -> None:
    """Await `changed()` whenever the file is another one than at the last look, first `since`; until cancelled."""
    seen = since
    stop = threading.Event()
    try:
        while True:
            directories = _directories(path)
            try:
                events = await trio.to_thread.run_sync(_events, directories, stop, abandon_on_cancel=True)
            except (ImportError, OSError, RuntimeError) as exc:  # not installed, or not for this system
                log.warning(
                    "directories cannot be watched (%s); the config is looked at every %g s", exc, retry_interval
                )
                events = None
            if events is None:
                await _poll(path, changed, seen, retry_interval)
            alive = True
            while alive and directories == _directories(path):
                found = mark_of(path)
                if found != seen and found:  # a file that is not there now is about to be made anew
                    seen = found
                    await changed()
                # May be abandoned: the thread only waits, and ends by itself once `stop` is set.
                alive = await trio.to_thread.run_sync(_next, events, abandon_on_cancel=True)
            events.close()
            if not alive:
                await trio.sleep(retry_interval)
    finally:
        stop.set()


async def _poll(path: Path, changed: Callable[[], Awaitable[None]], seen: Mark, interval: float) -> Never:
    """Look at the file every `interval` seconds, until cancelled."""
    while True:
        found = mark_of(path)
        if found != seen and found:
            seen = found
            await changed()
        await trio.sleep(interval)


def _directories(path: Path) -> dict[str, int]:
    """The directories to watch, and which ones they are: one that was made anew has to be watched anew."""
    found: dict[str, int] = {}
    for name in {os.path.dirname(os.path.abspath(path)), os.path.dirname(os.path.realpath(path))}:  # noqa: PTH100, PTH120
        try:
            found[name] = os.stat(name).st_ino  # noqa: PTH116
        except OSError:
            continue
    return found


def _events(directories: dict[str, int], stop: threading.Event) -> Generator[object]:
    from watchfiles import watch as watch_files

    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it tells of every event in the directory
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
    """Wait for an event or a timeout; False if directories cannot be watched, or not any more."""
    try:
        return next(events, None) is not None
    except (OSError, RuntimeError) as exc:  # no such directory; no more inotify watches
        log.debug("watching for changes of the config: %s", exc)
        return False
