"""The commands, their arguments and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

import gateway
from gateway.errors import ConfigError, GatewayError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.admin.access import AdminAccess
    from gateway.config import Config
    from gateway.store import Store

OK, FAILED, USAGE = 0, 1, 2
TRANSPORTS = {"stdio": "stdio", "sse": "sse", "streamable-http": "streamable-http", "http": "streamable-http"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    _open_missing_stdio()
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except ConfigError as exc:
        for problem in exc.problems:
            _say(f"error: {problem}")
        return USAGE
    except GatewayError as exc:
        _say(f"error: {exc}")
        return FAILED
    except BaseExceptionGroup as group:
        expected, bugs = group.split((GatewayError, KeyboardInterrupt))
        if bugs is not None or expected is None:
            raise  # a bug: the traceback is what helps
        for leaf in _leaves(expected):
            _say(f"error: {leaf}")
        return FAILED
    except KeyboardInterrupt:
        return FAILED


def _open_missing_stdio() -> None:
    """Put /dev/null where the caller left stdin, stdout or stderr closed.

    Else the next thing that is opened, a socket or a child's pipe, gets the number, and logs are written into it.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(fd, True)
    if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison] - the interpreter found it closed
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for the whole process
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for one in group.exceptions:
        if isinstance(one, BaseExceptionGroup):
            leaves += _leaves(cast("BaseExceptionGroup[BaseException]", one))
        else:
            leaves.append(one)
    return leaves


def _say(text: str) -> None:
    with suppress(OSError):  # nobody reads stderr any more, which is no reason not to serve
        print(text, file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _say(f"error: {message}\nhint: {self.prog} --help")
        raise SystemExit(USAGE)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mcp-gateway", description="Many MCP servers behind one endpoint.")
    parser.add_argument("--version", action="version", version=f"mcp-gateway {gateway.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve the backends of a config file")
    serve.add_argument("--config", required=True, type=Path, metavar="FILE", help="the config file (JSON, mcpServers)")
    serve.add_argument(
        "--transport",
        default=("stdio",),
        type=_transports,
        metavar="T",
        help="stdio (default), streamable-http (or http), sse, or a comma list of the HTTP ones",
    )
    _add_address(serve)
    serve.add_argument("--sse-path", default="/sse", type=_path, metavar="PATH", help="of the sse transport (/sse)")
    serve.add_argument(
        "--message-path", default="/messages/", type=_path, metavar="PATH", help="where its clients POST (/messages/)"
    )
    serve.add_argument("--name", metavar="N", help="the name that clients see (default: gateway.name of the config)")
    serve.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"], metavar="L")
    _add_state(serve)
    _add_admin(serve)
    serve.set_defaults(run=_serve)
    check = commands.add_parser("check", help="check a config file and say what it would start")
    check.add_argument("config", type=Path, metavar="FILE")
    check.set_defaults(run=_check)
    ps = commands.add_parser("ps", help="show the running gateways' backends and their processes")
    _add_state(ps)
    ps.add_argument("--json", action="store_true", help="print the reports as JSON")
    ps.set_defaults(run=_ps)
    login = commands.add_parser("login", help="log in to a server that wants OAuth, and keep its tokens")
    login.add_argument("--no-browser", action="store_true", help="only print the address of the login page")
    logout = commands.add_parser("logout", help="forget the tokens of a server")
    for command, run in ((login, _login), (logout, _logout)):
        command.add_argument("name", metavar="NAME", help="the server's name in the config")
        command.add_argument("--config", required=True, type=Path, metavar="FILE", help="the config file")
        _add_state(command)
        command.set_defaults(run=run)
    fields = commands.add_parser("fields", help="list every field of the config file, with its default")
    fields.set_defaults(run=_fields)
    demo = commands.add_parser("demo", help="try it: two built-in servers, one real client, one call")
    _add_address(demo)
    demo.set_defaults(run=_demo)
    return parser


def _add_admin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--admin",
        default="token",
        choices=["token", "open", "off"],
        help="the management API beside the endpoint: changes need the admin token (default), need none (loopback"
        " only), or there is none",
    )
    parser.add_argument(
        "--admin-token",
        metavar="TOKEN",
        help="the admin token (default $MCP_GATEWAY_ADMIN_TOKEN, which `ps` does not show, else one that is made at the"
        " first start and kept in the state directory)",
    )
    parser.add_argument(
        "--ephemeral", action="store_true", help="forget at the end what was changed over the management API"
    )
    parser.add_argument(
        "--no-watch", action="store_true", help="do not watch the config file; SIGHUP and the API still reload it"
    )


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", default=8080, type=_port, metavar="P", help="port (default 8080; 0 picks a free one)")
    parser.add_argument("--streamable-http-path", default="/mcp", type=_path, metavar="PATH", help="default /mcp")


def _add_state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="where last-good catalogs, tokens and the control socket are kept (default $MCP_GATEWAY_STATE_DIR, else"
        " below $XDG_STATE_HOME or ~/.local/state)",
    )


