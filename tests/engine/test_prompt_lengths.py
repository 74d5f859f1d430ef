"""Prompts around the ends of attention's partitions: every length runs, and with the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pilotfish import LLM, load_registry
from pilotfish.kernels.paged_attention.flash import partition
from pilotfish.testing import SMALL, save_tiny
from pilotfish.testing.checkpoints import examples_of

REGISTRY = load_registry()
ENDS = [partition(index)[1] for index in range(2)]
LENGTHS = [end + offset for end in ENDS for offset in (-17, -1, 0, 1)]
LONGEST = max(LENGTHS) + 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", REGISTRY.architectures)
def test_a_prompt_may_end_with_a_partition(tmp_path: Path, architecture: str, dtype: str) -> None:
    """At once, in chunks that end there, and beside others."""
    name = next(iter(examples_of(architecture, REGISTRY).configs))
    path = save_tiny(architecture, name, tmp_path, REGISTRY)
    config = json.loads((path / "config.json").read_text())
    for part in (config, config.get("text_config", {})):
        if "max_position_embeddings" in part:
            part["max_position_embeddings"] = LONGEST
    (path / "config.json").write_text(json.dumps(config))
    noise = torch.Generator().manual_seed(0)
    prompt = torch.randint(1, SMALL["vocab_size"] // 2, (LONGEST,), generator=noise).tolist()
    prompts = [prompt[:length] for length in LENGTHS]
    with LLM(str(path), dtype=dtype) as llm:
        whole = llm.score(prompt)
        found = [llm.score(one) for one in prompts] + llm.score_many(prompts)
    with LLM(str(path), dtype=dtype, max_batch_tokens=ENDS[0] // 2) as chunked:
        found.append(chunked.score(prompts[-1]))
    for logits in found:
        assert torch.equal(logits, whole[: len(logits)]), len(logits)
