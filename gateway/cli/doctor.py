"""`mcp-gateway doctor`: start each server of a config once and report the findings.

The servers are started concurrently and independently, so one that hangs does not delay the others; there are no
restarts and no queues. Their lists are saved in the state directory, so that a client's first list is complete; `check
--start` and `import` examine servers for this too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import trio

from gateway import jsonrpc
from gateway.backends.stderr import SHOWN_LINES, shown
from gateway.backends.stdio import child_environment
from gateway.cli.flags import JSON, Command, Flag, Values
from gateway.cli.management import WHERE
from gateway.cli.options import CONFIG, FILE, STATE, config_path, load, state_directory, warn_of_state
from gateway.cli.output import RED, UsageError, counted, painted, print_json
from gateway.eras.asks import ROOTS
from gateway.errors import BackendError, BackendTooSlow, ConfigError, GatewayError, code_of, first_in_group
from gateway.masking import SECRETS
from gateway.processes.spawn import find_program
from gateway.store import ERA_MAX_AGE, OVERDUE, Store, eras_of

if TYPE_CHECKING:
    from pathlib import Path

    import msgspec

    from gateway.backends.opener import SessionOpener
    from gateway.catalog.listing import Listing
    from gateway.config import Config, ServerConfig
    from gateway.processes.guard import ChildGuard

MAX_NAME: Final = 64
"""Maximum length of a tool's name in the strictest clients."""
STOP_MARGIN: Final = 5.0
"""Seconds added to the shutdown sequence for a server's end."""
PROCESSES_LEFT: Final = "processes_left"
"""The code of a working server whose processes outlive it."""
NAMES_FIX: Final = (
    f"connect those clients to http://HOST:PORT/mcp?separator=__&max_name_length={MAX_NAME}, or with"
    f" 'serve --separator __ --max-name-length {MAX_NAME}'"
)
_TAKEN_BY_ALL: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


def run(values: Values) -> int:
    """Examine all servers, or the running gateway; return 1 if a server does not work."""
    if values.running:
        from gateway.cli.diagnosing import run_running

        return run_running(values)
    if values.url is not None:
        problem = "--url names a running gateway; give --running too"
        raise UsageError(problem, "mcp-gateway doctor --help")
    path = config_path(values)
    config = load(path, state_directory(values))
    found = examine(config, values)
    _note_requests(found, config, path, values)
    if values.json:
        print_json(found)
    else:
        show(found)
    return 0 if all(one["ok"] for one in found.values()) else 1


def _note_requests(found: dict[str, dict[str, Any]], config: Config, path: Path, values: Values) -> None:
    """Add a hint to each shared server that has sent requests to clients.

    It may have done so here, or in a running gateway.
    """
    from gateway.cli.ps import collect_reports

    asked = {name: set(one.get("asked", ())) for name, one in found.items()}
    reports: list[dict[str, Any]] = []
    with contextlib.suppress(ConfigError):  # others can write the directory, which `examine` has warned of
        reports = collect_reports(state_directory(values))
    for report in reports:
        if report.get("config") == str(path.resolve()):
            for backend in report["backends"]:
                asked.get(backend["name"], set()).update(backend["asked"])
    for name, methods in asked.items():
        if methods and config.servers[name].session == "shared":
            text = f"it sends {' and '.join(sorted(methods))}, answered only while one client alone has calls there"
            found[name]["hints"].append(f'{text}; if several clients share it, give it "session": "client"')
            if ROOTS in methods:
                found[name]["hints"].append("roots requested outside of calls are refused: name its folders in 'args'")


def examine(config: Config, values: Values) -> dict[str, dict[str, Any]]:
    """Start each server once, save its lists, and return the findings by server."""
    warn_of_state(values)
    quiet = logging.NullHandler()  # the report includes the relevant log lines
    log = logging.getLogger("gateway")
    log.addHandler(quiet)
    try:
        return trio.run(partial(_examine_all, config, Store(state_directory(values))))
    finally:
        log.removeHandler(quiet)


