"""Every architecture's passes as native calls: the bits of single calls, and nothing left over."""

from __future__ import annotations

from typing import cast

import pytest
import torch

from kernels.native_cases import needs_library
from kernels.planned_passes import both_ways
from pilotfish import load_registry
from pilotfish.layers.block import Block
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.models.decoder_model import DecoderModel
from pilotfish.protocols import ReturnHiddenStates, ReturnLogits
from pilotfish.testing import Subject, tiny_subjects

pytestmark = needs_library

MODES = (
    ReturnHiddenStates.NONE,
    ReturnHiddenStates.LAST,
    ReturnHiddenStates.ALL_NORMALIZED,
    ReturnHiddenStates.SELECTED,
)


def passes(one: Subject, dtype: str, model: DecoderModel) -> list[torch.Tensor]:
    """Logits and hidden states: prefills, chunks, rejected rows and single rows."""
    session = one.session(dtype, model=model, page_size=4, num_pages=128)
    for name, length in (("a", 30), ("b", 12)):
        session.add(name, one.tokens(length, length))
    found: list[torch.Tensor] = []
    for rows, keep in (
        ({"a": 20, "b": 5}, {}),
        ({"b": 4, "a": 3}, {"b": 1}),
        ({"a": 1, "b": 1}, {}),
        ({"b": 1}, {}),
    ):
        outputs = session.execute(session.inputs(dict(rows), dict.fromkeys(rows, 1)))
        session.commit({**rows, **keep})
        found.append(outputs.logits.clone())
        if outputs.hidden_states is not None:
            found.append(outputs.hidden_states.clone())
    return found


@pytest.mark.parametrize("architecture", load_registry().architectures)
def test_planned_passes_have_the_bits_of_single_calls(architecture: str) -> None:
    with tiny_subjects(architecture, load_registry(), dtypes=("bfloat16",)) as subjects:
        for one in subjects:
            for mode in MODES:
                boundaries = (0, 2, 1) if mode is ReturnHiddenStates.SELECTED else ()
                made = one.load("bfloat16", ReturnLogits.VARIABLE, mode, boundaries)
                model = cast(DecoderModel, made)
                planned, single = both_ways(
                    model, lambda one=one, model=model: passes(one, "bfloat16", model)
                )
                assert len(planned) == len(single) == (4 if mode is MODES[0] else 8)
                assert all(map(torch.equal, planned, single)), (one.name, mode)


class WithoutPlan(Block):
    """A block that is called."""

    def __init__(self, block: Block) -> None:
        self.block = block

    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor | None, run: ForwardPass
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.block(x, residual, run)


class WithAWiderStream(WithoutPlan):
    """It keeps its residual stream in float32, as some recurrent models do."""

    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor | None, run: ForwardPass
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = x.float() if residual is None else residual + x.float()
        rounded = total.to(x.dtype)
        made, inner = self.block(rounded, None, run)
        return made, total + (inner.float() - rounded.float())


@pytest.mark.parametrize("own", [WithoutPlan, WithAWiderStream])
def test_a_block_without_a_plan_keeps_the_dtype_of_its_stream(own: type[WithoutPlan]) -> None:
    with tiny_subjects("LlamaForCausalLM", load_registry(), dtypes=("bfloat16",)) as subjects:
        one = next(iter(subjects))
        found = []
        for plans in (True, False):
            made = one.load("bfloat16", ReturnLogits.VARIABLE, ReturnHiddenStates.NONE, ())
            model = cast(DecoderModel, made)
            model.plans_passes = plans
            model.network.layers = tuple(map(own, model.network.layers))
            found.append(passes(one, "bfloat16", model))
            assert model.has_planned is (plans and own is WithoutPlan)
        assert all(map(torch.equal, *found))
