"""What a gateway meets in months of uptime: suspension, clocks, lost networks, full disks, upgrades."""

from __future__ import annotations

import json
import os
import resource
import signal
import ssl
import subprocess
import sys
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.store import Store
from tests.peers.oauth_peer import open_oauth_peer
from tests.support.certificates import make_certificate
from tests.support.fakes import SOON
from tests.support.gateway_process import (
    META,
    HttpClient,
    StdioClient,
    bare_nursery,
    echo_backend,
    open_gateway_process,
    peer,
    run_process,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.peers.oauth_peer import OAuthPeer

SERVE = [sys.executable, "-m", "gateway", "serve", "--config"]
POLL = 0.02
TRIES = 50
"""Calls after a change of the network: those sent on an old connection fail."""
STOPPED = 4.0
"""Seconds for which processes are stopped: longer than the limits that the test sets."""


def text(answer: dict[str, Any]) -> str:
    assert "result" in answer, answer
    return answer["result"]["content"][0]["text"]


async def pid_of(client: StdioClient | HttpClient, name: str) -> int:
    return json.loads(text(await client.call_tool(f"{name}.env")))["pid"]


async def test_answers_come_before_the_deadlines_of_a_stop() -> None:
    """The backends continue later than the gateway, as after SIGCONT in any order."""
    limits = {"call_timeout": 2.5, "ping_interval": 1.0, "connect_timeout": 2.5}
    servers = {"b": {**echo_backend(), **limits}, "idle": {**echo_backend(), **limits}}
    async with open_gateway_process({"mcpServers": servers}, transport="stdio") as gateway:
        client = gateway.stdio
        assert client is not None
        await client.initialize()
        pids = {name: await pid_of(client, name) for name in servers}
        slow = await client.start("tools/call", {"name": "b.sleep", "arguments": {"seconds": 1, "text": "slept"}})
        stopped = [gateway.pid, *pids.values()]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        await trio.sleep(STOPPED)
        os.kill(gateway.pid, signal.SIGCONT)
        await trio.sleep(0.3)
        for pid in pids.values():
            os.kill(pid, signal.SIGCONT)
        assert text(await client.response(slow)) == "slept"
        for name, pid in pids.items():
            assert await pid_of(client, name) == pid
        assert "did not answer a ping" not in gateway.stderr_text


async def test_sighup_reads_a_renewed_certificate(tmp_path: Path) -> None:
    make_certificate(tmp_path, "server", None)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"mcpServers": {}}))
    files = ["--tls-cert", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.key")]
    command = [*SERVE, str(config), "--transport", "http", "--port", "0", *files]
    async with run_process(command, env={"MCP_GATEWAY_STATE_DIR": str(tmp_path / "state")}) as gateway:
        line = await gateway.wait_stderr("listening on https://", within=60)
        port = int(line.rpartition(":")[2].partition("/")[0])
        make_certificate(tmp_path, "server", None)
        gateway.process.send_signal(signal.SIGHUP)
        await gateway.wait_stderr("config reloaded (SIGHUP)")
        context = ssl.create_default_context(cafile=tmp_path / "server.pem")
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context)
        await stream.do_handshake()
        await trio.aclose_forcefully(stream)
        assert await gateway.stop() == 0


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="no limits of other processes here")
async def test_a_full_disk_costs_calls_nothing(tmp_path: Path) -> None:
    """A limit of the file size replaces the disk, since it can be lifted again."""
    config, log, audit = tmp_path / "config.json", tmp_path / "log", tmp_path / "audit.jsonl"
    servers = {"b": {**echo_backend(), "restart": {"initial_delay": 0.05, "max_delay": 0.1}}}
    config.write_text(json.dumps({"mcpServers": servers, "gateway": {"audit": {"file": str(audit)}}}))
    state = {"MCP_GATEWAY_STATE_DIR": str(tmp_path / "state")}
    command = ["sh", "-c", 'exec "$@" 2>"$0"', str(log), *SERVE, str(config), "--transport", "stdio"]
    async with run_process([*command, "--log-level", "debug"], env=state) as gateway:
        assert gateway.process.stdin is not None
        assert gateway.process.stdout is not None
        client = StdioClient(gateway.process.stdin, gateway.process.stdout)
        await client.initialize()
        calls = 0

        async def call() -> None:
            nonlocal calls
            calls += 1
            assert text(await client.call_tool("b.echo", {"text": str(calls)})) == str(calls)

        await call()
        await wait_for(lambda: audit.exists() and audit.read_bytes().count(b"\n") == 1)
        catalogs = tmp_path / "state" / "catalogs"
        await wait_for(lambda: len(list(catalogs.glob("b-*.json"))) == 1)
        (catalog,) = catalogs.glob("b-*.json")
        whole = catalog.read_bytes()
        # Some bytes are left: a line of the audit is written in part.
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (audit.stat().st_size + 20, resource.RLIM_INFINITY))
        for _ in range(3):
            await call()
        assert "error" in await client.call_tool("b.crash")  # the next start writes to the state directory
        await call()
        await trio.sleep(0.3)  # until the audit cannot be written
        assert catalog.read_bytes() == whole
        assert list(catalogs.glob(".new-*")) == []
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await call()
        await wait_for(lambda: audit.read_bytes().count(b"\n") == calls + 1)
        await wait_for(lambda: b"log lines dropped: the disk was full" in log.read_bytes())
        assert await gateway.stop() == 0
    outcomes = [json.loads(line)["outcome"] for line in audit.read_bytes().splitlines()]
    assert sorted(outcomes) == ["answered"] * calls + ["failed"]
    assert b"can be written again" in log.read_bytes()