class _Listener:
    """Keeps the last lines of a server's stderr and ignores its notifications."""

    def __init__(self) -> None:
        self.stderr: deque[bytes] = deque(maxlen=SHOWN_LINES)

    def list_changed(self, feature: str) -> None:
        pass

    def resource_updated(self, uri: str, params: dict[str, msgspec.Raw]) -> None:
        pass

    def for_client(self, key: str, method: str, params: dict[str, msgspec.Raw]) -> None:
        pass

    def freed(self) -> None:
        pass

    def wrote_stderr(self, line: bytes) -> None:
        self.stderr.append(line)


async def _examine_all(config: Config, store: Store) -> dict[str, dict[str, Any]]:
    from gateway.backends.opener import SessionOpener
    from gateway.processes.guard import open_guard

    found: dict[str, dict[str, Any]] = {}
    async with open_guard(subreaper=False) as guard, trio.open_nursery() as nursery:
        opener = SessionOpener(guard, name=config.gateway.name)
        await nursery.start(opener.run)
        async with trio.open_nursery() as examinations:

            async def examine(server: ServerConfig) -> None:
                found[server.name] = await _examine(server, opener, guard, config, store)

            for server in config.servers.values():
                if not server.disabled:
                    examinations.start_soon(examine, server)
        nursery.cancel_scope.cancel(reason="all have been examined")
    for name, one in found.items():
        one["era_record"] = _recorded(store, config.servers[name])
    disabled = {one.name: {"ok": True, "disabled": one.disabled_by} for one in config.servers.values() if one.disabled}
    found |= disabled
    return {name: cast("dict[str, Any]", SECRETS.mask_all(found[name])) for name in config.servers}


def _recorded(store: Store, server: ServerConfig) -> dict[str, Any] | None:
    """Return the recorded era and version for the next start; null means a probe."""
    record = store.load_era(server)
    if record is None or not 0 <= time.time() - record.at <= ERA_MAX_AGE:
        return None
    return {
        "era": record.era,
        "version": record.version,
        "eras_offered": record.eras,
        "versions_offered": list(record.offered),
        "transport": record.transport,
        "server_info": jsonrpc.decode_any(record.server_info),
        "probed_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.at)),
    }


async def _examine(
    server: ServerConfig, opener: SessionOpener, guard: ChildGuard, config: Config, store: Store
) -> dict[str, Any]:
    report: dict[str, Any] = {"ok": False, "problem": None, "code": None, "hints": []}
    listener = _Listener()
    if server.command is not None:
        report["command"] = find_program(server.command, child_environment(server, os.environ), server.cwd)
        own = shutil.which(server.command)
        if report["command"] is None and own is not None:
            hint = f"{server.command!r} is on your own PATH, as {own}, but not on the PATH of its 'env'"
            report["hints"].append(f"{hint}: set 'command' to that path")
    listing: Listing | None = None
    began = trio.current_time()
    grace = server.shutdown_grace
    bound = server.connect_timeout + grace.close_stdin + grace.terminate + grace.kill + STOP_MARGIN
    try:
        with trio.move_on_after(bound) as scope:
            listing = await _meet(server, opener, listener, report, config)
        if scope.cancelled_caught:
            report["problem"] = f"was not ready within {server.connect_timeout:g} s (connect_timeout)"
            report["code"] = BackendTooSlow.code
    except* (GatewayError, OSError, trio.TooSlowError) as group:
        report["problem"] = _explain(problem := first_in_group(group))
        report["code"] = code_of(problem)
    if report["code"] == BackendTooSlow.code and store.load_catalog(server) is None:
        listing = OVERDUE
    if listing is not None and not any(listing.unread.values()):
        try:
            store.save_catalog(server, listing)
        except OSError as exc:
            report["hints"].append(f"its lists could not be saved in {store.directory}: {exc}")
    report["stderr"] = [shown(line) for line in listener.stderr]
    report["stopped_after"] = round(trio.current_time() - began, 3)
    await guard.scan()
    report["children_left"] = [each.pid for each in guard.snapshot() if each.backend == server.name]
    if report["children_left"]:
        report["problem"] = report["problem"] or "left processes behind"
        report["code"] = report["code"] or PROCESSES_LEFT
    report["ok"] = report["problem"] is None
    return report