def _state_directory(arguments: argparse.Namespace) -> Path:
    from gateway.store import default_directory

    return arguments.state_dir or default_directory(os.environ)


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65_535:
        message = f"{text!r} is no port; give 0 to 65535"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _path(text: str) -> str:
    if not text.startswith("/") or any(char in text for char in "?# "):
        message = f"{text!r} is no path; it must begin with /"
        raise argparse.ArgumentTypeError(message)
    return text


def _transports(text: str) -> tuple[str, ...]:
    chosen: list[str] = []
    for word in text.split(","):
        name = TRANSPORTS.get(word.strip())
        if name is None:
            message = f"{word.strip()!r} is no transport; choose stdio, streamable-http (http) or sse"
            raise argparse.ArgumentTypeError(message)
        chosen.append(name)
    if "stdio" in chosen and len(set(chosen)) > 1:
        message = "stdio cannot be combined with the HTTP transports: run a second gateway"
        raise argparse.ArgumentTypeError(message)
    return tuple(dict.fromkeys(chosen))


def _check_paths(arguments: argparse.Namespace) -> None:
    given = {
        "--streamable-http-path": arguments.streamable_http_path,
        "--sse-path": arguments.sse_path,
        "--message-path": arguments.message_path,
    }
    if len({path.rstrip("/") for path in given.values()}) < len(given):
        raise ConfigError([f"{', '.join(given)} must be three different paths, not {', '.join(given.values())}"])


def _load(path: Path) -> Config:
    from gateway.config import load_config

    config = load_config(path, environ=os.environ)
    for warning in config.warnings:
        _say(f"warning: {warning}")
    return config


def _serve(arguments: argparse.Namespace) -> int:
    from gateway.app import Options, run, set_stdio_apart
    from gateway.reload.source import ConfigSource
    from gateway.store import Store
    from gateway.telemetry import open_logging

    if "sse" in arguments.transport:
        _check_paths(arguments)
    store = Store(_state_directory(arguments))
    source = ConfigSource(
        arguments.config, environ=os.environ, name=arguments.name, store=None if arguments.ephemeral else store
    )
    config = source.open()
    for warning in config.warnings:
        _say(f"warning: {warning}")
    stdin, stdout = set_stdio_apart() if "stdio" in arguments.transport else (0, 1)
    options = Options(
        transports=arguments.transport,
        host=arguments.host,
        port=arguments.port,
        path=arguments.streamable_http_path,
        sse_path=arguments.sse_path,
        message_path=arguments.message_path,
        stdin=stdin,
        stdout=stdout,
        state_directory=store.directory,
        source=source,
        watching=not arguments.no_watch,
        admin=None if "stdio" in arguments.transport else _admin_access(arguments, store),
    )
    with open_logging(arguments.log_level):
        clean = run(config, options, lambda url: _say(f"listening on {url}"))
    return OK if clean else FAILED


def _admin_access(arguments: argparse.Namespace, store: Store) -> AdminAccess:
    from gateway.admin.access import AdminAccess, find_token

    token = None
    if arguments.admin != "off":
        try:
            token = find_token(arguments.admin_token, os.environ, store)
        except OSError as exc:
            _say(f"warning: there is no admin token, so the management API takes no changes: {exc}")
    return AdminAccess(arguments.admin, host=arguments.host, token=token)


def _check(arguments: argparse.Namespace) -> int:
    config = _load(arguments.config)
    for server in config.servers.values():
        if server.disabled:
            print(f"{server.name}: disabled")
        elif server.command is not None:
            print(f"{server.name}: stdio, runs {' '.join([server.command, *server.args])}")
        else:
            how = server.transport or "streamable-http or sse (probed)"
            print(f"{server.name}: {how}, connects to {server.public_url}")
    print(f"{arguments.config}: ok, {len(config.servers)} servers")
    return OK


def _ps(arguments: argparse.Namespace) -> int:
    from gateway.cli.ps import ask_all, render

    reports = ask_all(_state_directory(arguments))
    if arguments.json:
        import json

        print(json.dumps(reports))
    else:
        print("\n\n".join(render(report) for report in reports) or "no gateway is running")
    return OK


def _login(arguments: argparse.Namespace) -> int:
    from gateway.cli.login import log_in

    log_in(_load(arguments.config), arguments.name, _state_directory(arguments), browser=not arguments.no_browser)
    return OK


def _logout(arguments: argparse.Namespace) -> int:
    from gateway.cli.login import log_out

    log_out(_load(arguments.config), arguments.name, _state_directory(arguments))
    return OK


def _fields(_arguments: argparse.Namespace) -> int:
    from gateway.cli.fields import render

    print(render())
    return OK


def _demo(arguments: argparse.Namespace) -> int:
    from gateway.demo.tour import run_demo
    from gateway.telemetry import open_logging

    def say(text: str) -> None:
        print(text, flush=True)

    with open_logging("warning"):
        clean = run_demo(host=arguments.host, port=arguments.port, path=arguments.streamable_http_path, say=say)
    return OK if clean else FAILED