async def wait_for(is_true: Callable[[], bool]) -> None:
    for _ in range(int(SOON / POLL)):
        if is_true():
            return
        await trio.sleep(POLL)
    pytest.fail("it did not become true")


NEAR, MOVED, FAR = "10.213.77.1", "10.213.77.3", "10.213.77.2"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=SOON)


@pytest.fixture
def network() -> Iterator[tuple[str, str]]:
    """Two network namespaces with an interface `v` each, connected: the gateway's and the server's."""
    near, far = f"near{os.getpid()}", f"far{os.getpid()}"
    made: list[str] = []
    try:
        try:
            for name in (near, far):
                ip("netns", "add", name)
                made.append(name)
            ip("link", "add", "v", "netns", near, "type", "veth", "peer", "name", "v", "netns", far)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no network namespaces here")
        for name, address in ((near, NEAR), (far, FAR)):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "v")
            ip("-n", name, "link", "set", "v", "up")
        yield near, far
    finally:
        for name in made:
            ip("netns", "del", name)


async def test_calls_survive_a_lost_and_a_changed_network(network: tuple[str, str], tmp_path: Path) -> None:
    near, far = network
    servers = tmp_path / "server.json"
    servers.write_text(json.dumps({"mcpServers": {"b": echo_backend()}}))
    listening = ["--transport", "http", "--host", FAR, "--port", "8000", "--insecure"]
    remote = ["ip", "netns", "exec", far, *SERVE, str(servers), *listening]
    config = tmp_path / "config.json"
    restart = {"initial_delay": 0.05, "max_delay": 0.2}
    entry = {"url": f"http://{FAR}:8000/mcp", "connect_timeout": 1, "call_timeout": 30, "restart": restart}
    config.write_text(json.dumps({"mcpServers": {"r": entry}}))
    local = ["ip", "netns", "exec", near, *SERVE, str(config), "--transport", "stdio"]
    async with run_process(remote, env={"MCP_GATEWAY_STATE_DIR": str(tmp_path / "far")}) as server:
        await server.wait_stderr("listening on http://", within=60)
        async with run_process(local, env={"MCP_GATEWAY_STATE_DIR": str(tmp_path / "near")}) as gateway:
            assert gateway.process.stdin is not None
            assert gateway.process.stdout is not None
            client = StdioClient(gateway.process.stdin, gateway.process.stdout)
            await client.initialize()

            async def succeeds() -> bool:
                """Call; fail the test if the answer needs much longer than `connect_timeout`."""
                return "result" in await client.call_tool("r.b.echo", {"text": "x"}, within=10)

            async def recovers() -> bool:
                for _ in range(TRIES):
                    if await succeeds():
                        return True
                    await trio.sleep(POLL)
                return False

            assert await succeeds()
            ip("-n", near, "link", "set", "v", "down")
            assert not await succeeds()
            ip("-n", near, "link", "set", "v", "up")
            assert await recovers()
            ip("-n", near, "addr", "del", f"{NEAR}/24", "dev", "v")
            ip("-n", near, "addr", "add", f"{MOVED}/24", "dev", "v")
            assert await recovers()
            assert await gateway.stop() == 0
        assert await server.stop() == 0


