"""The files of deploy/: valid systemd units, working proxies, existing image steps."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
from contextlib import closing, contextmanager
from http.client import HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support.certificates import make_certificate
from tests.support.gateway_process import (
    ANSWER_WITHIN,
    ROOT,
    START_WITHIN,
    HttpClient,
    echo_backend,
    initialize_params,
    make_request,
    modern_params,
    open_gateway_process,
    run_process,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

DEPLOY = ROOT / "deploy"
SYSTEM_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # where Debian has servers
HOST, KEY = "gw.example.com", "k" * 43
HEADERS = {"Host": HOST, "Authorization": f"Bearer {KEY}", "Accept": "application/json, text/event-stream"}
HEADERS["Content-Type"] = "application/json"
MAX_BODY_BYTES = 4 * 1024 * 1024

# -- systemd


@pytest.mark.real("servers")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze") or pytest.skip("systemd-analyze is not on PATH")
    for unit in (DEPLOY / "systemd" / "system").iterdir():
        text = re.sub(r"(?<=^ExecStart=)\S+", "/bin/true", unit.read_text(encoding="utf-8"), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    (tmp_path / "run").mkdir(mode=0o700)
    command = [analyze, "verify", "--system", "--man=no", "--generators=no", *map(str, tmp_path.glob("*.s*"))]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=START_WITHIN, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.real("servers")
def test_the_system_unit_is_hardened(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze") or pytest.skip("systemd-analyze is not on PATH")
    unit = DEPLOY / "systemd" / "system" / "mcp-gateway.service"
    command = [analyze, "security", "--offline=true", "--threshold=20", str(unit)]  # tenths of its exposure level
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_WITHIN, check=False)
    assert done.returncode == 0, done.stdout


# -- reverse proxies


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def nginx(folder: Path, port: int, backend: int) -> list[str]:
    """Write the snippet as a part of a whole configuration; return the command."""
    text = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    text = text.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl").replace(
        "127.0.0.1:8080", f"127.0.0.1:{backend}"
    )
    text = text.replace("/etc/ssl/gw.example.com", str(folder / "server"))
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = f"daemon off; pid {folder}/pid; error_log stderr; events {{}} http {{ access_log off; {paths} {text} }}"
    (folder / "nginx.conf").write_text(whole, encoding="utf-8")
    return ["-c", str(folder / "nginx.conf"), "-e", "stderr"]


def haproxy(folder: Path, port: int, backend: int) -> list[str]:
    text = (DEPLOY / "haproxy.cfg").read_text(encoding="utf-8")
    text = text.replace("bind :443", f"bind 127.0.0.1:{port}").replace("127.0.0.1:8080", f"127.0.0.1:{backend}")
    text = text.replace("/etc/ssl/gw.example.com.pem", str(folder / "both.pem"))
    both = (folder / "server.pem").read_text() + (folder / "server.key").read_text()
    (folder / "both.pem").write_text(both, encoding="utf-8")
    (folder / "haproxy.cfg").write_text(text, encoding="utf-8")
    return ["-db", "-f", str(folder / "haproxy.cfg")]


class Client:
    """Requests to the proxy, each over a connection of its own; every wait is bounded."""

    def __init__(self, port: int, certificate: Path) -> None:
        self._context = ssl.create_default_context(cafile=certificate)
        self._port = port

    @contextmanager
    def exchange(
        self, method: str, message: object = None, headers: Mapping[str, str] | None = None
    ) -> Generator[HTTPResponse]:
        connection = HTTPSConnection("127.0.0.1", self._port, timeout=ANSWER_WITHIN, context=self._context)
        with closing(connection):
            body = None if message is None else json.dumps(message)
            connection.request(method, "/mcp", body, HEADERS | dict(headers or {}))
            with connection.getresponse() as response:
                yield response

    def post(self, message: object, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        with self.exchange("POST", message, headers) as response:
            return response.status, response.read().decode()

    @staticmethod
    def call(name: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        params = modern_params({"name": name, "arguments": arguments, "_meta": {"progressToken": 1}})
        headers = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": name}
        return make_request(1, "tools/call", params), headers

    def converse(self) -> None:
        """Try what a proxy may break."""
        hello = make_request(0, "initialize", initialize_params())
        assert self.post(hello, {"Authorization": ""})[0] == 401
        assert self.post(hello, {"Host": "other.example"})[0] == 403

        with self.exchange("POST", hello) as begun:  # a session is a header, both ways
            session = {"Mcp-Session-Id": begun.headers["mcp-session-id"], "MCP-Protocol-Version": "2025-11-25"}
        assert "echo.progress" in self.post(make_request(1, "tools/list"), session)[1]
        with self.exchange("GET", headers=session) as silent:
            assert silent.status == 200
            assert silent.readline()  # a comment: nothing else is sent there
        with self.exchange("POST", *self.call("echo.progress", {"n": 2, "delay": 3_600})) as stream:
            first = next(line for line in iter(stream.readline, b"") if line.startswith(b"data: {"))
            assert b"notifications/progress" in first  # during the call, which here never ends

        largest = "x" * (MAX_BODY_BYTES - 2_000)
        assert largest in self.post(*self.call("echo.echo", {"text": largest}))[1]
        assert self.post(*self.call("echo.echo", {"text": "x" * (MAX_BODY_BYTES + 1)}))[0] == 413


async def wait_port(port: int) -> None:
    while True:
        try:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
        except OSError:
            await trio.sleep(0.05)
        else:
            await stream.aclose()
            return


@pytest.mark.real("servers")
@pytest.mark.parametrize("write", [nginx, haproxy])
async def test_a_proxy_passes_what_mcp_needs(write: Callable[..., list[str]], tmp_path: Path) -> None:
    program = shutil.which(write.__name__, path=SYSTEM_PATH) or pytest.skip(f"{write.__name__} is not installed")
    make_certificate(tmp_path, "server", None)
    config = {
        "mcpServers": {"echo": echo_backend()},
        "access": {
            "keys": [{"name": "alice", "hash": f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"}],
            "allow_hosts": [HOST],
        },
        "gateway": {"keep_alive_interval": 1, "sse_after": 0.1},
    }
    async with open_gateway_process(config, status=None) as gateway:
        assert gateway.url is not None
        port = free_port()
        arguments = write(tmp_path, port, HttpClient(gateway.url).port)
        async with run_process([program, *arguments]) as proxy:
            with trio.fail_after(START_WITHIN):
                await wait_port(port)
            await trio.to_thread.run_sync(Client(port, tmp_path / "server.pem").converse)
            assert proxy.process.returncode is None
            proxy.process.terminate()
            with trio.fail_after(ANSWER_WITHIN):
                await proxy.process.wait()


# -- the image


def test_the_image_copies_existing_files() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    copied = [
        name
        for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE)
        if not line.startswith("--from")
        for name in shlex.split(line)[:-1]
    ]
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE)[-1] not in {"root", "0"}


def test_compose_runs_that_image_read_only() -> None:
    yaml = pytest.importorskip("yaml")
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]["gateway"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
