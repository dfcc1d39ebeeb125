"""Windows, which is refused."""

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
