"""The console in Chromium, over a real gateway with real servers.

With PICTURES=FOLDER in the environment the tests write the pictures of the documentation there.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.admin.console_files import read_files
from tests.support.browser import CHROMIUM, Page, open_page
from tests.support.console_gateway import EVENTS_PER_SECOND, FakeGateway
from tests.support.gateway_process import HttpClient, echo_backend, open_gateway_process, peer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from tests.support.gateway_process import GatewayProcess

pytestmark = [pytest.mark.real("servers"), pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on PATH")]

TOKEN, OTHER_TOKEN = "the-first-admin-token", "the-second-admin-token"
SECRET = "secret-value-of-a-variable"
CONFIG: dict[str, Any] = {
    "mcpServers": {
        "echo": {**echo_backend(), "env": {"API_KEY": SECRET}},
        "hostile": peer("hostile_server.py"),
        "broken": {"command": sys.executable, "args": ["-c", "raise SystemExit('no database')"]},
        "off": {"command": "unused", "disabled": True},
    },
    "gateway": {"start_grace": 30, "audit": True},
}
SLACK = 3.0  # the targets are for a machine that does nothing else
FIRST_PAINT, LONG_TASK, MAX_WEIGHT = 1_000, 200, 120 * 1024  # milliseconds, milliseconds, bytes


def state_of(name: str) -> str:
    return (
        f"[...document.querySelectorAll('.servers tbody tr')].find((r) => r.server === '{name}')?.children[1].innerText"
    )


async def check_accessibility(page: Page, axe: str) -> None:
    """Check axe-core's rules in both themes, and that the page fits each width."""
    if not await page.evaluate("typeof axe === 'object'"):
        await page.evaluate(axe)
    for scheme in ("light", "dark"):
        await page.show_scheme(scheme)
        found = await page.evaluate("axe.run(document, {resultTypes: ['violations']}).then((r) => r.violations)")
        seen = [(one["id"], [node["html"][:200] for node in one["nodes"]][:3]) for one in found]
        assert seen == [], f"{scheme}: {seen}"
    for width in (375, 2560, 1440):
        await page.resize(width, 900)
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
    await page.show_scheme("light")


async def picture(page: Page, name: str) -> None:
    if folder := os.environ.get("PICTURES"):
        await page.resize(1280, 860)
        await page.screenshot(Path(folder) / f"console-{name}.png")
        await page.resize(1440, 900)


@asynccontextmanager
async def console(config: dict[str, Any] = CONFIG, **options: Any) -> AsyncGenerator[tuple[Page, GatewayProcess, str]]:
    env = {"MCP_GATEWAY_ADMIN_TOKEN": TOKEN}
    async with open_gateway_process(config, env=env, **options) as gateway, open_page() as page:
        assert gateway.url is not None
        url = gateway.url.removesuffix("mcp") + "console"
        await page.goto(url)
        await page.until("document.querySelectorAll('.servers tbody tr').length")
        yield page, gateway, url


async def check_nothing_ran(page: Page) -> None:
    assert await page.evaluate("window.hacked ?? null") is None
    assert page.problems == []


async def give_token(page: Page, token: str) -> None:
    await page.until("document.querySelector('dialog[open] #token')")
    await page.evaluate(f"document.getElementById('token').value = '{token}'")
    await page.click("Continue", "document.querySelector('dialog')")


