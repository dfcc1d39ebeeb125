"""The target of `list`, `call`, `read` and `prompt`: a config's servers, or a gateway.

Both are a gateway inside this process (`gateway.embed.open_gateway`): of the config's servers, started only if needed,
or of the single server in `--url`, whose tools keep their names. The command line is its client, a legacy one with
elicitation.
"""

from __future__ import annotations

import difflib
import logging
import os
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gateway import jsonrpc
from gateway.calls import Call, Caller, Complete, Era, Failure, Notification, ServerRequest
from gateway.cli.flags import Flag, Values
from gateway.cli.login import find_challenge
from gateway.cli.options import CONFIG, STATE, address, load, split_address
from gateway.cli.output import CommandError, UsageError
from gateway.cli.ps import find_running
from gateway.config import NEVER_RESTART, Config, parse_server
from gateway.embed.native import open_gateway
from gateway.eras.methods import OWNER_KIND, Kind
from gateway.eras.tools import View
from gateway.eras.versions import LATEST_LEGACY
from gateway.errors import GatewayError, UnknownName
from gateway.frontends.call_stream import CallStream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from gateway.cli.terminal import Terminal
    from gateway.config import ServerConfig
    from gateway.embed.native import EmbeddedGateway

CALLER: Final = Caller(
    era=Era.LEGACY,
    version=LATEST_LEGACY,
    # The terminal refuses sampling with a reason; without the capability the server would report its own error.
    capabilities=jsonrpc.raw({"elicitation": {"form": {}, "url": {}}, "sampling": {}}),
    session="command line",
)
KEY: Final = "MCP_GATEWAY_KEY"
"""The environment variable of the gateway's API key."""
REMOTE: Final = "remote"
"""The internal name of the server in `--url`; users see its URL instead."""


def _header(text: str) -> tuple[str, str]:
    name, sign, value = text.partition(":")
    if not sign or not name.strip():
        message = "write it as 'NAME: VALUE'"
        raise ValueError(message)
    return name.strip(), value.strip()


FLAGS: Final = (
    msgspec.structs.replace(CONFIG, help="the servers of this config file, started temporarily"),
    Flag(
        "--url",
        "URL of a gateway or any MCP server, or process id of a gateway (default: the running one)",
        "URL",
        parse=address,
    ),
    Flag(
        "--header",
        "header for --url, such as 'Authorization: Bearer KEY'; $MCP_GATEWAY_KEY sets that one",
        "HEADER",
        parse=_header,
        many=True,
    ),
    STATE,
    Flag("--verbose", "show the log, including the servers' stderr", switch=True),
)


class Target:
    """The servers of this command; `peer` is the one in `--url`, without a config."""

    def __init__(self, gateway: EmbeddedGateway, peer: ServerConfig | None) -> None:
        self._gateway = gateway
        self._peer = peer

    async def list(self, kind: Kind) -> list[dict[str, Any]]:
        """List one kind under public names, without servers that are late (`problems`)."""
        await self._gateway.fleet.first_starts(era=Era.LEGACY)
        page = self._gateway.fleet.snapshot().page(kind, None, None, View.LATEST)
        return [jsonrpc.decode_any(raw) for raw in jsonrpc.decode_array(b"[" + page.joined + b"]")]

    def problems(self) -> dict[str, str]:
        """Return the servers that did not start, and why."""
        return {
            name: one.last_error or f"it is {one.state}"
            for name, one in self._gateway.status().items()
            if one.state != "ready"
        }

    def warnings(self) -> dict[str, tuple[str, ...]]:
        """Return the problems of the servers' lists and of the related config."""
        return {name: one.warnings for name, one in self._gateway.status().items() if one.warnings}

    async def check_peer(self) -> None:
        """Raise CommandError if the server in `--url` failed."""
        if self._peer is None or REMOTE not in self.problems():
            return
        problem, hint, code = self.problems()[REMOTE], "", ""
        if errors := self._gateway.fleet.supervisors[REMOTE].history.errors:
            code = errors[-1].code or ""
        with suppress(GatewayError, OSError):
            challenge = await find_challenge(self._peer)
            if challenge is not None and "resource_metadata" not in challenge.header:
                hint = f"put it into the environment variable {KEY}, or give --header 'Authorization: Bearer KEY'"
                problem, code = "an API key is required", "missing_credentials"
                if any(name.lower() == "authorization" for name in self._peer.headers):
                    problem, code = "the API key was rejected", "invalid_token"
        raise CommandError(f"{self._peer.url}: {problem}", hint, reason=code)

    async def request(self, method: str, name: str, params: dict[str, Any], terminal: Terminal) -> dict[str, Any]:
        """Send a request and return its result; show notifications and server requests on the terminal.

        Raises:
            CommandError: it was refused.
        """
        call = Call(
            method=method,
            name=name,
            params={key: jsonrpc.raw(value) for key, value in params.items()},
            meta={},
            caller=CALLER,
            progress_token="command line",  # noqa: S106 - a progress token, not a secret
        )
        try:
            return await self._converse(call, terminal)
        except UnknownName as exc:
            unknown = exc
        except CommandError:
            raise
        except GatewayError as exc:
            raise CommandError(str(exc), reason=exc.code) from exc
        await self.check_peer()
        kind = OWNER_KIND[method]
        known = [str(item[kind.key]) for item in await self.list(kind)]
        ends = [one for one in known if one.endswith(name)]
        near = dict.fromkeys([*ends[:3], *difflib.get_close_matches(name, known, n=3, cutoff=0.6)])
        problems = "; ".join(f"{server}: {why}" for server, why in self.problems().items())
        raise CommandError(str(unknown), f"did you mean {', '.join(near)}?" if near else problems, reason=unknown.code)

    async def _converse(self, call: Call, terminal: Terminal) -> dict[str, Any]:
        router = self._gateway.router
        flow = CallStream(router, await router.submit(call))
        try:
            while True:
                item = await flow.next()
                match item:
                    case Notification():
                        terminal.show_notification(item)
                    case ServerRequest():
                        await terminal.answer_request(item)
                    case Complete():
                        return jsonrpc.decode_any(item.whole())
                    case Failure():
                        text = f"{item.message} (code {item.code})"
                        raise CommandError(text)
                    case GatewayError():
                        raise item
                    case _:
                        pass  # withdrawn server requests: the prompt has been answered, or is about to be
        finally:
            flow.close("the command was interrupted")


