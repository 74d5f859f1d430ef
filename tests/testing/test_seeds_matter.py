"""The promise about seeds is judged by the logits: low ones need a lower temperature."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pilotfish import load_registry
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.sampling import native as native_sampling
from pilotfish.models.decoder import Decoder
from pilotfish.testing import Subject, check, promise_named, tiny_subjects

SEEDS = promise_named("seeds matter")


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with tiny_subjects(
        "LlamaForCausalLM", load_registry(), dtypes=("float32",), only=["plain"]
    ) as (one,):
        yield one


def capped(monkeypatch: pytest.MonkeyPatch, cap: float) -> None:
    real = Decoder.scaled

    def scaled(self: Decoder, logits: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
        return cap * torch.tanh(real(self, logits, backend) / cap)

    monkeypatch.setattr(Decoder, "scaled", scaled)


@pytest.mark.parametrize("cap", [None, 2.0, 0.75])
def test_low_logits_keep_it_and_a_sampler_without_temperature_does_not(
    subject: Subject, cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cap is not None:
        capped(monkeypatch, cap)
    found = check(SEEDS, subject)
    assert (found.status, found.said) == ("ok", "")
    monkeypatch.setattr(native_sampling, "library", lambda: None)  # whose bits are Python's
    monkeypatch.setattr("pilotfish.sampling.sampler._temper_", lambda logits, rows: None)
    found = check(SEEDS, subject)
    print(found.said)
    assert found.status == "FAILED"
    assert "not the greedy one" in found.said


def test_logits_that_no_temperature_tells_apart_are_not_known(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    capped(monkeypatch, 1e-5)
    found = check(SEEDS, subject)
    assert found.status == "not known"
    assert "temperature of 0.0001" in found.said
