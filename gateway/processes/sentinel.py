"""The sentinel: a small program that ends the children of a killed gateway.

The guard runs it by path (`python -I -S -E`); it imports only light parts of the standard library, to stay small. It
reads JSON lines from stdin, whose only writer is the gateway, and watches the gateway's pidfd. When the gateway has
ended, for whatever reason, every process still alive goes through the same shutdown sequence as in a proper stop: wait
(the children's stdin is closed already), SIGTERM, SIGKILL; then the sentinel exits. `bye` ends it at once.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time

if __name__ == "__main__":  # run by path: importing the package may be slow, importing its one module is not
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # ruff: ignore[os-path-abspath, os-path-dirname] - pathlib costs 2 MB
    import process_tree  # pyright: ignore[reportMissingImports]
else:
    from gateway.processes import process_tree

STRAGGLER_GRACE = 0.25  # s between the end of a child and SIGTERM to its descendants, most of which end as well
LINGER = 0.3  # s without survivors before exit: a child forked as the gateway died gets its tree id only with exec
KILL_TIMEOUT = 5.0  # s beyond the longest grace, for processes that do not end immediately on SIGKILL
ORPHAN_GRACE = (0.0, 1.0, 1.0)  # for a tree id of the gateway whose child was never announced
SCAN_ATTEMPTS = 3  # a machine so busy that `ps` exceeds its timeout may be less busy after the end of the groups
FREEZE_ROUNDS = 5  # scans after SIGSTOP until none finds a new process; a stopped process cannot fork
MAX_LINE = 1 << 16  # bytes: an announcement has some 200; a longer line is not the gateway's
MAX_FDS = 1 << 16  # that a gateway may have; without a limit, macOS reports more than `closerange` accepts
FAST_SCAN_INTERVAL, SCAN_INTERVAL = 0.03, 0.1  # s between two scans, in the first second and later


class Watch:
    """The gateway's announcements: its own pid, and its living children."""

    def __init__(self) -> None:
        self.instance = ""
        self.since = 0
        self.gateway = 0
        self.trees: dict[str, process_tree.ProcessTree] = {}

    def handle_announcement(self, line: bytes) -> bool:
        """Apply one announcement; return False if the sentinel is no longer needed."""
        message = json.loads(line)
        match message["op"]:
            case "bye":
                return False
            case "instance":
                self.instance, self.gateway, self.since = message["instance"], message["pid"], message["start"]
            case "child":
                tree = self.trees.get(message["tree"])
                if tree is None:
                    grace = (message["close_stdin"], message["terminate"], message["kill"])
                    tree = process_tree.ProcessTree(message["tree"], grace, message["limit_mark"])
                    self.trees[tree.id] = tree
                if message["pid"]:
                    tree.set_child(message["pid"], message["start"])
            case "processes":
                if (tree := self.trees.get(message["tree"])) is not None:
                    tree.processes.update(dict(message["processes"]))
                    tree.sessions.update(dict(message["sessions"]))
            case "gone":
                self.trees.pop(message["tree"], None)
            case _:  # from a newer gateway: keep guarding the known trees
                pass
        return True


