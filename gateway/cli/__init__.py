"""The command line: arguments, exit codes, and output for people. The only room that prints or exits.

Exit codes: 0 all is well, 1 something failed, 2 the command line or the config is wrong. Everything for people goes to
stderr in stdio mode, where stdout belongs to the protocol.
"""

from gateway.cli.main import main

__all__ = ["main"]
