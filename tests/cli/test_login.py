"""`mcp-gateway login` and `logout`, and a gateway process that uses the stored tokens."""

# ruff: file-ignore[line-too-long]  (one row of a table, one line)

from __future__ import annotations

import json
import stat
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.peers.oauth_peer import OAuthPeer, open_oauth_peer
from tests.support.gateway_process import META, HttpClient, bare_nursery, open_gateway_process, run_process

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from tests.support.gateway_process import GatewayProcess

pytestmark = pytest.mark.leak_check
WITHIN = 60.0  # seconds; the authorization parts are slow to import on a busy machine
NO_BROWSER = {"BROWSER": "", "DISPLAY": "", "WAYLAND_DISPLAY": ""}
OPENS = f'{sys.executable} -c "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=20).read()" %s'


class FakeTerminal:
    """A config file, a state directory, and the commands run on them."""

    def __init__(self, folder: Path, peer: OAuthPeer, **fields: Any) -> None:
        self.peer = peer
        self.state = folder / "state"
        self.config = {"mcpServers": {"s": {"url": peer.url, **fields}, "p": {"command": "true", "disabled": True}}}
        self.path = folder / "config.json"
        self.path.write_text(json.dumps(self.config), encoding="utf-8")

    @asynccontextmanager
    async def run(self, command: str, *args: str, **env: str) -> AsyncGenerator[GatewayProcess]:
        line = [sys.executable, "-m", "gateway", command, *args, "--config", str(self.path)]
        async with run_process([*line, "--state-dir", str(self.state)], env={**NO_BROWSER, **env}) as process:
            yield process

    async def result(self, command: str, *args: str, **env: str) -> tuple[int, str, str]:
        """The exit status, stdout and stderr of a command."""
        async with self.run(command, *args, **env) as process:
            assert process.process.stdout is not None
            out = b"".join([part async for part in process.process.stdout])
            status = await process.process.wait()
            await process.wait_stderr_end()
        return status, out.decode(), process.stderr_text

    async def log_in(self) -> str:
        """Log in like a person who copies the address; return the last lines."""
        async with self.run("login", "s", "--no-browser") as process:
            assert process.process.stdout is not None
            text = ""
            while "\n\nhttp" not in text or not text.endswith("\n\n"):
                part = await process.process.stdout.receive_some()
                assert part, process.stderr_text
                text += part.decode()
            url = next(line for line in text.splitlines() if line.startswith("http"))
            answer = await self.peer.browse(url)
            assert "Logged in" in answer.text
            rest = b"".join([part async for part in process.process.stdout])
            assert await process.process.wait() == 0
        return rest.decode()

    def files(self) -> list[Path]:
        return sorted((self.state / "tokens").glob("*.json"))


@asynccontextmanager
async def open_terminal(folder: Path, **fields: Any) -> AsyncGenerator[FakeTerminal]:
    with trio.fail_after(WITHIN):
        async with open_oauth_peer() as peer:
            yield FakeTerminal(folder, peer, **fields)


async def test_login_prints_the_page_and_logout_forgets(tmp_path: Path) -> None:
    async with open_terminal(tmp_path) as terminal:
        assert await terminal.log_in() == "s: logged in\n"
        (path,) = terminal.files()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await terminal.result("logout", "s") == (0, "s: logged out\n", "")
        assert terminal.files() == []
        assert await terminal.result("logout", "s") == (0, "s: was not logged in\n", "")
        status, out, err = await terminal.result("logout", "s", "--json")
        assert (status, json.loads(out), err) == (0, {"name": "s", "was_logged_in": False}, "")


async def test_login_with_json_keeps_stdout_for_the_result(tmp_path: Path) -> None:
    async with open_terminal(tmp_path) as terminal, terminal.run("login", "s", "--no-browser", "--json") as process:
        url = await process.wait_stderr("code_challenge", within=WITHIN)
        await terminal.peer.browse(url)
        assert process.process.stdout is not None
        out = b"".join([part async for part in process.process.stdout])
        assert await process.process.wait() == 0
    assert json.loads(out) == {"name": "s", "logged_in": True}


async def test_login_opens_the_browser(tmp_path: Path) -> None:
    async with open_terminal(tmp_path) as terminal:
        status, out, err = await terminal.result("login", "s", BROWSER=OPENS)
        assert (status, err) == (0, "")
        assert out.endswith("s: logged in\n")
        assert len(terminal.files()) == 1


async def test_client_credentials_login_needs_no_page(tmp_path: Path) -> None:
    oauth = {"grant": "client_credentials", "client_id": "robot", "client_secret": "s3cr3t"}
    async with open_terminal(tmp_path, oauth=oauth) as terminal:
        status, out, err = await terminal.result("login", "s")
        assert (status, out) == (0, "s: logged in\n")
        assert err.startswith("warning: server 's': field 'oauth.issuer' is missing")


@pytest.mark.parametrize(
    ("fields", "name", "status", "line"),
    [
        ({}, "x", 2, "error: there is no server 'x'; there are 's', 'p'"),
        ({}, "p", 2, "error: server 'p' is a program that the gateway starts; only servers with 'url' use logins"),
        ({"headers": {"authorization": "x"}}, "s", 2, "error: server 's' has its credentials in the config, so it uses no login"),
        ({"oauth": False}, "s", 2, "error: server 's' has 'oauth': false, so it uses no login"),
    ],
)  # fmt: skip
async def test_servers_without_login_are_refused(
    tmp_path: Path, fields: dict[str, Any], name: str, status: int, line: str
) -> None:
    async with open_terminal(tmp_path, **fields) as terminal:
        for command in ("login", "logout"):
            assert await terminal.result(command, name) == (status, "", f"{line}\n")
        assert terminal.peer.log == []


