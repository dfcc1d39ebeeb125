"""Token storage: one private file for each backend, resource and issuer in the state directory.

Several gateways of one user may share the directory: files are replaced atomically, and a refresh token, which many
servers accept only once, is used under a lock. All methods except those of `RefreshLock` do blocking I/O and are called
in a thread. Without a state directory, tokens live as long as the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import time
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from gateway import jsonrpc
from gateway.config.oauth import is_same_issuer, normal_issuer
from gateway.store import NO_FOLLOW, read_plain

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config import ServerConfig
    from gateway.store import Store

FORMAT: Final = 1
"""Version of the token files; a file of another version counts as absent."""
MAX_FILE_BYTES: Final = 1024 * 1024
"""A larger file is not ours and is not read."""
LOCK_TIMEOUT: Final = 10.0
"""Seconds for another gateway's refresh; after that it is assumed to hang."""
LOCK_POLL: Final = 0.05

log = logging.getLogger("gateway.store")


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """The saved login of one backend. `repr` shows no secret."""

    issuer: str = ""
    """The authorization server of this login."""
    access_token: str | None = None
    refresh_token: str | None = None
    scope: str | None = None
    expires_at: float | None = None
    """Seconds since the epoch, by this machine's clock; None if the server did not say."""
    client: str | None = None
    """The client registered there, as JSON (RFC 7591)."""
    server_metadata: str | None = None
    """The authorization server's metadata, as JSON (RFC 8414)."""
    resource_metadata: str | None = None
    """The protected resource's metadata, as JSON (RFC 9728)."""

    def __repr__(self) -> str:
        return f"Saved(issuer={self.issuer!r}, token={'yes' if self.access_token else 'no'})"


class _TokenFile(msgspec.Struct, kw_only=True):
    format: int
    server: str
    resource: str
    saved_at: float
    login: Saved


class TokenFiles:
    """The logins of one backend."""

    def __init__(self, store: Store | None, config: ServerConfig) -> None:
        self._store = store
        self._server = config.name
        self._resource = config.url or ""
        self._memory: Saved | None = None
        self._unusable: set[Path] = set()
        """Files that have been reported: a renewal reads them again."""

    def load(self) -> Saved | None:
        """Return the newest login of any issuer, or None; ignore unreadable files."""
        if self._store is None:
            return self._memory
        newest = max(
            (content for _, content in self._files(self._store)), key=lambda content: content.saved_at, default=None
        )
        return None if newest is None else newest.login

    def save(self, login: Saved) -> None:
        """Save a login in place of the older one of the same issuer. Raises OSError."""
        self._memory = login
        if self._store is not None:
            found = self._files(self._store)
            newest = max((content.saved_at for _, content in found), default=0.0)
            at = max(time.time(), newest + 1.0)  # the newest one, even if the wall clock was set back
            content = _TokenFile(format=FORMAT, server=self._server, resource=self._resource, saved_at=at, login=login)
            path = self._path(self._store, login.issuer)
            if all(other != path for other, _ in found):
                self._store.set_aside(path)  # it may be a login of a later version
            self._store.write(path, jsonrpc.encode(content))
            for other, known in self._files(self._store):  # of the same issuer in another spelling
                if other != path and is_same_issuer(known.login.issuer, login.issuer):
                    other.unlink(missing_ok=True)

    def remove(self) -> int:
        """Delete all logins of this backend; return their number. Raises OSError."""
        count = int(self._memory is not None)
        self._memory = None
        if self._store is not None:
            paths = [path for path, _ in self._files(self._store)]
            for path in paths:
                path.unlink(missing_ok=True)
            count = len(paths)
        return count

    def lock_path(self) -> Path | None:
        """Return the path of the refresh lock after creating its directory. Raises OSError."""
        if self._store is None:
            return None
        path = self._path(self._store, "").with_suffix(".lock")
        self._store.make(path.parent)
        return path

    def _files(self, store: Store) -> list[tuple[Path, _TokenFile]]:
        found: list[tuple[Path, _TokenFile]] = []
        for path in (store.directory / "tokens").glob(f"{self._server}-*.json"):
            try:
                content = msgspec.json.decode(read_plain(path, MAX_FILE_BYTES), type=_TokenFile)
            except FileNotFoundError:
                continue
            except (OSError, *jsonrpc.UNDECODABLE) as exc:
                self._report(path, type(exc).__name__)  # not its text, which may quote the unreadable content
                continue
            if content.format != FORMAT:
                self._report(path, f"format {content.format} of another version of the gateway")
            elif (content.server, content.resource) == (self._server, self._resource):
                found.append((path, content))
        return found

    def _report(self, path: Path, problem: str) -> None:
        if path not in self._unusable:
            self._unusable.add(path)
            extra = {"event": "login_unreadable", "backend": self._server}
            log.warning("ignoring an unreadable login of %r (%s)", self._server, problem, extra=extra)

    def _path(self, store: Store, issuer: str) -> Path:
        key = [self._server, self._resource, normal_issuer(issuer)]
        digest = hashlib.sha256(jsonrpc.encode(key)).hexdigest()[:16]
        return store.directory / "tokens" / f"{self._server}-{digest}.json"


class RefreshLock:
    """Lock around a refresh: `async with RefreshLock(files)` excludes this user's other gateways.

    After `timeout` seconds, or on systems without locks, the block runs without it.
    """

    def __init__(self, files: TokenFiles, *, timeout: float = LOCK_TIMEOUT) -> None:
        self._files = files
        self._timeout = timeout
        self._fd: int | None = None

    async def __aenter__(self) -> None:
        await trio.lowlevel.checkpoint()
        with contextlib.suppress(OSError):
            path = self._files.lock_path()
            if path is not None:
                self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | NO_FOLLOW, 0o600)
        try:
            with trio.move_on_after(self._timeout):
                while not self._try_lock():  # noqa: ASYNC110 - held by another process, so there is no event
                    await trio.sleep(LOCK_POLL)
        except BaseException:
            self._release()
            raise

    def _try_lock(self) -> bool:
        if self._fd is None:
            return True
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
        return True

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
