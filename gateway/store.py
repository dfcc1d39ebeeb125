"""The state directory: last-good catalogs, tokens and sockets. Atomic files of mode 0600 in a directory of mode 0700.

Whoever can write it could grant themselves the admin token or replace a login. So a directory or file that other users
can write, or that belongs to one, is not used: `check` says so with the fix, and reading or writing raises OSError.

A file that cannot be read, or does not hold what it should, counts as absent: state makes starting quicker, it is never
needed. All methods do blocking I/O; whoever calls them in a loop does so in a thread.
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
"""Version of the catalog files; another one counts as absent."""
OVERDUE: Final = Listing()
"""In place of a catalog: the server has never listed anything, and a client has waited for it in vain."""
OVERDUE_FORMAT: Final = 0
"""Stands where the version does in the file of such a server."""
TOKEN_BYTES: Final = 32
"""Random bytes of a token."""
MIN_TOKEN: Final = 16
"""Characters of a token; a shorter one is none that was made here, or was cut off."""
NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
MAX_FILE_BYTES: Final = 64 * 1024 * 1024
"""A larger file is not ours and is not read."""

ERA_MAX_AGE: Final = 7 * 86_400.0
"""Seconds for which an era record holds: a server may learn another era without a new version of its own."""

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
    """What opening a session with a server has found."""

    era: Era
    """The era that was used."""
    version: str
    """The protocol version that was agreed on."""
    asked: str
    """The version that `initialize` named; empty in the modern era."""
    offered: tuple[str, ...]
    """The protocol versions that the server offers, as far as they are known."""
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
        """Whether it is worth trying to open a session in this era."""
        return era in self.eras or (era is Era.LEGACY and not self.refuses_legacy)


class _EraFile(msgspec.Struct):
    format: int
    server: str
    record: EraRecord


_eras = msgspec.json.Decoder(_EraFile)


def eras_of(offered: Collection[str], used: Era) -> list[Era]:
    """The eras of some protocol versions; the one that was used is among them in any case."""
    found = {used}
    if any(version in LEGACY_VERSIONS for version in offered):
        found.add(Era.LEGACY)
    if any(version in MODERN_VERSIONS for version in offered):
        found.add(Era.MODERN)
    return sorted(found)


def era_digest(config: ServerConfig) -> str:
    """A digest of a server's command line or URL, and of what the config says of its era and transport."""
    parts = [config.command, config.args, config.cwd, config.url, config.unix_socket]
    return hashlib.sha256(jsonrpc.encode([*parts, config.era, config.transport])).hexdigest()[:16]


def default_directory(environ: Mapping[str, str]) -> Path:
    """Where state is kept unless told otherwise (XDG Base Directory Specification, `XDG_STATE_HOME`)."""
    if environ.get(ENVIRONMENT):
        return Path(environ[ENVIRONMENT])
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "trio-mcp-gateway"


