"""`mcp-gateway login NAME` and `logout NAME`: one backend's tokens, even without a gateway.

A running gateway that waits for this login detects the tokens in the state directory.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

import gateway
from gateway.cli.flags import JSON, Command, Flag, Values
from gateway.cli.options import CONFIG, FILE, STATE, config_path, load, names_in_config, state_directory
from gateway.cli.output import print_error, print_json
from gateway.config.findings import did_you_mean
from gateway.eras.versions import LATEST_LEGACY
from gateway.errors import BackendUnavailable, ConfigError
from gateway.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gateway.config import Config, ServerConfig
    from gateway.inflight.pending import PendingCall
    from gateway.oauth_client.answers import Challenge
    from gateway.oauth_client.redirect_listener import RedirectListener

_NOT_FOUND: Final = frozenset({404, 405})
_REFUSED: Final = 400


def log_in(config: Config, name: str, state_directory: Path, *, browser: bool, tell: Callable[[str], None]) -> bool:
    """Log in to one server and save its tokens; return whether it required a login.

    `browser` says whether to open the page or only to pass its address to `tell`.

    Raises:
        ConfigError: the server is unknown or does not use OAuth, or others can write the state directory.
        BackendError: the server cannot be reached, or the login failed.
    """
    store = Store(state_directory)
    store.check()
    return trio.run(partial(_log_in, _find(config, name), store, browser=browser, tell=tell))


def log_out(config: Config, name: str, state_directory: Path) -> bool:
    """Delete one server's tokens; return whether there were any. Raises ConfigError as `log_in` does."""
    from gateway.oauth_client.token_store import TokenFiles

    store = Store(state_directory)
    store.check()
    return bool(TokenFiles(store, _find(config, name)).remove())


def _find(config: Config, name: str) -> ServerConfig:
    server = config.servers.get(name)
    if server is None:
        others = f"; there are {', '.join(map(repr, config.servers)) or 'none'}"
        raise ConfigError([f"there is no server {name!r}{did_you_mean(name, config.servers) or others}"])
    if server.url is None:
        raise ConfigError([f"server {name!r} is a program that the gateway starts; only servers with 'url' use logins"])
    if not server.uses_oauth:
        why = "has 'oauth': false" if server.oauth is None else "has its credentials in the config"
        raise ConfigError([f"server {name!r} {why}, so it uses no login"])
    return server


async def _log_in(server: ServerConfig, store: Store, *, browser: bool, tell: Callable[[str], None]) -> bool:
    from gateway.oauth_client.login_prompt import LoginPrompt, can_open, open_page
    from gateway.oauth_client.logins import Logins
    from gateway.oauth_client.token_manager import RENEWED

    class Printed(LoginPrompt):
        async def show(self, url: str, listener: RedirectListener, pending_calls: Sequence[PendingCall]) -> None:
            del pending_calls
            tell(f"{server.name}: open this page to log in; it redirects to {listener.uri}\n\n{url}\n")
            if browser and can_open():
                await open_page(url)

    challenge = await find_challenge(server)
    if challenge is None:
        return False
    logins = Logins(store, waiting=lambda _: (), owed=lambda _name, _reason: None, make_ways=Printed)
    problem: BackendUnavailable | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(logins.run)
        authorizer = logins.authorizer(server)
        try:
            if server.oauth is not None and server.oauth.grant == "client_credentials":
                await authorizer.renew(challenge, None, RENEWED, ())
            else:
                await authorizer.log_in(challenge, None, ())
        except BackendUnavailable as exc:
            problem = exc
        nursery.cancel_scope.cancel(reason="the login has ended")
    if problem is not None:
        raise problem
    return True


async def find_challenge(server: ServerConfig) -> Challenge | None:
    """Send a request and return the server's challenge; None if it answers. Raises BackendError."""
    from gateway.http_client.client import open_http_client
    from gateway.http_client.errors import HttpRefused
    from gateway.oauth_client.answers import challenge_of

    info = {"name": "trio-mcp-gateway", "version": gateway.__version__}
    params = {"protocolVersion": LATEST_LEGACY, "capabilities": {}, "clientInfo": info}
    body = json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}).encode()
    accept = (b"accept", b"application/json, text/event-stream")
    with trio.move_on_after(server.connect_timeout):
        async with open_http_client(server) as http:
            for method, content in (("POST", body), ("GET", None)):
                headers = [*http.base_headers, accept, (b"content-type", b"application/json")]
                async with http.exchange(method, headers, content) as response:
                    challenge, status = challenge_of(response), response.status_code
                if challenge is not None or status < _REFUSED:
                    return challenge
                if status not in _NOT_FOUND:
                    break
            raise HttpRefused(server.name, f"answered HTTP {status}, which does not request a login", status)
    raise BackendUnavailable(server.name, f"did not answer within {server.connect_timeout:g} s (connect_timeout)")


def run_login(values: Values) -> int:
    """Log in to the named server."""
    # With --json, stdout is for the result; the page's address is for the user all the same.
    tell = print_error if values.json else partial(print, flush=True)
    config, directory = load(config_path(values)), state_directory(values)
    asked = log_in(config, values.name, directory, browser=not values.no_browser, tell=tell)
    text = "logged in" if asked else "does not require a login"
    _report(values, text, {"name": values.name, "logged_in": asked})
    return 0


def run_logout(values: Values) -> int:
    """Log out of the named server."""
    was = log_out(load(config_path(values)), values.name, state_directory(values))
    _report(values, "logged out" if was else "was not logged in", {"name": values.name, "was_logged_in": was})
    return 0


def _report(values: Values, text: str, result: dict[str, Any]) -> None:
    if values.json:
        print_json(result)
    else:
        print(f"{values.name}: {text}")


_WHERE = (
    Flag("NAME", "the server's name in the config", required=True, complete=names_in_config),
    FILE,
    CONFIG,
    STATE,
    JSON,
)
COMMANDS = (
    Command(
        "login",
        "log in to a server that requires OAuth, and save its tokens",
        run_login,
        (*_WHERE, Flag("--no-browser", "print the address of the login page instead of opening it", switch=True)),
    ),
    Command("logout", "delete the tokens of a server", run_logout, _WHERE),
)
