"""The release as users get it: wheel and sdist, installed with pip and uv.

Environments are empty; the installed commands are run.
"""

from __future__ import annotations

import re
import signal
import subprocess
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from gateway.version import VERSION
from tests.interop.cached import INSTALL_WAIT, python_venv
from tests.support.gateway_process import ROOT, START_WITHIN, STOP_WITHIN, run_process

pytestmark = pytest.mark.real("clients")

BUILDER = ("hatchling==1.33.0", "uv==0.13.9")
STEM = f"trio_mcp_gateway-{VERSION}"
COMMANDS = ("mcp-gateway", "trio-mcp-gateway")


@dataclass(frozen=True)
class Release:
    wheel: Path
    sdist: Path
    constraints: Path
    """The versions of the lock, so that the test says the same every day."""
    uv: Path


def run(*command: Path | str, cwd: Path) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_WAIT, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    python = python_venv("interop/release", *BUILDER)
    folder = tmp_path_factory.mktemp("release")
    run(python, "-m", "hatchling", "build", "--directory", str(folder), cwd=ROOT)
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(re.findall(r"^[a-z0-9.-]+==[^\\\n]+", lock, re.MULTILINE)), encoding="utf-8")
    return Release(folder / f"{STEM}-py3-none-any.whl", folder / f"{STEM}.tar.gz", constraints, python.with_name("uv"))


@pytest.fixture(scope="module")
def installed(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment into which pip has installed the wheel."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    run(programs / "pip", "install", "--constraint", release.constraints, release.wheel, cwd=folder)
    return programs


def test_the_wheel_holds_the_packages_and_nothing_else(release: Release) -> None:
    with zipfile.ZipFile(release.wheel) as wheel:
        names = wheel.namelist()
        metadata = wheel.read(f"{STEM}.dist-info/METADATA").decode()
    assert {name.partition("/")[0] for name in names} == {"gateway", "mcp_gateway", f"{STEM}.dist-info"}
    assert {"gateway/py.typed", "mcp_gateway/py.typed", "gateway/admin/console/index.html"} <= set(names)
    kinds = {name.rpartition(".")[2] for name in names if ".dist-info/" not in name}
    assert kinds <= {"py", "typed", "html", "md", "js", "css", "svg"}
    assert f"\nVersion: {VERSION}\n" in metadata


def test_the_sdist_has_what_a_packager_needs(release: Release) -> None:
    with tarfile.open(release.sdist) as sdist:
        names = {name.removeprefix(f"{STEM}/") for name in sdist.getnames()}
    assert {"pyproject.toml", "LICENSE", "CHANGELOG.md", "gateway/version.py", "deploy/Dockerfile"} <= names
    assert not [name for name in names if name.startswith(("tests/", ".venv/", ".cache/"))]


@pytest.mark.parametrize("command", COMMANDS)
def test_both_commands_run_after_pip(installed: Path, command: str, tmp_path: Path) -> None:
    assert run(installed / command, "--version", cwd=tmp_path) == f"mcp-gateway {VERSION}\n"
    assert "serve" in run(installed / command, "--help", cwd=tmp_path)  # which needs Typer


async def test_the_demo_runs_after_pip(installed: Path, tmp_path: Path) -> None:
    command = [str(installed / "mcp-gateway"), "demo", "--port", "0"]
    async with run_process(command, env={"PYTHONPATH": "", "MCP_GATEWAY_STATE_DIR": str(tmp_path / "state")}) as demo:
        assert demo.process.stdout is not None
        printed = b""
        with trio.fail_after(START_WITHIN):
            while b"Ctrl-C" not in printed:
                data = await demo.process.stdout.receive_some()
                assert data, demo.stderr_text
                printed += data
        demo.process.send_signal(signal.SIGINT)
        with trio.fail_after(STOP_WITHIN):
            assert await demo.process.wait() == 0


def test_an_embedding_program_runs_after_pip(installed: Path, tmp_path: Path) -> None:
    printed = run(installed / "python", ROOT / "docs" / "examples" / "embed_trio.py", cwd=tmp_path)
    assert "20 + 22 = 42" in printed


def test_uvx_finds_the_command_of_the_packages_name(release: Release, tmp_path: Path) -> None:
    options = ["--no-config", "--find-links", release.wheel.parent, "--constraints", release.constraints]
    command = [release.uv, "tool", "run", *options, f"trio-mcp-gateway@{VERSION}", "--version"]  # `uvx` is this
    assert run(*command, cwd=tmp_path) == f"mcp-gateway {VERSION}\n"
    # The path of a program in uv's cache is not for the config of a client.
    (tmp_path / "config.json").write_text('{"mcpServers": {}}', encoding="utf-8")
    command[-1:] = ["install", "cursor", "--config", "config.json"]
    refused = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=INSTALL_WAIT,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert refused.returncode == 1
    assert "uv tool install trio-mcp-gateway" in refused.stderr


def test_the_sdist_builds_the_same_wheel(release: Release, tmp_path: Path) -> None:
    with tarfile.open(release.sdist) as sdist:
        sdist.extractall(tmp_path, filter="data")
    python = python_venv("interop/release", *BUILDER)
    run(python, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path), cwd=tmp_path / STEM)
    with zipfile.ZipFile(tmp_path / release.wheel.name) as second, zipfile.ZipFile(release.wheel) as first:
        assert sorted(second.namelist()) == sorted(first.namelist())
