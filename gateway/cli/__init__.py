"""The command line: arguments, exit codes, output. Only this package prints or exits.

Exit codes: 0 success, 1 failure, 2 the command line or the config is wrong. In stdio mode readable output goes to
stderr, since stdout belongs to the protocol.
"""

from gateway.cli.main import main

__all__ = ["main"]
