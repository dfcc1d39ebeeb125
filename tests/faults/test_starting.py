"""Backends that start late or never: lists wait the grace, calls only their backend."""

from __future__ import annotations

import pytest
import trio

from tests.contract.change_listeners import CHANGED, open_listener
from tests.contract.support import (
    FRONTENDS,
    SHUTDOWN_GRACE,
    every_cell,
    open_client,
    open_gateways,
    text_of,
    wait_health,
)
from tests.support.gateway_process import ANSWER_WITHIN, HttpClient, echo_backend, faulty_backend, open_gateway_process

QUICK = {"shutdown_grace": SHUTDOWN_GRACE}
GIVES_UP = {"restart": {"initial_delay": 0.05, "max_delay": 0.1, "max_quick_failures": 2}}
GRACE = 0.4


def late_config(gate):
    """One backend is there, one comes when the file is, one never."""
    late = echo_backend()
    wait = 'while [ ! -e "$0" ]; do sleep 0.02; done; exec "$@"'
    return {
        "mcpServers": {
            "good": echo_backend() | QUICK,
            "late": {"command": "sh", "args": ["-c", wait, str(gate), late["command"], *late["args"]]} | QUICK,
            "hung": faulty_backend("hang_before_initialize") | QUICK | {"call_timeout": 0.3},
        },
        "gateway": {"start_grace": GRACE, "keep_alive_interval": 0.15, "sse_after": 1},
    }


BROKEN = {
    "mcpServers": {
        "good": echo_backend() | QUICK,
        "floods": faulty_backend("flood_stdout", "--when", "start") | QUICK,
        "missing": {"command": "no-such-command-anywhere"} | QUICK | GIVES_UP,
        "no_folder": echo_backend() | {"cwd": "/no/such/folder"} | QUICK | GIVES_UP,
        "exits": faulty_backend("exit_at_once") | QUICK | GIVES_UP,
        "half_line": faulty_backend("half_line", "--when", "start") | QUICK | GIVES_UP,
        "garbage_only": faulty_backend("hang_before_initialize")
        | {"args": ["-c", "import sys; print('hello, I am no MCP server', flush=True); sys.stdin.read()"]}
        | QUICK
        | GIVES_UP
        | {"connect_timeout": 0.5},
        "closed": faulty_backend("closes_stdout", "--when", "start") | QUICK | GIVES_UP,
        "silent": echo_backend("--hang", "initialize") | QUICK | GIVES_UP | {"connect_timeout": 0.4, "era": "legacy"},
        "no_list": echo_backend("--hang", "list") | QUICK | GIVES_UP | {"connect_timeout": 0.4},
        "far": {"url": "http://127.0.0.1:9/mcp", "type": "http"} | GIVES_UP,
        "off": {"command": "x", "disabled": True},
    },
    "gateway": {"start_grace": 10},
}
FAILED = sorted(BROKEN["mcpServers"].keys() - {"good", "floods", "off"})


@pytest.fixture(scope="module")
def broken():
    with open_gateways(BROKEN, ready=["good", "floods"]) as found:
        for gateway in found.values():
            for name in FAILED:
                gateway.wait_log(f"backend {name!r} is failed")
        yield found


@every_cell
async def test_failed_backends_are_unlisted_and_named_in_errors(broken, cell):
    async with open_client(broken, cell) as client:
        with trio.fail_after(ANSWER_WITHIN):
            names = await client.names()
            assert names
            assert all(name.startswith(("good.", "floods.")) for name in names)
            for backend in FAILED:
                error = (await client.call(f"{backend}.echo"))["error"]
                assert error["code"] == -32603
                assert error["data"]["backend"] == backend
                assert backend in error["message"]
            assert (await client.call("off.echo"))["error"]["data"]["reason"] == "server_disabled"
            assert text_of(await client.call("good.echo", {"text": "well"})) == "well"


@every_cell
async def test_a_flood_before_the_handshake_is_read_past(broken, cell):
    async with open_client(broken, cell) as client:
        assert text_of(await client.call("floods.echo", {"text": "at last"})) == "at last"


async def test_health_reports_why_each_failed(broken):
    def all_failed(report):  # the calls of other tests have woken them once more
        return {report["backends"][name]["state"] for name in FAILED} == {"failed"}

    report = await wait_health(broken["http"], all_failed)
    reasons = {name: report["backends"][name]["last_error"] for name in FAILED}
    assert "no-such-command-anywhere" in reasons["missing"]
    assert "/no/such/folder" in reasons["no_folder"]
    assert "status 4" in reasons["exits"]
    assert "status 6" in reasons["half_line"]
    assert "closed its stdout" in reasons["closed"]
    for name in ("silent", "no_list", "garbage_only"):
        assert "connect_timeout" in reasons[name] or "did not answer" in reasons[name]
    assert all(reasons.values())
    assert report["backends"]["good"]["state"] == "ready"
    assert report["backends"]["floods"]["restarts"] == 0
    assert "off" not in report["backends"]


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_list_waits_no_longer_than_the_grace(frontend, era, tmp_path):
    """A fresh gateway each time: what happens first is what this is about."""
    transport, gate = {"http": "streamable-http", "stdio": "stdio"}[frontend], tmp_path / "gate"
    async with open_gateway_process(late_config(gate), transport=transport) as process:
        gateway = Fresh(process)
        await process.wait_stderr("backend 'good' is ready")
        async with (
            open_client({frontend: gateway}, (era, frontend)) as client,
            client.open_tool("late.echo", {"text": "waited"}) as early,
        ):
            assert {name.partition(".")[0] for name in await client.names()} == {"good"}
            async with open_listener(client) as ear:
                assert "late.echo" not in await client.names()
                assert (await client.call("hung.echo"))["error"]["data"]["backend"] == "hung"
                gate.touch()
                assert (await ear.next())["method"] == CHANGED
                if "late.echo" not in await client.names():
                    # That was about the good one, which came just before the list; a session is notified late,
                    # when its stream opens.
                    assert (await ear.next())["method"] == CHANGED
                assert "late.echo" in await client.names()
                assert text_of(await early.response()) == "waited"
                await ear.assert_quiet()


class Fresh:
    """What `open_client` wants to know of a gateway."""

    def __init__(self, process):
        self.process, self.url = process.process, process.url
        self.last_id, self.leftover = 0, b""


async def test_the_socket_is_open_while_everything_hangs():
    config = {"mcpServers": {"hung": faulty_backend("hang_before_initialize") | QUICK}}
    async with open_gateway_process(config) as gateway:
        with trio.fail_after(ANSWER_WITHIN):
            response = await HttpClient(gateway.url).get("/health")
        report = response.json()
        assert response.status == 200
        assert report["status"] == "ok"
        assert report["transport"] == "streamable-http"
        assert report["servers"] == ["hung"]
        assert report["backends"]["hung"]["state"] == "starting"
