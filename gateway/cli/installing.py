"""`mcp-gateway install` and `uninstall`: the gateway's entry in the configs of MCP clients.

Each client gets an entry that runs `connect`, with tool names that it accepts (docs/clients.md). The changes are shown
first, without secrets; files keep their comments and order, and a backup is saved.
"""

from __future__ import annotations

import difflib
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from gateway.cli.clients import CLIENTS, places, runs_gateway
from gateway.cli.editing import BACKUP, Document, write_json
from gateway.cli.flags import Command, Flag, Values
from gateway.cli.importing import agreed
from gateway.cli.output import CommandError, UsageError, error, print_error, printable
from gateway.cli.places import mask_line
from gateway.cli.program import program_words, run_program
from gateway.cli.takeover import NO_PROJECT, TakeOver
from gateway.config import load_config
from gateway.store import default_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ENTRY: Final = "gateway"
"""The default name of the entry."""


class Program(NamedTuple):
    """A client's own commands for writing; `{name}` and `{json}` are replaced by the entry's."""

    add: tuple[str, ...]
    """Arguments, followed by the server's command line unless they include `{json}`."""
    remove: tuple[str, ...]


class Client(NamedTuple):
    """The config format of one client."""

    section: str
    """The path of the servers in its file."""
    names: tuple[str, ...] = ()
    """Options of `connect` for the tool names that it accepts."""
    members: tuple[tuple[str, Any], ...] = ()
    """Members of an entry besides its command."""
    forwards: str = ""
    """The member for variables, if it does not pass all of its own on: a list of names, or `env` of references."""
    one_list: bool = False
    """Whether command and arguments are one list."""
    executable: str = ""
    """The client's program, if it can be on PATH."""
    program: Program | None = None
    """Its commands, preferred for writing."""

    def entry(self, command: list[str], variables: list[str]) -> dict[str, Any]:
        """Return the client's entry for a command line that needs these variables."""
        if self.one_list:
            return {**dict(self.members), "command": command}
        entry = {**dict(self.members), "command": command[0], "args": command[1:]}
        if self.forwards and variables:
            entry[self.forwards] = variables if self.forwards != "env" else {name: f"${name}" for name in variables}
        return entry

    def find_program(self) -> str | None:
        """Return the path of the client's program."""
        return shutil.which(self.executable) if self.executable else None


_UNDERSCORES = ("--separator", "__")
_SHORT = (*_UNDERSCORES, "--max-name-length", "48")
_CLAUDE = Program(
    ("mcp", "add-json", "--scope", "user", "{name}", "{json}"),
    ("mcp", "remove", "--scope", "user", "{name}"),
)
_CODEX = Program(("mcp", "add", "{name}", "--"), ("mcp", "remove", "{name}"))
TABLE: Final = {
    "claude": Client("mcpServers", (*_UNDERSCORES, "--max-name-length", "64")),
    "claude-code": Client("mcpServers", _SHORT, (("type", "stdio"),), executable="claude", program=_CLAUDE),
    "cursor": Client("mcpServers", _SHORT, executable="cursor"),
    "vscode": Client("servers", (), (("type", "stdio"),), executable="code"),
    "windsurf": Client("mcpServers", _SHORT, executable="windsurf"),
    "codex": Client("mcp_servers", _UNDERSCORES, forwards="env_vars", executable="codex", program=_CODEX),
    # `gemini mcp add` parses the options of a server's command as its own, so its file is edited.
    "gemini": Client("mcpServers", ("--max-name-length", "48"), forwards="env", executable="gemini"),
    "opencode": Client("mcp", _SHORT, (("type", "local"), ("enabled", True)), one_list=True, executable="opencode"),
    "copilot": Client("mcpServers", _UNDERSCORES, (("type", "local"), ("tools", ["*"]))),  # AWS has a `copilot` too
}


