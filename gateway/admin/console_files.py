"""The files of the console, a web page over the management API, below `/console/`.

Anyone who reaches the gateway may load them: they are the same everywhere, and a browser cannot send a token with the
address of a page. All data comes from the management API, under its rules. The addresses in the files are relative, so
that they work behind a path prefix.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway import jsonrpc
from gateway.admin.documents import Problem

if TYPE_CHECKING:
    from gateway.frontends.http.exchange import Exchange

CONSOLE: Final = "/console"
FOLDER: Final = Path(__file__).parent / "console"
TYPES: Final = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
    b" form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""No script or style but the files here, nothing from another host, and no way to make markup of a text."""
HEADERS: Final = (
    (b"content-security-policy", POLICY),
    (b"cache-control", b"no-cache"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


@lru_cache(1)
def read_files() -> dict[str, tuple[bytes, bytes]]:
    """Return the content and type of each file by its name (the page has none)."""
    paths = [path for path in FOLDER.iterdir() if path.suffix in TYPES]
    files = {path.name: (path.read_bytes(), TYPES[path.suffix]) for path in paths}
    return {"": files.pop("index.html"), **files}


async def serve_console(exchange: Exchange) -> None:
    """Answer one request for the console."""
    path: str = exchange.scope["path"]
    found = read_files().get(path.removeprefix(f"{CONSOLE}/"))
    if exchange.method not in {"GET", "HEAD"}:
        await exchange.json(405, jsonrpc.encode(Problem("Method Not Allowed")), (b"allow", b"GET, HEAD"))
    elif path == CONSOLE:
        await exchange.empty(308, (b"location", b"console/"))  # relative, as the addresses in the page are
    elif found is None:
        await exchange.json(404, jsonrpc.encode(Problem("Not Found")))
    else:
        await exchange.text(*found, *HEADERS)
