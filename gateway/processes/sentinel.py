"""The sentinel: a tiny program that outlives a killed gateway just long enough to end the gateway's children.

The guard runs it by path (`python -I -S -E`), so it imports light parts of the standard library only: it has to be
small. It reads JSON lines from stdin, whose only writer is the gateway, and watches the gateway's pidfd. When the
gateway is gone, however it went, everybody still alive is taken down the same ladder as in a proper stop: wait (the
children's stdin is at its end already), SIGTERM, SIGKILL; then the sentinel exits. On `bye` it exits at once.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time

if __name__ == "__main__":  # run by path: the package may be heavy, the one neighbour is not
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # ruff: ignore[os-path-abspath, os-path-dirname] - pathlib costs 2 MB
    import process_tree  # pyright: ignore[reportMissingImports]
else:
    from gateway.processes import process_tree

STRAGGLER_GRACE = 0.25  # s: between the end of a child and SIGTERM to whom it left behind, who mostly just end as well
LINGER = 0.3  # s without any survivor before exit: a child forked as the gateway died gets its cookie only by exec
PATIENCE = 5.0  # s beyond the longest ladder, for what does not die at once of SIGKILL
GHOST_LADDER = (0.0, 1.0, 1.0)  # for a cookie of ours whose child was never announced
FREEZE_ROUNDS = 5  # scans after SIGSTOP until nobody new turns up; a stopped process cannot fork
MAX_LINE = 1 << 16  # bytes: an announcement has some 200; whoever sends more is not our gateway
QUICK_LOOK, SLOW_LOOK = 0.03, 0.1  # s between two looks at /proc, in the first second and later


class Watch:
    """What the gateway said: who it is, and which children live."""

    def __init__(self) -> None:
        self.instance = ""
        self.since = 0
        self.gateway = 0
        self.families: dict[str, process_tree.ProcessTree] = {}

    def handle_announcement(self, line: bytes) -> bool:
        """Take one announcement; False means that all is well and nobody needs us any more."""
        said = json.loads(line)
        match said["op"]:
            case "bye":
                return False
            case "instance":
                self.instance, self.gateway, self.since = said["instance"], said["pid"], said["start"]
            case "child":
                family = self.families.get(said["cookie"])
                if family is None:
                    ladder = (said["close_stdin"], said["terminate"], said["kill"])
                    family = self.families[said["cookie"]] = process_tree.ProcessTree(
                        said["cookie"], ladder, said["brand"]
                    )
                if said["pid"]:
                    family.born(said["pid"], said["start"])
            case "kin":
                if (family := self.families.get(said["cookie"])) is not None:
                    family.kin.update(dict(said["kin"]))
                    family.sessions.update(dict(said["sessions"]))
            case "gone":
                self.families.pop(said["cookie"], None)
            case _:  # a newer gateway: what it says must not kill the guard of what we do understand
                pass
        return True


def listen(watch: Watch) -> bool:
    """Read until the gateway is gone (True) or says goodbye (False)."""
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
            if gateway_fd < 0 and watch.gateway and hasattr(os, "pidfd_open"):
                # The pipe alone is not enough: a program that embeds the gateway may have forked without exec,
                # and that copy holds the pipe open.
                gateway_fd = _open_pidfd(watch.gateway)
                if gateway_fd >= 0:
                    poll.register(gateway_fd, select.POLLIN)
        elif gateway_fd in events:  # it ended, and with nothing left to read we know all it had to say
            return True


def _open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:  # already gone (then stdin ends as well), or no pidfds here
        return -1


def stop_all(watch: Watch) -> None:
    """Run every family's ladder, all at the same time, until nobody is left or all patience is used up."""
    began = time.monotonic()
    told: set[tuple[int, int]] = set()
    childless: dict[str, float] = {}
    last_seen = began
    longest = max((sum(family.ladder) for family in watch.families.values()), default=0.0)
    while (now := time.monotonic()) < began + longest + PATIENCE and now < last_seen + LINGER:
        rows = scan(watch)
        doomed: list[process_tree.ProcessTree] = []
        for family in watch.families.values():
            living = family.living(rows)
            if not living:
                continue
            last_seen = now
            if all(row.pid != family.pid for row in living):
                childless.setdefault(family.cookie, now)
            terminate, kill = rungs(family, began, childless.get(family.cookie))
            if now >= kill:
                doomed.append(family)
            elif now >= terminate:
                for row in living:
                    if (row.pid, row.start) not in told:
                        told.add((row.pid, row.start))
                        process_tree.send(row.pid, row.start, signal.SIGTERM)
                        process_tree.send(row.pid, row.start, signal.SIGCONT)  # a stopped process cannot obey
        if doomed:
            kill_families(watch, doomed)
        time.sleep(QUICK_LOOK if now < began + 1 else SLOW_LOOK)