def find_exposure(found: os.stat_result) -> str | None:
    """Return how another user can write what `found` describes, or None.

    As for ssh, root is no other user, but any group is: also one with a single member, which another may join.
    """
    if not hasattr(os, "geteuid"):
        return None  # Windows: the access list of the user's profile decides
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

    Raises OSError, also for a symbolic link, what is no plain file, has over `most` bytes, or can be written by others.
    """
    # Not blocking: opening a pipe must not hold up the gateway until somebody writes into it.
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | NO_FOLLOW)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "no plain file", str(path))
        check_exposure(path, "file", found)
        if found.st_size > (MAX_FILE_BYTES if most is None else most):
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return file.read()


def _note_unreadable(what: str, backend: str, problem: Exception) -> None:
    extra = {"event": "cache_unreadable", "backend": backend}
    log.warning("%s of %r is unreadable and is left out: %s", what, backend, problem, extra=extra)


class Store:
    """One state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def check(self) -> None:
        """Raise ConfigError if other users can write the directory; one that is not there yet will be private."""
        try:
            self._check()
        except PermissionError as exc:
            if exc.errno is None:
                text = f"{exc}, or choose another directory, such as a new one inside it (--state-dir, {ENVIRONMENT})"
                raise ConfigError([text]) from None
        except OSError:
            pass  # it cannot be used at all, which each use of it reports

    def _check(self) -> None:
        # Not the parents: who can write one can put a directory of their own in the place of this, but its owner tells.
        # Volumes of containers are often open to all, and a directory inside one must do.
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
        """What this server listed last, under the same configuration, or `OVERDUE`; None if that is not known."""
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
                text = "an entry is no object"
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
        """Keep what a server lists, or `OVERDUE`. Raises OSError."""
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
        """What opening this server's session has found last; None if that is not known."""
        try:
            found = jsonrpc.read(_eras, read_plain(self._era_path(config)))
        except FileNotFoundError:
            return None
        except (OSError, *jsonrpc.UNDECODABLE) as exc:
            _note_unreadable("the era record", config.name, exc)
            return None
        return found.record if found.format == FORMAT and found.server == config.name else None

    def save_era(self, config: ServerConfig, record: EraRecord | None) -> None:
        """Keep what was found of a server; None removes it. Raises OSError."""
        path = self._era_path(config)
        if record is None:
            path.unlink(missing_ok=True)
            return
        self.write(path, jsonrpc.encode(_EraFile(FORMAT, config.name, record)))
        for other in path.parent.glob("*.json"):  # those of command lines that are not used any more
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

    def _write_new(self, directory: Path, data: bytes) -> Path:
        """Write a file under a new name that cannot be guessed; mkstemp uses O_EXCL, O_NOFOLLOW and mode 0600."""
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
        """Where the changes are kept that the management API has made over one config file."""
        digest = hashlib.sha256(os.fsencode(config.absolute())).hexdigest()[:16]
        return self.directory / "changes" / f"{digest}.json"

    def admin_token(self) -> str:
        """The token of the management API, made at the first start; gateways that start at once get one and the same.

        Raises OSError.
        """
        self.make(self.directory)
        with contextlib.suppress(FileNotFoundError):
            return self.read_admin_token()
        temporary = self._write_new(self.directory, secrets.token_urlsafe(TOKEN_BYTES).encode() + b"\n")
        try:
            with contextlib.suppress(FileExistsError):  # another gateway was quicker: its token holds
                os.link(temporary, self._token_path)
        finally:
            temporary.unlink(missing_ok=True)
        return self.read_admin_token()

    def read_admin_token(self) -> str:
        """Return the token of the management API. Raises OSError, FileNotFoundError where none was made."""
        self._check()
        text = read_plain(self._token_path).decode("ascii", errors="replace").strip()
        if len(text) < MIN_TOKEN:
            raise OSError(errno.EINVAL, f"{self._token_path} holds no token; remove it, and another is made")
        return text

    @property
    def _token_path(self) -> Path:
        return self.directory / "admin-token"

    def socket_path(self) -> Path:
        """Where this process' control socket stands; its directory exists then. Raises OSError."""
        self.make(self.directory)
        return self.directory / f"control-{os.getpid()}.sock"

    def sockets(self) -> list[Path]:
        """The control sockets of all gateways that use this directory, those of dead ones included."""
        return sorted(self.directory.glob("control-*.sock"))

    def make(self, directory: Path) -> None:
        """Create the state directory, and one in it, of mode 0700. Raises OSError, also if others can write them."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.mkdir(exist_ok=True, mode=0o700)  # by itself: `parents` would make ours with the umask's mode
        self._check()  # after it is there: another user may have created it a moment before

    def _era_path(self, config: ServerConfig) -> Path:
        return self.directory / "eras" / f"{config.name}-{era_digest(config)}.json"

    def _catalog_path(self, config: ServerConfig) -> Path:
        """One file a server and configuration; of the environment only the names count, values are secrets."""
        parts = [config.name, config.command, config.args, config.cwd, config.public_url, sorted(config.env)]
        digest = hashlib.sha256(jsonrpc.encode(parts)).hexdigest()[:16]
        return self.directory / "catalogs" / f"{config.name}-{digest}.json"
