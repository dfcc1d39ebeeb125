"""`mcp-gateway serve`: run the gateway on stdio or HTTP; and `demo`, the guided first run.

Clients start it and wait, so every top-level import here delays them.
"""

from __future__ import annotations

import gc
import os
import string
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gateway.calls import NAME_LENGTHS, SEPARATORS, NameChoice
from gateway.cli.flags import Command, Flag, Values
from gateway.cli.options import ADDRESS, CONFIG, FILE, STATE, config_path, state_directory, url_path
from gateway.cli.output import UsageError, print_error, warn
from gateway.errors import ConfigError
from gateway.frontends.http.listen_address import InsecureListen, ListenAddress

if TYPE_CHECKING:
    from gateway.admin.access import AdminAccess
    from gateway.app import Options
    from gateway.config import Config
    from gateway.store import Store

TRANSPORTS = {
    "stdio": "stdio",
    "sse": "sse",
    "streamable-http": "streamable-http",
    "http": "streamable-http",
    "connect": "connect",
}


def transports(text: str) -> tuple[str, ...]:
    """Parse one transport, or several HTTP ones separated by commas."""
    chosen: list[str] = []
    for word in text.split(","):
        name = TRANSPORTS.get(word.strip())
        if name is None:
            message = f"{word.strip()!r} is not a transport; choose stdio, streamable-http (http), sse or connect"
            raise ValueError(message)
        chosen.append(name)
    if {"stdio", "connect"}.intersection(chosen) and len(set(chosen)) > 1:
        message = f"{chosen[0]} cannot be combined with other transports: run a second gateway"
        raise ValueError(message)
    return tuple(dict.fromkeys(chosen))


def file_mode(text: str) -> int:
    """Parse a file's mode, such as 660."""
    if not text.isdigit() or set(text) - set(string.octdigits) or int(text, 8) > 0o777:
        message = f"{text!r} is not a file mode; use one such as 600 or 660"
        raise ValueError(message)
    return int(text, 8)


def run(values: Values) -> int:
    """Serve until a signal or EOF on stdin; return 1 if calls were cut off."""
    gc.disable()  # nothing that is imported is garbage: a twentieth of the time of a start
    from gateway import app
    from gateway.frontends.relays import find_log, open_listener
    from gateway.reload.source import ConfigSource
    from gateway.runtime import Lineage
    from gateway.store import Store
    from gateway.telemetry import open_logging

    gc.enable()
    paths = {
        "--streamable-http-path": values.streamable_http_path,
        "--sse-path": values.sse_path,
        "--message-path": values.message_path,
    }
    if "sse" in values.transport and len({path.rstrip("/") for path in paths.values()}) < len(paths):
        raise ConfigError([f"{', '.join(paths)} must be three different paths, not {', '.join(paths.values())}"])
    if values.tls_key is not None and values.tls_cert is None:
        message = "--tls-key needs --tls-cert"
        raise UsageError(message, "mcp-gateway serve --help")
    path = config_path(values)
    Lineage.of(os.environ).check(path)
    store = _usable(Store(state_directory(values)))
    source = ConfigSource(path, environ=os.environ, name=values.name, store=None if values.ephemeral else store)
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
        names=_chosen_names(values),
        stdin=stdin,
        stdout=stdout,
        state_directory=None if store is None else store.directory,
        source=source,
        watching=not values.no_watch,
        relays=open_listener() if "connect" in values.transport else None,
        inherited=None if {"stdio", "connect"}.intersection(values.transport) else ListenAddress.inherit(os.environ),
        insecure=values.insecure,
        tls_cert=values.tls_cert,
        tls_key=values.tls_key,
        uds=values.uds,
        uds_mode=values.uds_mode,
    )
    _check_exposure(options, config)
    if not options.is_local:
        options = msgspec.structs.replace(options, admin=_admin_access(values, store, options.binding.admin_host))
    with open_logging(values.log_level, values.log_format or config.gateway.log_format, file=find_log(options.relays)):
        clean = app.run(config, options, lambda url: print_error(f"listening on {url}"))
    return 0 if clean else 1


def _usable(store: Store) -> Store | None:
    """Return the store, or None (no state) if other users can write it."""
    try:
        store.check()
    except ConfigError as exc:
        warn(f"{exc}; until then this gateway keeps no state: no logins, no changes over the API, no admin token")
        return None
    return store


def _chosen_names(values: Values) -> NameChoice | None:
    """Return the naming choice of the flags for the client on stdio."""
    length = values.max_name_length
    if values.separator is None and length is None:
        return None
    if "stdio" not in values.transport:
        address = f"http://HOST:PORT{values.streamable_http_path}?separator=__&max_name_length=64"
        message = "--separator and --max-name-length are for stdio; over HTTP each client makes its own choice"
        raise UsageError(message, f"connect it to {address}")
    return NameChoice(values.separator, None if length is None else int(length))


