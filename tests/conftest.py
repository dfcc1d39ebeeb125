"""Fixtures of every test: processes, threads and sockets must not be left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.interop.cached import PARTS, chosen
from tests.support import leaks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _pytest.terminal import TerminalReporter

HERE = Path(__file__).parent
SPAWNING = {"children", "contract", "faults", "interop"}
"""Folders whose tests are checked without asking; any other asks by `@pytest.mark.leak_check`."""


LONGEST = (
    "interop/test_install.py",
    "interop/test_clients.py",
    "interop/test_rows.py",
    "conformance/test_suite.py",
    "contract/test_bridge.py",
    "cli/test_login.py",
    "faults/test_corpus_probe.py",
    "backends/http/test_recovery.py",
    "cli/test_lifetime.py",
    "interop/test_bridge_sdk.py",
    "faults/test_lazy.py",
    "cli/test_ps.py",
    "cli/test_management.py",
    "test_packaging.py",
    "faults/test_soak.py",
    "faults/test_lifetimes.py",
    "faults/test_crowds.py",
    "contract/test_messages.py",
)
"""Files that take longest, roughly in that order. With several workers they run first, so that none ends alone."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--real",
        choices=("none", "all", *PARTS),
        default="none",
        help="the part of the tests with real peers that runs too; it may install packages from registries",
    )


def pytest_configure(config: pytest.Config) -> None:
    chosen.choose(config.option.real)
    # A shell's job in the background ignores it, and so would all processes that the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # pytest-xdist would begin with the files of most tests, which take no time.
    config.option.loadscopereorder = False
    config.addinivalue_line("markers", "leak_check: fail if a child process, an open file or a thread is left behind")
    config.addinivalue_line("markers", "real(part): needs packages from registries; runs if --real chooses the part")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marks = [(item, item.get_closest_marker("real")) for item in items]
    if unknown := {mark.args[0] for _, mark in marks if mark is not None} - set(PARTS):
        raise pytest.UsageError(f"the mark `real` names a part that there is not: {', '.join(unknown)}")
    left_out = [item for item, mark in marks if mark is not None and mark.args[0] not in chosen.parts]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item, mark in marks if mark is None or mark.args[0] in chosen.parts]
    places = {HERE / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Write the names of failed tests to `bin/test`'s file; it runs them again."""
    if wanted := os.environ.get("FAILED_TESTS"):
        failed = {report.nodeid for kind in ("failed", "error") for report in terminalreporter.stats.get(kind, ())}
        Path(wanted).write_text("".join(f"{name}\n" for name in sorted(failed)), encoding="utf-8")


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
