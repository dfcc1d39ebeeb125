"""`mcp_gateway`, the alias of the package `gateway`, also beside another package of that name."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PUBLIC = ["config", "errors", "embed.errors", "demo.servers"]


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run Python in a folder that is first on its path, like a script's."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PYTHONPATH": f"{folder}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(params=["a package", "a folder", "a module", "nothing"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a program with something that is called `gateway`."""
    match request.param:
        case "a package":
            (tmp_path / "gateway").mkdir()
            (tmp_path / "gateway" / "__init__.py").write_text("MINE = True", encoding="utf-8")
        case "a folder":
            (tmp_path / "gateway").mkdir()
        case "a module":
            (tmp_path / "gateway.py").write_text("MINE = True", encoding="utf-8")
        case _:
            pass
    return tmp_path


@pytest.mark.parametrize("first", ["gateway", "mcp_gateway"])
def test_both_names_are_one_module_imported_once(folder: Path, first: str) -> None:
    code = f"""
import importlib, sys
import mcp_gateway
assert mcp_gateway is sys.modules["gateway"]
for name in {PUBLIC}:
    importlib.import_module("{first}." + name)
    ours, other = (importlib.import_module(root + "." + name) for root in ("gateway", "mcp_gateway"))
    assert ours is other and ours.__spec__.name == ours.__name__ == "gateway." + name, (ours, other)
from mcp_gateway import ProxyManager
assert ProxyManager is sys.modules["gateway.embed.manager"].ProxyManager
"""
    assert run(folder, "-c", code) == (0, "", "")


def test_the_alias_runs_the_command(folder: Path) -> None:
    status, out, err = run(folder, "-m", "mcp_gateway", "--version")
    assert (status, err) == (0, "")
    assert out.startswith("mcp-gateway ")


def test_a_shadowing_gateway_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "gateway.py").touch()
    status, _, err = run(tmp_path, "-c", "import gateway, mcp_gateway")
    assert status == 1
    assert f"{tmp_path / 'gateway.py'} has been imported under that name" in err


def test_the_wheel_has_both_names_and_their_types() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["gateway", "mcp_gateway"]
    assert all((ROOT / package / "py.typed").is_file() for package in packages)


def test_type_checkers_see_what_the_package_exports() -> None:
    import gateway

    text = (ROOT / "mcp_gateway" / "__init__.py").read_text(encoding="utf-8")
    assert [name for name in gateway.__all__ if f"import {name} as {name}" not in text] == []
