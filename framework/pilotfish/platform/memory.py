"""How much memory of the machine can still be taken.

Knows: processors, GPUs and control groups. Does not know: what takes it.
"""

from __future__ import annotations

from pathlib import Path


def available_bytes(device: str) -> int:
    """Bytes that can still be taken on a device such as "cpu" or "cuda:0".

    On a CPU the smaller of the free memory and what the control group leaves; on a GPU what the
    driver calls free, plus what torch holds without using it.
    """
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + int(idle)
    import psutil

    left = int(psutil.virtual_memory().available)
    return min(left, _control_group_bytes(Path("/sys/fs/cgroup"), left))


def _control_group_bytes(root: Path, default: int) -> int:
    """What the control group (version 2) still allows; file cache that can be dropped is free."""
    try:
        limit = (root / "memory.max").read_text().strip()
        if limit == "max":
            return default
        used = int((root / "memory.current").read_text())
        rows = (line.split() for line in (root / "memory.stat").read_text().splitlines())
        droppable = next((int(row[1]) for row in rows if row[0] == "inactive_file"), 0)
        return max(0, int(limit) - used + droppable)
    except (OSError, ValueError):
        return default
