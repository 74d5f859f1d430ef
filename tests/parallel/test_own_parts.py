"""Parts that are not the library's, on several ranks: right, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from parallel import own_models as own
from parallel.parallel_sessions import prepare_rank
from parallel.test_bits import mixed, tiny
from parallel.thread_ranks import ranks_are_threads
from pilotfish import LLM, CacheConfig, SamplingParams
from pilotfish.config import ParallelConfig
from pilotfish.errors import ConfigError, PluginError
from pilotfish.models.shallow import shallow
from pilotfish.parallel.group import Groups
from pilotfish.parallel.threads import run_ranks, thread_groups
from pilotfish.testing.session import Session
from pilotfish_llama3.model import Llama3Model

HEADS = {"num_attention_heads": 8, "num_key_value_heads": 8}
LLAMA = "LlamaForCausalLM"


def logits_of(
    path: Path, model: type[Any], config: ParallelConfig, architecture: str = LLAMA
) -> dict[str, torch.Tensor]:
    """Of the first rank."""
    served = own.registry(architecture, model)

    def run(groups: Groups) -> dict[str, torch.Tensor]:
        prepared = prepare_rank(path, config, groups, registry=served)
        return mixed(Session(prepared.model, prepared.load()), 96, seed=1)

    return run_ranks(thread_groups(config), run)[0]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny(LLAMA, tmp_path, **HEADS)


def test_a_feed_forward_of_ones_own_is_whole_on_every_rank(llama: Path) -> None:
    alone = ParallelConfig(reduction_slices=4)
    wanted = logits_of(llama, own.WithOwnMLP, alone)
    found = logits_of(llama, own.WithOwnMLP, ParallelConfig(tensor_parallel=4))
    assert all(torch.equal(found[name], logits) for name, logits in wanted.items())
    assert not torch.equal(logits_of(llama, Llama3Model, alone)["a"], wanted["a"])


def test_what_tries_parts_of_ones_own_has_a_whole_models_pages(llama: Path) -> None:
    """Else what it plans would write past them."""
    config = ParallelConfig(tensor_parallel=4)
    served = own.registry(LLAMA, own.WithOwnMLP)
    model: Any = prepare_rank(llama, config, Groups.of_rank(0, config), registry=served).model
    assert [spec.row_shape[1] for spec in model.state] == [2]
    made = shallow(model, is_loaded=False)
    assert made is not None
    assert [spec.row_shape[1] for spec in made[0].state] == [8]
    assert model.is_invariant


def test_attention_of_which_nothing_is_known_is_refused(llama: Path) -> None:
    with pytest.raises(ConfigError, match="no layer is a PagedAttentionLayer"):
        logits_of(llama, own.WithOwnAttention, ParallelConfig(tensor_parallel=4))


def test_pages_of_another_width_than_was_planned_are_not_written_to(llama: Path) -> None:
    with pytest.raises(ValueError, match=r"pages of layer 0 have rows of 32 .* wanted 128"):
        logits_of(llama, own.WithOneOwnAttention, ParallelConfig(tensor_parallel=4))


def test_who_reads_a_shared_table_is_told(llama: Path) -> None:
    with pytest.raises(PluginError, match=r"this one has rows \d+ to \d+; wanted embed_tokens"):
        logits_of(llama, own.ReadsTheTable, ParallelConfig(tensor_parallel=2))
    logits_of(llama, own.ReadsTheTable, ParallelConfig(reduction_slices=2))


@pytest.mark.parametrize(
    ("architecture", "model"),
    [("Lfm2ForCausalLM", own.WithOwnConvOut), ("DeepseekV3ForCausalLM", own.WithOwnLatentOut)],
)
def test_a_product_of_ones_own_is_kept_or_refused(
    architecture: str, model: type[Any], tmp_path: Path
) -> None:
    path = tiny(architecture, tmp_path)
    one = logits_of(path, model, ParallelConfig(), architecture)
    sliced = logits_of(path, model, ParallelConfig(reduction_slices=2), architecture)
    torch.testing.assert_close(sliced["a"], one["a"], atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="DoubledLinear, not the library's Linear"):
        logits_of(path, model, ParallelConfig(tensor_parallel=2), architecture)


def test_more_ranks_than_token_ids_are_refused(tmp_path: Path) -> None:
    path = tiny(LLAMA, tmp_path, vocab_size=3, **HEADS)
    config = ParallelConfig(tensor_parallel=4)
    with pytest.raises(ConfigError, match="3 token ids over 4 ranks"):
        prepare_rank(path, config, Groups.of_rank(0, config))


def test_every_rank_lets_go_of_a_request(llama: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    options: dict[str, Any] = {
        "registry": own.registry(LLAMA, own.KeepsByRequest),
        "tensor_parallel": 2,
        "device": "cpu",
        "cache": CacheConfig(page_size_tokens=4, num_pages=64),
    }
    with ranks_are_threads(), LLM(str(llama), **options) as llm:
        own.KeepsByRequest.released.clear()  # of those that tried it
        for _ in range(2):  # what one call lets go of, workers hear of in the next
            llm.generate([[1, 2, 3]], params)
    of_rank: list[list[str]] = [[], []]
    for rank, name in own.KeepsByRequest.released:
        of_rank[rank].append(name)
    assert len(of_rank[0]) == 2
    assert of_rank[1] == of_rank[0][:1]
