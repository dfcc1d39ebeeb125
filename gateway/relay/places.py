"""The socket of a config's gateway: one per user, config, version and variables.

The name of the socket is a digest of everything that clients of one gateway must share. Its directory is private to the
user, so that no other user can create a socket there.
"""

from __future__ import annotations

import json
import os
import re
import stat

try:
    from _blake2 import blake2b  # `hashlib` loads OpenSSL, a quarter of the memory of a relay
except ImportError:  # another interpreter
    from hashlib import blake2b

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DIRECTORY = "trio-mcp-gateway"
STATE_VARIABLE = "MCP_GATEWAY_STATE_DIR"
GATEWAYS_VARIABLE = "MCP_GATEWAY_GATEWAYS"
RUNTIMES = "/run/user"
"""Where systemd keeps the runtime directories of users."""
MAX_SOCKET_PATH = 100
"""Bytes of a socket's path: the kernels take 104 to 108."""
MAX_CONFIG_BYTES = 16 * 1024 * 1024
_VARIABLES = re.compile(rb"\$\{(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-|\})")


class RelayError(Exception):
    """The relay cannot serve; the message is for the user, with what to do."""


class Place:
    """The gateway for a client: its config, environment and files."""

    def __init__(self, config: str, environ: Mapping[str, str], version: str, state: str | None) -> None:
        self.config = os.path.realpath(config)
        self.state = os.path.abspath(state or default_state(environ))
        try:
            if not stat.S_ISREG(os.stat(self.config).st_mode):
                text = f"{config} is not a regular file, which several clients could read"
                raise RelayError(text)
            with open(self.config, "rb") as file:
                data = file.read(MAX_CONFIG_BYTES)
        except OSError as exc:
            text = f"{config}: {(exc.strerror or str(exc)).lower()}; check the path"
            raise RelayError(text) from None
        names = variables_in(data)
        self.config_digest = blake2b(data, digest_size=16).hexdigest()
        self.variables = {name: environ[name] for name in sorted(names) if name in environ}
        """The set variables among those that the config uses."""
        parts = [version, str(os.getuid()), self.config, self.state]
        parts += [f"{name}={value}" for name, value in self.variables.items()]
        text = "\0".join(parts).encode(errors="surrogateescape")
        directory = make_directory(environ, self.state)
        self.socket = os.path.join(directory, f"{blake2b(text, digest_size=10).hexdigest()}.sock")
        if len(os.fsencode(self.socket)) > MAX_SOCKET_PATH:
            text = f"the path {self.socket} is too long for a socket; set XDG_RUNTIME_DIR or {STATE_VARIABLE}"
            raise RelayError(text)

    @property
    def lock(self) -> str:
        """The lock file of the relay that starts the gateway."""
        return self.socket.removesuffix("sock") + "lock"

    @property
    def greetings(self) -> str:
        """The file of the last answers to `initialize`."""
        return self.socket.removesuffix("sock") + "json"

    @property
    def log(self) -> str:
        """The gateway's log file."""
        return self.socket.removesuffix("sock") + "log"


def default_state(environ: Mapping[str, str]) -> str:
    """Return the state directory, as `gateway.store.default_directory` does."""
    base = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return environ.get(STATE_VARIABLE) or os.path.join(base, DIRECTORY)


def variables_in(config: bytes) -> list[str]:
    """Return the names of the variables that a config's text uses."""
    return [name.decode() for name in dict.fromkeys(_VARIABLES.findall(config))]


def make_directory(environ: Mapping[str, str], state: str, runtimes: str = RUNTIMES) -> str:
    """Return the directory of the sockets, created if missing.

    Some clients (Codex) do not pass `XDG_RUNTIME_DIR` on, so its usual value in `runtimes` is used without it too.

    Raises:
        RelayError: another user owns it, or can write it.
    """
    usual = os.path.join(runtimes, str(os.getuid()))
    runtime = environ.get("XDG_RUNTIME_DIR") or (usual if os.path.isdir(usual) else None)
    directory = os.path.join(runtime, DIRECTORY) if runtime else os.path.join(state, "relays")
    try:
        if not runtime:
            os.makedirs(state, mode=0o700, exist_ok=True)
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        found = os.lstat(directory)
    except OSError as exc:
        text = f"{exc.filename or directory}: {(exc.strerror or str(exc)).lower()}; set XDG_RUNTIME_DIR"
        raise RelayError(text) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        text = (
            f"{directory} must be a directory that no other user can use (owner {found.st_uid}, mode"
            f" {stat.S_IMODE(found.st_mode):04o}); remove it, or run `chmod 700 {directory}`"
        )
        raise RelayError(text)
    return directory


def check_lineage(place: Place, environ: Mapping[str, str]) -> None:
    """Raise RelayError if a gateway with this config started this relay, which would recurse forever."""
    found = environ.get(GATEWAYS_VARIABLE)
    if found:
        try:
            configs = json.loads(found)["configs"]
        except (ValueError, KeyError, TypeError):
            return
        if place.config in configs:
            text = (
                f"{place.config}: this relay was started by a gateway with the same config; remove that server from it"
            )
            raise RelayError(text)


def warn(text: str) -> None:
    """Write a line to stderr, ignoring a missing reader."""
    try:
        os.write(2, f"mcp-gateway connect: {text}\n".encode(errors="backslashreplace"))
    except OSError:
        pass