async def test_overview_sorts_filters_and_follows_states(axe: str) -> None:
    async with console() as (page, gateway, _):
        await page.until(f"{state_of('echo')} === 'ready' && {state_of('hostile')} === 'ready'")
        await page.until(f"{state_of('off')} === 'disabled'")
        assert gateway.url is not None
        client = HttpClient(gateway.url)
        await client.initialize()
        for _ in range(20):
            await client.call_tool("echo.echo", {"text": "x"})
        await client.call_tool("echo.sleep", {"seconds": 0.3})
        await page.until("document.querySelectorAll('.events tbody tr').length >= 10")
        rows = "[...document.querySelectorAll('.servers tbody tr')].map((r) => r.server)"
        await page.click("Server", "document.querySelector('.servers')")
        await page.until(f"{rows}[0] === 'off'")
        await page.click("Restarts", "document.querySelector('.servers')")
        await page.until(f"{rows}[0] === 'broken'")
        await page.until("document.querySelector('.error .hint').textContent.length > 10")
        # The samples arrive within two intervals; a line needs two.
        await page.until(
            "[...document.querySelectorAll('.line')].some((line) => line.getAttribute('d')?.includes('L'))"
        )
        await check_accessibility(page, axe)
        await picture(page, "overview")
        await page.evaluate(
            "{const f = document.getElementById('filter'); f.value = 'ech'; f.dispatchEvent(new Event('input'))}"
        )
        await page.until(f"{rows}.join() === 'echo'")
        for theme in ("light", "dark", "system"):
            await page.click("Theme", "document")
            await page.until(f"(document.documentElement.dataset.theme ?? 'system') === '{theme}'")
        # A state that a call causes is on the page within half a second.
        pid = (await client.call_tool("echo.env"))["result"]["structuredContent"]["pid"]
        seen = f"performance.now() - start < 500 * {SLACK} && {state_of('echo')} !== 'ready'"
        await page.evaluate("start = performance.now()")
        os.kill(pid, 9)
        await page.until(seen)
        print(json.dumps({"state change on the page, ms": await page.evaluate("performance.now() - start")}))
        await page.until(f"{state_of('echo')} === 'ready'")
        await check_nothing_ran(page)


async def test_backend_page_shows_hostile_content_as_text(axe: str) -> None:
    async with console() as (page, gateway, url):
        assert gateway.url is not None
        client = HttpClient(gateway.url)
        await client.initialize()
        name = (await client.request("tools/list"))["result"]["tools"]
        hostile = next(one["name"] for one in name if one["name"].startswith("hostile.") and "img" in one["name"])
        assert "onerror" in (await client.call_tool(hostile))["error"]["message"]
        await page.until("document.querySelector('.events').textContent.includes('<img')")
        await page.goto(f"{url}/#/backend/hostile")
        await page.until("document.querySelectorAll('details.item').length === 5")
        for _ in range(3):  # each level is built when it is opened
            await page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
            await page.until("[...document.querySelectorAll('details[open]')].every((one) => one.children.length > 1)")
        text = await page.until("document.querySelector('.schema .schema .schema') && document.body.innerText")
        assert "as #/$defs/node above" in text
        assert 'unknown reference "#/x"' in text
        for part in ("hostile.<img", "Own name: <img", "error -32000: <img", "<script>hacked=1</script>"):
            assert part in text, part
        await page.until("document.querySelector('.log').textContent.includes('<img')")
        await page.until("document.querySelector('[aria-label=Processes] tbody tr')")
        await check_accessibility(page, axe)
        await client.call_tool("hostile.flood", {"seconds": 3})
        await page.start_trace()
        await page.until("document.body.innerText.includes('left out, since they came too fast')")
        assert await page.evaluate("document.querySelector('.log').textContent.split('\\n').length") <= 500
        await page.goto(f"{url}/#/")
        await page.until(f"{state_of('hostile')} === 'ready'")
        assert await page.longest_task() <= LONG_TASK
        await check_nothing_ran(page)


async def test_actions_ask_for_the_token_once() -> None:
    async with console() as (page, _, url):
        await page.goto(f"{url}/#/backend/echo")
        await page.until("document.querySelector('[aria-label=Configuration]').innerText.includes('API_KEY')")
        assert SECRET not in await page.evaluate("document.body.innerText")
        await page.until("document.querySelector('[aria-label=Processes] tbody tr')")
        await picture(page, "backend")
        await page.click("Restart")
        await page.click("Restart", "document.querySelector('dialog')")
        await give_token(page, "wrong-wrong-wrong-wrong")
        await page.until("document.querySelector('dialog .problem')?.textContent.includes('does not accept')")
        await give_token(page, TOKEN)
        await page.until("document.body.innerText.includes('Restart: done')")
        badge = "document.querySelector('h1 .state').textContent"
        await page.click("Disable")
        await page.click("Disable", "document.querySelector('dialog')")
        await page.until(f"{badge} === 'disabled'")
        await page.click("Enable")
        await page.until(f"{badge} === 'ready'")
        await page.click("Reload configuration")
        await page.until("document.body.innerText.includes('Reload configuration: done')")
        stored = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
        assert TOKEN not in await page.evaluate(stored)
        await check_nothing_ran(page)


