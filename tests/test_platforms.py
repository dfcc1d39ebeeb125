"""macOS in a simulation, and Windows, which is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WINDOWS = """
import sys

class Missing:
    names = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}

    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in Missing.names - {"posix"}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
sys.platform = "win32"
"""
COMMANDS = [("gateway", "-m"), ("mcp_gateway", "-m"), ("gateway", "script"), ("gateway", "script.exe")]
SIMULATED = (
    "tests/children/test_endings.py::test_leaving_the_context_ends_all_processes[stubborn_daemon-embedded]",
    "tests/children/test_endings.py::test_a_killed_gateway_leaves_no_processes[kill_group]",
    "tests/children/test_guard.py::test_without_ps_the_group_ends",
    "tests/backends/test_stdio.py::test_an_exit_is_reported_despite_write_failures",
    "tests/cli/test_lifetime.py::test_an_early_signal_leaves_no_socket[SIGTERM]",
    "tests/faults/test_lifetimes.py::test_no_process_is_left[SIGKILL-stdio]",
    "tests/relay/test_connect.py::test_the_end_of_stdin_is_answered_first",
)
"""The tests that run in the simulation of macOS too; CONTRIBUTING names the command for all of them."""


def run(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.mark.parametrize("words", [["serve", "x.json"], ["connect", "x.json"], ["--version"]], ids=" ".join)
@pytest.mark.parametrize(("package", "way"), COMMANDS)
def test_windows_is_refused_by_the_command(package: str, way: str, words: list[str]) -> None:
    if way == "-m":
        code = f"import runpy; sys.argv = ['-m', *sys.argv[1:]]; sys.orig_argv = ['python', '-m', {package!r}]"
        code += f"; runpy.run_module({package!r}, run_name='__main__')"
    else:
        name = f"C:\\Scripts\\mcp-gateway{way.removeprefix('script')}"
        code = f"sys.argv[0] = {name!r}; sys.path.insert(0, '.'); from gateway.__main__ import main; main()"
    done = run("-c", WINDOWS + code, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "wsl --install" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("package", ["gateway", "mcp_gateway", "gateway.embed.manager", "mcp_gateway.errors"])
def test_windows_is_refused_in_other_programs(package: str) -> None:
    code = f"""
for _ in range(2):
    try:
        import {package}
    except ImportError as exc:
        print(exc)
"""
    done = run("-c", WINDOWS + code)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == done.stdout.count("wsl --install") == 2


def test_macos_is_simulated() -> None:
    done = run("-m", "tests.support.darwin", *SIMULATED, timeout=240)
    assert done.returncode == 0, done.stdout[-4000:]
