"""An MCP gateway on trio: many MCP servers behind one endpoint, and no child that outlives it.

This package exports only what programs embed; everything is imported on first use, because a desktop client that
starts the gateway over stdio must not pay for what it does not use.
"""

from __future__ import annotations

__version__ = "0.1.0"
