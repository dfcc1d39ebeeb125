"""The state directory: last-good catalogs, tokens and sockets.

Files are written atomically, with mode 0600 in a directory of mode 0700.

A user who can write to it could grant themselves the admin token or replace a login. A directory or file that belongs
to another user or is writable by others is therefore not used: `check` reports it with the fix, and reading or writing
raises OSError.

An unreadable or invalid file counts as absent: state speeds up the start but is never required. All methods do blocking
I/O; call them in a thread from a loop.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from gateway import jsonrpc
from gateway.calls import Era
from gateway.catalog.listing import Item, Listing
from gateway.eras.methods import Kind
from gateway.eras.versions import LEGACY_VERSIONS, MODERN_VERSIONS
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from gateway.config import ServerConfig

ENVIRONMENT: Final = "MCP_GATEWAY_STATE_DIR"
FORMAT: Final = 1
"""Version of the catalog files; a file of another version counts as absent."""
OVERDUE: Final = Listing()
"""Marker in place of a catalog: the server has never listed anything, and a client's wait for it timed out."""
OVERDUE_FORMAT: Final = 0
"""Takes the place of the version in such a server's file."""
TOKEN_BYTES: Final = 32
"""Random bytes of a token."""
MIN_TOKEN: Final = 16
"""Minimum length of a token; a shorter one was made elsewhere or truncated."""
NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
MAX_FILE_BYTES: Final = 64 * 1024 * 1024
"""A larger file is not ours and is not read."""

ERA_MAX_AGE: Final = 7 * 86_400.0
"""Seconds for which an era record is valid: a server may gain an era without changing its version."""

log = logging.getLogger("gateway.store")


class _CatalogItem(msgspec.Struct, array_like=True):
    own: str
    raw: msgspec.Raw
    era: Era | None = None


class _CatalogFile(msgspec.Struct, omit_defaults=True):
    format: int
    server: str
    items: dict[str, list[_CatalogItem]]
    capabilities: dict[str, msgspec.Raw]
    instructions: str | None = None
    has_both_eras: bool = False


_catalogs = msgspec.json.Decoder(_CatalogFile)


class EraRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Result of opening a session with a server."""

    era: Era
    """The era that was used."""
    version: str
    """The protocol version that was agreed on."""
    asked: str
    """The version requested in `initialize`; empty in the modern era."""
    offered: tuple[str, ...]
    """The protocol versions that the server offers, as far as known."""
    transport: str
    server_info: msgspec.Raw
    at: float
    """When the server was probed, in seconds since the epoch."""
    refuses_legacy: bool = False
    """Whether a modern server has refused `initialize`: SDKs that serve both eras list only modern versions."""

    @property
    def eras(self) -> list[Era]:
        """The eras that the server offers."""
        return eras_of(self.offered, self.era)

    def may_offer(self, era: Era) -> bool:
        """Return whether opening a session in this era is worth trying."""
        return era in self.eras or (era is Era.LEGACY and not self.refuses_legacy)


class _EraFile(msgspec.Struct):
    format: int
    server: str
    record: EraRecord


_eras = msgspec.json.Decoder(_EraFile)


def eras_of(offered: Collection[str], used: Era) -> list[Era]:
    """Return the eras of the protocol versions, always including the one in use."""
    found = {used}
    if any(version in LEGACY_VERSIONS for version in offered):
        found.add(Era.LEGACY)
    if any(version in MODERN_VERSIONS for version in offered):
        found.add(Era.MODERN)
    return sorted(found)


def era_digest(config: ServerConfig) -> str:
    """Return a digest of a server's command line or URL, era and transport settings."""
    parts = [config.command, config.args, config.cwd, config.url, config.unix_socket]
    return hashlib.sha256(jsonrpc.encode([*parts, config.era, config.transport])).hexdigest()[:16]


def default_directory(environ: Mapping[str, str]) -> Path:
    """Return the default state directory (XDG Base Directory Specification, `XDG_STATE_HOME`)."""
    if environ.get(ENVIRONMENT):
        return Path(environ[ENVIRONMENT])
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "trio-mcp-gateway"


def find_exposure(found: os.stat_result) -> str | None:
    """Return how another user can write the file that `found` describes, or None.

    As in ssh, root does not count as another user, but any group does, even one with a single member, since others may
    join it.
    """
    if found.st_uid not in {0, os.geteuid()}:
        return f"belongs to another user (uid {found.st_uid})"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written by other users (mode {stat.S_IMODE(found.st_mode):04o})"
    return None