def rungs(family: process_tree.ProcessTree, began: float, childless: float | None) -> tuple[float, float]:
    """When this family gets SIGTERM, and when SIGKILL; both come earlier once the child itself has ended."""
    close_stdin, terminate, _ = family.ladder
    at = began + close_stdin
    if childless is not None:
        at = min(at, childless + STRAGGLER_GRACE)
    return at, at + terminate


def scan(watch: Watch) -> dict[int, process_tree.Row]:
    """Scan once and bring every family up to date; a ghost gets a family of its own."""
    known = frozenset(item for family in watch.families.values() for item in family.kin.items())
    found = process_tree.survey(watch.since, known)
    spare = frozenset((os.getpid(), watch.gateway))
    for _ in range(2):  # once more when there were ghosts, for those who descend from them
        ghosts = process_tree.claim(found, watch.families, since=watch.since, instance=watch.instance, spare=spare)
        for row, cookie in ghosts:
            family = watch.families.setdefault(cookie, process_tree.ProcessTree(cookie, GHOST_LADDER))
            family.kin[row.pid] = row.start
        if not ghosts:
            break
    return found.rows


def kill_families(watch: Watch, doomed: list[process_tree.ProcessTree]) -> None:
    """SIGSTOP everybody until nobody new turns up, then SIGKILL: who is stopped cannot fork away from under the axe."""
    frozen: set[tuple[int, int]] = set()
    for _ in range(FREEZE_ROUNDS):
        rows = scan(watch)
        fresh = {(row.pid, row.start) for family in doomed for row in family.living(rows)} - frozen
        if not fresh:
            break
        for pid, start in fresh:
            process_tree.send(pid, start, signal.SIGSTOP)
        frozen |= fresh
    for pid, start in frozen:
        process_tree.send(pid, start, signal.SIGKILL)


def stop_groups(watch: Watch) -> None:
    """Where there is no `/proc`: end the children's process groups, which is all that can be named there."""
    began = time.monotonic()
    groups = {family.pid: family for family in watch.families.values() if family.pid}
    told: set[int] = set()
    while groups and time.monotonic() < began + max(sum(family.ladder) for family in groups.values()) + PATIENCE:
        for pid, family in list(groups.items()):
            terminate, kill = rungs(family, began, None)
            numbers: tuple[int, ...] = (0,)  # just look
            if time.monotonic() >= kill:
                numbers = (signal.SIGKILL,)
            elif time.monotonic() >= terminate and pid not in told:
                told.add(pid)
                numbers = (signal.SIGTERM, signal.SIGCONT)
            try:
                for number in numbers:
                    os.killpg(pid, number)
            except OSError:  # nobody left in it; EPERM is what macOS says of a group of zombies
                del groups[pid]
        time.sleep(SLOW_LOOK)


def main() -> int:
    """Settle in where no signal to the gateway's group, no closed terminal and no unmounted directory reaches us."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    watch = Watch()
    if listen(watch):
        if process_tree.CAN_SCAN:
            stop_all(watch)
        else:
            stop_groups(watch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