class Change(NamedTuple):
    """The planned change for one client: a file's edit, or its own command."""

    client: str
    shown: str
    document: Document
    commands: Sequence[list[str]] = ()


def install(values: Values) -> int:
    """Connect one client, or all installed ones; return 1 if one failed."""
    if values.config.exists() or not values.take_over:
        load_config(values.config, environ=os.environ)  # a client would only report that its server does not start
    take_over = TakeOver(values, Document(values.config))
    status = _run(values, lambda client: _install(client, values, take_over), take_over.save)
    take_over.learn()
    return status


def uninstall(values: Values) -> int:
    """Remove the entry from one client, or from all."""
    return _run(values, lambda client: _uninstall(client, values))


def _run(values: Values, prepare: Callable[[str], Change | None], before: Callable[[], None] = lambda: None) -> int:
    """Prepare, show and apply the changes; return 1 if something failed.

    `before` is called after the consent.
    """
    if bool(values.client) == values.all:
        problem = "no client was given; give one, or --all" if not values.client else "give a client or --all, not both"
        raise UsageError(problem, ", ".join(CLIENTS))
    if values.client and values.client not in TABLE:
        problem, command = f"unknown client {values.client!r}", connect_command(Path("FILE"), _UNDERSCORES)
        entry = {"mcpServers": {ENTRY: {"command": command[0], "args": command[1:]}}}
        raise CommandError(problem, f"write this into its config: {write_json(entry)}")
    clients = [values.client]
    if values.all:
        folders = {client: _file(client).parent for client in CLIENTS}
        clients = [
            client
            for client, folder in folders.items()
            if TABLE[client].find_program() or _file(client).is_file() or (folder.is_dir() and folder != Path.home())
        ]
    if not clients:
        problem = "no known client is installed here"
        raise CommandError(problem, ", ".join(CLIENTS))
    changes: list[Change] = []
    failed = False
    for client in clients:
        try:
            change = prepare(client)
        except CommandError as exc:
            if not values.all:
                raise
            error(f"{client}: {exc}", exc.hint)
            failed = True
            continue
        if change is None:
            print(f"{client}: nothing to change")
        else:
            print(f"{client}:\n{change.shown}")
            changes.append(change)
    sys.stdout.flush()  # before what stderr says of them
    if changes and not (values.yes or agreed("change this?")):
        print_error("nothing was written")
        return 1
    before()
    for change in changes:
        try:
            _apply(change)
        except CommandError as exc:
            if not values.all:
                raise
            error(f"{change.client}: {exc}", exc.hint)
            failed = True
    return 1 if failed else 0


def _install(client: str, values: Values, take_over: TakeOver) -> Change | None:
    row = TABLE[client]
    command = connect_command(values.config, row.names, view=values.view)
    document = Document(_file(client))
    keys = (row.section, values.name)
    present = document.member(keys)
    if present is not None and not _is_ours(present):
        problem = f"{document.path} has an entry {values.name!r} of another program"
        raise CommandError(problem, "choose another name: --name NAME")
    moved = take_over.offer(client, document, row.section, values.name)
    entry = row.entry(command, take_over.variables())
    program = row.find_program()
    if row.program is None or program is None or row.forwards in entry:  # its command cannot write that member
        edits = [] if present == entry else [(values.name, entry)]
        return _edit(client, document, row.section, [*edits, *((name, None) for name in moved)])
    commands: list[list[str]] = []
    if present != entry:
        words = row.program.add if "{json}" in row.program.add else (*row.program.add, *command)
        commands = [_filled(row.program.remove, values.name)] if present is not None else []
        commands.append(_filled(words, values.name, write_json(entry)))
    commands += [_filled(row.program.remove, name) for name in moved]
    return _own_command(client, document, program, commands)


