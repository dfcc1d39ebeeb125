"""`mcp-gateway service`: an always-on gateway of this user, run by systemd or launchd.

The systemd units keep the address in a socket, as the system's units in `deploy/systemd` do. On macOS it is a launchd
agent, which has no such socket.
"""

from __future__ import annotations

import os
import plistlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.cli.editing import replace_file
from gateway.cli.flags import Command, Flag, Values
from gateway.cli.importing import agreed
from gateway.cli.options import ADDRESS, load
from gateway.cli.output import CommandError, UsageError, print_error, warn
from gateway.cli.program import PROGRAM_TIMEOUT, program_words, run_program
from gateway.config.substitution import home_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NAME: Final = "mcp-gateway"
SERVICE: Final = """\
[Unit]
Description=MCP gateway of this user
Requires=mcp-gateway.socket

[Service]
Type=exec
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
KillMode=mixed
TimeoutStopSec=15
Restart=on-failure
# A user service does not have the PATH of your shell. The gateway keeps its state in ~/.local/state.
Environment=PATH=%h/.local/bin:%h/.cargo/bin:/usr/local/bin:/usr/bin:/bin

UMask=0077
LockPersonality=yes
NoNewPrivileges=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native

[Install]
WantedBy=default.target
Also=mcp-gateway.socket
"""
SOCKET: Final = """\
[Unit]
Description=Address of the MCP gateway of this user

[Socket]
ListenStream=127.0.0.1:{port}
Backlog=1024

[Install]
WantedBy=sockets.target
"""
_PLAIN: Final = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


class Manager(NamedTuple):
    """The files and commands of a service manager."""

    files: dict[Path, bytes]
    program: str
    start: tuple[tuple[str, ...], ...]
    """The commands after the files have been written."""
    stop: tuple[str, ...]
    """The command before they are removed or replaced."""
    forget: tuple[tuple[str, ...], ...]
    """The commands after they have been removed."""
    status: tuple[str, ...]
    advice: str


def systemd(command: Sequence[str], port: int, environ: Mapping[str, str]) -> Manager:
    """Return the units of a user's systemd."""
    folder = Path(environ.get("XDG_CONFIG_HOME") or f"{home_of(environ)}/.config") / "systemd" / "user"
    units = (f"{NAME}.socket", f"{NAME}.service")
    words = [unit_word(word) for word in command]
    words[:1] = [word.replace("$$", "$") for word in words[:1]]  # the program: the only one without variables
    texts = (SOCKET.format(port=port), SERVICE.format(command=" ".join(words)))
    user = ("systemctl", "--user")
    return Manager(
        {folder / unit: text.encode() for unit, text in zip(units, texts, strict=True)},
        "systemctl",
        ((*user, "daemon-reload"), (*user, "enable", "--now", *units)),
        (*user, "disable", "--now", *units),
        ((*user, "daemon-reload"),),
        (*user, "--no-pager", "status", *units),
        "it stops when you log out, unless you run: loginctl enable-linger",
    )


def launchd(command: Sequence[str], environ: Mapping[str, str]) -> Manager:
    """Return the agent of a user's launchd."""
    home = home_of(environ)
    path = Path(f"{home}/Library/LaunchAgents/{NAME}.plist")
    log = f"{home}/Library/Logs/{NAME}.log"
    agent = {
        "Label": NAME,
        "ProgramArguments": [*command],
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ExitTimeOut": 15,
        "EnvironmentVariables": {"PATH": f"{home}/.local/bin:/opt/homebrew/bin:/usr/local/bin:/usr/bin:/bin"},
        "StandardErrorPath": log,
    }
    domain = f"gui/{os.getuid()}"
    return Manager(
        {path: plistlib.dumps(agent)},
        "launchctl",
        (("launchctl", "bootstrap", domain, str(path)),),
        ("launchctl", "bootout", f"{domain}/{NAME}"),
        (),
        ("launchctl", "print", f"{domain}/{NAME}"),
        f"its log is {log}",
    )


