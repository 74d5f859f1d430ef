"""Promises about the shape of a call: logit modes, hidden modes, inputs as buffers.

Knows: the modes of `pilotfish.protocols`. Does not know: requests or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from itertools import chain
from types import ModuleType
from typing import Any

import attrs
import torch

from pilotfish.errors import ConfigError
from pilotfish.protocols import (
    ModelOutputs,
    PipelineModel,
    ReturnHiddenStates,
    ReturnLogits,
    SpeculativeTarget,
    TensorRecord,
)
from pilotfish.testing.compare import want_same_bits
from pilotfish.testing.outcome import Broken, NotKnown, want, want_raised
from pilotfish.testing.session import Session
from pilotfish.testing.subject import Subject

LENGTHS = {"a": 5, "b": 1, "c": 9}
LAST = [4, 5, 14]
"""The last row of each request in the packed batch."""
_HIDDEN = ReturnHiddenStates


def logit_modes_agree(subject: Subject) -> None:
    """LAST_TOKEN, VARIABLE and ALL return the same bits for the same rows, as float32."""
    for dtype in subject.dtypes:
        every = _batch(subject, dtype, subject.load(dtype, ReturnLogits.ALL), None).logits.clone()
        want(
            every.dtype == torch.float32 and every.shape == (15, subject.vocab_size),
            f"{dtype}, ALL: logits {list(every.shape)} {every.dtype}",
            f"[15, {subject.vocab_size}] float32",
        )
        last = _batch(subject, dtype, subject.load(dtype, ReturnLogits.LAST_TOKEN), None)
        want_same_bits(last.logits, every[LAST], f"{dtype}, LAST_TOKEN")
        _want_offsets(last, [0, 1, 2, 3])
        for counts, rows in (
            ({"a": 3, "b": 0, "c": 2}, [2, 3, 4, 13, 14]),
            ({"a": 1, "b": 1, "c": 1}, LAST),
            ({"a": 0, "b": 0, "c": 0}, []),
        ):
            some = _batch(subject, dtype, None, counts)
            want_same_bits(some.logits, every[rows], f"{dtype}, VARIABLE {list(counts.values())}")
            ends = [sum(list(counts.values())[:i]) for i in range(4)]
            _want_offsets(some, ends)


def _want_offsets(outputs: ModelOutputs, wanted: list[int]) -> None:
    got = outputs.logit_offsets.tolist()
    want(got == wanted, f"logit_offsets {got}", f"{wanted}")


def _texts(subject: Subject) -> dict[str, list[int]]:
    lengths = enumerate(LENGTHS.items())
    return {name: subject.tokens(length, seed) for seed, (name, length) in lengths}


def _batch(
    subject: Subject, dtype: str, model: PipelineModel | None, wanted: dict[str, int] | None
) -> ModelOutputs:
    session = subject.session(dtype, model=model)
    session.add_all(_texts(subject))
    return session.execute(session.inputs(LENGTHS, wanted))


def hidden_modes_agree(subject: Subject) -> None:
    """LAST, ALL, ALL_NORMALIZED and SELECTED tell of one stream."""
    for dtype in subject.dtypes:
        every = _hidden(subject, dtype, _HIDDEN.ALL)
        none = _hidden_of(subject, dtype, _HIDDEN.NONE)
        want(none is None, f"{dtype}, NONE: hidden states", "None")
        want_same_bits(_hidden(subject, dtype, _HIDDEN.LAST), every[LAST], f"{dtype}, LAST")
        _want_selected(subject, dtype, every)
        if "lm_head" in subject.capabilities:
            normed = _hidden(subject, dtype, _HIDDEN.ALL_NORMALIZED)
            logits = _target(subject, dtype).lm_head(normed)
            wanted = _batch(subject, dtype, None, None).logits
            want_same_bits(logits, wanted, f"{dtype}, lm_head(ALL_NORMALIZED)")


def _want_selected(subject: Subject, dtype: str, every: torch.Tensor) -> None:
    last = subject.load(dtype).config.num_hidden_layers
    if "aux_hidden_states" not in subject.capabilities:
        return
    asked = [last, 0, 1, 0]
    columns = _hidden(subject, dtype, _HIDDEN.SELECTED, asked).chunk(len(asked), dim=1)
    of_dtype = getattr(torch, dtype)
    for place, tensor in ((f"boundary {last}", columns[0]), ("ALL", every)):
        want(
            tensor.dtype == of_dtype,
            f"{dtype}, {place}: {tensor.dtype}",
            f"{of_dtype}: every boundary, and the stream behind the last block, has the model's "
            "dtype, in which drafters read it; a block whose stream is wider goes with a Decoder "
            "whose `run` rounds what it returns",
        )
    want_same_bits(columns[0], every, f"{dtype}, boundary {last} against ALL")
    want_same_bits(columns[3], columns[1], f"{dtype}, boundary 0 asked for twice")
    for wrong in ([last + 1], [-1]):
        got, wanted = f"boundaries {wrong} were accepted", f"a ConfigError: there are 0 to {last}"
        with want_raised(ConfigError, got, wanted):
            subject.load(dtype, hidden=_HIDDEN.SELECTED, boundaries=wrong)
    if "embed" in subject.capabilities:
        tokens = list(chain.from_iterable(_texts(subject).values()))
        with torch.inference_mode():
            ids = torch.tensor(tokens, device=every.device)
            embedded = _target(subject, dtype).embed(ids)
        want_same_bits(columns[1], embedded, f"{dtype}, boundary 0 against embed")


def hidden_states_survive_chunks(subject: Subject) -> None:
    """Hidden states of all chunks of a prompt, joined, are those of one pass."""
    for dtype in subject.dtypes:
        for mode, boundaries in ((_HIDDEN.ALL, ()), (_HIDDEN.SELECTED, (1, 0))):
            if mode is _HIDDEN.SELECTED and "aux_hidden_states" not in subject.capabilities:
                continue
            model = subject.load(dtype, hidden=mode, boundaries=boundaries)
            tokens, found = subject.tokens(13), []
            for chunks in ((13,), (5, 1, 5, 2)):
                session = subject.session(dtype, model=model)
                session.add("a", tokens)
                found.append(torch.cat([_chunk(session, size) for size in chunks]))
            want_same_bits(found[1], found[0], f"{dtype}, {mode}, in chunks")


def _chunk(session: Session, count: int) -> torch.Tensor:
    # As in a prefill: no logits of a chunk that is not the last.
    outputs = session.execute(session.inputs({"a": count}, {"a": 0}))
    session.commit({"a": count})
    assert outputs.hidden_states is not None
    return outputs.hidden_states.clone()


def _hidden(
    subject: Subject, dtype: str, mode: ReturnHiddenStates, boundaries: Sequence[int] = ()
) -> torch.Tensor:
    got = _hidden_of(subject, dtype, mode, boundaries)
    if got is None:
        raise Broken(f"{dtype}, {mode}: no hidden states", "a tensor")
    return got.clone()


def _hidden_of(
    subject: Subject, dtype: str, mode: ReturnHiddenStates, boundaries: Sequence[int] = ()
) -> torch.Tensor | None:
    model = subject.load(dtype, hidden=mode, boundaries=boundaries)
    return _batch(subject, dtype, model, dict.fromkeys(LENGTHS, 0)).hidden_states


def _target(subject: Subject, dtype: str) -> SpeculativeTarget:
    model: Any = subject.load(dtype)
    if isinstance(model, SpeculativeTarget):
        return model
    raise Broken(
        f"{type(model).__name__} without embed and lm_head",
        f"both: the spec offers {sorted(subject.capabilities)}",
    )


def buffers_are_in_declared_order(subject: Subject) -> None:
    """`inputs.buffers` lists every tensor of the inputs once, in the order fields are declared."""
    session = subject.session()
    session.add_all(_texts(subject))
    first = session.inputs(LENGTHS)
    session.execute(first)
    session.commit(LENGTHS)
    for name in LENGTHS:
        session.contexts[name].tokens.append(1)
    for inputs in (first, session.inputs(dict.fromkeys(LENGTHS, 1))):
        if not isinstance(inputs, TensorRecord):
            raise NotKnown(f"{type(inputs).__name__} is no TensorRecord, so it has no `buffers`")
        got, declared = inputs.buffers, _declared(inputs)
        want(
            len(got) == len(declared) and all(a is b for a, b in zip(got, declared, strict=True)),
            f"buffers of shapes {[list(t.shape) for t in got]}",
            f"{[list(t.shape) for t in declared]}, the fields in declared order",
        )


def _declared(record: Any) -> list[torch.Tensor]:
    """The tensors of a record, field by field; an own reading of what `buffers` should be.

    Objects that are no records come last, with what they hold of tensors that no field holds.
    """
    listed, others = list[torch.Tensor](), list[Any]()
    _list_fields(record, listed, others)
    while others:
        hidden = list[torch.Tensor]()
        for value in list(getattr(others.pop(), "__dict__", {}).values()):
            _list_fields(value, hidden, others)
        listed += (tensor for tensor in hidden if not any(tensor is known for known in listed))
    return listed


def _list_fields(record: Any, listed: list[torch.Tensor], others: list[Any]) -> None:
    if isinstance(record, torch.Tensor):
        listed.append(record)
    elif isinstance(record, tuple | list):
        for item in record:
            _list_fields(item, listed, others)
    elif attrs.has(type(record)):
        for field in attrs.fields(type(record)):
            _list_fields(getattr(record, field.name), listed, others)
    elif type(record).__module__ != "builtins" and not isinstance(record, Enum | ModuleType):
        others.append(record)
