"""`mcp-gateway demo`: its output and its permissions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from gateway.cli import main
from gateway.demo.tour import demo_config, own_command, visit
from tests.support.gateway_process import START_WITHIN, faulty_backend, open_gateway_process, run_process


def test_the_network_is_served_only_when_asked(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MCP_GATEWAY_STATE_DIR", str(tmp_path / "state"))
    assert main(["demo", "--host", "0.0.0.0", "--port", "0"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "--host 0.0.0.0" in err
    assert "--insecure" in err


@pytest.mark.parametrize("made", ["clone/bin/mcp-gateway", "venv/bin/mcp-gateway", None])
def test_the_command_to_paste_works_in_any_folder(made: str | None, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    if made is not None:
        (tmp_path / made).parent.mkdir(parents=True)
        (tmp_path / made).touch()
    expected = [str(python), "-m", "gateway"] if made is None else [str(tmp_path / made)]
    assert own_command(tmp_path / "clone", python) == expected


@pytest.mark.leak_check
async def test_the_demo_lists_all_tools_and_keeps_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gateway", "demo", "--port", "0"]
    async with run_process(command, env={"MCP_GATEWAY_STATE_DIR": str(tmp_path)}) as demo:
        said = b""
        with trio.fail_after(START_WITHIN):
            while b"Serving until Ctrl-C." not in said:
                said += (data := await demo.process.stdout.receive_some())
                assert data, demo.stderr_text
            assert b"tools/list -> calculator.add, calculator.multiply, echo.echo\n" in said
            assert b"still starting" not in said
            assert b'"--separator"' in said  # the entry offers names that every desktop client takes
            assert await demo.stop() == 0
    assert len(list((tmp_path / "catalogs").iterdir())) == 2


@pytest.mark.leak_check
async def test_a_list_that_lacks_a_server_says_so() -> None:
    program = demo_config().servers["calculator"]
    servers = {
        "calculator": {"command": program.command, "args": list(program.args)},
        "late": faulty_backend("hang_before_initialize") | {"shutdown_grace": [0.2, 0.2, 1]},
    }
    said: list[str] = []
    async with open_gateway_process({"mcpServers": servers, "gateway": {"start_grace": 0.5}}) as gateway:
        await visit(gateway.url, list(servers), said.append)
    assert "gateway: not listed yet, still starting: late" in said
