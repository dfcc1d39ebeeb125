"""Take-over by `install`: a client's servers move to the gateway's config.

A server stays in the client if moving it would break it or lose something: it depends on the client's project or on a
variable that is not set here, `serve` would refuse it, or the config has another server of that name.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gateway.cli.clients import read_client
from gateway.cli.importing import agreed, learn, lines_of, make_plan, section_of
from gateway.cli.output import CommandError, counted, print_error, warn
from gateway.config import parse_config
from gateway.config.files import CommandCollector
from gateway.config.parse import files_of
from gateway.config.substitution import KNOWN_TO_ALL
from gateway.errors import ConfigError
from gateway.relay.places import variables_in

if TYPE_CHECKING:
    from gateway.cli.editing import Document
    from gateway.cli.flags import Values

NO_PROJECT: Final = Path("/nonexistent")
"""The project folder with which a client's user-wide servers are read."""
_OTHERS: Final = 0o077


def _is_relative(server: dict[str, Any]) -> bool:
    """Return whether a server's command depends on the folder of its client."""
    command, cwd = server.get("command"), server.get("cwd")
    paths = [cwd, command if "/" in str(command) else None]
    return any(isinstance(path, str) and path[:1] not in {"", "/", "~", "$"} for path in paths)


class Moved(NamedTuple):
    """What moves from one client, and what to show about it."""

    new: dict[str, Any]
    """The servers that the config gets."""
    removed: list[str]
    """Their names in the client, with those of servers that the config has already."""
    shown: list[str]
    warnings: list[str]


class TakeOver:
    """The gateway's config, and the servers that it gets from all clients of one `install`."""

    def __init__(self, values: Values, config: Document) -> None:
        self._values = values
        self._config = config
        self._section = section_of(config)
        self._servers: dict[str, Any] = {**(config.member([self._section]) or {})}
        self._new: list[str] = []
        self._saved: list[str] = []

    def offer(self, client: str, document: Document, section: str, entry: str) -> list[str]:
        """Show the client's servers and ask; return the names to remove.

        Without `--take-over` they are offered only at a terminal, and never moved without consent. `entry` is the
        name of the gateway's own entry.
        """
        if document.data is None or not set(document.member([section]) or {}) - {entry}:
            return []
        moved = self._find(document, section, entry)
        servers, where = counted(len(moved.removed), "server"), self._config.path
        asks = not self._values.take_over
        if asks and (self._values.yes or not sys.stdin.isatty()):
            if moved.removed:
                print_error(f"note: {client} has {servers} of its own; --take-over moves them to {where}")
            return []
        if moved.removed:
            print("\n".join(moved.shown))
        for text in moved.warnings:
            warn(text)
        if not moved.removed or (asks and not agreed(f"move {servers} of {client} to {where}?")):
            return []
        self._servers |= moved.new
        self._new += moved.new
        return moved.removed

    def _find(self, document: Document, section: str, entry: str) -> Moved:
        """Return the servers that can move, and what to show."""
        path, where = document.path, self._config.path
        entries: dict[str, Any] = document.member([section])
        found = read_client(str(path), os.environ, NO_PROJECT, None)
        for name in [name for name in found.servers if found.names[name] not in entries or found.names[name] == entry]:
            del found.servers[name]
        for name in found.servers:
            if "workspaceFolder" in str(entries[found.names[name]]) or _is_relative(found.servers[name]):
                found.skipped[name] = "it depends on the folder of the client's project"
        plan = make_plan(found, self._servers, where)
        for name in plan.present:
            if not self._is_same(self._servers[name], found.servers[name]):
                found.skipped[name] = f"{where} has another server of that name"
        for name, lacking in plan.unset.items():
            found.skipped.setdefault(name, f"it needs {', '.join(lacking)} from the environment, not set here")
        new = {name: one for name, one in plan.new.items() if name not in found.skipped}
        same = [name for name in plan.present if name not in found.skipped]
        return Moved(
            {name: found.servers[name] for name in new},
            [found.names[name] for name in (*new, *same)],
            [f"{path}:", *lines_of(new), *(f"  {name}: already in {where}" for name in same)],
            [f"server {name!r} stays in {path}: {why}" for name, why in found.skipped.items()]
            + [
                f"{found.names[name]!r} in {path} is a gateway too; mcp-gateway uninstall --name removes it"
                for name in found.own
                if found.names[name] != entry
            ],
        )

    def _is_same(self, first: Any, second: Any) -> bool:
        """Return whether two entries mean the same server, however they are spelled."""
        meanings: list[Any] = []
        for entry in (first, second):
            files = CommandCollector(files_of(self._config.path, os.environ))  # nothing is run before the consent
            try:
                config = parse_config({"mcpServers": {"x": entry}}, environ=os.environ, files=files)
            except ConfigError:
                return False
            meanings.append((config.servers, files.commands))
        return meanings[0] == meanings[1]

    def variables(self) -> list[str]:
        """Return the set variables that the config and the moved servers use."""
        used = variables_in(f"{self._config.text}{json.dumps(self._servers)}".encode(errors="surrogatepass"))
        return [name for name in used if name in os.environ and name not in KNOWN_TO_ALL]

    def save(self) -> None:
        """Write the config with the moved servers, once it is valid as a whole.

        Raises:
            ConfigError: it is not.
            CommandError: it cannot be changed or written, or there is none.
        """
        if not self._new:
            if self._config.data is None:
                problem = f"{self._config.path} does not exist, and no server moves to it"
                raise CommandError(problem, f"mcp-gateway add NAME --config {self._config.path} -- COMMAND")
            return
        for name in self._new:
            self._config.edit((self._section, name), self._servers[name])
        path = self._config.path
        parse_config(self._config.root, environ=os.environ, files=files_of(path, os.environ))
        self._config.save()
        self._saved = self._new
        print_error(f"{path}: added {', '.join(self._new)}")
        if path.stat().st_mode & _OTHERS:
            warn(f"other users can read {path}, to which values of servers were moved; run chmod 600 {path}")

    def learn(self) -> None:
        """Start each moved server once and save its lists."""
        if self._saved:
            print_error("starting each moved server once to learn its lists")
            learn(self._saved, self._values)
