"""The state directory: last-good catalogs and sockets. Atomic files of mode 0600 in a directory of mode 0700.

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
from gateway.catalog.kinds import Kind
from gateway.catalog.listing import Item, Listing
from gateway.eras.versions import LEGACY_VERSIONS, MODERN_VERSIONS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from gateway.config import ServerConfig

ENVIRONMENT: Final = "MCP_GATEWAY_STATE_DIR"
FORMAT: Final = 1
"""Version of the catalog files; another one counts as absent."""
TOKEN_BYTES: Final = 32
"""Random bytes of a token."""
MIN_TOKEN: Final = 16
"""Characters of a token; a shorter one is none that was made here, or was cut off."""
MAX_FILE_BYTES: Final = 64 * 1024 * 1024
"""A larger file is not ours and is not read."""

ERA_MAX_AGE: Final = 7 * 86_400.0
"""Seconds for which an era record holds: a server may learn another era without a new version of its own."""

log = logging.getLogger("gateway.store")


class _CatalogFile(msgspec.Struct):
    format: int
    server: str
    items: dict[str, list[tuple[str, msgspec.Raw]]]
    capabilities: dict[str, msgspec.Raw]
    instructions: str | None = None


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

    @property
    def eras(self) -> list[Era]:
        """The eras that the server offers."""
        return eras_of(self.offered, self.era)


class _EraFile(msgspec.Struct):
    format: int
    server: str
    record: EraRecord


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
    told = [config.command, config.args, config.cwd, config.url, config.unix_socket]
    return hashlib.sha256(jsonrpc.encode([*told, config.era, config.transport])).hexdigest()[:16]


def default_directory(environ: Mapping[str, str]) -> Path:
    """Where state is kept unless told otherwise (XDG Base Directory Specification, `XDG_STATE_HOME`)."""
    if environ.get(ENVIRONMENT):
        return Path(environ[ENVIRONMENT])
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "trio-mcp-gateway"


def read_plain(path: Path, most: int | None = None) -> bytes:
    """A file of the state directory. Raises OSError, also for what is no plain file or has over `most` bytes."""
    # Not blocking: opening a pipe must not hold up the gateway until somebody writes into it.
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "no plain file", str(path))
        if found.st_size > (MAX_FILE_BYTES if most is None else most):
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return file.read()


class Store:
    """One state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load_catalog(self, config: ServerConfig) -> Listing | None:
        """What this server listed last, under the same configuration; None if that is not known."""
        path = self._catalog_path(config)
        try:
            found = msgspec.json.decode(read_plain(path), type=_CatalogFile)
            if found.format != FORMAT or found.server != config.name:
                return None
            items = {
                Kind[kind]: tuple(Item(own, bytes(raw)) for own, raw in entries)
                for kind, entries in found.items.items()
            }
            capabilities = {name: msgspec.Raw(bytes(span)) for name, span in found.capabilities.items()}
        except FileNotFoundError:
            return None
        except (OSError, KeyError, *jsonrpc.UNDECODABLE) as exc:
            log.warning("the last-good catalog of %r is unreadable and is left out: %s", config.name, exc)
            return None
        return Listing(items=items, capabilities=capabilities, instructions=found.instructions)

    def save_catalog(self, config: ServerConfig, listing: Listing) -> None:
        """Keep what a server lists. Raises OSError."""
        entries = {
            kind.name: [(item.own, msgspec.Raw(item.raw)) for item in items] for kind, items in listing.items.items()
        }
        content = _CatalogFile(FORMAT, config.name, entries, listing.capabilities, listing.instructions)
        self.write(self._catalog_path(config), jsonrpc.encode(content))

    def load_era(self, config: ServerConfig) -> EraRecord | None:
        """What opening this server's session has found last; None if that is not known."""
        try:
            found = msgspec.json.decode(read_plain(self._era_path(config)), type=_EraFile)
        except FileNotFoundError:
            return None
        except (OSError, *jsonrpc.UNDECODABLE) as exc:
            log.warning("the era record of %r is unreadable and is left out: %s", config.name, exc)
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
        self._make(path.parent)
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # mkstemp makes it with mode 0600
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def overlay_path(self, config: Path) -> Path:
        """Where the changes are kept that the management API has made over one config file."""
        digest = hashlib.sha256(os.fsencode(config.absolute())).hexdigest()[:16]
        return self.directory / "changes" / f"{digest}.json"

    def admin_token(self) -> str:
        """The token of the management API, made at the first start; gateways that start at once get one and the same.

        Raises OSError.
        """
        path = self.directory / "admin-token"
        self._make(self.directory)
        try:
            return self._read_token(path)
        except FileNotFoundError:
            pass
        temporary = path.with_name(f".new-token-{os.getpid()}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(fd, "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
            with contextlib.suppress(FileExistsError):  # another gateway was quicker: its token holds
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return self._read_token(path)

    def _read_token(self, path: Path) -> str:
        text = read_plain(path).decode("ascii", errors="replace").strip()
        if len(text) < MIN_TOKEN:
            raise OSError(errno.EINVAL, f"{path} holds no token; remove it, and another is made")
        return text

    def socket_path(self) -> Path:
        """Where this process' control socket stands; its directory exists then. Raises OSError."""
        self._make(self.directory)
        return self.directory / f"control-{os.getpid()}.sock"

    def sockets(self) -> list[Path]:
        """The control sockets of all gateways that use this directory, those of dead ones included."""
        return sorted(self.directory.glob("control-*.sock"))

    def _make(self, directory: Path) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.mkdir(exist_ok=True, mode=0o700)  # by itself: `parents` would make ours with the umask's mode

    def _era_path(self, config: ServerConfig) -> Path:
        return self.directory / "eras" / f"{config.name}-{era_digest(config)}.json"

    def _catalog_path(self, config: ServerConfig) -> Path:
        """One file a server and configuration; of the environment only the names count, values are secrets."""
        told = [config.name, config.command, config.args, config.cwd, config.public_url, sorted(config.env)]
        digest = hashlib.sha256(jsonrpc.encode(told)).hexdigest()[:16]
        return self.directory / "catalogs" / f"{config.name}-{digest}.json"
