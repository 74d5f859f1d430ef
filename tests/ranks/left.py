"""What a process has beside its memory, to be compared before and after."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from time import monotonic, sleep

PATIENCE_S = 8.0


def listening_ports() -> int:
    """How many ports this process listens on."""
    sockets = {os.readlink(one) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()}
    found = 0
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/self/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            found += fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets
    return found


def shared_memory() -> set[str]:
    """Names of the machine's shared memory."""
    return {one.name for one in Path("/dev/shm").iterdir()}


def num_threads() -> int:
    """Of this process."""
    return len(list(Path("/proc/self/task").iterdir()))


def are_gone(pids: Iterable[int], within_s: float = PATIENCE_S) -> bool:
    """Whether the processes have ended, or do in time; one that waits for its parent has."""
    deadline = monotonic() + within_s
    while running := [pid for pid in pids if _runs(pid)]:
        if monotonic() > deadline:
            print("still there:", running)
            return False
        sleep(0.02)
    return True


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
