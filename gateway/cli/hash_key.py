"""`mcp-gateway hash-key`: makes a key for a client, and its hash for the config."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

from gateway.cli.flags import JSON, Command, Flag
from gateway.cli.output import UsageError, print_json
from gateway.config.access import AccessKey
from gateway.config.fields import specs_of

if TYPE_CHECKING:
    from gateway.cli.flags import Values

MIN_KEY = 32
"""Characters of a key that a person brings along: it is kept by a hash that is quick to try."""


def key_name(text: str) -> str:
    """The name of a key."""
    if re.search(str(specs_of(AccessKey)["name"].pattern), text) is None:
        message = f"{text!r} is no name; give {specs_of(AccessKey)['name'].title}"
        raise ValueError(message)
    return text


def run(values: Values) -> int:
    """Make a key, or hash the one on stdin, and print what goes where."""
    from gateway.access import keys

    key = None
    if values.stdin:
        key = sys.stdin.readline().strip().removeprefix("\ufeff")
        if len(key) < MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
            message = f"a key must be at least {MIN_KEY} visible ASCII characters, at random"
            raise UsageError(message, "leave --stdin out and one is made")
    made = key or keys.make_key()
    entry = {"name": values.name, "hash": keys.hash_key(made)}
    if values.json:
        print_json({**({} if key else {"key": made}), **entry})
        return 0
    if key is None:
        print(f"key (for the client; it is shown this once): {made}")
    print(f"for access.keys in the config: {json.dumps(entry)}")
    return 0


COMMANDS = (
    Command(
        "hash-key",
        "make a key for a client, and the hash of it for the config",
        run,
        (
            Flag("NAME", "who it is for; logs say it", "NAME", "client", key_name),
            Flag("--stdin", "do not make one: hash the key that is read from stdin", switch=True),
            JSON,
        ),
    ),
)
