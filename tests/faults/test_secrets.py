"""Secrets planted wherever a config substitutes, and searched in everything the gateway writes."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from gateway.config import parse_config
from gateway.config.access import AccessSettings, Introspection, ResourceServer
from gateway.config.lifecycle import RestartPolicy
from gateway.config.limits import CircuitBreaker, RateLimit
from gateway.config.model import NOT_WRITTEN, GatewaySettings, ServerConfig
from gateway.config.oauth import OAuthSettings
from gateway.embed.native import open_gateway
from gateway.errors import ConfigError, GatewayError
from tests.support.gateway_process import PEERS, HttpClient, open_gateway_process, open_sse, run_process

if TYPE_CHECKING:
    from pathlib import Path

PLANTED = re.compile(r"pl4nted", re.IGNORECASE)
"""In every secret, and in no name."""
LEAKY = str(PEERS / "leaky_server.py")
DEAD = {"restart": False}


class Garden:
    """A config with a separate secret in each place, and all of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ: dict[str, str] = {}

    def plant(self, odd: str = "") -> str:
        """A variable with a new secret."""
        name = f"SEED_{len(self.environ)}"
        self.environ[name] = f"pl4nted-{len(self.environ):03d}{odd}"
        return f"${{{name}}}"

    def file(self, text: str) -> str:
        path = self.folder / f"file-{len(list(self.folder.iterdir()))}"
        path.write_text(text, encoding="utf-8")
        return str(path)

    def servers(self) -> dict[str, Any]:
        python, plant = sys.executable, self.plant
        env_file = self.file("LEAK_A=pl4nted-of-env-file\nLEAK_B='pl4nted two\nlines of it'\nNAMED=pl4nted-named\n")
        leaky = {
            "command": python,
            "args": [
                LEAKY,
                plant(),
                plant("/+ \"'\\&é"),
                "--option=" + plant(),
                "${NAMED}",
                "${NONE:-pl4nted-default}",
            ],
            "env": {"LEAK_C": plant(), "LEAK_D": f"x{plant()}y", "LEAK_E": f"${{file:{self.file('pl4nted-file')}}}"},
            "env_file": env_file,
        }
        nowhere = "http://127.0.0.1:1"
        return {
            "leaky": leaky,
            "dies": {"command": python, "args": ["-c", f"import sys; sys.exit('key {plant()}')"], **DEAD},
            "command": {"command": f"/nonexistent/{plant()}", **DEAD},
            "onpath": {"command": plant(), "env": {"PATH": f"/nonexistent/{plant()}"}, **DEAD},
            "cwd": {"command": python, "cwd": f"/nonexistent/{plant()}", **DEAD},
            "path": {"url": f"{nowhere}/{plant()}/mcp?key={plant()}&x={plant()}#{plant()}", **DEAD},
            "split": {"url": f"{nowhere}/{plant('?a/b')}/mcp", **DEAD},
            "host": {"url": f"http://{plant()}.invalid/mcp", **DEAD},
            "user": {"url": f"http://u:{plant()}@127.0.0.1:1/mcp", **DEAD},
            "header": {"url": nowhere, "headers": {"X-Key": plant(), "Authorization": f"Bearer {plant()}"}, **DEAD},
            "socket": {"url": nowhere, "unix_socket": f"/nonexistent/{plant()}", **DEAD},
            "tls": {"url": "https://127.0.0.1:1", "ca_file": f"/nonexistent/{plant()}", **DEAD},
            "cert": {
                "url": "https://127.0.0.1:1",
                "client_cert": f"/x/{plant()}",
                "client_key": f"/x/{plant()}",
                **DEAD,
            },
            "login": {
                "url": nowhere,
                "oauth": {"client_id": plant(), "client_secret": plant(), "issuer": f"https://{plant()}.invalid"},
                **DEAD,
            },
            "tools": {**leaky, "tools": {"include": ["refuse", plant()], "exclude": [plant()]}},
            "off": {**leaky, "args": [LEAKY, plant()], "disabled": True},
        }

    def write(self) -> Path:
        config = {"mcpServers": self.servers(), "gateway": {"audit": {"file": str(self.folder / "audit")}}}
        path = self.folder / "config.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        return path


