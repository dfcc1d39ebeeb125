"""The listen address of the HTTP frontend: TCP or Unix socket, optionally with TLS.

A Unix socket's file has its mode before any client can connect, replaces a stale one, and is removed at the end unless
another gateway has replaced it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Self, cast

import msgspec

from gateway.errors import GatewayError
from gateway.frontends.http.host_policy import is_loopback
from gateway.httpd.listening import is_listening

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, MutableMapping

    from hypercorn.config import Config as HypercornConfig

    from gateway.config.access import AccessSettings

BACKLOG: Final = 1_024
"""Connections in the accept queue: a thousand clients may connect together."""
FIRST_INHERITED: Final = 3
"""The first descriptor that a service manager passes (sd_listen_fds(3))."""
KNOCK_WAIT: Final = 1.0
"""Seconds to check whether a program listens on an existing Unix socket."""


class ListenError(GatewayError):
    """The address cannot be bound; the message names the option to change."""

    code: ClassVar[str] = "listen_failed"


class InsecureListen(ListenError):
    """The gateway would be open to a network without authentication; `hint` names the remedy."""

    code: ClassVar[str] = "insecure_listen"

    hint = (
        "give each client a key (`mcp-gateway hash-key NAME`; section 'access' of the config), or use --insecure"
        " if that is intended"
    )


class ListenAddress(msgspec.Struct, frozen=True, kw_only=True):
    """A listen address. With `uds`, a path, there is no host and no port."""

    host: str = "127.0.0.1"
    port: int = 8080
    uds: Path | None = None
    uds_mode: int = 0o600
    tls_cert: Path | None = None
    tls_key: Path | None = None
    inherited: socket.socket | None = None
    """A socket that already listens at this address, and keeps listening when this process has ended."""

    @classmethod
    def inherit(cls, environ: MutableMapping[str, str]) -> ListenAddress | None:
        """Return the address of the socket that a service manager has passed, or None.

        The variables of sd_listen_fds(3) are removed, since they are not for children. Raises ListenError.
        """
        if environ.get("LISTEN_PID") != str(os.getpid()):
            return None
        del environ["LISTEN_PID"]
        count = environ.pop("LISTEN_FDS", "")
        environ.pop("LISTEN_FDNAMES", None)
        if count != "1":
            text = f"{count} sockets were passed (LISTEN_FDS), and one is served; keep one ListenStream= in the unit"
            raise ListenError(text)
        try:
            sock = socket.socket(fileno=FIRST_INHERITED)
            name = cast("str | bytes | tuple[str, int]", sock.getsockname())
        except OSError as exc:
            text = f"descriptor {FIRST_INHERITED} (LISTEN_FDS) is not a socket: {exc.strerror}"
            raise ListenError(text) from None
        if is_listening(sock) is False or isinstance(name, bytes) or not name:
            text = (
                "the socket that was passed (LISTEN_FDS) does not listen at a port or a path; set ListenStream= to one"
            )
            raise ListenError(text)
        sock.set_inheritable(False)
        if isinstance(name, str):
            return cls(uds=Path(name), inherited=sock)
        return cls(host=name[0], port=name[1], inherited=sock)

    @property
    def is_private(self) -> bool:
        """Whether only this machine can connect: over loopback, or through a restricted file."""
        return self.uds is not None or is_loopback(self.host)

    @property
    def policy_host(self) -> str:
        """The required host name; any for a Unix socket, which web pages cannot reach."""
        return "" if self.uds is not None else self.host

    @property
    def admin_host(self) -> str:
        """The host by which the management API decides whether reading needs a token."""
        return "localhost" if self.is_private else self.host

    def check(self, access: AccessSettings | None) -> None:
        """Raise Exposed if users of other machines could connect without authentication."""
        if not self.is_private and not (access is not None and access.requires_credentials):
            text = f"--host {self.host} without keys opens the gateway to everyone who can reach this machine"
            raise InsecureListen(text)

    def open(self) -> ListeningSocket:
        """Listen. Raises ListenError, for example for a port in use or an unreadable certificate."""
        if self.tls_cert is not None:
            from hypercorn.config import Config as HypercornConfig

            self.set_tls(HypercornConfig())
        if self.inherited is not None:
            return ListeningSocket(self, self.inherited)
        if self.uds is not None:
            return ListeningSocket(self, _open_unix(self.uds, self.uds_mode))
        try:
            infos = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = infos[0]
            return ListeningSocket(self, socket.create_server(address[:2], family=family, backlog=BACKLOG))
        except OSError as exc:
            reason, hint = exc.strerror or str(exc), "see --host"
            if exc.errno == errno.EADDRINUSE:
                reason, hint = "the port is in use", "choose another with --port (0 picks a free one)"
            text = f"cannot listen on {self.host}:{self.port}: {reason}; {hint}"
            raise ListenError(text) from None

    def set_tls(self, config: HypercornConfig) -> ssl.SSLContext | None:
        """Configure TLS if requested; return its context. Raises ListenError."""
        if self.tls_cert is None:
            return None
        config.certfile = str(self.tls_cert)
        config.keyfile = str(self.tls_key or self.tls_cert)
        try:
            return config.create_ssl_context()
        except OSError as exc:  # a superclass of TLS errors
            text = f"--tls-cert {self.tls_cert}, --tls-key {config.keyfile}: {exc.strerror or exc}"
            raise ListenError(text) from None


class ListeningSocket:
    """A listening socket, closed after the `with` block; its file is removed too."""

    def __init__(self, binding: ListenAddress, sock: socket.socket) -> None:
        self.binding = binding
        self.socket = sock
        self._mark = None if binding.uds is None or binding.inherited is not None else _mark(binding.uds)
        self._tls: ssl.SSLContext | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open_tls(self, config: HypercornConfig) -> ssl.SSLContext | None:
        """Return the context for its connections, None without TLS. Raises ListenError."""
        self._tls = self.binding.set_tls(config)
        return self._tls

    def renew_certificate(self) -> None:
        """Read certificate and key again, for new connections.

        Raises ListenError; the old ones are then kept.
        """
        if self._tls is None:
            return
        from hypercorn.config import Config as HypercornConfig

        config = HypercornConfig()
        self.binding.set_tls(config)  # a key that does not match would spoil the context in use
        self._tls.load_cert_chain(config.certfile or "", config.keyfile)

    def urls(self, paths: Iterable[str]) -> list[str]:
        """The addresses to display, one for each path; for a Unix socket in nginx's form."""
        binding = self.binding
        scheme = "http" if binding.tls_cert is None else "https"
        if binding.uds is not None:
            return [f"{scheme}://unix:{binding.uds}:{path}" for path in paths]
        host = f"[{binding.host}]" if ":" in binding.host else binding.host
        return [f"{scheme}://{host}:{self.socket.getsockname()[1]}{path}" for path in paths]

    def close(self) -> None:
        """Stop listening; remove a Unix socket's file unless another program has replaced it."""
        self.socket.close()
        path, mark = self.binding.uds, self._mark
        self._mark = None
        if path is not None and mark is not None and _mark(path) == mark:
            with contextlib.suppress(OSError):  # already removed
                path.unlink()


