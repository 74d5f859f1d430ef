"""KernelBackend: which implementation every kernel uses; chosen once at load, never silently."""

from __future__ import annotations

from typing import Literal

import attrs

from pilotfish.kernels.strict import ask_for_strict_products


@attrs.frozen
class KernelBackend:
    """name: "torch", "triton" or "native" (C++ on a CPU).

    invariant: rows' bits independent of what is computed beside.
    portable: besides, the same bits on every CPU; native only.
    """

    name: Literal["torch", "triton", "native"] = "torch"
    invariant: bool = True
    portable: bool = False

    @classmethod
    def choose(cls, name: str, device_type: str, arithmetic: str) -> KernelBackend:
        """name: "auto", "torch", "triton" or "native".

        auto is triton on a GPU; on a CPU native, or torch where there is no library. For invariant
        torch MKL is put in its strict mode for the whole process (see `ask_for_strict_products`).
        """
        if name == "auto":
            name = "triton" if device_type == "cuda" else _of_cpu()
        assert name in ("torch", "triton", "native"), name
        invariant, portable = arithmetic != "fastest", arithmetic == "portable"
        if name == "native":
            return cls("native", invariant, portable)
        if name == "torch" and invariant and device_type == "cpu":
            ask_for_strict_products()
        return cls("triton" if name == "triton" else "torch", invariant, portable)


def _of_cpu() -> str:
    from pilotfish.kernels.native import library

    return "torch" if library() is None else "native"
