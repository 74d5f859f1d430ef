"""want_instructions: torch told to compute with instructions that this processor has.

Knows: torch's variable and what torch says of the processor. Does not know: who computes.
"""

from __future__ import annotations

import os
from typing import Any

from pilotfish.errors import ConfigError

VARIABLE = "ATEN_CPU_CAPABILITY"
"""torch's: the instruction set of its own CPU kernels. torch takes it without a look at the
processor, which then ends the process in its first operation ("Illegal instruction")."""

_NEEDED = {
    "AVX2": ("avx2", "fma3"),
    "AVX512": ("avx512_f", "avx512_bw", "avx512_dq", "avx512_vl"),
}
"""What torch calls its own set -> what it says of the processor."""


def want_instructions() -> None:
    """Raises ConfigError where `VARIABLE` asks for instructions that the processor has not."""
    if VARIABLE not in os.environ:
        return
    import torch

    taken: Any = torch.backends.cpu.get_cpu_capability()
    has = getattr(torch.cpu, "get_capabilities", dict[str, Any])()  # older ones do not say
    if not all(has.get(name, True) for name in _NEEDED.get(taken, ())):
        raise ConfigError(
            f"{VARIABLE} is {taken.lower()}, which this processor has not: torch's first operation "
            "would end the process (illegal instruction); unset it, and torch takes the best"
        )