async def _meet(
    server: ServerConfig, opener: SessionOpener, listener: _Listener, report: dict[str, Any], config: Config
) -> Listing:
    from gateway.catalog.names import public_name
    from gateway.eras.methods import Kind

    began = trio.current_time()
    async with opener(server, listener) as session:
        items = session.listing.items.get(Kind.TOOLS, ())
        report |= {
            "ready_after": round(trio.current_time() - began, 3),
            "era": str(session.greeting.era),
            "version": session.greeting.version,
            "eras_offered": eras_of(session.greeting.offered, session.greeting.era),
            "versions_offered": list(session.greeting.offered) or [session.greeting.version],
            "server_info": jsonrpc.decode_any(session.greeting.server_info or b"null"),
            "tools": len(items),
        }
        names = [public_name(server.effective_namespace, config.gateway.separator, item.own, 1 << 20) for item in items]
        report["hints"] += session.listing.warnings
        report["long_names"] = [name for name in names if len(name) > MAX_NAME]
        report["odd_names"] = [name for name in names if not _TAKEN_BY_ALL.fullmatch(name)]
        report["asked"] = session.asked
        if session.stray_output:
            report["hints"].append(session.stray_output)
        return session.listing


def _explain(problem: BaseException) -> str:
    """Describe a problem in a sentence that follows the server's name."""
    if isinstance(problem, BackendError):
        return problem.reason
    if isinstance(problem, trio.TooSlowError):
        return "was not ready in time (connect_timeout)"
    return f"failed: {problem}" if str(problem) else f"failed with {type(problem).__name__} without a message"


def show(found: dict[str, dict[str, Any]]) -> None:
    """Print the findings."""
    import sys

    for name, one in found.items():
        if "disabled" in one:
            print(f"{name}: {one['disabled']}")
            continue
        if one["ok"]:
            tools = counted(one["tools"], "tool")
            print(f"{name}: ok, {one['era']} {one['version']}, {tools}, ready in {one['ready_after']:g} s")
            info = cast("dict[str, Any]", one["server_info"] if isinstance(one["server_info"], dict) else {})
            known = [str(info[key]) for key in ("name", "version") if info.get(key)]
            print(f"  server: {' '.join(known) or 'unnamed'}; offers: {' and '.join(one['eras_offered'])}")
        else:
            print(f"{name}: {painted(str(one['problem']), RED, sys.stdout)}")
            for line in one["stderr"]:
                print(f"  stderr: {line}")
        for hint in one["hints"]:
            print(f"  hint: {hint}")
        if one["children_left"]:
            print(f"  processes left: {', '.join(map(str, one['children_left']))}")
    total, parts = sum(one.get("tools", 0) for one in found.values()), list[str]()
    for member, what in (("odd_names", "have characters that some clients reject"), ("long_names", "are too long")):
        names = [name for one in found.values() for name in one.get(member, ())]
        if names:
            parts.append(f"{len(names)} of {total} names {what}, as {names[0]!r}")
    if parts:  # once, since it concerns all servers
        print(f"hint: {'; '.join(parts)}; {NAMES_FIX}")


COMMANDS = (
    Command(
        "doctor",
        "start each server of a config once, or examine a running gateway, and report problems",
        run,
        (
            FILE,
            CONFIG,
            Flag(
                "--running",
                "examine the running gateway instead: what is slow, fails, restarts, is large or insecure",
                switch=True,
            ),
            *WHERE,
            JSON,
            STATE,
        ),
    ),
)
