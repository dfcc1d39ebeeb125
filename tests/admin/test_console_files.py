"""The files of the console. `tests/interop/test_console.py` runs them in a browser."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway.admin.console_files import FOLDER, read_files
from tests.support.admin import open_harness

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

MAX_WEIGHT = 120 * 1024  # bytes of the whole page


async def test_the_console_is_served_with_a_strict_policy(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path, host="10.0.0.1") as harness:
        for name in read_files():
            exchange = await harness.exchange("GET", f"/console/{name}", headers={})
            assert (exchange.status, exchange.headers["x-content-type-options"]) == (200, "nosniff")
            policy = exchange.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
            assert "unsafe" not in policy
        redirect = await harness.exchange("GET", "/console", headers={})
        assert (redirect.status, redirect.headers["location"]) == (308, "console/")
        assert (await harness.ask("GET", "/console/other", headers={}))[0] == 404
        assert (await harness.ask("GET", "/console/../http.py", headers={}))[0] == 404
        assert (await harness.ask("POST", "/console/", headers={}))[0] == 405


async def test_off_serves_no_console(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path, mode="off") as harness:
        for path in ("/console", "/console/", "/console/app.js"):
            assert (await harness.ask("GET", path))[0] == 404


def test_the_page_is_light_and_self_contained() -> None:
    files = read_files()
    assert sum(len(content) for content, _ in files.values()) <= MAX_WEIGHT
    page = files[""][0].decode()
    named = set(re.findall(r'(?:href|src)="([^"#]+)"', page))
    assert named == files.keys() - {""}  # every module is loaded at once
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", page)
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), (
            path
        )
