"""Terminal interaction during a call: progress, log messages and server requests.

Output goes to stderr, since stdout is for the result. Answers are read from stdin, line by line; EOF cancels.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import trio

from gateway import jsonrpc
from gateway.cli.elicitation_form import MAX_TRIES, WrongAnswer, describe, fields_of, read_answer
from gateway.cli.output import print_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from rich.progress import Progress, TaskID

    from gateway.calls import Notification, ServerRequest

    ReadLine = Callable[[str], Awaitable[str | None]]

NO_MODEL = "the mcp-gateway command has no language model and cannot sample; call this tool from a client that has one"


class EndOfAnswers(Exception):
    """EOF on stdin: no further answers."""


class Terminal:
    """One call's terminal; a context manager that removes the progress bar at its end."""

    def __init__(self, title: str, read_line: ReadLine | None = None) -> None:
        self._title = title
        self._read_line = read_line or read_line_of_stdin
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hide()

    def show_notification(self, notice: Notification) -> None:
        """Show a notification."""
        params = {name: jsonrpc.decode_any(raw) for name, raw in notice.params.items()}
        if notice.method == "notifications/progress":
            self._advance(params)
        elif notice.method == "notifications/message":
            data = params.get("data")
            text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
            print_error(f"{params.get('level', 'info')}: {text}")

    def _advance(self, params: dict[str, Any]) -> None:
        """Update the progress bar, if stderr is a terminal."""
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
            )

            title = TextColumn("{task.description}", markup=False)
            columns = (SpinnerColumn(), title, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=None)
        if self._task is not None:
            text = f"{self._title} {params['message']}" if params.get("message") else self._title
            self._bar.update(self._task, completed=params.get("progress"), total=params.get("total"), description=text)

    def _hide(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    async def answer_request(self, ask: ServerRequest) -> None:
        """Ask the user to answer a server request, or refuse it."""
        self._hide()
        params = {name: jsonrpc.decode_any(raw) for name, raw in ask.params.items()}
        if ask.method == "sampling/createMessage":
            print_error(f"note: {NO_MODEL}")
            ask.refuse(jsonrpc.METHOD_NOT_FOUND, NO_MODEL)
        elif ask.method == "roots/list":
            ask.answer(b'{"roots":[]}')
        elif ask.method == "elicitation/create":
            ask.answer(jsonrpc.encode(await self._elicit(params)))
        else:
            ask.refuse(jsonrpc.METHOD_NOT_FOUND, f"the mcp-gateway command does not know {ask.method}")

    async def _elicit(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the result of an elicitation (2025-11-25 client/elicitation)."""
        print_error(f"{self._title} asks: {params.get('message', '')}")
        try:
            if params.get("mode") == "url":
                from gateway.oauth_client.login_prompt import can_open, open_page

                url = str(params.get("url", ""))
                print_error(f"  {url}")
                if not await self._yes("open this address?"):
                    return {"action": "decline"}
                if can_open():
                    await open_page(url)
                else:
                    print_error("no browser available: open it yourself")
                return {"action": "accept"}
            content: dict[str, Any] = {}
            for field in fields_of(params.get("requestedSchema") or {}):  # omit empty answers
                for _ in range(MAX_TRIES):
                    text = await self._prompt(describe(field))
                    try:
                        value = read_answer(field, text)
                    except WrongAnswer as exc:
                        print_error(f"  {exc}")
                        continue
                    if value is not None:
                        content[field.name] = value
                    break
                else:
                    return {"action": "cancel"}
            if not await self._yes("send this?", default=True):
                return {"action": "decline"}
            return {"action": "accept", "content": content}
        except EndOfAnswers:
            print_error("cancelled: end of input")
            return {"action": "cancel"}

    async def _yes(self, question: str, *, default: bool = False) -> bool:
        text = (await self._prompt(f"{question} [{'Y/n' if default else 'y/N'}] ")).strip().lower()
        return text in {"y", "yes"} if text else default

    async def _prompt(self, question: str) -> str:
        text = await self._read_line(question)
        if text is None:
            raise EndOfAnswers
        return text


async def read_line_of_stdin(question: str) -> str | None:
    """Read a line of input; None at EOF."""
    sys.stderr.write(question)
    sys.stderr.flush()
    # Abandoned if the call ends first: the thread then waits for an unneeded line and ends with the process.
    line = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
    return line.rstrip("\n") if line else None
