"""What every test gets: those that start processes or open sockets must leave nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import leaks

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
SPAWNING = {"children", "contract", "faults", "interop"}
"""Folders whose tests are checked without asking; any other asks by `@pytest.mark.leak_check`."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leak_check: fail if a child process, an open file or a thread is left behind")


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves children, open files or threads.

    The fixture is synchronous, so that it looks after trio's run and all async fixtures have ended.
    """
    if not _is_spawning(request.path) and request.node.get_closest_marker("leak_check") is None:
        yield
        return
    before = leaks.take()
    yield
    if found := leaks.leaked(before):
        pytest.fail("left behind:\n  " + "\n  ".join(found), pytrace=False)


def _is_spawning(path: Path) -> bool:
    return path.is_relative_to(HERE) and path.relative_to(HERE).parts[0] in SPAWNING
