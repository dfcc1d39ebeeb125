"""Flags that several commands share, and their parsers."""

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
    """Parse a port; 0 is any free one."""
    if not text.isdigit() or int(text) > 65_535:
        message = f"{text!r} is not a port; give 0 to 65535"
        raise ValueError(message)
    return int(text)


def url_path(text: str) -> str:
    """Parse the path of an endpoint."""
    if not text.startswith("/") or any(char in text for char in "?# "):
        message = f"{text!r} is not a path; it must begin with /"
        raise ValueError(message)
    return text


FILE = Flag("FILE", "the config file (JSON or TOML); also spelled --config FILE", parse=Path)
CONFIG = Flag("--config", "the config file", "FILE", parse=Path)


def address(text: str) -> str:
    """Parse a URL or a process id."""
    if not text.isdigit() and not text.startswith(("http://", "https://")):
        message = f"{text!r} is not a URL; give one like http://127.0.0.1:8080/mcp, or the process id of a gateway"
        raise ValueError(message)
    return text


STATE = Flag(
    "--state-dir",
    "directory for saved catalogs, tokens and the control socket (default $MCP_GATEWAY_STATE_DIR, else below"
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
    """Split a gateway's address into a URL and its Unix socket, if any.

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
        problem = "no config file was given (FILE or --config FILE)"
        raise UsageError(problem, f"{PROGRAM} --help")
    return path


def state_directory(values: Values) -> Path:
    """Return the named state directory, or the default one."""
    from gateway.store import default_directory

    return getattr(values, "state_dir", None) or default_directory(os.environ)


def warn_of_state(values: Values) -> None:
    """Warn if `serve` would not use the state directory."""
    from gateway.errors import ConfigError
    from gateway.store import Store

    try:
        Store(state_directory(values)).check()
    except ConfigError as exc:
        warn(str(exc))


def names_in_config(given: Mapping[str, Any]) -> Sequence[str]:
    """Return shell completions for a server's name, if the config file is readable."""
    from gateway.config.parse import read_file
    from gateway.config.text import load_valid
    from gateway.errors import ConfigError

    try:
        path = Path(given.get("config") or given.get("file") or "")
        if not path.is_file():  # a pipe can be read only once, so not for completion
            return ()
        config = load_valid(read_file(path), str(path))
        return [*config.get("mcpServers", config.get("servers", {}))]
    except (ConfigError, ValueError, AttributeError, TypeError):
        return ()


def load(path: Path, state: Path | None = None) -> Config:
    """Read a config, mask its secrets in this process's output, and print warnings. Raises ConfigError.

    With a state directory it returns the config that `serve` would use, including changes over the management API.
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