async def test_a_failed_login_reports_the_reason(tmp_path: Path) -> None:
    async with open_terminal(tmp_path) as terminal:
        terminal.peer.deny = True
        status, _, err = await terminal.result("login", "s", BROWSER=OPENS)
        assert status == 1
        assert err.endswith("(the authorization server reported access_denied: not you)\n")
        terminal.peer.deny, terminal.peer.has_metadata = False, False
        status, out, err = await terminal.result("login", "s")
        assert (status, out) == (1, "")
        assert err.startswith(
            "error: backend 's' requires authorization and offers no OAuth (Registration failed: 404)"
        )
        terminal.peer.is_open = True
        assert await terminal.result("login", "s") == (0, "s: does not require a login\n", "")


async def test_a_gateway_notices_a_login_by_command(tmp_path: Path) -> None:
    async with open_terminal(tmp_path, era="legacy", oauth={"browser": "print"}) as terminal:
        env = {**NO_BROWSER, "MCP_GATEWAY_STATE_DIR": str(terminal.state)}
        async with open_gateway_process(terminal.config, transport="stdio", env=env) as gateway:
            await gateway.wait_stderr("backend 's' needs a login: run `mcp-gateway login s`")
            assert gateway.stdio is not None
            await gateway.stdio.initialize()
            answer = await gateway.stdio.request("tools/call", {"name": "s.echo", "arguments": {}})
            assert "needs a login: run `mcp-gateway login s`" in answer["error"]["message"]
            await terminal.log_in()
            await gateway.wait_stderr("backend 's' is ready")
            answer = await gateway.stdio.request("tools/call", {"name": "s.echo", "arguments": {}})
            assert answer["result"]["content"][0]["text"] == "well done"
            for token in (*terminal.peer.tokens, *terminal.peer.refresh_tokens):
                assert token not in gateway.stderr_text


async def test_the_calls_client_is_asked_to_log_in(tmp_path: Path) -> None:
    """The tools are known from an earlier run: a call can precede the login."""
    async with open_terminal(tmp_path, era="legacy", oauth={"browser": "elicit"}) as terminal:
        env = {**NO_BROWSER, "MCP_GATEWAY_STATE_DIR": str(terminal.state)}
        await terminal.log_in()
        async with open_gateway_process(terminal.config, transport="stdio", env=env) as gateway:
            await gateway.wait_stderr("backend 's' is ready")
        terminal.peer.revoke()
        terminal.peer.refuse_refresh = True
        async with open_gateway_process(terminal.config, transport="stdio", env=env) as gateway:
            await gateway.wait_stderr("backend 's' needs a login")
            client = gateway.stdio
            assert client is not None
            await client.initialize(capabilities={"elicitation": {"url": {}}})
            call = await client.start("tools/call", {"name": "s.echo", "arguments": {}})
            ask = await client.notification("elicitation/create")
            assert ask["params"]["mode"] == "url"
            await client.send({"jsonrpc": "2.0", "id": ask["id"], "result": {"action": "accept"}})
            async with bare_nursery() as nursery:
                nursery.start_soon(terminal.peer.browse, ask["params"]["url"])
                answer = await client.response(call)
            assert answer["result"]["content"][0]["text"] == "well done"


async def test_a_modern_client_is_asked_too(tmp_path: Path) -> None:
    """The call is suspended during the login, and continues with the client's next request."""
    async with open_terminal(tmp_path, era="legacy") as terminal:
        env = {**NO_BROWSER, "MCP_GATEWAY_STATE_DIR": str(terminal.state)}
        await terminal.log_in()
        async with open_gateway_process(terminal.config, env=env) as gateway:
            await gateway.wait_stderr("backend 's' is ready")
            terminal.peer.revoke()
            terminal.peer.refuse_refresh = True
            meta = {META + "clientCapabilities": {"elicitation": {"url": {}}}}
            params: dict[str, Any] = {"name": "s.echo", "arguments": {}, "_meta": meta}
            assert gateway.url is not None
            client = HttpClient(gateway.url)
            answer = (await client.call_modern("tools/call", params))["result"]
            assert answer["resultType"] == "input_required"
            ((key, wanted),) = answer["inputRequests"].items()
            assert (wanted["method"], wanted["params"]["mode"]) == ("elicitation/create", "url")
            await terminal.peer.browse(wanted["params"]["url"])
            params |= {"inputResponses": {key: {"action": "accept"}}, "requestState": answer["requestState"]}
            answer = (await client.call_modern("tools/call", params))["result"]
            assert answer["content"][0]["text"] == "well done"


@pytest.mark.parametrize("browser", ["print", "open"])
async def test_a_pending_login_does_not_delay_shutdown(tmp_path: Path, browser: str) -> None:
    async with open_terminal(tmp_path, oauth={"browser": browser}) as terminal:
        env = {
            **NO_BROWSER,
            "BROWSER": "true %s",
            "MCP_GATEWAY_STATE_DIR": str(terminal.state),
        }  # shown, and not followed
        async with open_gateway_process(terminal.config, env=env) as gateway:
            await gateway.wait_stderr("backend 's' needs a login")
