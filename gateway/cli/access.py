"""What `serve` takes about who may reach it and how, and `mcp-gateway hash-key`, which makes keys for the config."""

from __future__ import annotations

import json
import re
import string
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli.flags import JSON, Command, Flag
from gateway.cli.output import UsageError, print_json, warn
from gateway.config.access_model import AccessKey
from gateway.config.scalars import specs_of
from gateway.frontends.http.listen_address import InsecureListen

if TYPE_CHECKING:
    from gateway.app import Options
    from gateway.cli.flags import Values
    from gateway.config import Config

MIN_KEY = 32
"""Characters of a key that a person brings along: it is kept by a hash that is quick to try."""


def file_mode(text: str) -> int:
    """A file's mode, such as 660."""
    if not text.isdigit() or set(text) - set(string.octdigits) or int(text, 8) > 0o777:
        message = f"{text!r} is no file mode; give one like 600 or 660"
        raise ValueError(message)
    return int(text, 8)


def key_name(text: str) -> str:
    """The name of a key."""
    if re.search(str(specs_of(AccessKey)["name"].pattern), text) is None:
        message = f"{text!r} is no name; give {specs_of(AccessKey)['name'].title}"
        raise ValueError(message)
    return text


LISTENING = (
    Flag("--insecure", "serve other machines although the config has no keys: everybody may use it", switch=True),
    Flag("--tls-cert", "serve TLS with this certificate (PEM, with its chain)", "FILE", parse=Path),
    Flag("--tls-key", "its key (PEM; default: in the file of the certificate)", "FILE", parse=Path),
    Flag("--uds", "listen on a Unix socket at this path instead of --host and --port", "PATH", parse=Path),
    Flag("--uds-mode", "its file mode: who on this machine may connect (default 600)", "MODE", 0o600, file_mode),
)


def listening(values: Values) -> dict[str, Any]:
    """The options of the gateway that these flags are for. Raises UsageError."""
    if values.tls_key is not None and values.tls_cert is None:
        message = "--tls-key needs --tls-cert"
        raise UsageError(message, "mcp-gateway serve --help")
    names = ("insecure", "tls_cert", "tls_key", "uds", "uds_mode")
    return {name: getattr(values, name) for name in names}


def check_exposure(options: Options, config: Config) -> None:
    """Raise UsageError where a network would be let in without keys; warn of keys that travel in the clear."""
    if "stdio" in options.transports:
        return
    binding = options.binding
    if not options.insecure:
        try:
            binding.check(config.access)
        except InsecureListen as exc:
            raise UsageError(str(exc), exc.hint) from None
    if (
        not binding.is_private
        and binding.tls_cert is None
        and config.access is not None
        and config.access.requires_credentials
    ):
        warn("keys travel unencrypted; give --tls-cert, or serve loopback only and put a proxy with TLS before it")


def hash_key(values: Values) -> int:
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
        hash_key,
        (
            Flag("NAME", "who it is for; logs say it", "NAME", "client", key_name),
            Flag("--stdin", "do not make one: hash the key that is read from stdin", switch=True),
            JSON,
        ),
    ),
)
