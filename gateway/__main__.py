"""`python -m gateway`, and the script `mcp-gateway`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; `connect` without the imports of other commands."""
    if sys.argv[1:2] == ["connect"]:
        from gateway.relay import main as connect
        from gateway.version import VERSION

        status = connect(sys.argv[2:], VERSION)
        if status is not None:
            return status
    from gateway.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
