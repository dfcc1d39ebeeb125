"""The examples run unmodified, with clients connected, and leave nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.support.embedding import WITHIN, open_http, open_wire, running
from tests.support.gateway_process import ROOT, run_process

pytestmark = [
    pytest.mark.leak_check,
    # A stream that never ends is left in the middle, and the client library leaves its own generators to trio.
    pytest.mark.filterwarnings("ignore:Async generator 'http(x|core)2:ResourceWarning"),
]
EXAMPLES = ROOT / "docs" / "examples"
NOT_EMBEDDED = ("typer", "rich", "shellingham", "hypercorn", "httptools", "h2", "watchfiles", "prometheus_client")
"""What only the command and its HTTP server import."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment for a program in which those packages cannot be imported."""
    missing = f"import sys\nsys.modules.update(dict.fromkeys({NOT_EMBEDDED}))\n"
    (tmp_path / "sitecustomize.py").write_text(missing, encoding="utf-8")
    return {"PYTHONPATH": f"{tmp_path}:{ROOT}"}


def test_the_trio_program(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "embed_trio.py"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "tools: calculator.add, calculator.multiply, echo.echo",
        "20 + 22 = 42",
        "calculator is ready",
    ]


async def test_the_fastapi_example_serves_remounts_and_shuts_down(
    environment: dict[str, str],
) -> None:
    pytest.importorskip("fastapi", reason="a development dependency")
    with trio.fail_after(WITHIN):
        command = [sys.executable, str(EXAMPLES / "embed_fastapi.py")]
        async with run_process(command, env=environment) as program:
            assert program.process.stdout is not None
            line = bytes(await program.process.stdout.receive_some()).decode()
            base = line.strip().removesuffix("/mcp")
            async with open_http(base) as http:
                assert (await http.get("/add", params={"a": 1, "b": 2})).json() == {"sum": "3"}
                assert (await http.post("/mcp", json={})).status_code == 401
                pids = await _children_of(program.pid)
                assert len(pids) >= 2
                async with open_wire(base, **{"x-api-key": "secret"}) as wire, wire.listen() as message:
                    assert len(await wire.tools()) == 3
                    assert (await http.post("/narrow")).json() == {"offered": "calculator.add"}
                    tools = await wire.tools()
                    assert {name: tool["description"] for name, tool in tools.items()} == {
                        "calculator.add": "Add two prices."
                    }
                    assert (await message())["method"] == "notifications/tools/list_changed"
                    program.process.send_signal(signal.SIGTERM)  # while this client keeps its stream
                    assert await program.process.wait() in {0, -signal.SIGTERM}
            assert not any(running(pid) for pid in pids)
            assert "Traceback" not in program.stderr_text


async def _children_of(pid: int) -> list[int]:
    """The children of a process, its MCP servers among them."""
    listed = await trio.run_process(["ps", "-o", "pid=", "--ppid", str(pid)], capture_stdout=True)
    return [int(word) for word in listed.stdout.split()]
