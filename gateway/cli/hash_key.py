"""`mcp-gateway hash-key`: make a key for a client, and its hash for the config."""

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
"""Minimum length of a user's own key: its stored hash is fast to brute-force."""


def key_name(text: str) -> str:
    """Parse the name of a key."""
    if re.search(str(specs_of(AccessKey)["name"].pattern), text) is None:
        message = f"{text!r} is not a name; give {specs_of(AccessKey)['name'].title}"
        raise ValueError(message)
    return text


def run(values: Values) -> int:
    """Make a key, or hash stdin's; print the entries for client and config."""
    from gateway.access import keys

    key = None
    if values.stdin:
        key = sys.stdin.readline().strip().removeprefix("\ufeff")
        if len(key) < MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
            message = f"a key must be at least {MIN_KEY} random visible ASCII characters"
            raise UsageError(message, "omit --stdin to have one made")
    made = key or keys.make_key()
    entry = {"name": values.name, "hash": keys.hash_key(made)}
    if values.json:
        print_json({**({} if key else {"key": made}), **entry})
        return 0
    if key is None:
        print(f"key (for the client; shown only now): {made}")
    print(f"for access.keys in the config: {json.dumps(entry)}")
    return 0


COMMANDS = (
    Command(
        "hash-key",
        "generate an API key for a client, and its hash for the config",
        run,
        (
            Flag("NAME", "name of the key's owner, for logs", "NAME", "client", key_name),
            Flag("--stdin", "hash the key on stdin instead of making one", switch=True),
            JSON,
        ),
    ),
)
