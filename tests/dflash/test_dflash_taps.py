"""The features of every boundary, in any order, against transformers' hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dflash.checkpoints import (
    CASES,
    LAYERS,
    MASK,
    VOCAB,
    WIDTH,
    DraftCase,
    draft_config,
    draft_tensors,
    write_draft,
)
from dflash.conftest import Pair
from dflash.oracle import NaiveTarget
from pilotfish import LLM, SamplingParams, SpeculativeConfig
from pilotfish.speculation import DraftBatch

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Granite": {"embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "Lfm2": {
        "layer_types": ["conv", "full_attention", "conv", "conv", "full_attention", "conv", "conv"],
        "block_auto_adjust_ff_dim": False,
    },
}


def save_family(family: str, folder: Path) -> Path:
    torch.manual_seed(4)
    config = getattr(transformers, f"{family}Config")(
        **{
            **{"vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 64},
            **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": LAYERS},
            **{"max_position_embeddings": 128, "initializer_range": 0.2, **FAMILIES[family]},
        },
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    )
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder / family)
    return folder / family


def features(target: Path, draft: Path) -> torch.Tensor:
    """[T, F] of the prompt's rows, as the drafter gets them from the engine."""
    spec = SpeculativeConfig(method="dflash", width=2)
    llm = LLM(str(target), draft=str(draft), speculative=spec, dtype="float32")
    found: list[torch.Tensor] = []
    proposer: Any = llm.proposer
    real = proposer.propose

    def spy(batch: DraftBatch) -> Any:
        assert batch.features is not None
        found.append(batch.features.clone())
        return real(batch)

    proposer.propose = spy
    llm.generate([PROMPT], SamplingParams(temperature=0, max_tokens=2))
    return found[0]


def draft_of(ids: list[int], folder: Path, *, boundaries: bool) -> Path:
    """A draft that names these ids, in z-lab's format or speculators'."""
    count = tuple(range(len(ids)))
    if boundaries:
        top = {"block_size": 6, "mask_token_id": MASK, "draft_vocab_size": VOCAB}
        case = DraftCase(
            speculators=True,
            top={**top, "aux_hidden_state_layer_ids": ids},
            aux_hidden_state_layers=count,
        )
    else:
        case = DraftCase(
            inside={"mask_token_id": MASK, "target_layer_ids": ids}, aux_hidden_state_layers=count
        )
    path = folder / f"{boundaries}"
    write_draft(path, draft_config(case), draft_tensors(case))
    return path


def room(eager: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Twice what eager torch is off by, and no less than one rounding of the largest number."""
    rounding = exact.abs().max() * torch.finfo(eager.dtype).eps
    return 2 * torch.max((eager.double() - exact).abs().max(), rounding)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("boundaries", "ids"), [(False, [5, -1, 2, 2, 6, 0]), (True, [6, 0, 3, 3, 7, 1])]
)
def test_features_are_hidden_states_at_the_boundaries(
    tmp_path: Path, family: str, boundaries: bool, ids: list[int]
) -> None:
    """Both name the same six: not sorted, one twice, the embedding and the last boundary."""
    target = save_family(family, tmp_path)
    states, _ = NaiveTarget(target, torch.float32).read(PROMPT)
    exact, _ = NaiveTarget(target, torch.float64).read(PROMPT)
    found = features(target, draft_of(ids, tmp_path, boundaries=boundaries)).chunk(6, dim=-1)
    for column, boundary in zip(found, (6, 0, 3, 3, 7, 1), strict=True):
        limit = room(states[boundary], exact[boundary])
        assert (column.double() - exact[boundary]).abs().max() <= limit
        for other in {boundary - 1, boundary + 1} & set(range(LAYERS + 1)):
            assert (column - states[other]).abs().max() > limit  # a shift by one would be seen


def test_the_last_boundary_is_before_the_final_norm(pair: Pair) -> None:
    """transformers' last hidden state is after it; the engines that serve drafts take it before."""
    target, draft = pair("unsorted")
    naive = NaiveTarget(target, torch.float32)
    after = naive.model.model(torch.tensor([PROMPT])).last_hidden_state[0]
    wide = NaiveTarget(target, torch.float64).model.model
    exact = wide(torch.tensor([PROMPT])).last_hidden_state[0]
    found = features(target, draft)[:, -WIDTH:]
    assert CASES["unsorted"].aux_hidden_state_layers[-1] == LAYERS
    limit = room(after, exact)
    assert (found - after).abs().max() > limit
    assert (naive.model.model.norm(found).double() - exact).abs().max() <= limit
