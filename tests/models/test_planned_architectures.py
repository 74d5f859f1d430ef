"""Every architecture's passes as native calls: the bits of single calls, and nothing left over."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch

from kernels.native_cases import needs_library
from kernels.planned_passes import both_ways
from pilotfish import load_registry
from pilotfish.layers.block import Block
from pilotfish.layers.embedding import Embedding
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.models.decoder_model import DecoderModel
from pilotfish.models.native_pass import NativePass
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


class Doubled(Embedding):
    """What enters block 0 is another row than the table's."""

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return 2 * super().__call__(tokens)


def own_embedding(model: DecoderModel) -> None:
    model.network.embed_tokens.__class__ = Doubled


def own_embed(model: DecoderModel) -> None:
    embed = model.embed
    model.embed = lambda tokens: 2 * embed(tokens)  # type: ignore[method-assign]


def multiplied(model: DecoderModel) -> None:
    model.network.embed_tokens.multiplier = 2.0


def untouched(model: DecoderModel) -> None:
    pass


@pytest.mark.parametrize("change", [untouched, own_embedding, own_embed, multiplied])
def test_a_plan_looks_tokens_up_where_nothing_else_enters_the_first_block(
    change: Callable[[DecoderModel], None],
) -> None:
    with tiny_subjects("LlamaForCausalLM", load_registry(), dtypes=("bfloat16",)) as subjects:
        one = next(iter(subjects))
        made = one.load("bfloat16", ReturnLogits.VARIABLE, ReturnHiddenStates.NONE, ())
        model = cast(DecoderModel, made)
        change(model)
        planned, single = both_ways(model, lambda: passes(one, "bfloat16", model))
        assert all(map(torch.equal, planned, single))
        (laid,) = model._native_passes.values()
        assert isinstance(laid, NativePass)
        assert laid.takes_tokens is (change is untouched)


def other_embedding(model: DecoderModel) -> None:
    table = model.network.embed_tokens
    made = Doubled.__new__(Doubled)
    vars(made).update(vars(table))
    model.network.embed_tokens = made


def own_logits(model: DecoderModel) -> None:
    logits = model._logits
    model._logits = lambda *args: 2 * logits(*args)  # type: ignore[method-assign]


def own_scale(model: DecoderModel) -> None:
    scaled = model.network.scaled
    model.network.scaled = lambda *args: 2 * scaled(*args)  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [own_embed, other_embedding, own_logits, own_scale])
def test_what_is_put_into_a_model_after_a_pass_counts_in_the_next(
    change: Callable[[DecoderModel], None],
) -> None:
    with tiny_subjects("LlamaForCausalLM", load_registry(), dtypes=("bfloat16",)) as subjects:
        one = next(iter(subjects))
        made = one.load("bfloat16", ReturnLogits.VARIABLE, ReturnHiddenStates.NONE, ())
        model = cast(DecoderModel, made)
        before = passes(one, "bfloat16", model)
        assert model.has_planned
        change(model)
        after = passes(one, "bfloat16", model)
        model.plans_passes = False
        assert all(map(torch.equal, after, passes(one, "bfloat16", model)))
        assert not all(map(torch.equal, after, before))


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GraniteForCausalLM"])
def test_a_first_pass_of_no_rows_gives_none(architecture: str) -> None:
    with tiny_subjects(architecture, load_registry(), dtypes=("float32",)) as subjects:
        one = next(iter(subjects))
        made = one.load("float32", ReturnLogits.VARIABLE, ReturnHiddenStates.NONE, ())
        session = one.session("float32", model=made, page_size=4, num_pages=8)
        session.add("a", one.tokens(3, 3))
        outputs = session.execute(session.inputs({"a": 0}, {"a": 0}))
        assert outputs.logits.shape[0] == 0


@pytest.mark.parametrize("token", [-1, 1 << 40])
def test_a_token_that_the_table_has_not_is_refused(token: int) -> None:
    with tiny_subjects("LlamaForCausalLM", load_registry(), dtypes=("float32",)) as subjects:
        one = next(iter(subjects))
        made = one.load("float32", ReturnLogits.VARIABLE, ReturnHiddenStates.NONE, ())
        session = one.session("float32", model=made, page_size=4, num_pages=8)
        session.add("a", one.tokens(3, 3))
        inputs = session.inputs({"a": 3}, {"a": 1})
        inputs.tokens[1] = token
        with pytest.raises(ValueError, match=rf"tokens goes from .*{token}"):
            session.execute(inputs)
