"""The examples in Markdown pages: found, and run as a reader would run them.

A block with a title is a file; a `console` block is a session whose output is compared, where `...` matches
anything. `uvx` and `npx` are replaced, so that nothing is downloaded.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tests.support.gateway_process import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PAGES = ROOT / "docs" / "pages"
ALL = (ROOT / "README.md", *sorted(PAGES.rglob("*.md")))
WITHIN = 60.0
"""Seconds for one command; generous, since the machine may be busy."""
DEFAULT_ADDRESS = "http://127.0.0.1:8080"
_SNIPPET = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)
_BLOCK = re.compile(r'^( *)```(\w*)(?: title="([^"]+)")?\n(.*?)^\1```$', re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    title: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")

    def include(found: re.Match[str]) -> str:
        return (ROOT / found[1]).read_text(encoding="utf-8").rstrip("\n")

    return [
        Block(
            page,
            text.count("\n", 0, match.start()) + 1,
            match[2],
            match[3],
            _SNIPPET.sub(include, textwrap.dedent(match[4])),
        )
        for match in _BLOCK.finditer(text)
    ]


def sessions(text: str) -> list[tuple[str, str]]:
    """Return the commands of a `console` block, each with its shown output."""
    assert text.startswith("$ ")
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts)]


def fits(shown: str, printed: str) -> bool:
    """Return whether output is as shown; `...` matches any text or lines."""
    lines = (
        "(?:.*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + "\n"
        for line in shown.splitlines()
    )
    return re.fullmatch("".join(lines), printed.rstrip("\n") + "\n") is not None


class Shell:
    """A folder, an environment, and the gateway that runs there."""

    def __init__(self, folder: Path, within: float = WITHIN) -> None:
        self.folder = folder / "work"
        self.within = within
        self.folder.mkdir()
        self.programs = folder / "bin"
        self.programs.mkdir()
        stand_in = f'-P "{ROOT / "tests" / "support" / "stand_in.py"}"'
        for name, arguments in (("mcp-gateway", "-P -m gateway"), ("uvx", stand_in), ("npx", stand_in)):
            self.add_program(name, f'PYTHONPATH="{ROOT}" exec "{sys.executable}" {arguments} "$@"')
        self.environment = {
            "PATH": os.pathsep.join([str(self.programs), "/usr/bin", "/bin"]),
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "MCP_GATEWAY_STATE_DIR": str(folder / "state"),
            "NO_COLOR": "1",
        }
        self._gateway: subprocess.Popen[str] | None = None
        self._address = DEFAULT_ADDRESS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def add_program(self, name: str, script: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    def follow(self, page: Path, *before: Path) -> None:
        """Run the sessions of a page, whose files are in those before it."""
        for block in [block for each in (*before, page) for block in blocks(each)]:
            if block.title is not None:
                self.write(block.title.lstrip("/"), block.text)
            elif block.language == "console" and block.page == page:
                for command, shown in sessions(block.text):
                    status, printed = self.run(command)
                    assert (status == 0) == (re.search(r"error: |exited with", shown) is None), printed
                    assert not shown or fits(shown, printed), printed

    def run(self, command: str) -> tuple[int, str]:
        """Run a command to its end, or leave it serving HTTP on a free port."""
        if command.startswith("mcp-gateway serve") and "--transport http" in command:
            return 0, self.serve(command)
        done = subprocess.run(
            ["sh", "-c", command.replace(DEFAULT_ADDRESS, self._address)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=self.within,
            check=False,
        )
        return done.returncode, done.stdout

    def serve(self, command: str) -> str:
        self.stop()
        self._gateway = subprocess.Popen(
            ["sh", "-c", f"exec {command} --port 0"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._gateway.stderr is not None
        printed = ""
        for line in self._gateway.stderr:
            printed += line
            if (found := re.search(r"listening on (http://[^/]+)", line)) is not None:
                self._address = found[1]
                return printed
        raise AssertionError(printed)

    def stop(self) -> None:
        if self._gateway is None:
            return
        self._gateway.send_signal(signal.SIGTERM)
        try:
            self._gateway.communicate(timeout=WITHIN)
        finally:
            self._gateway.kill()
            self._gateway = None