async def test_live_page_cancels_a_call(axe: str) -> None:
    async with console() as (page, gateway, url):
        assert gateway.url is not None
        client = HttpClient(gateway.url)
        await client.initialize()
        found: list[Any] = []

        async def call() -> None:
            found.append(await client.call_tool("echo.sleep", {"seconds": 600}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await page.goto(f"{url}/#/live")
            text = await page.until("document.querySelector('.call')?.innerText")
            assert "tools/call echo.sleep" in text
            assert ", process " in text
            assert "deadline in" in text
            await check_accessibility(page, axe)
            await picture(page, "live")
            await page.click("Cancel")
            await page.click("Cancel the call")
            await give_token(page, TOKEN)
            await page.until("document.body.innerText.includes('was cancelled')")
        assert found[0]["error"]["data"]["reason"] == "cancelled_by_admin"
        await page.until("!document.querySelector('.call')")
        await gateway.wait_stderr("is cancelled by admin")
        await check_nothing_ran(page)


async def test_a_restarted_gateway_and_a_revoked_token_are_noticed(axe: str) -> None:
    guarded = {**CONFIG, "access": {"keys": [{"name": "alice", "hash": "sha256:" + "0" * 64}]}}
    port = free_port()
    options: Any = {"extra_args": ("--port", str(port))}
    async with open_page() as page:
        async with open_gateway_process(guarded, env={"MCP_GATEWAY_ADMIN_TOKEN": TOKEN}, **options):
            await page.goto(f"http://127.0.0.1:{port}/console")
            await give_token(page, TOKEN)
            await page.until(f"{state_of('echo')} === 'ready'")
        await page.until("document.getElementById('connection').textContent.includes('next attempt in')")
        async with open_gateway_process(guarded, env={"MCP_GATEWAY_ADMIN_TOKEN": OTHER_TOKEN}, **options):
            await page.until("document.querySelector('dialog .problem')?.textContent.includes('no longer')")
            await check_accessibility(page, axe)
            await give_token(page, OTHER_TOKEN)
            await page.until("document.getElementById('connection').textContent.includes('Connected again')")
            await page.until(f"{state_of('echo')} === 'ready'")
            assert page.problems == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def fake_gateway() -> Generator[FakeGateway]:
    gateway = FakeGateway()
    thread = threading.Thread(target=gateway.run, name="gateway of fakes")
    thread.start()
    try:
        assert gateway.listening.wait(60)
        yield gateway
    finally:
        gateway.stop()
        thread.join(60)


async def test_three_hundred_backends_and_a_thousand_events_a_second() -> None:
    weight = sum(len(content) for content, _ in read_files().values())
    assert weight <= MAX_WEIGHT
    with fake_gateway() as gateway:
        async with open_page() as page:
            await page.start_trace()
            await page.goto(f"{gateway.url}/console")
            await page.until("document.querySelectorAll('.servers tbody tr').length === 300")
            paint = await page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
            rows = await page.evaluate("performance.now()")
            before = await page.until("document.querySelectorAll('.events tbody tr').length && performance.now()")
            await page.until(f"performance.now() > {before} + 6000")  # more than one sample
            longest = await page.longest_task()
            seen = await page.evaluate("import('./store.js').then(({store}) => [store.seen, store.dropped])")
            figures = {
                "first paint": paint,
                "all rows": rows,
                "longest task": longest,
                "events": seen,
                "weight": weight,
            }
            print(json.dumps(figures))
            assert paint <= FIRST_PAINT * SLACK
            assert longest <= LONG_TASK
            assert sum(seen) > EVENTS_PER_SECOND
            assert page.problems == []
