"""`mcp-gateway add` and `remove`: edit one server of a config, preserving comments and order.

An added server is started once, which shows its tools and completes the first list of the first client.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from gateway.cli.doctor import examine, show
from gateway.cli.editing import Document
from gateway.cli.flags import Command, Flag, Values
from gateway.cli.importing import describe, section_of
from gateway.cli.options import STATE, load, names_in_config, state_directory
from gateway.cli.output import CommandError, UsageError, print_error
from gateway.cli.stateful import reason_for, with_session
from gateway.store import Store

CONFIG = Flag("--config", "the config file, created if missing", "FILE", parse=Path, required=True)


def add(values: Values) -> int:
    """Write the server, start it once, show its tools; return 1 on a failure."""
    document = Document(values.config)
    keys = (section_of(document), values.name)
    if document.member(keys) is not None and not values.force:
        problem = f"{values.config} already has a server {values.name!r}"
        raise CommandError(problem, "--force replaces it")
    if not values.word:
        problem = f"server {values.name!r} has neither a command nor a URL"
        raise UsageError(problem, "mcp-gateway add NAME --config FILE -- COMMAND ARGUMENTS, or a URL after FILE")
    variables: dict[str, str] = {}
    for pair in values.env:
        name, sign, value = pair.partition("=")
        if not sign:
            problem = f"--env {pair}: it has no value"
            raise UsageError(problem, "--env NAME=VALUE")
        variables[name] = value
    first, *rest = values.word
    entry: dict[str, Any]
    if first.startswith(("http://", "https://")):
        if rest or variables:
            problem = "a remote server has neither arguments nor variables"
            raise UsageError(problem, "write its 'headers' into the config")
        entry = {"url": first}
    else:
        entry = {"command": first, "args": rest, **({"env": variables} if variables else {})}
    entry = with_session(entry)
    if "session" in entry:
        print_error(f"each client gets a process of its own: {reason_for(entry)}")
    described = describe(values.name, entry, values.config)  # before anything is written
    document.edit(keys, entry)
    document.save()
    print_error(f"{values.config}: added {values.name!r}, which {described['runs']}; starting it once")
    config = load(values.config)
    server = config.servers[values.name]
    found = examine(msgspec.structs.replace(config, servers={values.name: server}), values)
    show(found)
    listing = Store(state_directory(values)).load_catalog(server)
    if listing is not None and found[values.name]["ok"]:
        for kind, items in listing.items.items():
            for item in items:
                print(f"  {kind.name.lower()}: {item.own}")
    return 0 if found[values.name]["ok"] else 1


def remove(values: Values) -> int:
    """Remove a server from the config."""
    document = Document(values.config)
    keys = (section_of(document), values.name)
    if document.member(keys) is None:
        problem = f"{values.config} has no server {values.name!r}"
        known = ", ".join(document.member(keys[:1]) or {}) or "none"
        raise CommandError(problem, f"it has {known}")
    document.edit(keys, None)
    document.save()
    print_error(f"{values.config}: removed {values.name!r}")
    return 0


COMMANDS = (
    Command(
        "add",
        "add a server to a config, start it once, and show what it offers",
        add,
        (
            Flag("NAME", "the server's name", required=True),
            Flag("WORD", "the server's command and arguments, after --; or its URL", many=True),
            CONFIG,
            Flag(
                "--env",
                "environment variable of the server; as ${NAME} a secret stays out of the file",
                "NAME=VALUE",
                many=True,
            ),
            Flag("--force", "replace a server of the same name", switch=True),
            STATE,
        ),
        epilog="Example: mcp-gateway add time --config config.json -- uvx mcp-server-time",
    ),
    Command(
        "remove",
        "remove a server from a config",
        remove,
        (
            Flag("NAME", "the server's name", required=True, complete=names_in_config),
            msgspec.structs.replace(CONFIG, help="the config file"),
        ),
    ),
)
