"""What sampling means, once more on the torch path: GPUs have it, and CPUs without the library."""

from __future__ import annotations

import pytest

from pilotfish.kernels.sampling import native
from sampling import (
    test_sampling_bitmask,
    test_sampling_logprobs,
    test_sampling_noise,
    test_sampling_penalties,
    test_sampling_sampler,
    test_sampling_truncation,
)

MODULES = (
    test_sampling_bitmask,
    test_sampling_logprobs,
    test_sampling_noise,
    test_sampling_penalties,
    test_sampling_sampler,
    test_sampling_truncation,
)


@pytest.fixture(autouse=True)
def _without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "serves", lambda device: False)


globals().update(
    {
        f"{module.__name__.rpartition('.')[2]}_{name}": function
        for module in MODULES
        for name, function in vars(module).items()
        if name.startswith("test_") and callable(function)
    }
)
