"""Flags that several commands share, and what makes values of their text."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.flags import PROGRAM, Flag, Values
from gateway.cli.output import UsageError, warn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from gateway.config import Config


def port(text: str) -> int:
    """A port; 0 is any free one."""
    if not text.isdigit() or int(text) > 65_535:
        message = f"{text!r} is no port; give 0 to 65535"
        raise ValueError(message)
    return int(text)


def url_path(text: str) -> str:
    """The path of an endpoint."""
    if not text.startswith("/") or any(char in text for char in "?# "):
        message = f"{text!r} is no path; it must begin with /"
        raise ValueError(message)
    return text


FILE = Flag("FILE", "the config file (JSON, mcpServers); also spelled --config FILE", parse=Path)
CONFIG = Flag("--config", "the config file", "FILE", parse=Path)


def address(text: str) -> str:
    """An address, or a process id."""
    if not text.isdigit() and not text.startswith(("http://", "https://")):
        message = f"{text!r} is no address; give one like http://127.0.0.1:8080/mcp, or the process id of a gateway"
        raise ValueError(message)
    return text


STATE = Flag(
    "--state-dir",
    "where last-good catalogs, tokens and the control socket are kept (default $MCP_GATEWAY_STATE_DIR, else below"
    " $XDG_STATE_HOME or ~/.local/state)",
    "DIR",
    parse=Path,
)
ADDRESS = (
    Flag("--host", "address to listen on", "H", "127.0.0.1"),
    Flag("--port", "port (default 8080; 0 picks a free one)", "P", 8080, port),
    Flag("--streamable-http-path", "path of the streamable HTTP endpoint", "PATH", "/mcp", url_path),
)


def split_address(url: str) -> tuple[str, str | None]:
    """Split a gateway's address into one with a host and the Unix socket by which it is reached; None is the network.

    `serve --uds` prints `http://unix:/PATH/OF/SOCKET:/mcp`.
    """
    address = re.match(r"(https?)://unix:(/.*?):(/[^:]*)?$", url)
    return (url, None) if address is None else (f"{address[1]}://localhost{address[3] or ''}", address[2])


def config_path(values: Values) -> Path:
    """Return the config file, given as FILE or as `--config FILE`. Raises UsageError."""
    if values.file is not None and values.config is not None:
        problem = f"two config files were given, {values.file} and {values.config}"
        raise UsageError(problem, "keep one: FILE or --config FILE")
    path: Path | None = values.file or values.config
    if path is None:
        problem = "which config FILE? none was given (FILE or --config FILE)"
        raise UsageError(problem, f"{PROGRAM} --help")
    return path


def state_directory(values: Values) -> Path:
    """The state directory that was named, or the default one."""
    from gateway.store import default_directory

    return getattr(values, "state_dir", None) or default_directory(os.environ)


def warn_of_state(values: Values) -> None:
    """Warn where `serve` would not use the state directory."""
    from gateway.errors import ConfigError
    from gateway.store import Store

    try:
        Store(state_directory(values)).check()
    except ConfigError as exc:
        warn(str(exc))


def names_in_config(given: Mapping[str, Any]) -> Sequence[str]:
    """What a shell may offer as a server's name: those in the config file, as far as it can be read."""
    from gateway.config.parse import read_file
    from gateway.config.text import load_valid
    from gateway.errors import ConfigError

    try:
        path = Path(given.get("config") or given.get("file") or "")
        if not path.is_file():  # a pipe is read only once, and not by a shell
            return ()
        config = load_valid(read_file(path), str(path))
        return [*config.get("mcpServers", config.get("servers", {}))]
    except (ConfigError, ValueError, AttributeError, TypeError):
        return ()


def load(path: Path, state: Path | None = None) -> Config:
    """Read a config, mask its secrets in all that this process says, and say what is odd. Raises ConfigError.

    With a state directory it is the config that `serve` would use: with what was changed over the management API.
    """
    from gateway.config import load_config
    from gateway.config.shown import secrets_of_config
    from gateway.masking import SECRETS

    if state is None:
        config = load_config(path, environ=os.environ)
    else:
        from gateway.reload.source import ConfigSource
        from gateway.store import Store

        config = ConfigSource(path, environ=os.environ, store=Store(state)).open()
    SECRETS.replace(secrets_of_config(config))
    for warning in config.warnings:
        warn(warning)
    return config
