"""KernelBackend: which implementation every kernel uses; chosen once at load, never silently."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

import attrs

from pilotfish.platform.cpu_capability import want_instructions
from pilotfish.platform.mkl import ask_for_strict_products

Asked = ParamSpec("Asked")
Made = TypeVar("Made")
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
        Raises ConfigError where the environment asks for instructions that the processor has not,
        or for a native library that is not there.
        """
        want_instructions()
        on_cpu = _of_cpu()
        if name == "auto":
            name = "triton" if device_type == "cuda" else on_cpu
        invariant, portable = arithmetic != "fastest", arithmetic == "portable"
        if name == "torch" and invariant and device_type != "cpu":
            return cls("torch", False, False, ON_A_GPU)
        if invariant and device_type == "cpu":
            ask_for_strict_products()
        return cls(_NAMES[name], invariant, portable)


def on_native(
    function: Callable[..., Made],
) -> Callable[[Callable[Asked, Made]], Callable[Asked, Made]]:
    """Decorates a kernel: where the backend is native, `function` runs in its place.

    It takes the same arguments but `backend`, which is given by name. The kernel's own body is what
    the other backends run.
    """

    def decorate(kernel: Callable[Asked, Made]) -> Callable[Asked, Made]:
        @wraps(kernel)
        def run(*args: Asked.args, **options: Asked.kwargs) -> Made:
            given: dict[str, Any] = options
            backend = given.get("backend")
            if backend is None or backend.name != "native":
                return kernel(*args, **options)
            del given["backend"]
            return function(*args, **given)

        return run

    return decorate


def _of_cpu() -> str:
    from pilotfish.kernels.native import library

    return "torch" if library() is None else "native"
