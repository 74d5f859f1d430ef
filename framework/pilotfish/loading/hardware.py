"""Which device and kernels a run uses, and why not others.

Knows: devices, backends, and what each needs. Does not know: models or checkpoints.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from pilotfish.config import CacheConfig, RuntimeConfig
from pilotfish.errors import ConfigError
from pilotfish.kernels import KernelBackend
from pilotfish.platform.openblas import interprets_triton

if TYPE_CHECKING:
    import torch


def check_cache_dtype(cache: CacheConfig, dtype: str, backend: KernelBackend) -> None:
    """Raises ConfigError for pages of a dtype that the kernels do not read beside the run's."""
    if cache.dtype not in (None, dtype) and backend.name != "native":
        raise ConfigError(
            f"the cache's dtype is {cache.dtype} and the run's {dtype}; wanted one dtype with the "
            f"backend {backend.name!r}: only native kernels read pages of another"
        )


def choose_device(runtime: RuntimeConfig) -> torch.device:
    """The device that is asked for, or a GPU where there is one. Raises ConfigError."""
    import torch

    name = runtime.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"device is {name!r}; wanted auto, cpu, cuda or cuda:N ({str(error).splitlines()[0]})"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; wanted auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= count:
        raise ConfigError(f"device is {name!r} and there are {count} GPUs here; try device cpu")
    return device


def choose_backend(runtime: RuntimeConfig, device: torch.device) -> KernelBackend:
    """The kernels that a device runs with. Raises ConfigError for those that cannot be."""
    backend = KernelBackend.choose(runtime.backend, device.type, runtime.arithmetic)
    if backend.name == "native":
        _check_native(device)
    elif runtime.arithmetic == "portable":
        raise ConfigError(
            "arithmetic is 'portable' and the kernels would be "
            f"{backend.name!r}; wanted native ones on a CPU, whose bits are the same on every "
            f"processor{_no_native()}: use 'invariant', the same bits on one machine"
        )
    if backend.name == "triton" and device.type == "cpu" and not interprets_triton():
        raise ConfigError(
            "backend is 'triton' on a CPU; wanted 'torch' or 'auto' there (TRITON_INTERPRET=1 runs "
            "triton kernels on a CPU, slowly, for tests)"
        )
    if backend.name == "triton" and importlib.util.find_spec("triton") is None:
        raise ConfigError(
            "backend is 'triton' and the package triton is not installed; wanted it (torch's CUDA "
            "builds for Linux bring it; else: pip install triton), or backend 'torch'"
        )
    return backend


def _check_native(device: torch.device) -> None:
    if device.type != "cpu":
        raise ConfigError(f"backend is 'native' on {device}; wanted device cpu, or backend 'auto'")
    if _no_native():
        raise ConfigError(f"backend is 'native'{_no_native()}; wanted 'torch' or 'auto' here")


def _no_native() -> str:
    """Why there are no native kernels, to be put behind a phrase; "" where there are."""
    from pilotfish.kernels.native import why_not

    return f" (there are none here: {why_not()})" if why_not() else ""
