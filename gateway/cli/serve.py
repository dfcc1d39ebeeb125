"""`mcp-gateway serve`: the gateway itself, on stdio or HTTP.

Clients start it and wait: what is imported here at the top, each of them pays for.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gateway.cli.access import LISTENING, check_exposure, listening
from gateway.cli.flags import Command, Flag, Values
from gateway.cli.options import ADDRESS, CONFIG, STATE, state_directory, url_path
from gateway.cli.output import print_error, warn
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.admin.access import AdminAccess
    from gateway.config import Config
    from gateway.store import Store

TRANSPORTS = {"stdio": "stdio", "sse": "sse", "streamable-http": "streamable-http", "http": "streamable-http"}


def transports(text: str) -> tuple[str, ...]:
    """One transport, or several of HTTP with commas between."""
    chosen: list[str] = []
    for word in text.split(","):
        name = TRANSPORTS.get(word.strip())
        if name is None:
            message = f"{word.strip()!r} is no transport; choose stdio, streamable-http (http) or sse"
            raise ValueError(message)
        chosen.append(name)
    if "stdio" in chosen and len(set(chosen)) > 1:
        message = "stdio cannot be combined with the HTTP transports: run a second gateway"
        raise ValueError(message)
    return tuple(dict.fromkeys(chosen))


def run(values: Values) -> int:
    """Serve until a signal, or the end of stdin; 1 if calls had to be cut off."""
    from gateway import app
    from gateway.reload.source import ConfigSource
    from gateway.store import Store
    from gateway.telemetry import open_logging

    if "sse" in values.transport:
        _check_paths(values)
    store = _usable(Store(state_directory(values)))
    source = ConfigSource(
        values.config, environ=os.environ, name=values.name, store=None if values.ephemeral else store
    )
    config = source.open()
    for warning in config.warnings:
        warn(warning)
    _check_view(values, config)
    if values.admin == "open" and config.access is not None and config.access.says_something:
        warn("--admin open does not apply while the config has a section 'access'; send the admin token")
    stdin, stdout = app.set_stdio_apart() if "stdio" in values.transport else (0, 1)
    options = app.Options(
        transports=values.transport,
        host=values.host,
        port=values.port,
        path=values.streamable_http_path,
        sse_path=values.sse_path,
        message_path=values.message_path,
        view=values.view,
        stdin=stdin,
        stdout=stdout,
        state_directory=None if store is None else store.directory,
        source=source,
        watching=not values.no_watch,
        admin=None if "stdio" in values.transport else _admin_access(values, store),
        **listening(values),
    )
    check_exposure(options, config)
    with open_logging(values.log_level, values.log_format or config.gateway.log_format):
        clean = app.run(config, options, lambda url: print_error(f"listening on {url}"))
    return 0 if clean else 1


def _usable(store: Store) -> Store | None:
    """Return the store, or None where other users can write it: then this run keeps nothing and reads nothing."""
    try:
        store.check()
    except ConfigError as exc:
        warn(f"{exc}; until then this gateway keeps no state: no logins, no changes over the API, no admin token")
        return None
    return store


def _check_view(values: Values, config: Config) -> None:
    if values.view is None:
        return
    if "stdio" not in values.transport:
        place = f"{values.streamable_http_path}/{values.view}"
        raise ConfigError([f"--view is for stdio; over HTTP each view has its own endpoint, {place}"])
    if values.view not in config.views:
        known = ", ".join(config.views) or "none"
        raise ConfigError([f"--view {values.view}: there is no such view; the config's section 'views' has {known}"])


def _check_paths(values: Values) -> None:
    given = {
        "--streamable-http-path": values.streamable_http_path,
        "--sse-path": values.sse_path,
        "--message-path": values.message_path,
    }
    if len({path.rstrip("/") for path in given.values()}) < len(given):
        raise ConfigError([f"{', '.join(given)} must be three different paths, not {', '.join(given.values())}"])


def _admin_access(values: Values, store: Store | None) -> AdminAccess:
    from gateway.admin.access import AdminAccess, find_token

    token = None
    if values.admin != "off":
        try:
            token = find_token(values.admin_token, os.environ, store)
        except OSError as exc:
            warn(f"there is no admin token, so the management API takes no changes: {exc}")
    return AdminAccess(values.admin, host="localhost" if values.uds is not None else values.host, token=token)


FLAGS = (
    CONFIG,
    Flag(
        "--transport",
        "stdio (default), streamable-http (or http), sse, or a comma list of the HTTP ones",
        "T",
        ("stdio",),
        transports,
    ),
    *ADDRESS,
    *LISTENING,
    Flag("--sse-path", "path of the sse transport", "PATH", "/sse", url_path),
    Flag("--message-path", "where the sse transport's clients POST", "PATH", "/messages/", url_path),
    Flag("--view", "serve only this view of the config, on stdio", "NAME"),
    Flag("--name", "the name that clients see (default: gateway.name of the config)", "N"),
    Flag("--log-level", "least severe log message", default="info", choices=("debug", "info", "warning", "error")),
    Flag("--log-format", "how log lines look (default: gateway.log_format of the config)", choices=("console", "json")),
    STATE,
    Flag(
        "--admin",
        "the management API beside the endpoint: changes need the admin token (default), need none (loopback only,"
        " and not with a section 'access'), or there is none",
        default="token",
        choices=("token", "open", "off"),
    ),
    Flag(
        "--admin-token",
        "the admin token (default $MCP_GATEWAY_ADMIN_TOKEN, which `ps` does not show, else one that is made at the"
        " first start and kept in the state directory)",
        "TOKEN",
        variable="MCP_GATEWAY_ADMIN_TOKEN",
    ),
    Flag("--ephemeral", "forget at the end what was changed over the management API", switch=True),
    Flag("--no-watch", "do not watch the config file; SIGHUP and the API still reload it", switch=True),
)
COMMANDS = (Command("serve", "serve the backends of a config file", run, FLAGS),)