def assert_clean(said: dict[str, str]) -> None:
    found = {where: PLANTED.search(text) for where, text in said.items()}
    shown = [f"{where}: {said[where][max(0, at.start() - 80) : at.end() + 40]!r}" for where, at in found.items() if at]
    assert not shown, "\n".join(shown)


async def errors_of(http: HttpClient, names: list[str]) -> dict[str, str]:
    """Return each client's errors for a call of an absent or dying server."""
    said: dict[str, str] = {}
    await http.initialize()
    for name in names:
        said[f"legacy {name}"] = (await http.post(call(name), headers=http.session_headers())).body.decode()
        said[f"modern {name}"] = (await http.post_modern("tools/call", {"name": name, "arguments": {}})).body.decode()
    return said


async def events_of(http: HttpClient) -> str:
    """The feed while a server is started that dies at once."""
    said = ""
    async with http.exchange("GET", path="/events") as exchange:
        await http.send("POST", path="/servers/dies/restart")
        while '"failed"' not in said:
            said += (await exchange.next_sse()).data
    return said


def call(name: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": f"call {name}", "method": "tools/call", "params": {"name": name, "arguments": {}}}


async def run(*words: str, environ: dict[str, str]) -> str:
    async with run_process([sys.executable, "-m", "gateway", *words], env=environ) as command:
        assert command.process.stdout is not None
        out = b"".join([data async for data in command.process.stdout])
        await command.process.wait()
        await command.wait_stderr_end()
        return out.decode() + command.stderr_text


@pytest.mark.parametrize("form", ["console", "json"])
async def test_no_output_of_the_gateway_contains_a_secret(tmp_path: Path, form: str) -> None:
    garden = Garden(tmp_path)
    path = garden.write()
    config = json.loads(path.read_text())
    state = str(tmp_path / "state")
    environ = {**garden.environ, "MCP_GATEWAY_STATE_DIR": state}
    said: dict[str, str] = {}
    names = [f"{name}.t" for name in config["mcpServers"] if name not in {"leaky", "tools", "off"}]
    extra = ("--log-format", form, "--log-level", "debug", "--admin", "open")
    transport = "streamable-http,sse"
    async with open_gateway_process(config, transport=transport, extra_args=extra, env=environ) as gateway:
        assert gateway.url is not None
        http = HttpClient(gateway.url)
        said |= await errors_of(http, [*names, "leaky.boom"])
        assert "; stderr: " in said["legacy leaky.boom"]
        async with open_sse(gateway.url.replace("/mcp", "/sse")) as sse:
            await sse.post({"jsonrpc": "2.0", "id": 1, "method": "ping"})
        said["/events"] = await events_of(http)
        for place in ("", *(f"/{name}" for name in config["mcpServers"])):
            said[f"/servers{place}"] = (await http.get(f"/servers{place}")).body.decode()
        for place in ("/health", "/tree", "/tools", "/metrics"):
            said[place] = (await http.get(place)).body.decode()
        passed = (await http.post(call("leaky.refuse"), headers=http.session_headers())).body.decode()
        assert PLANTED.search(passed), "a server's own error passes through as it is"
        said["ps"] = await run("ps", environ=environ)
        said["ps --json"] = await run("ps", "--json", environ=environ)
        said["reload"] = await run("reload", environ=environ)
    said["log"] = gateway.stderr_text
    assert "invalid key ***" in said["log"]
    said["audit"] = (tmp_path / "audit").read_text()
    assert_clean(said)
    assert "${SEED_" in said["/servers/path"]


async def test_no_command_shows_a_secret(tmp_path: Path) -> None:
    garden = Garden(tmp_path)
    path = str(garden.write())
    environ = {**garden.environ, "MCP_GATEWAY_STATE_DIR": str(tmp_path / "state")}
    said: dict[str, str] = {}
    for words in (
        ("check", path), ("check", path, "--json"), ("doctor", path), ("doctor", path, "--json"),
        ("list", "--config", path), ("list", "--config", path, "--verbose"), ("list", "--config", path, "--json"),
        ("call", "--config", path, "path.t"), ("call", "--config", path, "leaky.boom"),
        ("login", "host", "--config", path), ("login", "path", "--config", path, "--json"),
    ):  # fmt: skip
        said[" ".join(words[:1] + words[2:])] = await run(*words, environ=environ)
    assert_clean(said)
    checked = said["check"]
    assert "http://127.0.0.1:1/${SEED_" in checked
    assert "off: disabled" in checked


async def test_a_stdio_client_sees_no_secret(tmp_path: Path) -> None:
    garden = Garden(tmp_path)
    config = json.loads(garden.write().read_text())
    said: dict[str, str] = {}
    async with open_gateway_process(config, transport="stdio", env=garden.environ) as gateway:
        assert gateway.stdio is not None
        await gateway.stdio.initialize()
        for name in ("dies.t", "command.t", "path.t", "leaky.boom"):
            said[name] = json.dumps(await gateway.stdio.call_tool(name))
            said[f"modern {name}"] = json.dumps(
                await gateway.stdio.request_modern("tools/call", {"name": name, "arguments": {}})
            )
    said["log"] = gateway.stderr_text
    assert_clean(said)


async def test_an_embedding_program_sees_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    garden = Garden(tmp_path)
    path = garden.write()
    for name, value in garden.environ.items():
        monkeypatch.setenv(name, value)
    said: dict[str, str] = {}
    caplog.set_level("DEBUG", "gateway")
    async with open_gateway(path) as gateway:
        for name in ("dies.t", "command.t", "path.t", "leaky.boom"):
            with pytest.raises(GatewayError) as caught:
                await gateway.call_tool(name)
            said[name] = str(caught.value)
        said["status"] = repr(gateway.status())
    said["log"] = caplog.text
    assert_clean(said)


SECTIONS: dict[str, tuple[type[msgspec.Struct], Any]] = {
    "server": (ServerConfig, lambda field: {"mcpServers": {"s": field}}),
    "stdio server": (ServerConfig, lambda field: {"mcpServers": {"s": {"command": "x", **field}}}),
    "remote server": (ServerConfig, lambda field: {"mcpServers": {"s": {"url": "http://h/", **field}}}),
    "restart": (RestartPolicy, lambda field: {"mcpServers": {"s": {"command": "x", "restart": field}}}),
    "rate_limit": (RateLimit, lambda field: {"mcpServers": {"s": {"command": "x", "rate_limit": field}}}),
    "breaker": (CircuitBreaker, lambda field: {"mcpServers": {"s": {"command": "x", "circuit_breaker": field}}}),
    "oauth": (OAuthSettings, lambda field: {"mcpServers": {"s": {"url": "http://h/", "oauth": field}}}),
    "gateway": (GatewaySettings, lambda field: {"mcpServers": {}, "gateway": field}),
    "access": (AccessSettings, lambda field: {"mcpServers": {}, "access": field}),
    "resource": (ResourceServer, lambda field: {"mcpServers": {}, "access": {"oauth": field}}),
    "introspection": (Introspection, lambda field: {"mcpServers": {}, "access": {"oauth": {"introspection": field}}}),
}
FIELDS = [
    (section, name)
    for section, (struct, _) in SECTIONS.items()
    for name in struct.__struct_fields__
    if name not in NOT_WRITTEN
]
SHAPES = {
    "alone": "${SEED}",
    "in a list": ["${SEED}"],
    "in an object": {"a": "${SEED}"},
    "in an address": "x://${SEED}:y",
}


@pytest.mark.parametrize(("section", "name"), FIELDS)
@pytest.mark.parametrize("secret", ["pl4nted", "pl4nted" * 20, "pl4nted\n'\"\\", "12345678901"])
def test_field_errors_never_repeat_substituted_values(section: str, name: str, secret: str) -> None:
    for shape in SHAPES.values():
        config = SECTIONS[section][1]({name: shape})
        try:
            found = parse_config(config, environ={"SEED": secret})
        except ConfigError as exc:
            lines = "\n".join((*exc.problems, *exc.warnings))
        else:
            lines = "\n".join(found.warnings) + repr(found)
        assert "pl4nted" not in lines
        assert "12345678901" not in lines


def test_a_commonly_known_value_stays_readable() -> None:
    environ = {"HOME": "/home/somebody", "MODE": "production", "PORT": "18080", "HOME_KEY": "pl4nted"}
    raw = {"command": "${HOME}/bin/x", "args": ["${MODE}", "${PORT}", "${HOME_KEY}"]}
    server = parse_config({"mcpServers": {"s": raw}}, environ=environ).servers["s"]
    assert set(server.masked) == {"pl4nted"}