def unit_word(word: str) -> str:
    """Return a word of a command line, quoted for systemd."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    escaped = escaped.replace("\n", "\\n").replace("\r", "\\r")  # systemd ends a line at either
    return escaped if _PLAIN.fullmatch(word) else f'"{escaped}"'


def run(values: Values) -> int:
    """Install, uninstall or show the service."""
    if values.action == "install":
        return _install(values)
    manager = _manager((), values.port)
    installed = [str(path) for path in manager.files if path.exists()]
    if not installed:
        print(f"no service is installed ({', '.join(map(str, manager.files))})")
        return 0 if values.action == "uninstall" else 1
    _require(manager)
    if values.action == "status":
        return _show_status(manager)
    if not (values.yes or agreed(f"stop the service and remove {', '.join(installed)}?")):
        print_error("nothing was changed")
        return 1
    _stop(manager)
    for path in manager.files:
        path.unlink(missing_ok=True)
    for command in manager.forget:
        run_program(command)
    print_error("the service was removed")
    return 0


def _show_status(manager: Manager) -> int:
    """Let the service manager print the status; return its exit code."""
    try:
        return subprocess.run(manager.status, stdin=subprocess.DEVNULL, timeout=PROGRAM_TIMEOUT, check=False).returncode
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CommandError(f"{' '.join(manager.status)}: {exc}") from None


def _install(values: Values) -> int:
    if values.config is None:
        problem = "no config file was given"
        raise UsageError(problem, "mcp-gateway service install --config FILE")
    config = load(values.config)
    port = ("--port", str(values.port)) if sys.platform == "darwin" else ()  # else the socket unit has it
    served = ("serve", "--config", str(values.config.absolute()), "--transport", "http", *port)
    try:
        manager = _manager([*program_words(), *served], values.port)
    except ValueError:  # not UTF-8, or for launchd a control character
        problem = f"the path {str(values.config)!r} has characters that the file of a service cannot have"
        raise CommandError(problem, "rename it") from None
    for path, data in manager.files.items():
        print(f"# {path}\n{data.decode()}", flush=True)
    if values.print:
        return 0
    _require(manager)
    spelled = {*config.masked.values(), *(text for one in config.servers.values() for text in one.masked.values())}
    if variables := sorted(text[2:-1] for text in spelled if ":" not in text):
        warn(f"the service does not get {', '.join(variables)} from this shell; use ${{file:PATH}} in the config")
    if not (values.yes or agreed("write and start this?")):
        print_error("nothing was written")
        return 1
    if any(path.exists() for path in manager.files):
        _stop(manager)
    for path, data in manager.files.items():
        replace_file(path, data)
    try:
        for command in manager.start:
            run_program(command)
    except CommandError as exc:
        raise CommandError(str(exc), "the files are written; run this again in a login session of this user") from None
    print_error(f"serving at http://127.0.0.1:{values.port}/mcp; {manager.advice}")
    return 0


def _manager(command: Sequence[str], port: int) -> Manager:
    return launchd(command, os.environ) if sys.platform == "darwin" else systemd(command, port, os.environ)


def _require(manager: Manager) -> None:
    if shutil.which(manager.program) is None:
        problem = f"this machine has no {manager.program}, so it cannot run services this way"
        raise CommandError(problem, f"{NAME} service install --print shows the files; {NAME} serve runs without them")


def _stop(manager: Manager) -> None:
    try:
        run_program(manager.stop)
    except CommandError as exc:  # it does not run
        warn(str(exc))


COMMANDS = (
    Command(
        "service",
        "run this gateway as a service of this user, always on (systemd, launchd)",
        run,
        (
            Flag("ACTION", "what to do", required=True, choices=("install", "uninstall", "status")),
            Flag("--config", "the gateway's config file, for install", "FILE", parse=Path),
            next(flag for flag in ADDRESS if flag.name == "--port"),
            Flag("--print", "show the files without writing them", switch=True),
            Flag("--yes", "change without asking", switch=True),
        ),
    ),
)