HOUR = 3600
JUMPS = (10 * HOUR, -10 * HOUR, 0)
"""Offsets in seconds that the wall clock has, one after another: it is set ahead, back, and right again."""
ROOTS = {"one": {"method": "roots/list", "params": {}}}
CAN = {"_meta": {META + "clientCapabilities": {"roots": {}}}}


class JumpingClock:
    """The wall clock of a gateway process."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "offset"
        self.set(0)

    def set(self, seconds: int) -> None:
        """Set the offset."""
        new = self.file.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self.file)


async def offset_seen(client: HttpClient) -> float:
    """Return how far the gateway's wall clock is ahead of the right one."""
    answer = await client.get("/livez")
    return parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time()


async def park(client: HttpClient, **resumed: Any) -> dict[str, Any]:
    """Start a call that waits for its client's roots, or resume it."""
    params = {"name": "asking.ask", "arguments": {"requests": ROOTS}, **CAN, **resumed}
    return (await client.call_modern("tools/call", params))["result"]


async def test_a_jump_of_the_wall_clock_changes_nothing(tmp_path: Path) -> None:
    clock, config = JumpingClock(tmp_path), tmp_path / "config.json"
    limits = {"ping_interval": 0.3, "connect_timeout": 10, "call_timeout": 20}
    async with open_oauth_peer() as protected:
        oauth = {"grant": "client_credentials", "client_id": "robot", "client_secret": "s3cr3t"}
        servers = {
            "b": echo_backend() | limits,
            "asking": peer("bridge_server.py"),
            "protected": {"url": protected.url, "oauth": oauth | {"issuer": protected.issuer}} | limits,
        }
        config.write_text(json.dumps({"mcpServers": servers, "gateway": {"session_idle_timeout": 600}}))
        program = [sys.executable, "-m", "tests.support.jumping_clock", str(clock.file), *SERVE[3:]]
        options = [str(config), "--transport", "http", "--port", "0", "--no-watch", "--log-level", "debug"]
        async with run_process([*program, *options], env={"MCP_GATEWAY_STATE_DIR": str(tmp_path)}) as gateway:
            line = await gateway.wait_stderr("listening on http://", within=60)
            client = HttpClient(line[line.index("http://") :].split()[0])
            await client.initialize()
            pid = await pid_of(client, "b")
            assert text(await client.call_tool("protected.echo")) == "well done"
            once = (protected.asked("/token"), opened(protected))
            async with client.open_get_stream() as stream:
                for offset in JUMPS:
                    state = (await park(client))["requestState"]
                    before = len(gateway.stderr_text)
                    async with bare_nursery() as nursery:
                        nursery.start_soon(sleep, client)
                        await wait_for_call(client)
                        clock.set(offset)
                        assert await offset_seen(client) == pytest.approx(offset, abs=60)
                    resumed = await park(client, requestState=state, inputResponses={"input-1": {"roots": []}})
                    assert "content" in resumed
                    assert await pid_of(client, "b") == pid
                    assert text(await client.call_tool("protected.echo")) == "well done"
                    assert " WARNING " not in gateway.stderr_text[before:]
                with trio.move_on_after(0.2):  # the stream of the session has not ended
                    await stream.next_sse()
            assert (protected.asked("/token"), opened(protected)) == once
            assert await gateway.stop() == 0


