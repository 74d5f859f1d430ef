"""What the processor of the tests has, for settings that would end a process elsewhere."""

from __future__ import annotations

import warnings

import torch


def aten_capability(wanted: str) -> str:
    """For ATEN_CPU_CAPABILITY: `wanted`, or the best there is, with a warning.

    torch computes with what it is told to, and a processor without it ends the process.
    """
    of = torch.cpu.get_capabilities()
    has = {"avx512": of.get("avx512_f", False), "avx2": of.get("avx2", False)}
    best = next((name for name, there in has.items() if there), "default")
    if has.get(wanted, True):
        return wanted
    warnings.warn(f"this processor has no {wanted}: torch computed with {best}", stacklevel=2)
    return best
