"""want_instructions: torch told to compute with instructions that this processor has.

Knows: torch's variable and what torch says of the processor. Does not know: who computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pilotfish.errors import ConfigError

VARIABLE = "ATEN_CPU_CAPABILITY"
"""torch's: the instruction set of its own CPU kernels. torch takes it without a look at the
processor, which then ends the process in its first operation ("Illegal instruction")."""


def want_instructions() -> None:
    """Raises ConfigError where `VARIABLE` asks for instructions that the processor has not."""
    import torch

    has: dict[str, Callable[[], bool]] = {
        "AVX512": torch.cpu._is_avx512_supported,
        "AVX2": torch.cpu._is_avx2_supported,
    }
    taken: Any = torch.backends.cpu.get_cpu_capability()
    if taken in has and not has[taken]():
        raise ConfigError(
            f"{VARIABLE} is {taken.lower()}, which this processor has not: torch's first operation "
            "would end the process (illegal instruction); unset it, and torch takes the best"
        )