@asynccontextmanager
async def open_target(values: Values, name: str = "") -> AsyncGenerator[Target]:
    """Open the target of the flags, limited to the name's owners if these are known."""
    if values.config is not None and values.url is not None:
        problem = "--config cannot be combined with --url; keep one"
        raise UsageError(problem)
    with _quiet(verbose=values.verbose):
        peer = None
        if values.config is None:
            config = _config_of_peer(find_running(values), values.header)
            peer = config.servers[REMOTE]
        else:
            config = load(values.config)
            enabled = {key: one for key, one in config.servers.items() if not one.disabled}
            prefixes = {key: one.effective_namespace + config.gateway.separator for key, one in enabled.items()}
            owners = [key for key, prefix in prefixes.items() if len(prefix) > 1 and name.startswith(prefix)]
            bare = [key for key, one in enabled.items() if not one.effective_namespace]
            disabled = {key: one for key, one in config.servers.items() if one.disabled}  # a call of one says so
            servers = {key: enabled[key] for key in ([*owners, *bare] if owners else enabled)}
            config = _for_once(config, servers | disabled)
        async with open_gateway(config) as gateway:
            yield Target(gateway, peer)


def _for_once(config: Config, servers: dict[str, Any]) -> Config:
    """Return the servers adapted to a single command: started immediately, never restarted, and awaited."""
    once = {
        key: msgspec.structs.replace(one, start="eager", idle_timeout=None, restart=NEVER_RESTART)
        for key, one in servers.items()
    }
    grace = max((one.connect_timeout for one in once.values()), default=0.0) + 1.0
    return msgspec.structs.replace(
        config, servers=once, gateway=msgspec.structs.replace(config.gateway, start_grace=grace)
    )


def _config_of_peer(report: dict[str, Any], given: list[tuple[str, str]]) -> Config:
    """Return a config with only the server in `--url` or a running gateway's report."""
    if not report["urls"]:
        problem = f"the gateway {report['pid']} serves stdio, for its own client only"
        raise CommandError(problem, "--config FILE starts the servers temporarily; `list` works here")
    headers, key = dict(given), os.environ.get(KEY)
    if key and not any(name.lower() == "authorization" for name in headers):
        headers["Authorization"] = f"Bearer {key}"
    url, unix_socket = split_address(report["urls"][0])
    entry = {"url": url, "headers": headers, "namespace": ""}
    server = parse_server(REMOTE, entry | ({"unix_socket": unix_socket} if unix_socket else {}), environ={})
    config = Config({REMOTE: server})
    longest = msgspec.structs.replace(config.gateway, max_name_length=1 << 20)  # the remote gateway chooses the names
    return _for_once(msgspec.structs.replace(config, gateway=longest), config.servers)


@contextmanager
def _quiet(*, verbose: bool) -> Generator[None]:
    """Suppress the log: the command reports the relevant problems itself."""
    if verbose:
        from gateway.telemetry import open_logging

        with open_logging("debug"):
            yield
        return
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
