"""Chromium with one page, driven over a pipe (Chrome DevTools Protocol), with no library between."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from tests.support.gateway_process import bare_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WITHIN = 60.0  # seconds until a page has done what it was asked for; only a hang takes so long
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--mute-audio"]
FLAGS += [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
]

LAUNCHER = """import os, sys
os.dup2(int(sys.argv[1]), 3), os.dup2(int(sys.argv[2]), 4), os.execvp(sys.argv[3], sys.argv[3:])"""
"""Runs the browser with the pipes at its descriptors 3, from which it reads, and 4."""

UNTIL = """new Promise((resolve) => {
  const find = () => { try { return (%s); } catch { return null; } };
  const check = () => {
    const found = find();
    if (found) resolve(found instanceof Node ? true : found);
    else setTimeout(check, 20);
  };
  check();
})"""


class Page:
    """The page.

    `problems` are uncaught exceptions, dialogs, and messages of the browser such as violations of the policy.
    """

    def __init__(self, to_browser: trio.lowlevel.FdStream, from_browser: trio.lowlevel.FdStream) -> None:
        self._to = to_browser
        self._from = from_browser
        self._answers: dict[int, trio.MemorySendChannel[Any]] = {}
        self._last_id = 0
        self._session: str | None = None
        self.problems: list[str] = []
        self._trace: list[dict[str, Any]] = []
        self._traced = trio.Event()

    async def read(self) -> None:
        buffered = bytearray()
        while data := await self._from.receive_some(1 << 18):
            buffered += data
            *messages, rest = bytes(buffered).split(b"\0")
            buffered = bytearray(rest)
            for message in map(json.loads, messages):
                if (channel := self._answers.pop(message.get("id", 0), None)) is not None:
                    channel.send_nowait(message)
                self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Page.javascriptDialogOpening":
            self.problems.append(f"dialog: {params['message']}")
        elif method == "Tracing.dataCollected":
            self._trace += params["value"]
        elif method == "Tracing.tracingComplete":
            self._traced.set()
        elif method == "Log.entryAdded" and params["entry"]["source"] != "network":
            self.problems.append(params["entry"]["text"])

    async def command(self, method: str, **params: Any) -> Any:
        self._last_id += 1
        send, receive = trio.open_memory_channel[Any](1)
        self._answers[self._last_id] = send
        message = {"id": self._last_id, "method": method, "params": params, "sessionId": self._session}
        if self._session is None:
            del message["sessionId"]
        with trio.fail_after(WITHIN):
            await self._to.send_all(json.dumps(message).encode() + b"\0")
            answer = await receive.receive()
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    async def open(self) -> None:
        target = await self.command("Target.createTarget", url="about:blank")
        attached = await self.command("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.command(f"{domain}.enable")
        await self.resize(1440, 900)

    async def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.command("Emulation.setDeviceMetricsOverride", **size)

    async def show_scheme(self, scheme: str) -> None:
        """Prefer the light or the dark scheme."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.command("Emulation.setEmulatedMedia", features=features)

    async def goto(self, url: str) -> None:
        await self.command("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression; a promise is awaited."""
        params = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = await self.command("Runtime.evaluate", **params)
        details = answer.get("exceptionDetails")
        assert details is None, details["exception"].get("description", details["text"])
        return answer["result"].get("value")

    async def until(self, condition: str) -> Any:
        """Wait until an expression is true; return its value."""
        try:
            return await self.evaluate(UNTIL % condition)
        except trio.TooSlowError:
            shown = await self.evaluate("document.body.innerText")
            raise AssertionError(f"not within {WITHIN} s: {condition}\n{self.problems}\n{shown}") from None

    async def click(self, label: str, within: str = "document") -> None:
        """Click the button with this text."""
        text = json.dumps(label)
        buttons = f"[...{within}.querySelectorAll('button:enabled')]"
        found = f"{buttons}.find((one) => one.textContent.startsWith({text}))"
        await self.until(found)
        await self.evaluate(f"{found}.click()")

    async def start_trace(self) -> None:
        """Record the tasks of the page's main thread."""
        await self.command("Tracing.start", categories="toplevel,disabled-by-default-devtools.timeline")

    async def longest_task(self) -> float:
        """End the recording; return the processor time of the longest task in milliseconds.

        Other than its duration, it does not depend on what else the machine does.
        """
        await self.command("Tracing.end")
        with trio.fail_after(WITHIN):
            await self._traced.wait()
        names = (one for one in self._trace if one["name"] == "thread_name")
        pages = {(one["pid"], one["tid"]) for one in names if one["args"]["name"] == "CrRendererMain"}
        tasks = [one["tdur"] for one in self._trace if (one["pid"], one["tid"]) in pages and "tdur" in one]
        return max(tasks) / 1_000

    async def screenshot(self, path: Path) -> None:
        answer = await self.command("Page.captureScreenshot", format="png", optimizeForSpeed=False)
        await trio.Path(path).write_bytes(base64.b64decode(answer["data"]))


@asynccontextmanager
async def open_page() -> AsyncGenerator[Page]:
    """Run Chromium while the block runs."""
    assert CHROMIUM is not None
    commands_in, commands_out = os.pipe()
    answers_in, answers_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = [*FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", LAUNCHER, str(commands_in), str(answers_out), CHROMIUM, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(commands_in, answers_out),
            start_new_session=True,
        )
        os.close(commands_in)
        os.close(answers_out)
        try:
            async with (
                trio.lowlevel.FdStream(commands_out) as to_browser,
                trio.lowlevel.FdStream(answers_in) as answers,
            ):
                page = Page(to_browser, answers)
                async with bare_nursery() as nursery:
                    nursery.start_soon(page.read)
                    await page.open()
                    yield page
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + WITHIN):
                with trio.move_on_after(5):  # its pipe is closed, so that it ends
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                await process.wait()
