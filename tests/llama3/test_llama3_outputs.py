"""Logit modes, hidden modes and boundaries, embed and lm_head, and inputs that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from llama3.driver import Driver, load, selected, whole
from llama3.families import exact, logits, prompt, reference
from pilotfish.errors import ConfigError
from pilotfish.invariance.padding import RowPadding
from pilotfish.invariance.rows import padded, wanted_rows
from pilotfish.kernels import KernelBackend
from pilotfish.layers.linear import Linear
from pilotfish.models.inputs import DecoderInputs
from pilotfish.protocols import ReturnHiddenStates, ReturnLogits, SpeculativeTarget
from pilotfish_llama3.inputs import Llama3Inputs
from pilotfish_llama3.model import Llama3Model

Checkpoint = Callable[[str], Path]

LENGTHS = {"a": 5, "b": 1, "c": 9}
ROWS = sum(LENGTHS.values())
LAST = [4, 5, 14]


def batch(model: Llama3Model) -> Driver:
    driver = Driver(model)
    for seed, (name, length) in enumerate(LENGTHS.items()):
        driver.add(name, prompt(length, seed=seed))
    return driver


def theirs(model: Any) -> list[torch.Tensor]:
    """transformers' hidden_states of the batch, rows packed: [0..L], the last one normed."""
    found = []
    with torch.no_grad():
        for seed, length in enumerate(LENGTHS.values()):
            ids = torch.tensor([prompt(length, seed=seed)])
            found.append(model(ids, output_hidden_states=True).hidden_states)
    return [torch.cat([states[i][0] for states in found]) for i in range(len(found[0]))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logit_modes_agree(checkpoint: Checkpoint, dtype: str) -> None:
    path = checkpoint("granite")
    every = batch(load(path, dtype)).run(LENGTHS)
    assert every.logits.shape == (ROWS, 96)
    assert every.logits.dtype == torch.float32
    last = batch(load(path, dtype, return_logits=ReturnLogits.LAST_TOKEN)).run(LENGTHS)
    assert torch.equal(last.logits, every.logits[LAST])
    assert last.logit_offsets.tolist() == [0, 1, 2, 3]
    variable = load(path, dtype, return_logits=ReturnLogits.VARIABLE)
    some = batch(variable).run(LENGTHS, return_n_logits=[3, 0, 2])
    assert torch.equal(some.logits, every.logits[[2, 3, 4, 13, 14]])
    assert some.logit_offsets.tolist() == [0, 3, 3, 5]
    assert torch.equal(batch(variable).run(LENGTHS).logits, last.logits)
    none = batch(variable).run(LENGTHS, return_n_logits=0)
    assert none.logits.shape == (0, 96)
    assert none.logit_offsets.tolist() == [0, 0, 0, 0]


def test_too_many_logits_are_refused(checkpoint: Checkpoint) -> None:
    model = load(checkpoint("llama"), return_logits=ReturnLogits.VARIABLE)
    with pytest.raises(ValueError, match="asks for 2 rows of request 1, which has 1"):
        batch(model).run(LENGTHS, return_n_logits=2)


@pytest.mark.parametrize("case", ["llama", "granite", "olmo", "smollm3", "qwen3-windows"])
def test_boundaries_are_transformers_hidden_states(checkpoint: Checkpoint, case: str) -> None:
    """Unsorted, repeated, first and last; a boundary off by one is far away."""
    path = checkpoint(case)
    wanted, eager = theirs(exact(path)), theirs(reference(path))
    last = len(wanted) - 1
    asked = [last - 1, 0, 1, last - 1]
    got = batch(selected(path, [*asked, last])).run(LENGTHS).hidden_states
    assert got is not None

    def gap(rows: torch.Tensor, boundary: int) -> float:
        return (rows.double() - wanted[boundary]).abs().max().item()

    *parts, top = got.chunk(len(asked) + 1, dim=1)
    for boundary, part in zip(asked, parts, strict=True):
        assert gap(part, boundary) <= 2 * gap(eager[boundary], boundary)
        for other in set(range(last)) - {boundary}:
            assert gap(part, other) > 1e-2
    ours = load(path)
    normed = ours.network.norm(top, ours.backend)
    assert gap(normed, last) <= 2 * gap(eager[last], last)


@pytest.mark.parametrize("case", ["llama", "granite", "olmo"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hidden_modes_agree(checkpoint: Checkpoint, case: str, dtype: str) -> None:
    path = checkpoint(case)

    def hidden(mode: ReturnHiddenStates) -> torch.Tensor:
        outputs = batch(load(path, dtype, return_hidden_states=mode)).run(LENGTHS)
        assert torch.equal(outputs.logits, plain.logits)
        assert outputs.hidden_states is not None
        return outputs.hidden_states

    model = load(path, dtype)
    plain = batch(model).run(LENGTHS)
    assert plain.hidden_states is None
    every = hidden(ReturnHiddenStates.ALL)
    assert every.shape == (ROWS, 48)
    assert torch.equal(hidden(ReturnHiddenStates.LAST), every[LAST])
    top = batch(selected(path, [2], dtype=dtype)).run(LENGTHS).hidden_states
    assert top is not None
    assert torch.equal(top, every)
    normed = hidden(ReturnHiddenStates.ALL_NORMALIZED)
    assert torch.equal(model.lm_head(normed), plain.logits)
    assert torch.equal(model.lm_head(normed[3:4])[0], plain.logits[3])


@pytest.mark.parametrize("case", ["llama", "granite"])
def test_embed_is_boundary_zero(checkpoint: Checkpoint, case: str) -> None:
    model = selected(checkpoint(case), [0])
    assert isinstance(model, SpeculativeTarget)
    tokens = [token for seed, n in enumerate(LENGTHS.values()) for token in prompt(n, seed=seed)]
    hidden = batch(model).run(LENGTHS).hidden_states
    assert hidden is not None
    assert torch.equal(hidden, model.embed(torch.tensor(tokens)))


def test_boundaries_that_do_not_exist_are_refused(checkpoint: Checkpoint) -> None:
    path = checkpoint("llama")
    for boundaries in ([3], [-1], []):
        with pytest.raises(ConfigError, match="aux_hidden_state_layers"):
            selected(path, boundaries)
    with pytest.raises(ConfigError, match="aux_hidden_state_layers"):
        load(path, aux_hidden_state_layers=[1])


def test_row_selection_by_hand() -> None:
    rows = wanted_rows(ReturnLogits.VARIABLE, [4, 2, 3], [2])
    assert (rows.indices, rows.offsets) == ([2, 3, 4, 5, 7, 8], [0, 2, 4, 6])
    with pytest.raises(ValueError, match="return_n_logits"):
        wanted_rows(ReturnLogits.VARIABLE, [4], [-1])
    assert [padded(n, 4) for n in (0, 1, 4, 5)] == [4, 4, 4, 8]


def test_buffers_are_the_tensors_in_declared_order(checkpoint: Checkpoint) -> None:
    model = load(checkpoint("llama-dynamic"))
    driver = batch(model)
    for name, length in LENGTHS.items():
        driver.contexts[name].num_scheduled = length
        driver.states.reserve(name, driver.contexts[name].tokens)
    kv = driver.states.kv_inputs(list(LENGTHS), list(LENGTHS.values()))
    inputs = model.prepare_initial_token_inputs([list(driver.contexts.values())], kv)
    assert isinstance(inputs, Llama3Inputs)
    assert inputs.rope_lengths is not None
    assert inputs.rope_lengths.tolist() == list(LENGTHS.values())
    ids = [id(tensor) for tensor in inputs.buffers]
    first = (inputs.tokens, inputs.input_row_offsets, inputs.return_n_logits)
    assert ids[:3] == [id(tensor) for tensor in first]
    assert ids[-1] == id(inputs.rope_lengths)
    assert set(map(id, kv.buffers)) < set(ids)
    assert model.release("a") is None
    with pytest.raises(ValueError, match="one batch"):
        attrs.evolve(inputs, kv_cache_inputs=attrs.evolve(kv, row_counts=(1, 1, 1)))
    with pytest.raises(ValueError, match="kv_cache_inputs is None"):
        model.execute(attrs.evolve(inputs, kv_cache_inputs=None))
    plain = DecoderInputs(
        tokens=inputs.tokens,
        input_row_offsets=inputs.input_row_offsets,
        return_n_logits=inputs.return_n_logits,
        kv_cache_inputs=kv,
    )
    with pytest.raises(ValueError, match="Llama3Inputs"):
        model.execute(plain)
    with pytest.raises(ValueError, match="wanted inputs of one batch"):
        model.prepare_initial_token_inputs([[], []], kv)
    with pytest.raises(ValueError, match="got 0 replica batches"):
        model.prepare_initial_token_inputs([], kv)


def test_next_row_without_a_page_is_refused(checkpoint: Checkpoint) -> None:
    model = load(checkpoint("llama"))
    driver = Driver(model)
    context = driver.add("a", prompt(4))
    context.num_scheduled = 4
    driver.states.reserve("a", context.tokens)
    inputs = model.prepare_initial_token_inputs([[context]], driver.states.kv_inputs(["a"], [4]))
    model.execute(inputs)
    with pytest.raises(ValueError, match="reserve the row"):
        model.prepare_next_token_inputs(torch.tensor([1]), inputs)


@pytest.mark.parametrize("multiple", [2, 4, 16])
def test_rows_are_padded_to_what_this_machine_needs(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, multiple: int
) -> None:
    """Every linear layer, the head too, sees a multiple of rows; the answer does not change."""
    model = load(checkpoint("llama"))
    assert model.is_invariant
    wanted = {length: whole(model, prompt(length)) for length in (1, 3, 5, 8)}
    rows: set[int] = set()
    apply = Linear.__call__

    def spy(self: Linear, x: torch.Tensor, *options: Any) -> torch.Tensor:
        rows.add(x.shape[0])
        return apply(self, x, *options)

    monkeypatch.setattr(Linear, "__call__", spy)
    model.padding = RowPadding(body=multiple, head=multiple)
    assert model.row_multiple == multiple
    for length, logits_alone in wanted.items():
        assert torch.equal(whole(model, prompt(length)), logits_alone)
    assert {count % multiple for count in rows} == {0}


def test_arithmetic_is_not_called_invariant_where_it_is_not(checkpoint: Checkpoint) -> None:
    model = load(checkpoint("llama"), backend=KernelBackend("torch", False))
    assert not model.is_invariant
    assert model.row_multiple == 1
    wanted = logits(reference(checkpoint("llama")), prompt(3))
    assert (whole(model, prompt(3)).double() - wanted).abs().max() < 1e-4
