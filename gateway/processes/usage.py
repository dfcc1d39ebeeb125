"""Memory and processor time of a process, from one line of `/proc`.

Linux only. `/proc/PID/stat` takes no lock of the process's memory, so that reading it does not hang with its owner.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from gateway.processes.process_tree import CAN_SCAN

PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE") if CAN_SCAN else 0
TICKS: Final = os.sysconf("SC_CLK_TCK") if CAN_SCAN else 1
MAX_STAT: Final = 4_096
"""Bytes read: fifty numbers and a name of 15 characters."""


class Usage(msgspec.Struct, frozen=True):
    """One process: its name, resident memory in bytes, and processor time in seconds."""

    name: str
    memory: int
    cpu: float


def read_usage(pid: int) -> Usage | None:
    """Return the usage of the process `pid`; None when there is none, or no `/proc`."""
    if not CAN_SCAN:
        return None
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(fd, MAX_STAT)
    except OSError:  # the process ended between open and read
        return None
    finally:
        os.close(fd)
    end = data.rfind(b")")  # the name may contain spaces and brackets
    fields = data[end + 2 :].split()
    name = data[data.find(b"(") + 1 : end].decode(errors="replace")
    return Usage(name, int(fields[21]) * PAGE_BYTES, (int(fields[11]) + int(fields[12])) / TICKS)
