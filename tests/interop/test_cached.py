"""The cache of installed packages stays whole after interruptions and with concurrent installers."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from tests.interop import cached
from tests.interop.cached import PARTS, ROOT, Chosen, InstallError

if TYPE_CHECKING:
    from pathlib import Path

JOIN_WITHIN = 10.0  # seconds for a thread that waits for the lock


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cached, "CACHE", tmp_path)
    monkeypatch.setattr(cached, "chosen", Chosen())
    return tmp_path


class Installer:
    """Counts its calls and, like an installer, fills a folder that must be absent."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.calls = 0
        self.error = error

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        folder.mkdir(parents=True)
        (folder / "half").touch()
        if self.error is not None:
            raise self.error
        (folder / "whole").touch()


@pytest.mark.parametrize("error", [InstallError("no registry"), KeyboardInterrupt()])
def test_an_interrupted_install_is_not_trusted(error: BaseException) -> None:
    with pytest.raises(type(error)):
        cached._cached("thing", ["thing==1"], Installer(error))
    install = Installer()
    folder = cached._cached("thing", ["thing==1"], install)
    assert install.calls == 1
    assert (folder / "whole").exists()


def test_two_concurrent_users_install_once() -> None:
    install = Installer()
    begun, go_on = threading.Event(), threading.Event()

    def slowly(folder: Path) -> None:
        begun.set()
        assert go_on.wait(JOIN_WITHIN)
        install(folder)

    first = threading.Thread(target=cached._cached, args=("thing", ["thing==1"], slowly))
    first.start()
    assert begun.wait(JOIN_WITHIN)
    second = threading.Thread(target=cached._cached, args=("thing", ["thing==1"], slowly))
    second.start()
    go_on.set()
    for thread in (first, second):
        thread.join(JOIN_WITHIN)
        assert not thread.is_alive()
    assert install.calls == 1


@pytest.mark.parametrize(("real", "parts"), [("none", ()), ("all", PARTS), *((part, (part,)) for part in PARTS)])
def test_only_a_run_with_a_chosen_part_installs(real: str, parts: tuple[str, ...]) -> None:
    cached.chosen.choose(real)
    assert cached.chosen.parts == frozenset(parts)
    install = Installer()
    if parts:
        cached._cached("thing", ["thing==1"], install)
    else:
        with pytest.raises(InstallError, match="mark `real`"):
            cached._cached("thing", ["thing==1"], install)
    assert install.calls == bool(parts)


MARKED = """
import pytest

def test_plain():
    pass

@pytest.mark.real("clients")
def test_clients():
    pass

@pytest.mark.real("servers")
def test_servers():
    pass
"""


@pytest.mark.parametrize(
    ("tests", "real", "said"),
    [
        (MARKED, "none", "1 passed, 2 deselected"),
        (MARKED, "clients", "2 passed, 1 deselected"),
        (MARKED, "all", "3 passed"),
        (MARKED.replace("servers", "severs"), "all", "a part that there is not: severs"),
    ],
)
def test_only_the_tests_of_chosen_parts_run(tests: str, real: str, said: str, tmp_path: Path) -> None:
    for folder in ("interop", "support"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
    for name in ("pyproject.toml", "tests/conftest.py", "tests/interop/cached.py", "tests/support/leaks.py"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "tests" / "test_marked.py").write_text(tests, encoding="utf-8")
    command = [sys.executable, "-P", "-m", "pytest", "-q", f"--real={real}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert said in done.stdout + done.stderr
