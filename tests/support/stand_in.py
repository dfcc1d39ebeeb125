"""A replacement for `uvx PACKAGE` and `npx PACKAGE`: serves the tools of the documentation pages."""

from __future__ import annotations

import sys

from gateway.demo import servers

ZONE = {"type": "object", "properties": {"timezone": {"type": "string"}}, "required": ["timezone"]}
PACKAGES = {
    "mcp-server-time": {"get_current_time": ("Tell the time.", ZONE, lambda given: f"12:00 in {given['timezone']}")},
    "@modelcontextprotocol/server-everything": servers.SERVERS["echo"],
}

if __name__ == "__main__":
    package = sys.argv[-1]
    if package not in PACKAGES:
        sys.exit(f"there is no package {package}")
    servers.SERVERS[package] = PACKAGES[package]
    sys.argv[1:] = [package]
    servers.main()