def check_exposure(path: Path, subject: str, found: os.stat_result) -> None:
    """Raise PermissionError if another user can write the file or directory."""
    exposure = find_exposure(found)
    if exposure is not None:
        fix = f"chown {os.geteuid()}" if found.st_uid not in {0, os.geteuid()} else "chmod go-w"
        text = f"{subject} {path} {exposure}; run `{fix} {path}`"
        raise PermissionError(text)


def read_plain(path: Path, most: int | None = None) -> bytes:
    """Read a file of the state directory.

    Raises OSError, also for a symbolic link, anything but a regular file, one over `most` bytes, or one that others can
    write.
    """
    # Non-blocking: opening a pipe would otherwise block until it has a writer.
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | NO_FOLLOW)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        check_exposure(path, "file", found)
        if found.st_size > (MAX_FILE_BYTES if most is None else most):
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return file.read()


def _note_unreadable(what: str, backend: str, problem: Exception) -> None:
    extra = {"event": "cache_unreadable", "backend": backend}
    log.warning("ignoring %s of %r: %s", what, backend, problem, extra=extra)


class Store:
    """One state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def check(self) -> None:
        """Raise ConfigError if other users can write the directory; it may be missing."""
        try:
            self._check()
        except PermissionError as exc:
            if exc.errno is None:
                text = f"{exc}, or choose another directory, such as a new one inside it (--state-dir, {ENVIRONMENT})"
                raise ConfigError([text]) from None
        except OSError:
            pass  # unusable: each use reports it

    def _check(self) -> None:
        # Not the parents: a user who can write one can replace this directory, but the owner check reveals it. Volumes
        # of containers are often open to all, and a directory inside one must do.
        place = Path(os.path.abspath(self.directory))  # ruff: ignore[os-path-abspath] - `resolve` would follow the link
        target = place.resolve()
        for path in dict.fromkeys((place, target)):
            with contextlib.suppress(FileNotFoundError):
                found = path.lstat()
                if stat.S_ISLNK(found.st_mode):  # its mode means nothing
                    found = os.stat_result((stat.S_IFLNK, *found[1:]))
                check_exposure(path, "state directory", found)
        with contextlib.suppress(FileNotFoundError), os.scandir(target) as entries:
            for entry in entries:
                if entry.is_dir():
                    check_exposure(Path(entry.path), "directory", entry.stat())

    def load_catalog(self, config: ServerConfig) -> Listing | None:
        """Return the server's last lists under the same configuration, or `OVERDUE`; None if unknown."""
        path = self._catalog_path(config)
        try:
            found = jsonrpc.read(_catalogs, read_plain(path))
            if found.format not in {FORMAT, OVERDUE_FORMAT} or found.server != config.name:
                return None
            if found.format == OVERDUE_FORMAT:
                return OVERDUE
            items = {
                Kind[kind]: tuple(Item(entry.own, bytes(entry.raw), era=entry.era) for entry in entries)
                for kind, entries in found.items.items()
            }
            if not all(item.raw.startswith(b"{") for kind in items.values() for item in kind):
                text = "an entry is not an object"
                raise msgspec.ValidationError(text)
            capabilities = {name: msgspec.Raw(bytes(span)) for name, span in found.capabilities.items()}
        except FileNotFoundError:
            return None
        except (OSError, KeyError, *jsonrpc.UNDECODABLE) as exc:
            _note_unreadable("the last-good catalog", config.name, exc)
            return None
        return Listing(
            items=items,
            capabilities=capabilities,
            instructions=found.instructions,
            has_both_eras=found.has_both_eras,
        )

    def save_catalog(self, config: ServerConfig, listing: Listing) -> None:
        """Save a server's lists, or `OVERDUE`. Raises OSError."""
        entries = {
            kind.name: [_CatalogItem(item.own, msgspec.Raw(item.raw), item.era) for item in items]
            for kind, items in listing.items.items()
        }
        version = OVERDUE_FORMAT if listing is OVERDUE else FORMAT
        content = _CatalogFile(
            version, config.name, entries, listing.capabilities, listing.instructions, listing.has_both_eras
        )
        self.write(self._catalog_path(config), jsonrpc.encode(content))

    def load_era(self, config: ServerConfig) -> EraRecord | None:
        """Return the last era record of this server; None if unknown."""
        try:
            found = jsonrpc.read(_eras, read_plain(self._era_path(config)))
        except FileNotFoundError:
            return None
        except (OSError, *jsonrpc.UNDECODABLE) as exc:
            _note_unreadable("the era record", config.name, exc)
            return None
        return found.record if found.format == FORMAT and found.server == config.name else None

    def save_era(self, config: ServerConfig, record: EraRecord | None) -> None:
        """Save a server's era record; None removes it. Raises OSError."""
        path = self._era_path(config)
        if record is None:
            path.unlink(missing_ok=True)
            return
        self.write(path, jsonrpc.encode(_EraFile(FORMAT, config.name, record)))
        for other in path.parent.glob("*.json"):  # records of former command lines
            with contextlib.suppress(OSError):
                if other.stat().st_mtime < record.at - ERA_MAX_AGE:
                    other.unlink()

    def write(self, path: Path, data: bytes) -> None:
        """Replace a file as a whole, or not at all. Raises OSError."""
        temporary = self._write_new(path.parent, data)
        try:
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def set_aside(self, path: Path) -> None:
        """Rename a file that cannot be used, before its place is taken.

        It may be of a later version.

        Raises OSError.
        """
        with contextlib.suppress(FileNotFoundError):
            path.replace(path.with_name(f"{path.name}.unused"))

    def _write_new(self, directory: Path, data: bytes) -> Path:
        """Write a file under a new unguessable name; mkstemp uses O_EXCL, O_NOFOLLOW and mode 0600."""
        self.make(directory)
        fd, name = tempfile.mkstemp(dir=directory, prefix=".new-")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return Path(name)

    def overlay_path(self, config: Path) -> Path:
        """Return the file of the management API's changes to one config file."""
        digest = hashlib.sha256(os.fsencode(config.absolute())).hexdigest()[:16]
        return self.directory / "changes" / f"{digest}.json"

    def admin_token(self) -> str:
        """Return the token of the management API, which the first start creates.

        Concurrent starts share one token.

        Raises OSError.
        """
        self.make(self.directory)
        with contextlib.suppress(FileNotFoundError):
            return self.read_admin_token()
        temporary = self._write_new(self.directory, secrets.token_urlsafe(TOKEN_BYTES).encode() + b"\n")
        try:
            with contextlib.suppress(FileExistsError):  # another gateway was faster: use its token
                os.link(temporary, self._token_path)
        finally:
            temporary.unlink(missing_ok=True)
        return self.read_admin_token()

    def read_admin_token(self) -> str:
        """Return the token of the management API. Raises OSError; FileNotFoundError if there is none."""
        self._check()
        text = read_plain(self._token_path).decode("ascii", errors="replace").strip()
        if len(text) < MIN_TOKEN:
            raise OSError(errno.EINVAL, f"{self._token_path} contains no token; remove it to have a new one made")
        return text

    @property
    def _token_path(self) -> Path:
        return self.directory / "admin-token"

    def socket_path(self) -> Path:
        """Return the path of this process's control socket after creating its directory. Raises OSError."""
        self.make(self.directory)
        return self.directory / f"control-{os.getpid()}.sock"

    def sockets(self) -> list[Path]:
        """Return the control sockets of all gateways that use this directory, including dead ones."""
        return sorted(self.directory.glob("control-*.sock"))

    def make(self, directory: Path) -> None:
        """Create the state directory and one in it, with mode 0700.

        Raises OSError, also if other users can write them.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.mkdir(exist_ok=True, mode=0o700)  # separately: `parents` would create ours with the umask's mode
        self._check()  # after it exists: another user may have created it just before

    def _era_path(self, config: ServerConfig) -> Path:
        return self.directory / "eras" / f"{config.name}-{era_digest(config)}.json"

    def _catalog_path(self, config: ServerConfig) -> Path:
        """Return the file for one server and configuration, without the secrets in `env`."""
        parts = [config.name, config.command, config.args, config.cwd, config.public_url, sorted(config.env)]
        digest = hashlib.sha256(jsonrpc.encode(parts)).hexdigest()[:16]
        return self.directory / "catalogs" / f"{config.name}-{digest}.json"
