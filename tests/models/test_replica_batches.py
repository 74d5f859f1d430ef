"""Batches of several replicas, given to a model that is alone: one pass, in their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.parallel_sessions import prepare_rank
from parallel.test_bits import ARCHITECTURES, REGISTRY, tiny
from pilotfish.config import ParallelConfig
from pilotfish.parallel.group import Groups
from pilotfish.testing.session import Session

TEXTS = {"a": [1, 2, 3], "b": [4], "c": [5, 6, 7, 8, 9]}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batches_of_replicas_are_packed_one_after_the_other(
    architecture: str, tmp_path: Path
) -> None:
    prepared = prepare_rank(
        tiny(architecture, tmp_path), ParallelConfig(), Groups(), registry=REGISTRY
    )
    model: Any = prepared.model
    session = Session(model, prepared.load())
    session.add_all(TEXTS)
    rows = {name: len(text) for name, text in TEXTS.items()}
    one = session.inputs(rows)
    a, b, c = session.contexts.values()
    made = model.prepare_initial_token_inputs([[a], [], [b, c]], one.kv_cache_inputs, [3, 1, 5])
    assert made.data_parallel_splits.tolist() == [0, 1, 1, 3]
    assert made.data_parallel_splits.dtype == torch.int64
    assert any(one is made.data_parallel_splits for one in made.buffers)
    assert getattr(made, "request_ids", ("a", "b", "c")) == ("a", "b", "c")
    assert made.tokens.tolist() == [token for text in TEXTS.values() for token in text]
    assert one.data_parallel_splits is None
    wanted = session.execute(one).logits.clone()
    assert torch.equal(session.execute(made).logits, wanted)
    with pytest.raises(ValueError, match="0 replica batches; wanted 1 or more"):
        model.prepare_initial_token_inputs([])
    nobody = model.prepare_initial_token_inputs([[], []])
    outputs = session.execute(nobody)
    assert outputs.logits.shape == (0, wanted.shape[1])
    assert outputs.logit_offsets.tolist() == [0]
