"""Servers that keep state of their client and so need a process for each.

`import`, `install` and `add` write `"session": "client"` for them.
"""

from __future__ import annotations

import re
from typing import Any, Final

_BROWSER: Final = "its browser has one current page, which every client would change"
_SESSIONS: Final = "its sessions are open to every client that shares it"
REASONS: Final = {
    "@playwright/mcp": _BROWSER,
    "mcp-server-playwright": _BROWSER,
    "@executeautomation/playwright-mcp-server": _BROWSER,
    "mcp/playwright": _BROWSER,
    "chrome-devtools-mcp": _BROWSER,
    "@modelcontextprotocol/server-puppeteer": _BROWSER,
    "mcp/puppeteer": _BROWSER,
    "puppeteer-mcp-server": _BROWSER,
    "@browserbasehq/mcp": _BROWSER,
    "@browserbasehq/mcp-server-browserbase": _BROWSER,
    "browser-use": _BROWSER,
    "@modelcontextprotocol/server-sequential-thinking": "it numbers the thoughts of one conversation",
    "mcp-server-sequential-thinking": "it numbers the thoughts of one conversation",
    "mcp/sequentialthinking": "it numbers the thoughts of one conversation",
    "serena": "its tools apply to the project that was activated last",
    "serena-mcp-server": "its tools apply to the project that was activated last",
    "@wonderwhy-er/desktop-commander": _SESSIONS,
}
"""Packages, programs and images that need `"session": "client"`, each with the reason."""
_VERSION: Final = re.compile(r"(?<=.)(?:@|==|:|\[).*")
"""What may follow a name: a version, an image's tag, extras of a Python package."""


def reason_for(entry: dict[str, Any]) -> str | None:
    """Return why a server needs a process for each client, None for most."""
    command = entry.get("command")
    words = [command, *(entry.get("args") or ())]
    if isinstance(command, str):
        words.append(command.rpartition("/")[2])
    names = (_VERSION.sub("", word) for word in words if isinstance(word, str))
    return next((REASONS[name] for name in names if name in REASONS), None)


def with_session(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the entry with `"session": "client"` if it needs that and does not choose itself."""
    return entry if "session" in entry or reason_for(entry) is None else {**entry, "session": "client"}
