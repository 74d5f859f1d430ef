"""Both ends of a network as Gemma has them: a rounded multiplier, and logits behind a cap."""

from __future__ import annotations

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2TextScaledWordEmbedding

from kernels.native_cases import needs_library
from kernels.planned_passes import both_ways
from models.test_planned_architectures import passes
from models.test_planned_own_parts import load, subject
from pilotfish.kernels import KernelBackend
from pilotfish.layers.embedding import Embedding

CAP = 0.75


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_multiplier_is_rounded_as_transformers_does_where_it_is_asked(dtype: torch.dtype) -> None:
    width, table, tokens = 72, torch.randn(50, 72).to(dtype), torch.arange(50)
    theirs = Gemma2TextScaledWordEmbedding(50, width, 0, embed_scale=width**0.5).to(dtype)
    theirs.weight.data.copy_(table)
    theirs.embed_scale = torch.tensor(width**0.5)  # a file is loaded in its dtype; this is float32
    wanted = theirs(tokens)
    got = {}
    for rounds in (True, False):
        ours = Embedding(50, width, multiplier=width**0.5, rounds_multiplier=rounds)
        ours.assign("weight", table.clone(), KernelBackend("torch"))
        got[rounds] = ours(tokens)
    assert torch.equal(got[True], wanted)
    assert torch.equal(got[False], (table.float() * width**0.5).to(dtype))
    assert torch.equal(got[True], got[False]) == (dtype is torch.float32)


@needs_library
def test_a_cap_of_the_logits_is_planned_and_bends_them() -> None:
    with subject() as one:
        model = load(one)
        plain = passes(one, "bfloat16", model)
        model.network.logits_cap = CAP
        planned, called = both_ways(model, lambda: passes(one, "bfloat16", model))
    for free, bent, same in zip(plain, planned, called, strict=True):
        assert torch.equal(bent, same)
        assert float(free.abs().max()) > 2 * CAP > CAP >= float(bent.abs().max())
        wanted = CAP * torch.tanh(free.double() / CAP)
        assert torch.allclose(bent.double(), wanted, atol=1e-6)
