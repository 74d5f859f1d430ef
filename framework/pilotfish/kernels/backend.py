"""KernelBackend: which implementation every kernel uses; chosen once at load, never silently."""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

from pilotfish.platform.mkl import ask_for_strict_products

BackendName: TypeAlias = Literal["torch", "triton", "native"]

_NAMES: dict[str, BackendName] = {"torch": "torch", "triton": "triton", "native": "native"}
ON_A_GPU = "torch's kernels on a GPU add in an order that depends on the number of rows"


@attrs.frozen
class KernelBackend:
    """name: "torch", "triton" or "native" (C++ on a CPU).

    invariant: rows' bits independent of what is computed beside.
    portable: besides, the same bits on every CPU; native only.
    why_not_invariant: what rules it out; "" where it is promised.
    """

    name: BackendName = "torch"
    invariant: bool = True
    portable: bool = False
    why_not_invariant: str = attrs.field()

    @why_not_invariant.default
    def _why_not_invariant(self) -> str:
        return "" if self.invariant else "arithmetic is 'fastest'"

    @classmethod
    def choose(cls, name: str, device_type: str, arithmetic: str) -> KernelBackend:
        """name: "auto", "torch", "triton" or "native".

        auto is triton on a GPU; on a CPU native, or torch where there is no library. For invariant
        arithmetic on a CPU MKL is put in its strict mode for the whole process (see
        `ask_for_strict_products`): for torch's products, and those that a plugin computes beside
        native ones. torch's products on a GPU are never invariant: a library there chooses its
        kernel, and the order of additions, by the number of rows, and no probe here knows it.
        """
        if name == "auto":
            name = "triton" if device_type == "cuda" else _of_cpu()
        invariant, portable = arithmetic != "fastest", arithmetic == "portable"
        if name == "torch" and invariant and device_type != "cpu":
            return cls("torch", False, False, ON_A_GPU)
        if invariant and device_type == "cpu":
            ask_for_strict_products()
        return cls(_NAMES[name], invariant, portable)


def _of_cpu() -> str:
    from pilotfish.kernels.native import library

    return "torch" if library() is None else "native"
