"""What decides in which order torch adds on a CPU: the processor, the libraries, their settings.

Knows: where each is found. Does not know: what is added.
"""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import takewhile
from typing import Any

from pilotfish.platform.mkl import strictness

_SETTINGS = "ACL ATEN BLIS DNNL GLIBC GOMP KMP LD MKL OMP ONEDNN OPENBLAS TORCH"
_BEGINNINGS = tuple(f"{name}_" for name in _SETTINGS.split())
"""Of the names of environment variables that a library may read."""
_OF_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_OF_ONE_CORE = "processor|cpu MHz|bogomips|BogoMIPS|core id|physical id|apicid|initial apicid"


def cpu_arithmetic() -> dict[str, Any] | None:
    """All of it, as JSON has it; None where the system does not say which processor it is."""
    import torch

    processor = _processor()
    if not processor:
        return None
    onednn: Any = torch.backends.mkldnn
    return {
        "processor": processor,
        "torch": torch.__config__.show(),
        "threads": torch.__config__.parallel_info(),
        "switches": {
            "cbwr": strictness(),
            "onednn": bool(onednn.enabled),
            "deterministic": [
                bool(onednn.deterministic),
                torch.are_deterministic_algorithms_enabled(),
            ],
            "float32": str(onednn.matmul.fp32_precision),  # torch's other switches set it too
        },
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(_BEGINNINGS) and name not in _OF_WAITING
        },
    }


def _processor() -> dict[str, str]:
    """Of the first one, which all are like; empty where the system has no such file."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        fields = (line.partition(":") for line in takewhile(str.strip, lines))
        found = {name.strip(): value.strip() for name, _, value in fields}
        return {name: value for name, value in found.items() if name not in _OF_ONE_CORE.split("|")}
    return {}
