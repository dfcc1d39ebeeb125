"""How long a list may wait for a slow backend: measurements by client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway import jsonrpc
from gateway.config.model import GatewaySettings

if TYPE_CHECKING:
    import msgspec

SHARE: Final = 0.6
"""Fraction of a client's patience that a list may use; the rest is for its other requests, and for a busy machine."""
PATIENCE: Final[dict[str, float]] = {
    "ai-sdk-mcp-client": 15.0,  # @ai-sdk/mcp 1.0.102, `tools()`
    "fastmcp": 15.0,  # fastmcp 4.2.3, `list_tools()`, and pydantic-ai 2.68.0, which documents 300 s
    "gemini-cli-mcp-client": 15.0,  # Gemini CLI 0.61.0, `gemini -p`; documents 600 s
    "inspector-cli": 15.0,  # Inspector 0.15.0, `--cli --method tools/list`; documents 60 s
    "mcp-use": 15.0,  # mcp-use 1.7.1, `list_tools()`
}
"""Seconds after which a client still accepted a list and used its tools, by the name in its `clientInfo`.

Measured with a server on stdio that answers `initialize` immediately and `tools/list` after 15 s. Not listed: clients
that would gain nothing or that wait less than 7 s in some version or program: Claude Code 2.1.197 (`claude -p` drops
servers that are not ready within 2 s, and accepts changes later), Codex 0.171.0 (`codex exec` does not wait; documents
10 s), opencode (1.18.33 waited 15 s; documents 5 s), and `mcp`, the name of every program on the Python SDK
(openai-agents 0.24.0 waits for 5 s).
"""
DEFAULT_GRACE: Final = GatewaySettings().start_grace


def list_patience(client_info: msgspec.Raw, start_grace: float) -> float:
    """Return the seconds that a list may wait for backends without a known catalog.

    Args:
        client_info: the client's `clientInfo`.
        start_grace: the operator's setting, which applies to every client unless it is the default.
    """
    if start_grace != DEFAULT_GRACE:
        return start_grace
    try:
        name = jsonrpc.decode_string(jsonrpc.decode_object(client_info)["name"])
    except (KeyError, ValueError):
        return start_grace
    return max(start_grace, SHARE * PATIENCE.get(name, 0.0))