def listen(watch: Watch) -> bool:
    """Read until the gateway has ended (True) or has sent `bye` (False)."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    gateway_fd = -1
    buffer = b""
    while True:
        events = dict(poll.poll())
        if 0 in events:
            data = os.read(0, MAX_LINE)
            if not data:
                return True
            *lines, buffer = (buffer + data).split(b"\n")
            if len(buffer) > MAX_LINE or not all(watch.handle_announcement(line) for line in lines):
                return False
            if gateway_fd < 0 and watch.gateway and sys.platform == "linux":
                # The pipe alone is not enough: a program that embeds the gateway may have forked without exec,
                # and that copy holds the pipe open.
                try:
                    gateway_fd = os.pidfd_open(watch.gateway)
                except OSError:  # already gone (then stdin ends as well), or no pidfds here
                    pass
                else:
                    poll.register(gateway_fd, select.POLLIN)
        elif gateway_fd in events:  # it ended, and all its announcements have been read
            return True


def stop(watch: Watch) -> None:
    """End all processes; where they cannot be listed, only the groups of the children."""
    if not process_tree.CAN_SCAN:
        stop_groups(watch)
        return
    for _ in range(SCAN_ATTEMPTS):
        try:
            stop_all(watch)
            return
        except OSError:  # `ps` has failed: end what is known without it, then try again
            stop_groups(watch)


def stop_all(watch: Watch) -> None:
    """Run all shutdown sequences concurrently, until all processes end or time is up."""
    began = time.monotonic()
    signalled: set[tuple[int, int]] = set()
    childless: dict[str, float] = {}
    last_seen = began
    longest = max((sum(tree.grace) for tree in watch.trees.values()), default=0.0)
    while (now := time.monotonic()) < began + longest + KILL_TIMEOUT and now < last_seen + LINGER:
        rows = scan(watch)
        overdue: list[process_tree.ProcessTree] = []
        for tree in watch.trees.values():
            living = tree.living(rows)
            if not living:
                continue
            last_seen = now
            if all(row.pid != tree.pid for row in living):
                childless.setdefault(tree.id, now)
            terminate, kill = signal_times(tree, began, childless.get(tree.id))
            if now >= kill:
                overdue.append(tree)
            elif now >= terminate:
                for row in living:
                    if (row.pid, row.start) not in signalled:
                        signalled.add((row.pid, row.start))
                        process_tree.send(row, signal.SIGTERM)
                        process_tree.send(row, signal.SIGCONT)  # a stopped process cannot obey
        if overdue:
            kill_trees(watch, overdue)
        time.sleep(FAST_SCAN_INTERVAL if now < began + 1 else SCAN_INTERVAL)


def signal_times(tree: process_tree.ProcessTree, began: float, childless: float | None) -> tuple[float, float]:
    """Return a tree's times of SIGTERM and SIGKILL, earlier if its child has ended."""
    close_stdin, terminate, _ = tree.grace
    at = began + close_stdin
    if childless is not None:
        at = min(at, childless + STRAGGLER_GRACE)
    return at, at + terminate


def scan(watch: Watch) -> dict[int, process_tree.Row]:
    """Scan once and update every tree; an orphan gets a tree of its own."""
    known = frozenset(item for tree in watch.trees.values() for item in tree.processes.items())
    found = process_tree.scan_processes(watch.since, known)
    excluded = frozenset((os.getpid(), watch.gateway))
    for _ in range(2):  # a second time for the descendants of orphans
        orphans = process_tree.assign_processes(
            found, watch.trees, since=watch.since, instance=watch.instance, excluded=excluded
        )
        for row, tree_id in orphans:
            tree = watch.trees.setdefault(tree_id, process_tree.ProcessTree(tree_id, ORPHAN_GRACE))
            tree.processes[row.pid] = row.start
        if not orphans:
            break
    return found.rows


def kill_trees(watch: Watch, overdue: list[process_tree.ProcessTree]) -> None:
    """SIGSTOP until no new process is found, then SIGKILL: a stopped process cannot fork."""
    frozen: dict[tuple[int, int], process_tree.Row] = {}
    for _ in range(FREEZE_ROUNDS):
        rows = scan(watch)
        living = [row for tree in overdue for row in tree.living(rows)]
        fresh = {(row.pid, row.start): row for row in living if (row.pid, row.start) not in frozen}
        if not fresh:
            break
        for row in fresh.values():
            process_tree.send(row, signal.SIGSTOP)
        frozen |= fresh
    for row in frozen.values():
        process_tree.send(row, signal.SIGKILL)


def stop_groups(watch: Watch) -> None:
    """End the process groups of the children, where their descendants cannot be listed."""
    began = time.monotonic()
    groups = {tree.pid: tree for tree in watch.trees.values() if tree.pid}
    signalled: set[int] = set()
    while groups and time.monotonic() < began + max(sum(tree.grace) for tree in groups.values()) + KILL_TIMEOUT:
        for pid, tree in list(groups.items()):
            terminate, kill = signal_times(tree, began, None)
            numbers: tuple[int, ...] = (0,)  # check only
            if time.monotonic() >= kill:
                numbers = (signal.SIGKILL,)
            elif time.monotonic() >= terminate and pid not in signalled:
                signalled.add(pid)
                numbers = (signal.SIGTERM, signal.SIGCONT)
            try:
                for number in numbers:
                    os.killpg(pid, number)
            except OSError:  # the group is empty; macOS returns EPERM for a group of zombies
                del groups[pid]
        time.sleep(SCAN_INTERVAL)


def main() -> int:
    """Detach from the gateway's process group, terminal and directory; then watch."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    os.closerange(3, min(os.sysconf("SC_OPEN_MAX"), MAX_FDS))
    watch = Watch()
    if listen(watch):
        stop(watch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
