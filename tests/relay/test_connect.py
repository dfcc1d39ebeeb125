"""`connect` with real processes: one gateway for all clients, replaced if it dies."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import suppress

import pytest
import trio

from gateway.telemetry.logs import MAX_FILE_BYTES
from tests.relay.machine import environment_of, open_machine, peak_memory, until
from tests.support.gateway_process import (
    MODERN,
    ROOT,
    echo_backend,
    initialize_params,
    make_request,
    peer,
    run_process,
)

pytestmark = [
    pytest.mark.leak_check,
    pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are found in /proc"),
]
is_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
ANOTHER_USER = 65534
FORM = {"message": "?", "requestedSchema": {"type": "object", "properties": {}}}
ASK = {"requests": {"q": {"method": "elicitation/create", "params": FORM}}}


def text_of(answer):
    return answer["result"]["content"][0]["text"]


async def say(client, text, tool="echo.echo"):
    return text_of(await client.stdio.call_tool(tool, {"text": text}))


async def test_twenty_clients_share_twenty_servers():
    async with open_machine() as machine:
        machine.write({f"s{number}": machine.peer(echo_backend()) for number in range(20)})
        ready, leave = trio.Event(), trio.Event()
        count = 0

        async def use(number):
            nonlocal count
            async with machine.open_client() as client:
                await client.stdio.initialize()
                assert await say(client, f"from {number}", f"s{number}.echo") == f"from {number}"
                count += 1
                if count == 20:
                    ready.set()
                await leave.wait()

        async with trio.open_nursery() as nursery:
            for number in range(20):  # at once: exactly one of them starts the gateway
                nursery.start_soon(use, number)
            with trio.fail_after(120):
                await ready.wait()
            await until(lambda: len(machine.children()) == 20)
            assert len(machine.gateways()) == 1
            leave.set()
        await machine.nothing_left()


async def test_each_client_is_a_session_of_its_own():
    async with open_machine() as machine:
        machine.write(
            {"rich": machine.peer(peer("rich_server.py"))},
            views={"small": {"tools": ["rich.echo"]}},
        )
        async with (
            machine.open_client() as first,
            machine.open_client("--view", "small", "--separator", "__") as second,
            machine.open_client() as modern,
        ):
            await first.stdio.initialize(capabilities={"elicitation": {}})
            await second.stdio.initialize("2024-11-05")
            tools = (await second.stdio.request("tools/list"))["result"]["tools"]
            assert [tool["name"] for tool in tools] == ["rich__echo"]
            assert (await modern.stdio.request_modern("server/discover"))["result"]["supportedVersions"][0] == MODERN
            assert (
                text_of(
                    await modern.stdio.request_modern("tools/call", {"name": "rich.echo", "arguments": {"text": "m"}})
                )
                == "m"
            )
            # A request to the client, a cancelled call and a log level concern the client that they belong to.
            await first.stdio.request("logging/setLevel", {"level": "debug"})
            call = await first.stdio.start("tools/call", {"name": "rich.ask", "arguments": ASK})
            asked = await first.stdio.notification("elicitation/create")
            await first.stdio.send({"jsonrpc": "2.0", "id": asked["id"], "result": {"action": "decline"}})
            answers = (await first.stdio.response(call))["result"]["structuredContent"]["answers"]
            assert answers == {"q": {"action": "decline"}}
            assert await say(second, "alone", "rich__echo") == "alone"
            assert not [message for message in second.stdio.arrived if "id" in message]
        await machine.nothing_left()


async def test_a_client_that_comes_back_keeps_the_gateway():
    async with open_machine() as machine:
        machine.write({"echo": machine.peer(echo_backend())})
        async with machine.open_client(linger=60) as client:
            await client.stdio.initialize()
            gateway = await machine.gateway()
        async with machine.open_client() as client:
            await client.stdio.initialize()
            assert machine.gateways() == [gateway]
            command = [sys.executable, "-P", "-m", "gateway", "ps"]
            report = await trio.run_process(command, env=os.environ | machine.env, capture_stdout=True)
            assert f"gateway {gateway} (connect)" in report.stdout.decode()
            assert f"1 client, log {machine.sockets()[0].with_suffix('.log')}" in report.stdout.decode()
        await machine.nothing_left()


async def test_the_end_of_stdin_is_answered_first():
    async with open_machine() as machine:
        machine.write({"echo": machine.peer(echo_backend())})
        async with machine.open_client() as client:
            await client.stdio.send(make_request(1, "initialize", initialize_params()))
            await client.stdio.send_raw(json.dumps(make_request(2, "ping")).encode())  # without an end of line
            await client.process.stdin.aclose()
            assert (await client.stdio.response(1))["result"]["serverInfo"]
            assert (await client.stdio.response(2))["result"] == {}
            with trio.fail_after(20):
                assert await client.process.wait() == 0


async def test_large_messages_pass_in_both_directions():
    async with open_machine() as machine:
        machine.write({"echo": machine.peer(echo_backend())})
        async with machine.open_client() as client:
            await client.stdio.initialize()
            text = "é" * 1_000_000
            assert await say(client, text) == text
            assert await say(client, "small") == "small"


async def test_a_killed_gateway_is_replaced_within_the_session():
    async with open_machine() as machine:
        machine.write({"rich": machine.peer(peer("rich_server.py"))})
        async with machine.open_client() as client, machine.open_client() as other:
            for each in (client, other):
                await each.stdio.initialize(capabilities={"elicitation": {}})
            await client.stdio.request("logging/setLevel", {"level": "error"})
            assert (await client.stdio.request("resources/subscribe", {"uri": "memo://rich/one"}))["result"] == {}
            pending = await client.stdio.start("tools/call", {"name": "rich.sleep", "arguments": {"seconds": 60}})
            asking = await client.stdio.start("tools/call", {"name": "rich.ask", "arguments": ASK})
            asked = await client.stdio.notification("elicitation/create")
            gateway = await machine.gateway()
            os.kill(gateway, signal.SIGKILL)
            for lost in (pending, asking):
                error = (await client.stdio.response(lost))["error"]
                assert error["data"] == {"reason": "gateway_restarted"}
            await client.stdio.notification("notifications/tools/list_changed", within=60)
            assert await say(client, "again", "rich.echo") == "again"
            assert await say(other, "again", "rich.echo") == "again"
            assert await machine.gateway() != gateway
            # What the client said before still holds, and a late answer to the dead gateway answers nothing else.
            updated = None
            with trio.fail_after(20):
                while updated is None:  # the new gateway subscribes while it already serves calls
                    await client.stdio.call_tool("rich.touch", {"uri": "memo://rich/one"})
                    with suppress(trio.TooSlowError):
                        updated = await client.stdio.notification("notifications/resources/updated", within=1)
            assert updated["params"]["uri"] == "memo://rich/one"
            await client.stdio.call_tool("rich.log", {"level": "warning"})
            assert not [one for one in client.stdio.arrived if one.get("method") == "notifications/message"]
            asking = await client.stdio.start("tools/call", {"name": "rich.ask", "arguments": ASK})
            second = await client.stdio.notification("elicitation/create")
            assert second["id"] != asked["id"]
            await client.stdio.send({
                "jsonrpc": "2.0",
                "id": asked["id"],
                "result": {"action": "accept", "content": {}},
            })
            await client.stdio.send({"jsonrpc": "2.0", "id": second["id"], "result": {"action": "decline"}})
            answers = (await client.stdio.response(asking))["result"]["structuredContent"]["answers"]
            assert answers == {"q": {"action": "decline"}}
        await machine.nothing_left()


async def test_a_gateway_that_always_dies_ends_the_relay():
    async with open_machine() as machine:
        machine.write({"echo": machine.peer(echo_backend())})
        async with machine.open_client() as client:
            await client.stdio.initialize()
            for round_number in range(6):
                pending = await client.stdio.start("tools/call", {"name": "echo.sleep", "arguments": {"seconds": 60}})
                assert (await client.stdio.request("ping"))["result"] == {}  # so the gateway has the call
                os.kill(await machine.gateway(), signal.SIGKILL)
                error = (await client.stdio.response(pending))["error"]
                assert error["data"] == {"reason": "gateway_restarted"}, round_number
            with trio.fail_after(30):
                assert await client.process.wait() == 1
            assert "has ended 6 times" in await client.wait_stderr("error: ")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_a_killed_relay_counts_as_a_disconnect(how):
    async with open_machine() as machine:
        machine.write({"echo": machine.peer(echo_backend())})
        async with machine.open_client() as client, machine.open_client() as other:
            for each in (client, other):
                await each.stdio.initialize()
            await client.stdio.start("tools/call", {"name": "echo.sleep", "arguments": {"seconds": 60}})
            assert (await client.stdio.request("ping"))["result"] == {}  # so the gateway has the call
            gateway = await machine.gateway()
            client.process.send_signal(how)
            with trio.fail_after(20):
                assert await client.process.wait() != 0
            with trio.fail_after(20):
                while not json.loads(text_of(await other.stdio.call_tool("echo.cancelled_log")))["cancelled"]:
                    pass  # until its call is cancelled at the server
            assert machine.gateways() == [gateway]
        await machine.nothing_left()


ROUNDS = 4
ENDED = {"gateway_restarted", "shutting_down"}


class Caller:
    """A client that calls without a pause, and checks that each call is answered once."""

    def __init__(self, client):
        self.client = client
        self.answered = 0
        self.stopped = trio.Event()

    async def run(self, *, task_status):
        await self.client.stdio.initialize()
        task_status.started()
        while not self.stopped.is_set():
            self.answered += 1
            answer = await self.client.stdio.call_tool("echo.echo", {"text": str(self.answered)}, within=60)
            reason = answer.get("error", {}).get("data", {}).get("reason")
            assert reason in ENDED or text_of(answer) == str(self.answered), answer
        assert all("method" in message for message in self.client.stdio.arrived)  # nothing was answered twice


async def test_repeated_kills_lose_no_answer():
    """Whatever is killed, each call of a living client is answered once; nothing survives."""
    chance = random.Random(18)
    async with open_machine() as machine:
        machine.write({"echo": machine.peer(echo_backend())})
        for _ in range(ROUNDS):
            async with machine.open_client() as first, machine.open_client() as second, trio.open_nursery() as nursery:
                callers = [Caller(first), Caller(second)]
                for caller in callers:
                    await nursery.start(caller.run)
                async with machine.open_client() as victim:
                    await victim.stdio.initialize()
                    victim.process.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
                    await victim.process.wait()
                await reached(callers, chance.randrange(100))
                os.kill(await machine.gateway(), chance.choice([signal.SIGKILL, signal.SIGTERM]))
                await reached(callers, 200)
                for caller in callers:
                    caller.stopped.set()
        await machine.nothing_left()


async def reached(callers, more):
    """Wait until each has got so many more answers."""
    wanted = [caller.answered + more for caller in callers]
    await until(lambda: all(caller.answered >= number for caller, number in zip(callers, wanted, strict=True)))


async def test_doctor_knows_what_servers_have_asked_clients():
    async with open_machine() as machine:
        machine.write({"rich": machine.peer(peer("rich_server.py")), "echo": machine.peer(echo_backend())})
        async with machine.open_client() as client:
            await client.stdio.initialize(capabilities={"elicitation": {}})
            call = await client.stdio.start("tools/call", {"name": "rich.ask", "arguments": ASK})
            asked = await client.stdio.notification("elicitation/create")
            await client.stdio.send({"jsonrpc": "2.0", "id": asked["id"], "result": {"action": "decline"}})
            await client.stdio.response(call)
            command = [sys.executable, "-P", "-m", "gateway", "doctor", str(machine.config), "--json"]
            done = await trio.run_process(command, env=os.environ | machine.env, capture_stdout=True)
            hints = {name: one["hints"] for name, one in json.loads(done.stdout).items()}
            assert any("it sends elicitation/create" in hint for hint in hints["rich"])
            assert not hints["echo"]
        await machine.nothing_left()


# -- the log -----------------------------------------------------------------------------------------------------------


async def test_the_log_of_a_running_gateway_is_bounded():
    async with open_machine() as machine:
        machine.write({"echo": machine.peer(echo_backend())})
        async with machine.open_client() as client:
            await client.stdio.initialize()
            log = machine.sockets()[0].with_suffix(".log")
            with log.open("a", encoding="utf-8") as file:
                file.write("x" * MAX_FILE_BYTES)
            os.kill(await machine.gateway(), signal.SIGHUP)  # it logs that it has read its config
            await until(log.with_name(f"{log.name}.old").exists)
            await until(lambda: 0 < log.stat().st_size < 10_000)
        await machine.nothing_left()


async def test_a_failed_start_is_shown_though_the_log_was_large():
    async with open_machine() as machine:
        machine.write({"echo": machine.peer(echo_backend())})
        async with machine.open_client() as client:
            await client.stdio.initialize()
            log = machine.sockets()[0].with_suffix(".log")
        await machine.nothing_left()
        log.write_text("x" * (MAX_FILE_BYTES + 1), encoding="utf-8")
        machine.config.write_text("{", encoding="utf-8")
        async with machine.open_client() as client:
            await client.wait_stderr_end()
            assert "line 1" in client.stderr_text
            assert "xxx" not in client.stderr_text


# -- while the gateway starts ------------------------------------------------------------------------------------------


def hold_starts(machine):
    """Write a config whose gateways start only while the returned file exists."""
    script, go = machine.folder / "hold", machine.folder / "go"
    script.write_text("#!/bin/sh\nuntil [ -e go ]; do sleep 0.02; done; cat go", encoding="utf-8")
    script.chmod(0o755)
    go.write_text("value", encoding="utf-8")
    rich = machine.peer(peer("rich_server.py"))
    machine.write({
        "rich": rich | {"env": rich["env"] | {"HOLD": "${cmd:./hold}"}},
        "echo": machine.peer(echo_backend()),
    })
    return go


async def learn(machine):
    """Run a gateway until its catalog is known, and another whose answer is complete."""
    for _ in range(2):
        async with machine.open_client() as client:
            await client.stdio.initialize()
            for tool in ("rich.echo", "echo.echo"):
                assert await say(client, "x", tool) == "x"
        await machine.nothing_left()


async def test_initialize_is_answered_before_the_gateway_runs():
    async with open_machine() as machine:
        go = hold_starts(machine)
        await learn(machine)
        go.unlink()
        async with machine.open_client() as client, machine.open_client() as other:
            clients = client, other
            for each in clients:
                assert (await each.stdio.initialize())["instructions"] == "# rich\n\nHow to use rich."
            ask = {"name": "rich.echo", "arguments": {"text": "x"}}
            calls = [await each.stdio.start("tools/call", ask) for each in clients]
            assert not machine.gateways()
            go.write_text("value", encoding="utf-8")
            for each, call in zip(clients, calls, strict=True):
                assert text_of(await each.stdio.response(call, within=60)) == "x"
        await machine.nothing_left()


async def test_a_changed_answer_is_announced_and_kept():
    async with open_machine() as machine:
        hold_starts(machine)
        await learn(machine)
        async with machine.open_client() as client:
            await client.stdio.initialize()
            assert await say(client, "one") == "one"
            command = [sys.executable, "-P", "-m", "gateway", "disable", "rich"]
            await trio.run_process(command, env=os.environ | machine.env, capture_stdout=True)
        await machine.nothing_left()
        async with machine.open_client() as client:
            assert "instructions" in await client.stdio.initialize()
            await client.stdio.notification("notifications/tools/list_changed", within=60)
            assert await say(client, "two") == "two"
        await machine.nothing_left()
        async with machine.open_client() as client:
            assert "instructions" not in await client.stdio.initialize()
            assert await say(client, "three") == "three"


async def test_a_gateway_that_fails_after_an_early_answer_is_reported():
    async with open_machine() as machine:
        go = hold_starts(machine)
        await learn(machine)
        go.unlink()
        go.mkdir()  # so that `cat` fails
        async with machine.open_client() as client:
            await client.stdio.initialize()
            with trio.fail_after(60):
                assert await client.process.wait() == 1
            await client.wait_stderr_end()
            assert "failed with exit status" in client.stderr_text


# -- identity ----------------------------------------------------------------------------------------------------------


async def test_another_value_of_a_variable_is_another_gateway():
    async with open_machine() as machine:
        server = echo_backend() | {"env": {"SECRET": "${WHO}", "MACHINE": str(machine.folder)}}
        machine.write({"echo": server})
        async with (
            machine.open_client(env={"WHO": "a", "OTHER": "1"}) as a,
            machine.open_client(env={"WHO": "a", "OTHER": "2"}) as same,
            machine.open_client(env={"WHO": "b"}) as b,
        ):
            found = []
            for client in (a, same, b):
                await client.stdio.initialize()
                found.append(text_of(await client.stdio.call_tool("echo.env", {"name": "SECRET"})))
            assert found == ["a", "a", "b"]
            assert len(machine.gateways()) == 2
            # The gateway gets no other variables of the client that has started it.
            for pid in machine.gateways():
                assert not [one for one in environment_of(pid) if one.startswith(b"OTHER=")]
                assert os.readlink(f"/proc/{pid}/cwd") == str(machine.folder)


async def test_a_symlinked_config_reaches_the_same_gateway():
    async with open_machine() as machine:
        machine.write({"echo": machine.peer(echo_backend())})
        link = machine.folder / "elsewhere" / "link.json"
        link.parent.mkdir()
        link.symlink_to(machine.config)
        async with machine.open_client() as client, machine.open_client(config=link) as other:
            for each in (client, other):
                await each.stdio.initialize()
            assert len(machine.gateways()) == 1


async def test_modules_beside_the_config_are_not_imported():
    async with open_machine() as machine:
        machine.write({"echo": machine.peer(echo_backend())})
        for name in ("trio", "gateway", "json"):
            (machine.folder / f"{name}.py").write_text("raise SystemExit('wrong module')", encoding="utf-8")
        async with machine.open_client() as client:
            await client.stdio.initialize()
            assert await say(client, "right") == "right"


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"mcpServers": {', "line 1, column 17"),
        ('{"mcpServers": {"x": {"command": 1}}}', "'command'"),
        (None, "check the path"),
    ],
)
async def test_a_wrong_config_is_reported_and_starts_nothing(text, said):
    async with open_machine() as machine:
        if text is not None:
            machine.config.write_text(text, encoding="utf-8")
        async with machine.open_client() as client:
            with trio.fail_after(60):
                assert await client.process.wait() == 1
            await client.wait_stderr_end()
            assert said in client.stderr_text
        assert not machine.gateways()


async def test_an_unknown_view_is_refused():
    async with open_machine() as machine:
        machine.write({})
        async with machine.open_client("--view", "x") as client:
            await client.wait_stderr("--view x: there is no such view")
            assert await client.process.wait() == 1


async def test_a_socket_of_a_dead_gateway_is_replaced():
    async with open_machine() as machine:
        machine.write({"echo": machine.peer(echo_backend())})
        async with machine.open_client() as client:
            await client.stdio.initialize()
            path = machine.sockets()[0]
        await machine.nothing_left()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        async with machine.open_client() as client:
            await client.stdio.initialize()
            assert await say(client, "alive") == "alive"


async def test_a_relay_waits_while_the_queue_is_full():
    async with open_machine() as machine:
        machine.write({})
        waiting = []
        async with machine.open_client() as first:
            await first.stdio.initialize()
            gateway = await machine.gateway()
            os.kill(gateway, signal.SIGSTOP)
            with suppress(BlockingIOError):
                while True:
                    waiting.append(socket.socket(socket.AF_UNIX))
                    waiting[-1].setblocking(False)
                    waiting[-1].connect(str(machine.sockets()[0]))
            async with machine.open_client() as late:
                await late.stdio.send(make_request(1, "initialize", initialize_params()))
                with trio.move_on_after(2):
                    await late.process.wait()
                assert late.process.returncode is None, late.stderr_text
                for one in waiting:
                    one.close()
                os.kill(gateway, signal.SIGCONT)
                assert (await late.stdio.response(1))["result"]["serverInfo"]


@pytest.mark.parametrize("mode", [0o755, 0o770])
async def test_a_directory_accessible_to_others_is_refused(mode):
    async with open_machine() as machine:
        machine.write({})
        directory = machine.runtime / "trio-mcp-gateway"
        directory.mkdir()
        directory.chmod(mode)
        async with machine.open_client() as client:
            await client.wait_stderr("must be a directory that no other user can use")
            assert await client.process.wait() == 1


async def test_a_gateway_that_would_call_itself_is_refused():
    async with open_machine() as machine:
        relay = {"command": sys.executable, "args": ["-P", "-m", "gateway", "connect", str(machine.config)]}
        machine.write({"self": relay | {"env": machine.env, "restart": False}, "echo": machine.peer(echo_backend())})
        async with machine.open_client() as client:
            await client.stdio.initialize()
            assert await say(client, "once") == "once"
            log = machine.sockets()[0].with_suffix(".log")
            await until(lambda: "started by a gateway with the same config" in log.read_text(encoding="utf-8"))
            assert len(machine.gateways()) == 1


@is_root
async def test_a_socket_of_another_user_is_not_used():
    async with open_machine() as machine:
        machine.write({"echo": machine.peer(echo_backend())})
        async with machine.open_client() as client:
            await client.stdio.initialize()
            path = machine.sockets()[0]
        await machine.nothing_left()
        program = (
            "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]);"
            f" os.setuid({ANOTHER_USER}); s.listen(); print('ready', file=sys.stderr, flush=True); sys.stdin.read()"
        )
        async with run_process([sys.executable, "-c", program, str(path)]) as forged:
            await forged.wait_stderr("ready")
            async with machine.open_client() as client:
                await client.wait_stderr(f"belongs to a process of another user (uid {ANOTHER_USER})")
                assert await client.process.wait() == 1


@is_root
async def test_a_peer_of_another_user_is_not_served():
    async with open_machine() as machine:
        machine.write({"echo": machine.peer(echo_backend())})
        async with machine.open_client() as client:
            await client.stdio.initialize()
            path = machine.sockets()[0]
            for opened in (machine.folder, machine.runtime, path.parent, path):  # as if the modes had failed
                opened.chmod(0o777)
            program = (
                f"import os, socket, sys; os.setuid({ANOTHER_USER}); s = socket.socket(socket.AF_UNIX);"
                " s.connect(sys.argv[1]); print(s.recv(99))"
            )
            forged = await trio.run_process([sys.executable, "-c", program, str(path)], capture_stdout=True)
            assert forged.stdout == b"b''\n"
            assert f"another user (uid {ANOTHER_USER}) refused" in path.with_suffix(".log").read_text(encoding="utf-8")
            path.parent.chmod(0o700)
            assert await say(client, "served") == "served"


# -- cost --------------------------------------------------------------------------------------------------------------


def test_a_relay_imports_nothing_heavy():
    program = "import sys; before = set(sys.modules); import gateway.relay; print(*set(sys.modules) - before)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.check_output([sys.executable, "-P", "-c", program], env=env, text=True).split()
    ours = {name for name in found if name.startswith("gateway.") and not name.startswith("gateway.relay")}
    assert ours == {"gateway.version"}
    heavy = {"typing", "pathlib", "contextlib", "subprocess", "hashlib", "logging", "threading", "msgspec", "trio"}
    assert not heavy.intersection(found)


async def test_the_memory_of_a_relay_is_bounded():
    async with open_machine() as machine:
        machine.write({"echo": machine.peer(echo_backend())})
        async with machine.open_client() as client:
            await client.stdio.initialize()
            for _ in range(3):
                await say(client, "x" * 4_000_000)
            assert peak_memory(client.pid) < 16 * 1024
