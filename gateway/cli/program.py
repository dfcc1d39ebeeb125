"""This installation's command line for others to start, and other programs run here."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from gateway.cli.output import CommandError

if TYPE_CHECKING:
    from collections.abc import Sequence

DISTRIBUTION: Final = "trio-mcp-gateway"
CACHE_TAG: Final = "CACHEDIR.TAG"
"""The file that marks a directory as a cache, whose content may be deleted (bford.info/cachedir)."""

PROGRAM_TIMEOUT: Final = 60.0
"""Seconds for a client's own command, or for one of the service manager, which may drain a gateway."""


def program_words() -> list[str]:
    """Return the program and its first arguments.

    The paths are absolute, since clients and services have their own PATH.

    Raises:
        CommandError: this environment is in a cache, as that of `uvx` is, and may be deleted.
    """
    cache = next((path for path in Path(sys.prefix).resolve().parents if (path / CACHE_TAG).is_file()), None)
    if cache is not None:
        problem = f"this program is in the cache {cache}, which may be cleaned, so its path cannot be written"
        raise CommandError(problem, f"uv tool install {_source()}; then run this command with 'mcp-gateway'")
    script = Path(sys.executable).with_name("mcp-gateway")
    return [str(script)] if script.is_file() else [sys.executable, "-P", "-m", "gateway"]


def _source() -> str:
    """Return this package's source for an installer: directory, URL or name (PEP 610)."""
    try:
        found = distribution(DISTRIBUTION).read_text("direct_url.json")
    except PackageNotFoundError:
        found = None
    origin: dict[str, Any] = {} if found is None else json.loads(found)
    url, vcs = str(origin.get("url", "")), origin.get("vcs_info", {}).get("vcs")
    if url.startswith("file:"):
        return shlex.quote(unquote(urlsplit(url).path))
    return shlex.quote(f"{vcs}+{url}" if vcs else url or DISTRIBUTION)


def run_program(command: Sequence[str]) -> None:
    """Run another program to its end. Raises CommandError with its output if it fails."""
    shown = shlex.join(command)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROGRAM_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CommandError(f"{shown}: {exc}") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise CommandError(f"{shown}: exit status {done.returncode}: {said}")
