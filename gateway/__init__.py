"""An MCP gateway on trio: many MCP servers behind one endpoint, no orphaned children.

This package exports only the programming interface; everything is imported on first use, because a desktop client that
starts the gateway over stdio must not pay for features that it does not use.
"""

from __future__ import annotations

import sys

from gateway.version import VERSION

TYPE_CHECKING = False  # importing `typing` takes longer than all that a relay needs of this package
if TYPE_CHECKING:
    from gateway.embed.manager import ProxyManager
    from gateway.embed.manager import ProxyManager as MCPProxyManager
    from gateway.embed.native import EmbeddedGateway, open_gateway

__version__ = VERSION
__all__ = ["EmbeddedGateway", "MCPProxyManager", "ProxyManager", "__version__", "open_gateway"]

if sys.platform == "win32":
    _TEXT = (
        "mcp-gateway does not run on Windows, since it needs Unix sockets, process groups and signals; use it in WSL:"
        " run `wsl --install` in PowerShell, restart, then install and run the gateway in the Linux that `wsl` opens. A"
        " Windows client starts it with the command `wsl` and the arguments `-e bash -lc 'mcp-gateway connect CONFIG'`,"
        " where CONFIG is a path in that Linux."
    )
    _NAME = sys.argv[0].replace("\\", "/").rpartition("/")[2].removesuffix(".exe").removesuffix("-script.py")
    if _NAME in {"mcp-gateway", "trio-mcp-gateway"} or (
        _NAME == "-m" and not {"gateway", "mcp_gateway"}.isdisjoint(sys.orig_argv)
    ):
        sys.stderr.write(f"{_TEXT}\n")
        sys.exit(2)
    raise ImportError(_TEXT)

_HOMES = {
    "EmbeddedGateway": ("gateway.embed.native", "EmbeddedGateway"),
    "MCPProxyManager": ("gateway.embed.manager", "ProxyManager"),
    "ProxyManager": ("gateway.embed.manager", "ProxyManager"),
    "open_gateway": ("gateway.embed.native", "open_gateway"),
}


def __getattr__(name: str) -> object:
    """Import an exported name on first use."""
    if name not in _HOMES:
        text = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(text)
    from importlib import import_module

    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