def _check_view(values: Values, config: Config) -> None:
    if values.view is None:
        return
    if "stdio" not in values.transport:
        place = f"{values.streamable_http_path}/{values.view}"
        raise ConfigError([f"--view is for stdio; over HTTP each view has its own endpoint, {place}"])
    if values.view not in config.views:
        known = ", ".join(config.views) or "none"
        raise ConfigError([f"--view {values.view}: unknown view; the config's section 'views' has {known}"])


def _admin_access(values: Values, store: Store | None, host: str) -> AdminAccess:
    from gateway.admin.access import AdminAccess, find_token

    token = None
    if values.admin != "off":
        try:
            token = find_token(values.admin_token, os.environ, store)
        except OSError as exc:
            warn(f"no admin token, so the management API refuses changes: {exc}")
    return AdminAccess(values.admin, host=host, token=token)


def _check_exposure(options: Options, config: Config) -> None:
    """Raise UsageError for a network address without authentication; warn of unencrypted keys."""
    if options.is_local:
        return
    binding = options.binding
    if not options.insecure:
        try:
            binding.check(config.access)
        except InsecureListen as exc:
            raise UsageError(str(exc), exc.hint) from None
    if (
        not binding.is_private
        and binding.tls_cert is None
        and config.access is not None
        and config.access.requires_credentials
    ):
        warn("keys are sent unencrypted; give --tls-cert, or listen on loopback behind a TLS-terminating proxy")


def run_demo(values: Values) -> int:
    """Run the demo; return 1 on a failure."""
    from gateway.app import Options
    from gateway.demo.tour import demo_config, run_demo
    from gateway.store import Store
    from gateway.telemetry import open_logging

    store = _usable(Store(state_directory(values)))
    options = Options(
        transports=("streamable-http",),
        host=values.host,
        port=values.port,
        path=values.streamable_http_path,
        state_directory=None if store is None else store.directory,
        insecure=values.insecure,
    )
    config = demo_config()
    _check_exposure(options, config)
    with open_logging("warning"):
        clean = run_demo(config, options, say=lambda text: print(text, flush=True))
    return 0 if clean else 1


INSECURE = Flag("--insecure", "serve other machines without authentication", switch=True)
FLAGS = (
    FILE,
    CONFIG,
    Flag(
        "--transport",
        "stdio (default), streamable-http (or http), sse, or both HTTP ones with a comma; connect, for the gateway"
        " that `connect` starts",
        "T",
        ("stdio",),
        transports,
    ),
    *ADDRESS,
    INSECURE,
    Flag("--tls-cert", "serve TLS with this certificate (PEM, with its chain)", "FILE", parse=Path),
    Flag("--tls-key", "key of the TLS certificate (PEM; default: in the file of the certificate)", "FILE", parse=Path),
    Flag("--uds", "listen on a Unix socket at this path instead of --host and --port", "PATH", parse=Path),
    Flag(
        "--uds-mode",
        "file mode of the --uds socket, which limits who may connect (default 600)",
        "MODE",
        0o600,
        file_mode,
    ),
    Flag("--sse-path", "path of the SSE transport", "PATH", "/sse", url_path),
    Flag("--message-path", "path for POST requests of the SSE transport", "PATH", "/messages/", url_path),
    Flag("--view", "serve only this view of the config, on stdio", "NAME"),
    Flag(
        "--separator",
        "separator of server and tool in names, on stdio (default: the config's)",
        choices=SEPARATORS,
    ),
    Flag(
        "--max-name-length",
        "maximum length of names, on stdio (default: the config's)",
        choices=tuple(map(str, NAME_LENGTHS)),
    ),
    Flag("--name", "the name that clients see (default: gateway.name of the config)", "N"),
    Flag(
        "--log-level", "minimum severity of log messages", default="info", choices=("debug", "info", "warning", "error")
    ),
    Flag(
        "--log-format", "format of log lines (default: gateway.log_format of the config)", choices=("console", "json")
    ),
    STATE,
    Flag(
        "--admin",
        "the management API and the console beside the endpoint: token (changes need the admin token; default), open"
        " (loopback only, and not with a section 'access'), or off",
        default="token",
        choices=("token", "open", "off"),
    ),
    Flag(
        "--admin-token",
        "the admin token (default $MCP_GATEWAY_ADMIN_TOKEN, which is hidden from `ps`, else one generated at the"
        " first start and stored in the state directory)",
        "TOKEN",
        variable="MCP_GATEWAY_ADMIN_TOKEN",
    ),
    Flag("--ephemeral", "discard changes over the management API at exit", switch=True),
    Flag("--no-watch", "do not watch the config file; SIGHUP and the API still reload it", switch=True),
)
COMMANDS = (
    Command("serve", "serve the servers of a config file as one MCP server", run, FLAGS),
    Command(
        "demo",
        "try the gateway: two built-in servers, one real client, one call",
        run_demo,
        (*ADDRESS, INSECURE, STATE),
    ),
)