def _uninstall(client: str, values: Values) -> Change | None:
    row = TABLE[client]
    document = Document(_file(client))
    present = document.member((row.section, values.name))
    if present is None:
        return None
    if not _is_ours(present):
        problem = f"the entry {values.name!r} in {document.path} belongs to another program"
        raise CommandError(problem, "name the entry: --name NAME")
    program = row.find_program()
    if row.program is None or program is None:
        return _edit(client, document, row.section, [(values.name, None)])
    return _own_command(client, document, program, [_filled(row.program.remove, values.name)])


def _filled(words: Sequence[str], name: str, json: str = "") -> list[str]:
    meanings = {"name": name, "json": json}
    return [meanings[word[1:-1]] if word[:1] == "{" else word for word in words]


def _own_command(client: str, document: Document, program: str, steps: list[list[str]]) -> Change | None:
    commands = [[program, *step] for step in steps]
    shown = "\n".join(printable(f"  runs {shlex.join(one)}") for one in commands)
    return Change(client, shown, document, commands) if commands else None


def _edit(
    client: str, document: Document, section: str, edits: Sequence[tuple[str, dict[str, Any] | None]]
) -> Change | None:
    before = document.text
    known: set[str] = set()
    for name, entry in edits:
        ours = entry or document.member((section, name))
        if _is_ours(ours):
            known |= {line.strip(" ,") for line in write_json({name: ours}, 2).splitlines()}
        document.edit((section, name), entry)
    changed = list(difflib.unified_diff(before.splitlines(), document.text.splitlines(), n=0, lineterm=""))[2:]
    lines = [
        f"  {line[0]} {line[1:] if line[1:].strip(' ,') in known else mask_line(line[1:])[0]}"
        for line in changed
        if not line.startswith("@@")
    ]
    return Change(client, "\n".join([f"  {document.path}", *lines]), document) if edits else None


def _apply(change: Change) -> None:
    saved = f"; before: {change.document.path.name}{BACKUP}" if change.document.data is not None else ""
    if not change.commands:
        change.document.save(backup=True)
        print_error(f"{change.client}: written{saved}; restart the client")
        return
    change.document.save_backup()
    for command in change.commands:
        run_program(command)
    print_error(f"{change.client}: done{saved}; restart the client")


def connect_command(config: Path, names: Sequence[str], *, view: str | None = None) -> list[str]:
    """Return the command line that a client starts."""
    chosen = [] if view is None else ["--view", view]
    state = default_directory(os.environ)
    if state != default_directory({}):  # a client may not pass the variable on that chose it
        chosen += ["--state-dir", str(state.absolute())]
    return [*program_words(), "connect", "--config", str(config.absolute()), *names, *chosen]


def _is_ours(entry: Any) -> bool:
    return isinstance(entry, dict) and runs_gateway(cast("dict[str, Any]", entry))


def _file(client: str) -> Path:
    """Return the user's file, not a project's; of several, an existing one."""
    found = places(client, os.environ, NO_PROJECT)
    own = [path for path in found if not path.is_relative_to(NO_PROJECT)]
    return next((path for path in own if path.is_file()), own[0])


CLIENT = Flag("CLIENT", f"one of {', '.join(CLIENTS)}", complete=lambda _given: tuple(CLIENTS))
ALL = Flag("--all", "all installed clients", switch=True)
NAME = Flag("--name", "the name of the entry", "NAME", ENTRY)
YES = Flag("--yes", "write without asking", switch=True)
COMMANDS = (
    Command(
        "install",
        "connect an MCP client: write this gateway into its config",
        install,
        (
            CLIENT,
            Flag("--config", "the gateway's config file", "FILE", parse=Path, required=True),
            Flag("--view", "what the client sees: this view of the config", "NAME"),
            Flag("--take-over", "move the client's servers to the config; asked at a terminal otherwise", switch=True),
            ALL,
            NAME,
            YES,
        ),
    ),
    Command(
        "uninstall",
        "remove this gateway from the config of an MCP client",
        uninstall,
        (CLIENT, ALL, NAME, YES),
    ),
)