def opened(protected: OAuthPeer) -> int:
    """Return the number of sessions that were requested."""
    return [method for method, _ in protected.calls].count("initialize")


async def sleep(client: HttpClient) -> None:
    """Make a call that lasts for several pings."""
    assert text(await client.call_tool("b.sleep", {"seconds": 0.8, "text": "slept"})) == "slept"


async def wait_for_call(client: HttpClient) -> None:
    while not (await client.get("/health")).json()["backends"]["b"]["in_flight"]:
        pass


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "state": lambda _: os.urandom(10),
    "changes": lambda data: data.replace(b'"format":1', b'"format":2'),
    "catalogs": lambda data: data[: len(data) // 2],
    "eras": lambda data: b"\0" * len(data),
}
"""How the files of each folder are spoiled."""


async def test_a_start_with_a_spoiled_state_directory(tmp_path: Path) -> None:
    state = tmp_path / "state"
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"mcpServers": {"b": echo_backend()}}))
    arguments = [*SERVE, str(config), "--transport", "http", "--port", "0"]
    for is_spoiled in (False, True):
        async with run_process(arguments, env={"MCP_GATEWAY_STATE_DIR": str(state)}) as gateway:
            line = await gateway.wait_stderr("listening on http://", within=60)
            client = HttpClient(line[line.index("http://") :].split()[0])
            await client.initialize()
            assert text(await client.call_tool("b.echo", {"text": "x"})) == "x"
            await wait_for(lambda: all(list(state.glob(f"{kind}/b-*.json")) for kind in ("catalogs", "eras")))
            assert await gateway.stop() == 0
            warned = [line for line in gateway.stderr_text.splitlines() if str(state) in line or " WARNING " in line]
            assert len(warned) == (len(SPOILED) if is_spoiled else 0), gateway.stderr_text
        if not is_spoiled:
            overlay = Store(state).overlay_path(config)
            overlay.parent.mkdir(exist_ok=True)
            overlay.write_bytes(b'{"changes":{},"format":1}')
            files = [path for path in state.rglob("*") if path.is_file()]
            assert {path.parent.name for path in files} == set(SPOILED)
            for path in files:
                path.write_bytes(SPOILED[path.parent.name](path.read_bytes()))
            kept = {path: path.read_bytes() for path in files if path.parent.name in {"state", "changes"}}
    assert kept == {path: path.read_bytes() for path in kept}


async def test_a_backend_is_upgraded_in_place(tmp_path: Path) -> None:
    """The next process has another version, era and other tools."""
    script = tmp_path / "server.py"
    source = echo_backend()["args"][0]

    def install(*arguments: str) -> None:
        script.write_text(f"import sys; sys.argv[1:] = {list(arguments)!r}; exec(open({source!r}).read())")

    install("--name", "one", "--tools", "1")
    backend = {"command": sys.executable, "args": [str(script)], "restart": {"initial_delay": 0.05, "max_delay": 0.2}}
    async with open_gateway_process({"mcpServers": {"b": backend}}) as gateway:
        assert gateway.url is not None
        client = HttpClient(gateway.url)
        await client.initialize()
        assert text(await client.call_tool("b.tool_0", {"text": "x"})) == "one.tool_0 x"
        for name, era in (("two", "modern"), ("three", "legacy"), ("four", "both")):
            install("--name", name, "--tools", "2" if name == "two" else "1", "--era", era)
            os.kill(await pid_of(client, "b"), signal.SIGKILL)
            answer = await client.call_tool("b.tool_0", {"text": "x"})
            while "error" in answer:  # sent before the end of the process was noticed
                assert answer["error"]["data"]["reason"] == "backend_exited"
                answer = await client.call_tool("b.tool_0", {"text": "x"})
            assert text(answer) == f"{name}.tool_0 x"
            found = await client.request("tools/list")
            assert ("b.tool_1" in {tool["name"] for tool in found["result"]["tools"]}) is (name == "two")