def _mark(path: Path) -> tuple[int, int] | None:
    """Return the identity of a Unix socket's file, which another at its path lacks."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _open_unix(path: Path, mode: int) -> socket.socket:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _check_free(path)
        before = os.umask(0o777 & ~mode)  # not `chmod`, which follows a link that another user may put in its place
        try:
            sock.bind(str(temporary))
        finally:
            os.umask(before)
        sock.listen(BACKLOG)
        temporary.replace(path)  # atomic: there is always a socket at the path, and no other program's file is removed
    except OSError as exc:
        sock.close()
        with contextlib.suppress(OSError):
            temporary.unlink()
        reason = "the path is too long for a socket" if exc.errno is None else exc.strerror
        text = f"cannot listen on {path}: {reason or exc}; choose another path with --uds"
        raise ListenError(text) from None
    return sock


def _check_free(path: Path) -> None:
    """Raise OSError unless the path is free or holds a stale socket."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.EEXIST, "the path exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        knock.settimeout(KNOCK_WAIT)
        try:
            knock.connect(str(path))
        except ConnectionRefusedError:
            return  # left behind by a gateway that was killed
        except OSError as exc:
            raise OSError(errno.EADDRINUSE, f"it is in use ({exc.strerror or exc})") from None
    raise OSError(errno.EADDRINUSE, "another program listens on it")
